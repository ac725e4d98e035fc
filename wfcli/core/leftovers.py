"""Temporary files and folders, and what a killed process has left of them. No torch.

Whoever writes holds a lock (flock) on the temporary file or folder; the kernel frees it with the process, however that
ends. So one whose lock is free belongs to nobody, and the next run that writes the same output removes it, never one
that a living process is writing. Where there are no locks (Windows, some network file systems) nothing is removed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

if sys.platform != "win32":
    import fcntl

ENDING = ".wfcli.tmp"  # no glob for checkpoints finds it, and no other program names its files so
_OWN: set[Path] = set()  # those that this process is at work on
_NAME = re.compile(r"\.(?P<of>.+)\.[0-9a-f]{8}" + re.escape(ENDING))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path`; remove it afterwards, unless it got another name.

    Raises:
        OSError: there is no place for it.
    """

    def make(temporary: Path) -> None:
        # not tempfile.mkstemp: its files are private (0600), a checkpoint should follow the user's umask
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))

    with _new(path, make) as temporary:
        yield temporary


@contextmanager
def new_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield an empty folder beside `path`; remove it with all in it afterwards, unless it got another name.

    Raises:
        OSError: there is no place for it.
    """
    with _new(path, partial(os.mkdir, mode=mode)) as temporary:
        yield temporary


def remove_leftovers(folder: Path, of: str | None = None) -> None:
    """Remove what killed processes have left in a folder: of all outputs, or of `of` and what is written beside it.

    Beside `student.safetensors` that is `student.safetensors.resume` and the like.
    """
    for temporary in _temporaries(folder, of):
        with suppress(OSError), _lock(temporary) as got:  # what is wrong with the folder is told by who writes there
            if got:
                _remove(temporary)


def remove_own() -> None:
    """Remove all that this process is at work on: it ends at once."""
    for temporary in list(_OWN):
        with suppress(OSError):
            _remove(temporary)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is here with this folder. Not for a folder of `new_folder`, which is locked."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # without locks all goes on as it did
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _temporaries(folder: Path, of: str | None) -> list[Path]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 (ten times as fast, in a folder of ten thousand students)
    except OSError:
        return []
    wanted = []
    for name in names:
        found = _NAME.fullmatch(name) if name.endswith(ENDING) else None
        if found and (of is None or found["of"] == of or found["of"].startswith(f"{of}.")):
            wanted.append(folder / name)
    return wanted


@contextmanager
def _new(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    while True:
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{ENDING}"
        make(temporary)
        with _lock(temporary) as got:
            # Until it was locked, another run may have taken it for a leftover.
            if got is False or not temporary.exists():
                continue
            _OWN.add(temporary)
            try:
                yield temporary
            finally:
                _remove(temporary)
                _OWN.discard(temporary)
            return


@contextmanager
def _lock(temporary: Path) -> Iterator[bool | None]:
    """Lock a file or a folder; yield True, or False if another process has it or it is gone, None without locks."""
    if sys.platform == "win32":
        yield None
        return
    try:  # a lock on NFS wants a file that is open for writing
        descriptor = os.open(temporary, (os.O_RDONLY if temporary.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    except OSError:  # a link, somebody else's, or the umask takes our own rights
        yield None
        return
    got: bool | None = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got = False
        except OSError:
            got = None
        yield got
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
