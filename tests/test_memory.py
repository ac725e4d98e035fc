"""What may still be had of memory, by what /proc and the control groups say."""

from __future__ import annotations

from pathlib import Path

import pytest

from wfcli.core import memory
from wfcli.core.decode import fits_memory
from wfcli.core.memory import available_memory

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system without any of these files."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1000)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_is_available_counts_not_what_is_free(system: Path) -> None:
    write(system / "proc" / "meminfo", f"MemTotal: 9 kB\nMemFree: 7 kB\nMemAvailable:  {3 * GIB // 1024} kB\n")
    assert available_memory() == 3 * GIB
    assert fits_memory(GIB // 3072, 32)
    assert not fits_memory(2 * GIB // 3072, 32)


def test_a_system_that_tells_less(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory() == 4096 * 1000

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(memory.os, "sysconf", unknown)
    assert available_memory() == memory.UNKNOWN


@pytest.mark.parametrize("folder", ["", "outer", "outer/inner"])
def test_a_control_group_or_one_round_it_allows_less(system: Path, folder: str) -> None:
    write(system / "proc" / "meminfo", f"MemAvailable: {3 * GIB // 1024} kB\n")
    write(system / "proc" / "self" / "cgroup", "0::/outer/inner\n")
    write(system / "cgroup" / "outer" / "inner" / "memory.max", "max\n")
    group = system / "cgroup" / folder
    write(group / "memory.max", f"{2 * GIB}\n")
    write(group / "memory.current", f"{GIB}\n")
    assert available_memory() == GIB
    write(group / "memory.stat", f"anon 5\ninactive_file {GIB // 4}\n")
    assert available_memory() == GIB + GIB // 4


def test_control_groups_of_version_1(system: Path) -> None:
    write(system / "proc" / "meminfo", f"MemAvailable: {3 * GIB // 1024} kB\n")
    write(system / "proc" / "self" / "cgroup", "5:cpu,cpuacct:/box\n4:memory:/box\n")
    write(system / "cgroup" / "memory" / "box" / "memory.limit_in_bytes", f"{GIB}\n")
    write(system / "cgroup" / "memory" / "box" / "memory.usage_in_bytes", f"{GIB + 5}\n")
    assert available_memory() == 0
