"""Pipes: `-` for checkpoints that standard input names, `-o -` for a student that goes to standard output. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from wfcli import terminal
from wfcli.core.outputs import scratch_folder
from wfcli.errors import OutputError, SourceError

if TYPE_CHECKING:
    from wfcli.engine.fuse import FuseConfig, FuseResult
    from wfcli.engine.hooks import Hooks

STDIN = "-"
STDOUT = Path("-")


def read_names(*lists: Sequence[str]) -> tuple[list[str], ...]:
    """Put what standard input names, one on a line or ended by NUL bytes (`find -print0`), in the place of a `-`.

    Raises:
        typer.BadParameter: there are several `-`, or standard input is a terminal.
        SourceError: nothing is named there.
    """
    asked = sum(list(texts).count(STDIN) for texts in lists)
    if not asked:
        return tuple(list(texts) for texts in lists)
    if asked > 1:
        raise typer.BadParameter("-: standard input can be read once only: write it in one place")
    if sys.stdin.isatty():
        raise typer.BadParameter("-: expected names on standard input: ls zoo/*.safetensors | wfcli ... -")
    buffer = getattr(sys.stdin, "buffer", None)
    text = sys.stdin.read() if buffer is None else os.fsdecode(buffer.read())  # names are bytes
    names = [name for name in (text.split("\0") if "\0" in text else map(str.strip, text.splitlines())) if name]
    if not names:
        raise SourceError("-: standard input names no checkpoint", hint="one on a line: ls zoo/*.safetensors")
    return tuple([name for text in texts for name in (names if text == STDIN else [text])] for texts in lists)


def check_stdout(as_json: bool, shards: bool) -> None:
    """Refuse what cannot go with a student on standard output.

    Raises:
        typer.BadParameter: JSON, shards, or a terminal that would read it.
    """
    if as_json:
        raise typer.BadParameter("--json and -o -: got both, and each wants standard output: leave one of them out")
    if shards:
        raise typer.BadParameter("--max-shard-size and -o -: got both, and standard output is one file")
    if sys.stdout.isatty():
        raise typer.BadParameter("-o -: standard output is a terminal: wfcli fuse ... -o - > student.safetensors")


def to_stdout(verb: Callable[[FuseConfig, Hooks], FuseResult]) -> Callable[[FuseConfig, Hooks], FuseResult]:
    """Return a fuse whose student goes to standard output, when it is whole: until then it is a file of TMPDIR."""

    def run(config: FuseConfig, hooks: Hooks) -> FuseResult:
        with scratch_folder("wfcli-fuse") as folder:
            made = verb(replace(config, output=folder / "student.safetensors"), hooks)
            _send(made.output)
        return replace(made, output=STDOUT)

    return run


def _send(file: Path) -> None:
    try:
        with file.open("rb") as student:
            while data := student.read(1 << 20):
                terminal.write_whole(sys.stdout.buffer, data)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        # Python flushes once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(
            "-o -: standard output was closed before all of the student was written",
            hint="look at what reads it, or write a file",
        ) from error
    except OSError as error:
        raise OutputError(f"-o -: cannot be written ({error.strerror})", hint="is the disk full?") from error
