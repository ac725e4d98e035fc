"""One process reads hostile inputs, another one watches it: for hangs, crashes, memory, and what it must not touch.

Inside, an audit hook sees every file that is opened for writing, every process, connection and piece of code that is
run. Outside, a clock: an input that takes longer than it may is the end of its process, and the next one gets a new.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 10.0  # seconds an input may take
MOST_MEMORY = 1 << 30  # bytes beyond what the process had before
START = 300.0  # seconds a process may take to be ready
RUNS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "os.kill",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OWN_CODE = tuple({sys.prefix, sys.base_prefix, str(ROOT), "<frozen", "<string>", "<__array_function__", "<attrs"})


@dataclass
class Tally:
    """What came of the inputs of one target."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)  # seconds, number of the input
    memory: tuple[int, int] = (0, -1)  # bytes, number of the input


class Shared(ctypes.Structure):
    """What the process tells while it works, and what is left of it when it dies."""

    _fields_ = [
        ("number", ctypes.c_long),
        ("began", ctypes.c_double),  # 0: between two inputs
        ("accepted", ctypes.c_long),
        ("refused", ctypes.c_long),
        ("slowest", ctypes.c_double),
        ("slowest_number", ctypes.c_long),
        ("memory", ctypes.c_long),
        ("memory_number", ctypes.c_long),
    ]


def run(name: str, seed: int, numbers: range, commands: bool = False) -> Tally:
    """Read inputs `numbers` of a target; with `commands` by the whole command line."""
    tally, at, began = Tally(), numbers.start, time.monotonic()
    context = multiprocessing.get_context("fork")
    while at < numbers.stop:
        with tempfile.TemporaryDirectory(dir=_memory_disk()) as place:
            shared = context.Value(Shared, lock=False)
            shared.number = at
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, shared, name, seed, range(at, numbers.stop), commands, place), daemon=True
            )
            process.start()
            theirs.close()
            ending = _watch(process, shared, ours, tally)
            _add(tally, shared)
        done = shared.number + (ending is not None)
        tally.inputs += done - at
        at = done
        if ending is not None:
            tally.findings.append({"number": int(shared.number), "what": ending})
    tally.seconds = time.monotonic() - began
    return tally


def _memory_disk() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _watch(process: Any, shared: Any, ours: Connection, tally: Tally) -> str | None:
    """Wait for the end of a process; say what ended it before its work was done."""
    started = time.monotonic()
    while True:
        if ours.poll(0.1):
            try:
                found = ours.recv()
            except EOFError:
                process.join(5)
                return f"crashed: exit code {process.exitcode}"
            if found is None:
                process.join(5)
                return None
            tally.findings.append(found)
            continue
        now = time.monotonic()
        late = shared.began and now - shared.began > LONGEST
        if late or (not shared.began and now - started > START):  # also while the first one pays for imports
            process.kill()
            process.join()
            return f"hangs: more than {LONGEST:.0f} s"


def _add(tally: Tally, shared: Any) -> None:
    tally.accepted += shared.accepted
    tally.refused += shared.refused
    tally.slowest = max(tally.slowest, (shared.slowest, shared.slowest_number))
    tally.memory = max(tally.memory, (shared.memory, shared.memory_number))


def _work(theirs: Connection, shared: Any, name: str, seed: int, numbers: range, commands: bool, place: str) -> None:
    """Read one input after the other; tell of findings as they come, and at the end that it is the end."""
    from tests import hostile
    from wfcli.core.memory import PeakMemory

    os.chdir(place)
    tempfile.tempdir = place
    os.environ["TMPDIR"] = place
    target = hostile.targets()[name]
    seen: list[str] = []
    watching = _listen(seen, Path(place).resolve())
    _silence()
    first = numbers.start
    for number in (first, *numbers):  # the first one twice: it pays for imports
        warming = number == first and shared.number == first and not shared.began and watching.count == 0
        watching.count += 1
        folder = Path(place) / "input"
        folder.mkdir()
        hostile.make(target, name, seed, number, folder)
        before, peak = _resident(), PeakMemory()
        if not warming:
            _limit_memory()
        shared.number, shared.began = number, 0.0 if warming else time.monotonic()
        began, what = time.monotonic(), None
        watching.on = not warming
        try:
            verdict = _command(target, folder) if commands else hostile.judge(target, folder)
        except BaseException as error:
            verdict, what = "finding", _told(error)
        watching.on = False
        seconds, memory = time.monotonic() - began, max(0, (peak.read() or 0) - before)
        shutil.rmtree(folder, ignore_errors=True)
        if warming:
            continue
        what = "; ".join(sorted(set(seen))) or what
        seen.clear()
        if what is None and memory > MOST_MEMORY:
            what = f"takes {memory:,} bytes"
        if what is not None:
            theirs.send({"number": number, "what": what})
        elif verdict == "accepted":
            shared.accepted += 1
        else:
            shared.refused += 1
        if seconds > shared.slowest:
            shared.slowest, shared.slowest_number = seconds, number
        if memory > shared.memory:
            shared.memory, shared.memory_number = memory, number
        shared.number, shared.began = number + 1, 0.0
    theirs.send(None)


def _told(error: BaseException) -> str:
    """Name an error and the place in our code that it came through."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}wfcli{os.sep}" in frame.filename
    ]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}: {' '.join(str(error).split())[:300]}"


def _command(target: Any, folder: Path) -> str:
    """Run the whole command line on an input: 0 or 1 (2: a recipe asks for what does not go together)."""
    from typer.testing import CliRunner

    from tests.hostile.texts import check_plain
    from wfcli.cli import app

    result = CliRunner().invoke(app, target.command(folder), prog_name="wfcli")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), f"exit code {result.exit_code}"
    assert "Traceback" not in result.output, "prints a traceback"
    check_plain(result.output)
    return "accepted" if result.exit_code == 0 else "refused"


class _Watching:
    """Whether the audit hook counts: not while an input is made."""

    on = False
    count = 0


def _listen(seen: list[str], place: Path) -> _Watching:
    """Note everything that reading a file must not do. What is noted is also stopped."""
    watching = _Watching()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching.on:
            return
        what = _wrong(event, arguments, place)
        if what is not None:
            seen.append(what)
            raise PermissionError(what)

    sys.addaudithook(hear)
    return watching


def _wrong(event: str, arguments: tuple[Any, ...], place: Path) -> str | None:
    if event in RUNS:
        return f"{event} {str(arguments)[:200]}"
    if event == "open":
        path, mode, flags = arguments
        writes = (flags or 0) & WRITING or (isinstance(mode, str) and set(mode) & set("wax+"))
        return f"writes {path}" if writes and not _inside(path, place) else None
    if event in CHANGES:
        paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        return f"{event} {paths[:2]}" if not all(_inside(one, place) for one in paths) else None
    if event == "exec":
        code = arguments[0]
        return None if code.co_filename.startswith(OWN_CODE) else f"runs code of {code.co_filename}"
    return None


def _inside(path: Any, place: Path) -> bool:
    if isinstance(path, int) or str(path) == os.devnull:  # a descriptor: it was opened before
        return True
    found = Path(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 (links are not followed: to remove one is no harm)
    return found.is_relative_to(place) or found.is_relative_to("/proc/self")


def _silence() -> None:
    """Let what the decoders of C print go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _limit_memory() -> None:
    """Keep the machine alive: what goes far beyond the limit gets a MemoryError."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 3 * MOST_MEMORY, resource.RLIM_INFINITY))
