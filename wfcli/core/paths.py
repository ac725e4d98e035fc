"""Paths that a user typed or a file names: looked at without surprises. No torch."""

from __future__ import annotations

from pathlib import Path

from wfcli.errors import SourceError, WfError


def is_there(path: str | Path) -> bool:
    """Tell whether there is such a file or folder; a text that can be no path is none."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long a name, a folder that may not be looked into, a NUL
        return False


def is_file(path: str | Path) -> bool:
    """Tell whether there is such a plain file."""
    return is_there(path) and Path(path).is_file()


def local_path(text: str, kind: type[WfError] = SourceError) -> Path:
    """Return what a user means by a path, whether or not it is there; ``~`` is a home folder.

    Raises:
        `kind`: it can be no path, or may not be looked at.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except OSError as error:
        raise kind(f"{text}: cannot be looked at ({error.strerror})", hint="check the path") from error
    except (ValueError, RuntimeError) as error:  # a NUL; no such user
        raise kind(f"{text}: is no path ({error})", hint="check the path") from error
    return path
