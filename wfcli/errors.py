"""Errors that a user can act on.

    WfError ─┬─ SourceError        a path, glob, hf: or pretrained: name that leads nowhere
             ├─ CheckpointError    a file that cannot be read, or teachers that do not belong together
             ├─ ArchitectureError  an unknown architecture, or weights that do not fit it
             ├─ DataError          a dataset, split, column or class that is not there
             ├─ GeneratorError     a generator that does not fit these teachers
             └─ OutputError        a place that cannot be written

An error carries *all* its problems, one line each (which file, which tensor, got, expected), and a hint that says what
to do next. The command line prints them without a traceback and exits with 1; any other exception is a bug and keeps
its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import TracebackType

MOST_PROBLEMS = 200
LONGEST = 2000  # characters of one: a damaged file may bring names of megabytes


class WfError(Exception):
    """One or more problems, one line each, and what to do about them.

    `parts` are the problems with the hint for them: one part, but for an error that `gather` made. A problem beyond
    what anybody reads is cut.
    """

    def __init__(self, *problems: str, hint: str | None = None) -> None:
        problems = tuple(map(_cut, problems[:MOST_PROBLEMS])) + _uncounted(problems)
        hint = hint and _cut(hint)
        super().__init__(*problems)
        self.problems = problems
        self.hint = hint
        self.parts: tuple[tuple[tuple[str, ...], str | None], ...] = ((problems, hint),)

    def __str__(self) -> str:
        lines: list[str] = []
        for problems, hint in self.parts:
            lines += [*problems, f"hint: {hint}"] if hint else problems
        return "\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text) - LONGEST:,} characters more)"


def _uncounted(problems: Sequence[str]) -> tuple[str, ...]:
    more = len(problems) - MOST_PROBLEMS
    return (f"... and {more:,} more problems",) if more > 0 else ()


class SourceError(WfError):
    """A path, glob, ``hf:`` or ``pretrained:`` name that leads nowhere."""


class CheckpointError(WfError):
    """A file that cannot be read, or teachers that do not belong together."""


class ArchitectureError(WfError):
    """An unknown architecture, or weights that do not fit it."""


class DataError(WfError):
    """A dataset, split, column or class that is not there."""


class GeneratorError(WfError):
    """A generator that does not fit these teachers."""


class OutputError(WfError):
    """A place that cannot be written."""


def unreadable(path: object, error: OSError) -> CheckpointError:
    """Say that a file of a checkpoint cannot be read, and why."""
    hint = "check that it is there, that you may read it, and that nobody moves it meanwhile"
    return CheckpointError(f"{path}: cannot be read ({error.strerror})", hint=hint)


def gather(errors: Sequence[WfError]) -> WfError:
    """Join errors into one with all their problems, those of one hint together; of their kind if they are of one."""
    if len(errors) == 1:
        return errors[0]
    by_hint: dict[str | None, dict[str, None]] = {}
    for error in errors:
        for problems, hint in error.parts:
            by_hint.setdefault(hint, {}).update(dict.fromkeys(problems))
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else WfError
    hints = [hint for hint in by_hint if hint]
    joined = kind(*(problem for part in by_hint.values() for problem in part), hint="\n".join(hints) or None)
    joined.parts = tuple((tuple(part), hint) for hint, part in by_hint.items())
    return joined


NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


def out_of_memory(error: RuntimeError | MemoryError) -> WfError | None:
    """Say what to do about memory that has run out, on the GPU or beside it; None for any other error.

    PyTorch's own class for it (`torch.OutOfMemoryError`) covers GPUs only, and is not to be loaded for a look at it.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not any(words in text for words in NO_MEMORY):
        return None
    gpu = type(error).__name__ == "OutOfMemoryError" or "CUDA" in text
    where = "the GPU's memory" if gpu else "memory"
    wish = "use a smaller --batch-size where there is one, or " + (
        "--device cpu" if gpu else "a machine with more memory"
    )
    return WfError(f"{where} ran out{f': {text[:200]}' if text else ''}", hint=wish)


def out_of_space(error: OSError) -> WfError | None:
    """Say what to do about a disk that has no room, wherever it was met; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return None
    what = error.filename if isinstance(error.filename, str) else "standard output, or a file"
    hint = "make room there; TMPDIR, HF_HOME and -o say where files go"
    return OutputError(f"{what}: cannot be written ({error.strerror})", hint=hint)


class Problems:
    """Several checks, each in a `with` of its own: the errors of all of them are raised together.

    As in::

        problems = Problems()
        with problems:
            check_writable(output)
        with problems:
            teachers = open_teachers(sources, architecture)
        problems.raise_all()
    """

    def __init__(self) -> None:
        self.errors: list[WfError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, WfError):
            self.errors.append(error)
            return True
        return False

    def raise_all(self) -> None:
        """Raise what was found, as one error; return where nothing was.

        Raises:
            WfError: of the kind of the errors, if that is one.
        """
        if self.errors:
            raise gather(self.errors)
