"""Who made a file from what: the record that travels inside it.

It holds no time and no absolute path, so the same inputs give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wfcli
from wfcli.core.paths import is_there

if TYPE_CHECKING:
    from wfcli.core.architectures import Architecture
    from wfcli.core.checkpoint import Checkpoint
    from wfcli.core.data import DataSpec


def made_by(verb: str, arch: Architecture, seed: int) -> dict[str, Any]:
    """Begin the record of a file: versions (timm is not imported for it), verb, architecture, seed."""
    import torch

    return {
        "wfcli": wfcli.__version__,
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "verb": verb,
        "architecture": {"name": arch.name, "args": dict(arch.args)},
        "seed": seed,
    }


def source_name(source: str) -> str:
    """Name a dataset: of a local folder, its base name."""
    place = os.path.expanduser(source)  # noqa: PTH111 (of a text that may be no path)
    return Path(place).resolve().name if is_there(place) else source


def described(data: DataSpec) -> str:
    """Name a dataset without its folder, and what is taken of it."""
    return source_name(data.source) + (f" (classes {data.classes})" if data.classes else "")


def data_record(spec: DataSpec) -> dict[str, Any]:
    """Name a dataset and what is taken of it."""
    return {"source": source_name(spec.source), "label_column": spec.label_column, "classes": spec.classes}


def class_names(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Return the class names in the record of a file, or else those beside it, in the order of its head; or None."""
    known = (checkpoint.provenance or {}).get("classes")
    return tuple(map(str, known)) if isinstance(known, list) and known else checkpoint.labels


def known_classes(checkpoints: Sequence[Checkpoint]) -> list[str] | None:
    """Return the class names that all these files agree on."""
    known = {class_names(checkpoint) for checkpoint in checkpoints}
    names = known.pop() if len(known) == 1 else None
    return list(names) if names else None
