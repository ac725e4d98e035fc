"""Ctrl-C, SIGTERM and SIGHUP: the command ends with a word and an exit code, and leaves nothing half-written.

The first of them is an exception like Python's own, so that all that is at work cleans up behind itself. In the middle
of an import it is not: numpy and torch do not survive an exception there. Then, and at a second one, what this process
has half written is removed and it ends at once. No torch.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _State:
    """What is to be said, if anything, and whether a signal has come."""

    hint: str | None = None
    silent = False
    stopped = False
    told = False


def heed(hint: str | None = None, *, silent: bool = False, names: tuple[str, ...] = NAMES) -> None:
    """Heed the signals; `hint` says how to go on. Those that are ignored stay so: nohup, a script's `command &`."""
    _State.hint, _State.silent = hint, silent
    sys.unraisablehook = _unraisable
    for name in names:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def ignore() -> None:
    """Do not heed them any more: all is done, and Python takes its time to end."""
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def words(error: KeyboardInterrupt) -> tuple[int, str, str | None]:
    """Return the exit code, what to say, and how to go on; from now on nothing more is said."""
    _State.told = True
    number = error.number if isinstance(error, Stopped) else signal.SIGINT
    said = "interrupted" if number == signal.SIGINT else f"terminated ({signal.Signals(number).name})"
    return 128 + number, said, _State.hint


def open_streams() -> None:
    """Open the standard streams that are closed: else the next file, a checkpoint say, would be one of them."""
    while (opened := os.open(os.devnull, os.O_RDWR)) < 3:  # it takes the lowest number that is free
        pass
    os.close(opened)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", encoding="utf-8"))  # noqa: PTH123, SIM115


def _stop(number: int, frame: FrameType | None) -> None:
    again, _State.stopped = _State.stopped, True
    if not again and not _is_importing(frame):
        raise Stopped(number)
    _end_at_once(number)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Heed a signal that came within a `__del__` or a callback of the garbage collector, where Python drops it."""
    if isinstance(unraisable.exc_value, Stopped):
        _end_at_once(unraisable.exc_value.number)
    sys.__unraisablehook__(unraisable)


def _end_at_once(number: int) -> None:
    ignore()
    if leftovers := sys.modules.get("wfcli.core.leftovers"):  # else nothing is written yet
        leftovers.remove_own()
    told = _State.told
    code, said, hint = words(Stopped(number))
    if not told and not _State.silent:
        with suppress(OSError):
            os.write(2, f"{said}\nhint: {hint}\n".encode() if hint else f"{said}\n".encode())
    os._exit(code)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
