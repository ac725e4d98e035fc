"""Files that are complete or not there: written beside their place under another name, synced, renamed. No torch."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from wfcli.core.leftovers import new_file, new_folder, remove_leftovers
from wfcli.core.paths import is_there
from wfcli.errors import OutputError, Problems

SUFFIX = ".safetensors"  # the bytes are safetensors, and a reader goes by the name
INDEX_SUFFIX = ".safetensors.index.json"  # of shards
PAGE_SUFFIXES = (".html", ".htm")
OTHER_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")  # which users may mean to write: replaced in the hint


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file in the folder of `path`; rename it to `path` on success, remove it on any failure.

    Of a process that is killed the temporary file is left: the next run that writes `path` removes it.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    path = Path(path)
    with temporary_file(path) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    sync(path.parent)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file in the folder of `path`; remove it afterwards, unless it got another name.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    try:
        _check_place(path)
        with new_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(path: Path) -> None:
    """Make sure that a checkpoint can be written to `path`, by a trial file beside it: before anything is computed.

    What killed processes have left beside it is removed.

    Raises:
        OutputError: the folder is missing or cannot be written, or `path` is not a plain file or has another suffix.
    """
    path = Path(path)
    problems = Problems()
    with problems, temporary_file(path):
        remove_leftovers(path.parent, path.name)
    if path.suffix != SUFFIX and not path.is_dir():
        other = path.suffix in OTHER_SUFFIXES
        named = path.with_suffix(SUFFIX) if other else path.with_name(path.name + SUFFIX)
        got = f"got {path.suffix}" if path.suffix else "got none"
        problems.errors.append(OutputError(f"{path}: suffix: {got}, expected {SUFFIX}", hint=f"write -o {named}"))
    problems.raise_all()


def check_page(path: Path) -> None:
    """Make sure that a page can be written to `path`, by a trial file beside it: before anything is computed.

    Raises:
        OutputError: the folder is missing or cannot be written, or `path` is not a plain file or has another suffix.
    """
    problems = Problems()
    with problems, temporary_file(path):
        remove_leftovers(path.parent, path.name)
    if path.suffix.lower() not in PAGE_SUFFIXES:
        got = f"got {path.suffix}" if path.suffix else "got none"
        named = path.with_name(path.name + PAGE_SUFFIXES[0])
        problems.errors.append(OutputError(f"{path}: suffix: {got}, expected .html", hint=f"write {named}"))
    problems.raise_all()


def check_folder(folder: Path) -> None:
    """Make sure that files can be written to `folder`, which need not be there yet; nothing is left behind.

    What killed processes have left in it is removed.

    Raises:
        OutputError: it is a file, or it cannot be made or written.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            what = "is a file" if existing == folder else f"{existing} is a file"
            raise OutputError(f"{folder}: {what}, expected a folder", hint="choose another -o")
        with new_file(existing / "probe"):
            remove_leftovers(existing, None if existing == folder else "probe")
    except OSError as error:
        raise _unwritable_folder(folder, error) from error


def check_new_folder(folder: Path) -> None:
    """Make sure that a folder can be made where there is none, or an empty one.

    Raises:
        OutputError: there is one with files in it, or it is a file, or it cannot be made.
    """
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is there already, and not empty", hint="choose another -o")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; rename it to `folder` on success, remove it on any failure.

    Raises:
        OutputError: the place cannot be written, the disk is full, or there is a folder with files in it by now.
    """
    place = folder.absolute()  # "." has no name
    make_folder(place.parent)
    try:
        remove_leftovers(place.parent, place.name)
        with new_folder(place) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            if folder.is_dir():
                folder.rmdir()
            sync(temporary)
            temporary.rename(place)
    except OSError as error:
        raise _unwritable_folder(folder, error) from error
    sync(place.parent)


@contextmanager
def scratch_folder(name: str, folder: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder of this user's alone in `folder` (None: in TMPDIR); remove it and its files afterwards.

    Those of this name that killed processes have left there are removed too.

    Raises:
        OutputError: it cannot be made.
    """
    with ExitStack() as stack:
        try:
            place = (folder or Path(tempfile.gettempdir())) / name
            remove_leftovers(place.parent, name)
            made = stack.enter_context(new_folder(place, 0o700))
        except OSError as error:
            raise _unwritable_folder(folder or Path("TMPDIR"), error) from error
        yield made


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, unless they are there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable_folder(folder, error) from error


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Keys keep their order: the same object gives the same bytes.

    Raises:
        OutputError: the place cannot be written.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: is a folder", hint="name a file in it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a plain file", hint="name a file to create or replace")
    if path.is_file() and not stat.S_IMODE(path.stat().st_mode) & 0o222:  # a rename would not ask
        raise OutputError(f"{path}: is write-protected", hint=f"choose another place, or chmod u+w {path}")


def _unwritable_folder(folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"{folder}: cannot be made or written ({reason})", hint="choose a place with write permission and space"
    )


def _unwritable(path: Path, error: OSError) -> OutputError:
    folder = path.parent
    if not is_there(folder):
        return OutputError(f"{path}: its folder does not exist", hint=f"create it first: mkdir -p {folder}")
    if not folder.is_dir():
        return OutputError(f"{path}: {folder} is not a folder", hint="choose another place")
    reason = error.strerror or str(error)
    return OutputError(f"{path}: cannot be written ({reason})", hint="choose a place with write permission and space")


def sync(path: Path) -> None:
    """Flush a file or a folder to disk. Not every system lets a folder be opened: the rename is atomic all the same."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(descriptor)
