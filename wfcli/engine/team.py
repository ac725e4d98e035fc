"""The processes that train one generator together, each on its own pairs of teachers and images.

Alone it is this process. Under `accelerate launch` gradients are averaged over all; only the main process writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Team:
    """All processes of a training; `rank` 0 is the main one."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = 0, 1, device
        self._accelerator: Accelerator | None = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator, InitProcessGroupKwargs

            # The main process validates while the others wait: longer than the usual ten minutes, on large zoos.
            patient = InitProcessGroupKwargs(timeout=timedelta(hours=12))
            self._accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patient])
            self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device  # one GPU each

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes; one that is missing counts as zero."""
        wanted = list(parameters)
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._accelerator is None:
            return
        flat = torch.cat([p.grad.flatten() for p in wanted if p.grad is not None])
        mean = self._accelerator.reduce(flat, reduction="mean")
        for parameter, piece in zip(wanted, mean.split([p.numel() for p in wanted]), strict=True):
            parameter.grad = piece.view_as(parameter)

    def from_main(self, thing: Any) -> Any:
        """Return what the main process has."""
        if self._accelerator is None:
            return thing
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([thing])[0]
