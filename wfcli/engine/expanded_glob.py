"""Recognise a glob that the shell expanded, so that teachers turned into checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wfcli.errors import CheckpointError


def refuse_expanded_glob(checkpoints: Sequence[str], teachers: Sequence[str]) -> None:
    """Refuse ``eval student --teachers zoo/*.safetensors`` without quotes: all but one became checkpoints.

    One teacher alone is an error in any case; this one says what happened. The signs: checkpoints in the folder of the
    only teacher, with names that differ from its own by numbers, or several, or a zoo.json.

    Raises:
        CheckpointError: it looks like that.
    """
    if len(teachers) != 1 or not Path(teachers[0]).is_file():
        return
    teacher = Path(teachers[0])
    folder = teacher.resolve().parent
    files = [path for path in map(Path, checkpoints) if path.is_file()]
    beside = [path for path in files if path.resolve().parent == folder and path.name != teacher.name]
    numbered = any(_without_numbers(path) == _without_numbers(teacher) for path in beside)
    if not (numbered or len(beside) > 1 or (beside and (folder / "zoo.json").exists())):
        return
    names = beside[0].name + (f" and {len(beside) - 1} more" if len(beside) > 1 else "")
    raise CheckpointError(
        f"expected at least 2 teachers, got only {teacher.name}; {names} beside it came as checkpoints: "
        "it looks as if the shell had expanded the glob after --teachers",
        hint=f"quote the glob, --teachers '{teacher.parent}/*{teacher.suffix}', or repeat --teachers before every file",
    )


def _without_numbers(path: Path) -> str:
    return "".join(letter for letter in path.name if not letter.isdigit())
