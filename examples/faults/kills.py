"""`kill -9`, Ctrl-C, SIGTERM and SIGHUP at random moments of every verb that writes, and while it writes a file."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig import DIGITS, NET, ROOT, Digests, Rig, Row, differences, digests, end, leftovers, must, start

FAULTS = {
    signal.SIGKILL: ("kill -9", "nothing half-written"),
    signal.SIGINT: ("Ctrl-C", "exit code 130, a word and no traceback, nothing left over"),
    signal.SIGTERM: ("SIGTERM", "exit code 143, a word and no traceback, nothing left over"),
    signal.SIGHUP: ("SIGHUP", "exit code 129, a word and no traceback, nothing left over"),
}
EXPECTED = "the old output or the whole new one; then, again: the bytes of an uninterrupted run, nothing left over"
WORK = ".resume", "resume.pt", "training.jsonl"  # what a training keeps while it goes on


@dataclass(frozen=True)
class Verb:
    """A command that writes into the folder it is started in: `before` makes the old output, `again` goes on."""

    name: str
    args: tuple[str | Path, ...]
    again: tuple[str, ...] = ()
    before: tuple[str | Path, ...] | None = None
    parts: bool = False  # its files are outputs one by one: those of a zoo


def verbs(rig: Rig) -> dict[str, Verb]:
    """Return every verb that writes files; students, shards and generators replace others."""
    fuse = ("fuse", *rig.teachers, *NET, "-o", "student.safetensors")
    shards = (*fuse, "--max-shard-size", "100KB")
    finetune = ("finetune", rig.soup, "--teachers", rig.zoo, *NET, *DIGITS, "--batch-size", "64", "--steps", "30")
    generator = ("train-generator", "--zoo", rig.zoo, "--batch-size", "32", "--views", "1", "-o", ".")
    teachers = ("train-teachers", *NET, *DIGITS, "--count", "4", "--epochs", "0.5", "-o", ".")
    other = ("--steps", "2", "--width", "16", "--seed", "3")
    found = (
        Verb("fuse", fuse, before=(*fuse, "--method", "soup")),
        Verb("fuse --max-shard-size", (*shards, "--method", "soup"), before=(*shards, "--method", "distance")),
        Verb("finetune", (*finetune, "-o", "student.safetensors"), ("--resume",)),
        Verb("train-generator", (*generator, "--steps", "12"), ("--resume",), before=(*generator, *other)),
        Verb("train-teachers", teachers, parts=True),
        Verb("train-teachers --jobs 2", (*teachers, "--jobs", "2"), parts=True),
    )
    return {verb.name: verb for verb in found}


def kills(rig: Rig, *names: str) -> list[Row]:
    """Kill some verbs."""
    return [stopped(rig, verbs(rig)[name], signal.SIGKILL) for name in names]


def stops(rig: Rig) -> list[Row]:
    """Ask verbs to end: as a terminal does by Ctrl-C, a system by SIGTERM, a lost connection by SIGHUP."""
    some = ("fuse", "finetune", "train-generator", "train-teachers --jobs 2")
    rows = [stopped(rig, verbs(rig)[name], signal.SIGINT) for name in some]
    rows += [stopped(rig, verbs(rig)[name], signal.SIGTERM) for name in ("fuse", "train-teachers --jobs 2")]
    return [*rows, *(stopped(rig, verbs(rig)[name], signal.SIGHUP) for name in ("finetune", "train-teachers --jobs 2"))]


def stopped(rig: Rig, verb: Verb, number: signal.Signals) -> Row:
    """Stop one verb: half of the time at any moment, half while a file is being written."""
    fault, expected = FAULTS[number]
    row = Row(fault, verb.name, f"{expected}; {EXPECTED}")
    draw = rig.draw(f"{fault} {verb.name}")
    folder = rig.place("kill")
    saved: dict[str, bytes] = {}
    if verb.before:
        _must_in(folder, verb.before)
        saved = {path.name: path.read_bytes() for path in folder.iterdir()}
    old = _outputs(folder)
    seconds = math.inf
    for _ in range(2):  # the shorter one: whatever else runs here may hold one of them up
        folder = _restored(rig, saved)
        began = time.monotonic()
        writes = _watch(folder, start(*verb.args, cwd=folder), None, 0.0)
        seconds = min(seconds, time.monotonic() - began)
    new = _outputs(folder)
    row.notes.append(f"uninterrupted {seconds:.1f} s, {writes} files written")
    early = halves = late = 0
    for trial in range(rig.trials):
        folder = _restored(rig, saved)
        process = start(*verb.args, cwd=folder, start_new_session=True)
        if trial % 2 == 0:
            after = draw.uniform(0, seconds)
            _sleep(process, after)
            when = f"after {after:.2f} s"
        else:
            file = draw.randrange(writes)
            _watch(folder, process, file, draw.choice((0.0, draw.expovariate(500))))
            when = f"while file {file + 1} of {writes} was written"
        late += process.poll() is not None
        problems = _end_by(process, number, folder)
        early += problems is None
        halves += bool(leftovers(folder))
        row.judge([*(problems or []), *_half_written(folder, old, new, verb), *_goes_on(folder, verb, new)], when)
    if number == signal.SIGKILL:
        row.notes.append(f"{halves} kills left a half-written temporary file")
    if late:
        row.notes.append(f"{late} of them came after its end")
    if early:
        row.notes.append(f"{early} of them before the first line of wfcli, in Python's own start")
    return row


def _restored(rig: Rig, saved: Mapping[str, bytes]) -> Path:
    """Return a fresh folder with the old output."""
    folder = rig.place("kill")
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    return folder


def _end_by(process: subprocess.Popen[str], number: signal.Signals, folder: Path) -> list[str] | None:
    """Send the signal and look how the command ends; None where Python had not got to wfcli yet."""
    if number == signal.SIGKILL:  # of this process alone: its workers are left to themselves
        process.kill()
        process.communicate()
        return []
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # a terminal tells all of them
    ended = end(process)
    if ended.code == 0:
        return ended.clean(0)
    if "wfcli" not in ended.stderr and ended.code in (1, -number) and "interrupted" not in ended.stderr:
        return None
    said = "interrupted" if number == signal.SIGINT else f"terminated ({number.name})"
    return [*ended.clean(128 + number, said), *(f"left at once: {name}" for name in leftovers(folder))]


def _must_in(folder: Path, args: Sequence[str | Path]) -> None:
    ended = end(start(*args, cwd=folder))
    if ended.code:
        raise SystemExit(f"{args}: {ended.stderr}")


def _outputs(folder: Path) -> Digests:
    return {name: digest for name, digest in digests(folder).items() if not name.endswith(WORK)}


def _half_written(folder: Path, old: Digests, new: Digests, verb: Verb) -> list[str]:
    """Say what is neither old nor new. The index of shards and the weights of a generator decide which it is."""
    found = _outputs(folder)
    known = {(name, digest) for state in (old, new) for name, digest in state.items()}
    problems = [f"{name} is neither old nor new" for name, digest in found.items() if (name, digest) not in known]
    if not verb.parts and old:
        lacks = [[name for name, digest in state.items() if found.get(name) != digest] for state in (old, new)]
        if all(lacks) and not _is_whole(folder):
            problems.append(f"neither the old nor the new output is whole: {found.keys()}")
    return problems


def _is_whole(folder: Path) -> bool:
    """Tell whether a generator in replacement is one that loads: its config and its card may be new already."""
    if not (folder / "model.safetensors").exists():
        return False
    code = "import sys, wfcli; wfcli.load_generator(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=False).returncode == 0


def _goes_on(folder: Path, verb: Verb, new: Digests) -> list[str]:
    """Run it again, as a user would who sees that it was killed."""
    ended = end(start(*verb.args, *verb.again, cwd=folder))
    problems = ended.clean(0)
    problems += [f"then: {difference}" for difference in differences(_outputs(folder), new)]
    problems += [f"left over: {name}" for name in leftovers(folder)]
    return problems + [f"left over: {path.name}" for path in folder.iterdir() if path.name.endswith(WORK[:2])]


def _sleep(process: subprocess.Popen[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def _watch(folder: Path, process: subprocess.Popen[str], number: int | None, more: float) -> int:
    """Watch the temporary files that have bytes: return how many came, or as soon as so many have been before."""
    seen: set[str] = set()
    while process.poll() is None:
        with os.scandir(folder) as entries:
            new = [one.name for one in entries if one.name.endswith(".tmp") and one.name not in seen and _size(one)]
        seen.update(new)
        if number is not None and len(seen) > number:
            time.sleep(more)
            return len(seen)
        time.sleep(0.0005)
    if number is None and process.communicate()[1] and process.returncode:
        raise SystemExit(f"the uninterrupted run failed with exit code {process.returncode}")
    return max(len(seen), 1)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def push(rig: Rig) -> list[Row]:
    """Kill a push to a Hub of this machine."""
    row = Row("kill -9", "push", "the repository at its old commit or at the whole new one; the same push again ends")
    draw = rig.draw("kill push")
    with _hub() as hub:
        new, seconds = _pushed(rig, hub)
    row.notes.append(f"uninterrupted {seconds:.1f} s")
    for trial in range(rig.trials):
        with _hub() as hub:
            old = hub.files("me/net")
            scratch = rig.place("push")
            process = start("push", rig.soup, "hf:me/net", environment=_at(hub, scratch))
            if trial % 2 == 0:
                after = draw.uniform(0, seconds)
                when = f"after {after:.2f} s"
            else:
                count, after = draw.randrange(1, 9), draw.expovariate(100)
                when = f"at request {count}"
                while process.poll() is None and len(hub.requests) < count:
                    time.sleep(0.001)
            _sleep(process, after)
            process.kill()
            process.communicate()
            time.sleep(0.05)  # what was sent whole is answered
            problems = [] if hub.files("me/net") in (old, new) else ["neither the old nor the new commit"]
            must("push", rig.soup, "hf:me/net", environment=_at(hub, scratch))
            problems += [] if hub.files("me/net") == new else ["then: another repository"]
            row.judge([*problems, *(f"left over: {name}" for name in leftovers(scratch))], when)
    return [row]


def _hub() -> Any:
    sys.path.insert(0, str(ROOT))  # the tests' own Hub
    from tests.hub_server import HubServer

    hub = HubServer()
    setattr(hub._server, "handle_error", lambda *args: None)  # noqa: B010, SLF001 (a killed client is no news)
    hub.add("me/net", {"README.md": b"old", "model.safetensors": b"old weights"})
    return hub


def _at(hub: Any, scratch: Path) -> dict[str, str]:
    from tests.hub_server import TOKEN

    own = {"HF_HOME": str(scratch / "cache"), "TMPDIR": str(scratch)}
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, **own}


def _pushed(rig: Rig, hub: Any) -> tuple[dict[str, bytes], float]:
    seconds = must("push", rig.soup, "hf:me/net", environment=_at(hub, rig.place("push")))
    return hub.files("me/net"), seconds
