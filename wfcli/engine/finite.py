"""Teachers that note what is not finite in them, while they are read for something else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from wfcli.core.checkpoint import Checkpoint
from wfcli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def count_nonfinite(tensor: Tensor) -> int:
    """Count the numbers that are NaN or Inf; almost free where there are none."""
    import torch

    # The sum is finite unless a number is not, or large ones overflow: cheap to ask first.
    if not tensor.is_floating_point() or math.isfinite(tensor.sum(dtype=torch.float32).item()):
        return 0
    return int((~torch.isfinite(tensor)).sum())


@dataclass
class Finite(Mapping[str, "Tensor"]):
    """A teacher that notes every tensor with NaN or Inf as it is read; what was read whole is not looked at again."""

    checkpoint: Checkpoint
    problems: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._looked_at(name, self.checkpoint[name])
        self.seen.add(name)
        return tensor

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Read a tensor in pieces of rows, as `in_pieces` tells."""
        yield from map(partial(self._looked_at, name), self.checkpoint.pieces(name))
        self.seen.add(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint)

    def __len__(self) -> int:
        return len(self.checkpoint)

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoint

    def _looked_at(self, name: str, piece: Tensor) -> Tensor:
        if name in self.seen or name in self.problems or not count_nonfinite(piece):
            return piece
        spec = self.checkpoint.specs[name]
        bad = sum(count_nonfinite(part) for part in self.checkpoint.pieces(name))
        if bad:
            self.problems[name] = f"{self.checkpoint.name}: {name}: got {bad} of {spec.numel} numbers NaN or Inf"
        return piece


def raise_nonfinite(teachers: Sequence[Finite]) -> None:
    """Raise what the teachers have noted, if anything; what was not read yet is then read too, so that all is listed.

    Raises:
        CheckpointError: every tensor with numbers that are not finite.
    """
    if not any(teacher.problems for teacher in teachers):
        return
    for teacher in teachers:
        for name in set(teacher) - teacher.seen:
            _ = teacher[name]
    problems = [problem for teacher in teachers for _, problem in sorted(teacher.problems.items())]
    raise CheckpointError(*problems, hint="leave these checkpoints out, or mend them; nothing was written")
