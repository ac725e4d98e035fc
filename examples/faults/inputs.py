"""Inputs that change while they are read, and readers that go away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rig import DIGITS, ENVIRONMENT, NET, ROOT, Ended, Rig, Row, command, digests, end, leftovers, must, start

WIDE = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.5")  # 9 MB: reading takes a moment
MAKE = """
import sys
from pathlib import Path
import torch
from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.checkpoint import save_state
folder = Path(sys.argv[1])
torch.manual_seed(0)
base = build_model(find_architecture("vgg11_bn_cifar", {"width": 0.5}), 10).state_dict()
for number in range(4):
    state = {k: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v for k, v in base.items()}
    save_state(folder / f"{number}.safetensors", state, {"number": number})
    torch.save(state, folder / f"{number}.pt")
    last = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state.items()}
    torch.save(last, folder / f"{number}.bin")
"""


def rewrite(file: Path, other: Path) -> None:
    """Write other weights over a file, as a training does that saves again."""
    file.write_bytes(other.read_bytes())


def cut(file: Path, other: Path) -> None:
    """Make a file shorter."""
    os.truncate(file, file.stat().st_size // 2)


def replace(file: Path, other: Path) -> None:
    """Put another file in its place."""
    fresh = file.with_name("fresh")
    shutil.copy(other, fresh)
    fresh.replace(file)


def delete(file: Path, other: Path) -> None:
    """Delete a file."""
    file.unlink()


WAYS: tuple[Callable[[Path, Path], None], ...] = (rewrite, cut, replace, delete)


def changed(rig: Rig) -> list[Row]:
    """Change a teacher while a fuse runs, and look whether the student is one of whole teachers, or not there."""
    made = rig.place("wide")
    subprocess.run([sys.executable, "-c", MAKE, str(made)], check=True, cwd=ROOT, env=ENVIRONMENT)
    rows = []
    for suffix, what in ((".safetensors", "safetensors"), (".pt", "torch.save"), (".bin", "torch.save, channels last")):
        expected = "one error, exit code 1 and no student; or the student of the teachers with the digests it names"
        row = Row("an input changes while it is read", f"fuse ({what})", expected)
        wanted = [_student(rig, made, suffix, first) for first in (0, 3)]
        draw = rig.draw(f"changed {suffix}")
        for trial in range(rig.trials):
            folder = rig.place("changed")
            files = [Path(shutil.copy(made / f"{number}{suffix}", folder)) for number in range(3)]
            output = folder / "student.safetensors"
            process = start("fuse", *files, *WIDE, "--method", "soup", "-o", output)
            way = draw.choice(WAYS)
            _wait_until_open(process, files[0])
            time.sleep(draw.choice((draw.expovariate(500), draw.uniform(0, 2))))
            way(files[0], made / f"3{suffix}")
            row.judge(_whole(end(process), output, wanted), f"{way.__name__}, trial {trial}")
        rows.append(row)
    return rows


def _student(rig: Rig, made: Path, suffix: str, first: int) -> str:
    """Return the digest of the student where the first teacher has these weights all the time."""
    folder = rig.place("changed")
    files = [Path(shutil.copy(made / f"{number}{suffix}", folder)) for number in range(3)]
    shutil.copy(made / f"{first}{suffix}", files[0])
    must("fuse", *files, *WIDE, "--method", "soup", "-o", folder / "student.safetensors")
    return digests(folder)["student.safetensors"]


def _wait_until_open(process: subprocess.Popen[str], file: Path) -> None:
    """Wait until the process has the file open: its header is read then."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError):  # a descriptor that is closed by now
            if any(link.readlink() == file for link in Path(f"/proc/{process.pid}/fd").iterdir()):
                return


def _whole(ended: Ended, output: Path, wanted: list[str]) -> list[str]:
    left = [f"left over: {name}" for name in leftovers(output.parent)]
    if ended.code == 0:
        found = digests(output.parent).get(output.name)
        return [*left, *([] if found in wanted else ["a student of teachers that never were"])]
    return [*left, *ended.clean(1, "error: ", "hint: "), *(["a student all the same"] if output.exists() else [])]


def readers(rig: Rig) -> list[Row]:
    """Let the reader of what is printed go away, or be not there at all."""
    gone = Row("broken pipe", "fuse, eval, inspect, list, --help", "no traceback, no error, the output whole")
    closed = Row("standard streams closed", "fuse, list", "exit code 0, the output whole")
    inspect = ("inspect", *rig.teachers)
    reads = [("list",), ("methods",), ("methods", "--json"), inspect, (*inspect, "--json"), (*inspect, "--weights")]
    for args in (*reads, ("eval", rig.soup, *NET, *DIGITS)):
        gone.judge(_shell(args, "| head -c 1 > /dev/null").clean(0), f"{args[0]} | head -c 1")
    told = _shell(("fuse", "--help"), "| head -c 1 > /dev/null")
    gone.judge(told.clean(told.code), "fuse --help | head -c 1")  # typer's own end: exit code 1
    folder = rig.place("closed")
    fuse = ("fuse", *rig.teachers, *NET, "--method", "soup")
    told = _shell((*fuse, "-o", "-"), "| head -c 10 > /dev/null", TMPDIR=str(folder))
    left = [f"left over: {name}" for name in leftovers(folder)]
    gone.judge([*told.clean(1, "standard output was closed before all"), *left], "fuse -o - | head -c 10")
    for redirection in (">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | head -c 1 > /dev/null"):
        output = rig.place("closed") / rig.soup.name
        told = _shell((*fuse, "-o", output), redirection)
        same = output.exists() and output.read_bytes() == rig.soup.read_bytes()
        closed.judge([*told.clean(0), *([] if same else ["another student, or none"])], f"fuse {redirection}")
        closed.judge(_shell(("list",), redirection).clean(0), f"list {redirection}")
    return [gone, closed]


def _shell(args: tuple[str | Path, ...], redirection: str, **environment: str) -> Ended:
    """Run a command in a shell with a redirection; the exit code is that of the command."""
    line = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    shell = ["bash", "-c", line, "bash", *command(*args)]
    whole = {**ENVIRONMENT, **environment}
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=whole, timeout=600)
    return Ended(done.returncode, done.stdout, done.stderr)
