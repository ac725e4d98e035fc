"""Hostile and broken files, made from valid ones by seeded mutations, and what of wfcli reads them.

A target makes one input, some files in an empty folder, from a `Random`, and reads it as the commands do. What may come
of it is correct work or an error of ours (`WfError`); anything else is a finding. `tests/test_hostile.py` runs some
thousands of inputs, `examples/faults/fuzz.py` any number, each watched from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from wfcli.errors import WfError

LONGEST_MESSAGE = 20_000  # characters: an error that nobody can read is none


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    make: Callable[[Random, Path], None]  # into an empty folder
    read: Callable[[Path], object]
    share: float  # of a run's inputs: what is quick to read gets more
    command: Callable[[Path], list[str]] | None = None  # the whole command line on the same files
    valid: Callable[[Path], None] | None = None  # the input that all are made from


def targets() -> dict[str, Target]:
    """Return all targets by name."""
    from tests.hostile import images, pickles, texts, weights

    return {**weights.TARGETS, **pickles.TARGETS, **texts.TARGETS, **images.TARGETS}


def make(target: Target, name: str, seed: int, number: int, folder: Path) -> None:
    """Write input `number` of a run into an empty folder."""
    target.make(Random(f"{name}/{seed}/{number}"), folder)


def judge(target: Target, folder: Path) -> str:
    """Read what is in a folder: ``accepted`` or ``refused``; whatever else is raised is a finding."""
    found: WfError | None = None
    try:
        target.read(folder)
    except WfError as error:
        found = error
    finally:
        ran = [place for place in (Path("it_ran"), folder / "it_ran") if place.exists()]
        assert not ran, f"something in a file was run: {ran}"
    if found is None:
        return "accepted"
    text = str(found)
    if not found.problems or len(text) > LONGEST_MESSAGE:
        raise AssertionError(f"a message of {len(text):,} characters: {text[:200]}")
    return "refused"
