"""How much memory may still be taken: what the system has to give, or less where a container is allowed less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
UNKNOWN = 8 * 2**30
# Limit, use and what of the use the kernel takes back when it is short: read files that wait in memory.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory() -> int:
    """Return the bytes that can still be had without swapping; a guess where the system does not tell."""
    return min([_of_system(), *_left_in_cgroups()])


def _of_system() -> int:
    # Not the free pages, if that can be helped: what read files take is given back when it is asked for.
    kilobytes = _fields(PROC / "meminfo").get("MemAvailable:")
    if kilobytes is not None:
        return kilobytes * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not known on this system
        return UNKNOWN


def _left_in_cgroups() -> Iterator[int]:
    """Yield what the limit of each control group round this process leaves; nothing where there is no limit."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = CGROUPS / controllers  # version 2 has no controllers here, and one tree for all of them
        own = top / name.strip("/")
        # A container sees its own group as the top one, whatever the name.
        for folder in (own, *own.parents):
            if not folder.is_relative_to(top):
                break
            limit, use, file_pages = V1 if controllers else V2
            most, taken = _read(folder / limit).strip(), _read(folder / use).strip()
            if most.isdigit() and taken.isdigit():  # "max": no limit
                yield max(0, int(most) - int(taken) + _fields(folder / "memory.stat").get(file_pages, 0))


def _fields(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    words = (line.split() for line in _read(path).splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class PeakMemory:
    """The most memory that this process has had since the object was made, where the system tells (Linux)."""

    def __init__(self) -> None:
        self._counts = True
        try:
            (PROC / "self" / "clear_refs").write_text("5")  # the highest mark begins anew
        except OSError:
            self._counts = False

    def read(self) -> int | None:
        """Return bytes; None where the system does not say."""
        kilobytes = _fields(PROC / "self" / "status").get("VmHWM:") if self._counts else None
        return None if kilobytes is None else 1024 * kilobytes
