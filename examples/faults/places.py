"""Places that cannot be written: full, read-only, one of the inputs; and places that two processes write at once."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rig import (
    DIGITS,
    NET,
    Ended,
    Rig,
    Row,
    differences,
    digests,
    end,
    leftovers,
    must,
    run,
    start,
)

ONE_ERROR = "one error with a hint, exit code 1; the old output as it was, nothing left over"
NOBODY = 65534


def full(rig: Rig) -> list[Row]:
    """Write to a disk that gets full: a small tmpfs where one may be mounted, and a limit on the size of files."""
    rows = []
    for name, args, size in _writers(rig):
        tmpfs = Row("disk full (a tmpfs)", name, ONE_ERROR)
        folder = rig.place("full")
        with _small_disk(folder, size) as mounted:
            if mounted:
                _fails(tmpfs, folder, args, "No space left on device")
            else:
                tmpfs.notes.append("no mounting here")
        limit = Row("disk full (a limit on the size of files)", name, ONE_ERROR)
        _fails(limit, rig.place("full"), args, "File too large", limit=size)
        rows += [tmpfs, limit]
    row = Row("disk full (/dev/full)", "list, --version, fuse", "one error, exit code 1, no traceback")
    for words in (
        ("list",),
        ("list", "--json"),
        ("--version",),
        ("--help",),
        _soup(rig, rig.place("full") / "s.safetensors"),
    ):
        with Path("/dev/full").open("w") as disk:
            row.judge(
                run(*words, stdout=disk).clean(1, "No space left on device", "hint: "), " ".join(map(str, words[:2]))
            )
    with Path("/dev/full").open("w") as disk:
        row.judge(run(*_soup(rig, Path("-")), stdout=disk).clean(1, "No space left on device"), "fuse -o -")
    return [*rows, row]


def _soup(rig: Rig, output: Path | str) -> tuple[str | Path, ...]:
    return ("fuse", *rig.teachers, *NET, "--method", "soup", "-o", output)


def _writers(rig: Rig) -> Iterator[tuple[str, tuple[str | Path, ...], int]]:
    """Yield each verb that writes, its command in the folder of its output, and too few bytes for it."""
    yield "fuse", _soup(rig, "student.safetensors"), 200_000
    yield "fuse --max-shard-size", (*_soup(rig, "student.safetensors"), "--max-shard-size", "200KB"), 120_000
    steps = ("--steps", "4", "--batch-size", "64")
    yield (
        "finetune",
        ("finetune", rig.soup, "--teachers", rig.zoo, *NET, *DIGITS, *steps, "-o", "s.safetensors"),
        200_000,
    )
    train = ("train-generator", "--zoo", rig.zoo, "--batch-size", "32", "--views", "1", "--steps", "2")
    yield "train-generator", (*train, "-o", "."), 40_000
    yield "train-teachers", ("train-teachers", *NET, *DIGITS, "--count", "1", "--epochs", "0.2", "-o", "."), 200_000


def _fails(row: Row, folder: Path, args: tuple[str | Path, ...], words: str, limit: int | None = None) -> None:
    """Run a command that finds no room, in a folder that has a small old file."""
    (folder / "old").write_text("old")
    before = digests(folder)

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = run(*args, cwd=folder, preexec_fn=limited)
    problems = ended.clean(1, "error: ", words, "hint: ")
    problems += [f"{name}: half-written" for name in digests(folder) if name not in before and not _is_work(name)]
    row.judge([*problems, *(f"left over: {name}" for name in leftovers(folder))], "once")


def _is_work(name: str) -> bool:
    """Tell whether a file is what a training keeps to go on from, or one of a generator's small ones."""
    return name in ("training.jsonl", "README.md", "config.json") or name.endswith((".resume", "resume.pt"))


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[bool]:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False, capture_output=True
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def read_only(rig: Rig) -> list[Row]:
    """Write to a folder and over a file that are read-only, as a user who may not write there."""
    folder_row = Row("read-only folder", "all that write", ONE_ERROR)
    file_row = Row("read-only file", "fuse, finetune", ONE_ERROR)
    for name, args, _ in _writers(rig):
        folder = rig.place("closed")
        (folder / "old").write_text("old")
        folder.chmod(0o555)
        before = sorted(folder.iterdir())
        ended = _as_nobody(args, folder)
        problems = ended.clean(1, "error: ", "Permission denied", "hint: ")
        folder.chmod(0o755)
        folder_row.judge([*problems, *([] if sorted(folder.iterdir()) == before else ["files came"])], name)
    for name, args, _ in list(_writers(rig))[:3]:
        folder = rig.place("closed")
        output = folder / str(args[args.index("-o") + 1])
        shutil.copy(rig.soup, output)
        output.chmod(0o444)
        before = digests(folder)
        ended = run(*args, cwd=folder)
        problems = ended.clean(1, "error: ", "write-protected", "hint: ")
        file_row.judge([*problems, *differences(digests(folder), before)], name)
    return [folder_row, file_row]


