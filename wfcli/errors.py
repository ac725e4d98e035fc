"""Errors that a user can act on.

    WfError ─┬─ SourceError        a path, glob, hf: or pretrained: name that leads nowhere
             ├─ CheckpointError    a file that cannot be read, or teachers that do not belong together
             ├─ ArchitectureError  an unknown architecture, or weights that do not fit it
             ├─ DataError          a dataset, split, column or class that is not there
             ├─ GeneratorError     a generator that does not fit these teachers
             └─ OutputError        a place that cannot be written

An error carries *all* its problems, one line each (which file, which tensor, got, expected), and a hint that says what
to do next. The command line prints them without a traceback and exits with 1; any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations


class WfError(Exception):
    """One or more problems, one line each, and what to do about them."""

    def __init__(self, *problems: str, hint: str | None = None) -> None:
        super().__init__(*problems)
        self.problems = problems
        self.hint = hint

    def __str__(self) -> str:
        lines = list(self.problems)
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


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
