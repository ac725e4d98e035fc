"""How the engine speaks while it works: it never prints, it calls these two."""

from __future__ import annotations

from typing import Protocol


class Hooks(Protocol):
    """What a verb tells its caller while it runs. `report.py` draws it; a library user may pass his own."""

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        """`done` of `total` units of `stage` are finished; `figures` are worth showing beside the bar (loss, top1, ...)."""

    def warn(self, message: str) -> None:
        """Something the user should know that is not an error."""


class Silent:
    """Hooks that keep quiet: the default."""

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        pass

    def warn(self, message: str) -> None:
        pass
