"""Do the heads have the classes of the data? Asked before an image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wfcli.core.checkpoint import Checkpoint
from wfcli.core.data import DataSpec, load_class_names
from wfcli.engine.hooks import Hooks
from wfcli.errors import DataError


@dataclass(frozen=True)
class Head:
    """The classes of a checkpoint: how many, and which, where its provenance says so."""

    name: str
    num_classes: int
    class_names: tuple[str, ...] | None


def head_of(checkpoint: Checkpoint, num_classes: int) -> Head:
    """Describe the head of a checkpoint."""
    known = (checkpoint.provenance or {}).get("classes")
    return Head(checkpoint.name, num_classes, tuple(known) if isinstance(known, list) else None)


def check_classes(data: DataSpec, heads: Sequence[Head], hooks: Hooks) -> tuple[str, ...]:
    """Return the class names of the data; warn of a checkpoint that was trained on other names, or in another order.

    Raises:
        DataError: heads with another number of classes; or the dataset cannot be read.
    """
    names = load_class_names(data)
    what = f"{data.source} (classes {data.classes})" if data.classes else data.source
    wrong = [head for head in heads if head.num_classes != len(names)]
    if wrong:
        raise DataError(
            *(f"{h.name}: its head has {h.num_classes} classes, the data {what} has {len(names)}" for h in wrong),
            hint="choose the classes of the checkpoints with --classes, or the data they were trained on",
        )
    others = [head for head in heads if head.class_names not in (None, names)]
    if others:
        first = others[0]
        assert first.class_names is not None
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        hooks.warn(
            f"{first.name}{more} was trained on the classes {_short(first.class_names)}; {what} has {_short(names)}"
        )
    return names


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
