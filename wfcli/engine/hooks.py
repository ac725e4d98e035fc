"""How the engine speaks while it works: it never prints, it calls these two."""

from __future__ import annotations

from typing import Protocol


class Hooks(Protocol):
    """What a verb tells its caller while it runs. `terminal.py` draws it; a library user may pass his own."""

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Tell that `done` of `total` units of `stage` are finished; `figures` (loss, top1) are worth showing too."""

    def warn(self, message: str) -> None:
        """Something the user should know that is not an error."""


class Silent:
    """Hooks that keep quiet: the default."""

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        pass

    def warn(self, message: str) -> None:
        pass
