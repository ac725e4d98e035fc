"""What the methods of one fuse start from: teachers that are open, checked and in one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wfcli.core.devices import pick_device
from wfcli.core.methods import METHODS
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.hooks import Hooks
from wfcli.engine.making import some_inputs
from wfcli.engine.teachers import Teachers
from wfcli.errors import WfError

if TYPE_CHECKING:
    import torch

    from wfcli.core.regime import Regime
    from wfcli.engine.align import Alignment
    from wfcli.engine.fitting import Loaded
    from wfcli.engine.fuse import FuseConfig


@dataclass(frozen=True)
class Situation:
    """Teachers in one frame, and how they came into it."""

    teachers: Teachers
    checked: Sequence[Finite]
    loaded: Loaded | None  # the generator that was asked for
    relation: Regime | None  # None: nobody asked
    alignment: Alignment | None  # None: the teachers are as they were
    device: torch.device


def find_situation(config: FuseConfig, teachers: Teachers, loaded: Loaded | None, hooks: Hooks) -> Situation:
    """Find out how the teachers are related, and bring them into one frame where that is needed.

    Raises:
        CheckpointError: weights that are not finite.
        ArchitectureError: the net cannot be followed, and the teachers are independent.
        WfError: a base for teachers that are not its fine-tunes.
    """
    device = pick_device(config.device)
    checked = [Finite(checkpoint) for checkpoint in teachers.checkpoints]
    relation = _relate(config, teachers, checked)
    independent = relation is not None and not relation.shared_base
    reference = loaded.generator.reference if loaded else {}
    wanted = config.method in METHODS and METHODS[config.method].align
    if config.align == "none" or (config.align == "auto" and not (independent or reference or wanted)):
        return Situation(teachers, checked, loaded, relation, None, device)
    from wfcli.engine.align import align

    if config.base is not None:
        raise WfError(
            "--base: the teachers come into a frame that is not the base's",
            hint="--align none takes them for fine-tunes of it; for independent ones leave --base out",
        )
    if config.heads is not None:
        raise WfError(
            f"--heads {config.heads}: independent teachers come into one frame by their heads too",
            hint="--align none takes them for fine-tunes of one base",
        )
    inputs = some_inputs(config) if config.align == "activations" else None
    moved, alignment = align(config.architecture, teachers, checked, config.seed, hooks, inputs, reference or None)
    return Situation(teachers, moved, loaded, relation, alignment, device)


def _relate(config: FuseConfig, teachers: Teachers, checked: Sequence[Finite]) -> Regime | None:
    """Find out how the teachers are related, where that is needed: for a generator, and before they are aligned."""
    if config.method not in ("weightformer", "auto") and config.align != "auto":
        return None
    from wfcli.engine.relation import relate

    relation = relate(config.architecture, teachers, checked)
    raise_nonfinite(checked)
    return relation
