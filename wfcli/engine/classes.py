"""Has the data the splits that are needed, and have the heads its classes? Asked before an image is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wfcli.core.checkpoint import Checkpoint
from wfcli.core.data import DataSpec, check_split, load_class_names
from wfcli.engine.hooks import Hooks
from wfcli.engine.provenance import class_names
from wfcli.errors import DataError, Problems


@dataclass(frozen=True)
class Head:
    """The classes of a checkpoint: how many, and which, where its provenance says so."""

    name: str
    num_classes: int
    class_names: tuple[str, ...] | None


def head_of(checkpoint: Checkpoint, num_classes: int) -> Head:
    """Describe the head of a checkpoint."""
    return Head(checkpoint.name, num_classes, class_names(checkpoint))


def check_data(data: DataSpec, splits: Iterable[str], heads: Sequence[Head], hooks: Hooks) -> None:
    """Check data against the heads; warn of a checkpoint that was trained on other class names, or in another order.

    Raises:
        DataError: the dataset cannot be read or lacks one of the `splits`; heads with another number of classes.
    """
    problems = Problems()
    names: tuple[str, ...] = ()
    for split in splits:
        with problems:
            check_split(data, split)
    with problems:
        names = load_class_names(data)
        _check_numbers(data, names, heads)
    problems.raise_all()
    others = [head for head in heads if head.class_names not in (None, names)]
    if others:
        first = others[0]
        assert first.class_names is not None
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        known = _short(first.class_names)
        hooks.warn(f"{first.name}{more} was trained on the classes {known}; {_what(data)} has {_short(names)}")


def _check_numbers(data: DataSpec, names: Sequence[str], heads: Sequence[Head]) -> None:
    wrong = [
        f"{head.name}: its head has {head.num_classes} classes, the data {_what(data)} has {len(names)}"
        for head in heads
        if head.num_classes != len(names)
    ]
    if wrong:
        hint = "choose the classes of the checkpoints with --classes, or the data they were trained on"
        raise DataError(*wrong, hint=hint)


def _what(data: DataSpec) -> str:
    return f"{data.source} (classes {data.classes})" if data.classes else data.source


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