def _as_nobody(args: tuple[str | Path, ...], folder: Path) -> Ended:
    """Run a command as a user without rights where this one has all of them."""
    if os.geteuid() != 0:
        return run(*args, cwd=folder)
    mounted = subprocess.run(["mount", "--bind", str(folder), str(folder)], check=False).returncode == 0
    if not mounted:
        return run(*args, cwd=folder, user=NOBODY, group=NOBODY, extra_groups=[])
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        ended = run(*args, cwd=folder)
        return Ended(ended.code, ended.stdout, ended.stderr.replace("Read-only file system", "Permission denied"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def same_as_input(rig: Rig) -> list[Row]:
    """Write over an input: by its name, a symbolic link, a hard link, another spelling; and over shards."""
    row = Row("output is an input", "fuse, finetune", "refused: exit code 1, the input as it was")
    links: dict[str, Callable[[Path, Path], None]] = {
        "its own name": lambda file, link: None,
        "a symbolic link": lambda file, link: link.symlink_to(file),
        "a hard link": os.link,
    }
    for how, make in links.items():
        for verb in ("fuse", "finetune"):
            folder = rig.place("same")
            teachers = [Path(shutil.copy(path, folder)) for path in rig.teachers]
            make(teachers[0], folder / "link.safetensors")
            output = teachers[0] if how == "its own name" else folder / "link.safetensors"
            before = digests(folder)
            args = ("fuse", *teachers, *NET) if verb == "fuse" else _finetune(teachers)
            ended = run(*args, "-o", output)
            problems = ended.clean(1, "which would be overwritten", "hint: choose another -o")
            row.judge([*problems, *differences(digests(folder), before)], f"{verb}, {how}")
    folder = rig.place("same")
    sharded = (*_soup(rig, folder / "s.safetensors"), "--max-shard-size", "200KB")
    must(*sharded)
    before = digests(folder)
    args = ("fuse", folder / "s.safetensors.index.json", *rig.teachers[:2], *NET, "--method", "soup")
    ended = run(*args, "--max-shard-size", "200KB", "-o", folder / "s.safetensors")
    row.judge(
        [*ended.clean(1, "hint: choose another -o"), *differences(digests(folder), before)], "fuse, its own shards"
    )
    return [row]


def _finetune(teachers: list[Path]) -> tuple[str | Path, ...]:
    return ("finetune", teachers[0], "--teachers", teachers[1], *NET, *DIGITS, "--steps", "1")


def two_writers(rig: Rig) -> list[Row]:
    """Let two processes write different students to one place at once, whole and in shards."""
    expected = "both end well; the student is one of the two, whole; nothing left over"
    rows = []
    for name, more in (("fuse", ()), ("fuse --max-shard-size", ("--max-shard-size", "100KB"))):
        row = Row("two processes write one output", name, expected)
        args = [
            ("fuse", *rig.teachers, *NET, *more, "--method", "weighted", "--weights", w) for w in ("1,2,3", "3,2,1")
        ]
        wanted = []
        for one in args:
            folder = rig.place("two")
            must(*one, "-o", folder / "s.safetensors")
            wanted.append(digests(folder))
        draw = rig.draw(f"two {name}")
        for trial in range(rig.trials):
            folder = rig.place("two")
            late = 0.0 if trial % 2 else draw.uniform(0, 0.2)
            first = start(*args[0], "-o", folder / "s.safetensors")
            time.sleep(late)
            second = start(*args[1], "-o", folder / "s.safetensors")
            problems = [*end(first).clean(0), *end(second).clean(0)]
            problems += [] if digests(folder) in wanted else [f"neither of the two: {sorted(digests(folder))}"]
            row.judge([*problems, *(f"left over: {file}" for file in leftovers(folder))], f"trial {trial}")
        rows.append(row)
    return rows
