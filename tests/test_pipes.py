"""Pipes: names from standard input, a student to standard output, and nothing else there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.conftest import Ran, TinyTeachers
from wfcli.cli import app
from wfcli.core.checkpoint import open_checkpoint

ROOT = str(Path(__file__).resolve().parents[1])
WFCLI = (sys.executable, "-m", "wfcli")


def run(*args: str | Path, names: str | None = None) -> Result:
    """Run the command line with something on its standard input."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=names, prog_name="wfcli")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def words(result: Result) -> str:
    return " ".join(re.sub("[│╭╮╰╯─]", "", result.stderr).split())


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\0"])
def test_names_come_from_standard_input(tiny_teachers: TinyTeachers, tmp_path: Path, ends: str) -> None:
    names = "".join(f"{path}{ends}" for path in tiny_teachers.paths[1:])
    output = tmp_path / "student.safetensors"
    ran = run("fuse", tiny_teachers.paths[0], "-", *tiny_teachers.arch, "--method", "soup", "-o", output, names=names)
    assert ran.exit_code == 0, ran.stderr
    sources = (open_checkpoint(output).provenance or {})["sources"]
    assert [source["name"] for source in sources] == [path.name for path in tiny_teachers.paths]


def test_inspect_and_eval_take_names_too(tiny_teachers: TinyTeachers) -> None:
    names = "\n".join(map(str, tiny_teachers.paths))
    ran = run("inspect", "-", "--json", names=names)
    assert [entry["name"] for entry in json.loads(ran.stdout)["entries"]] == [path.name for path in tiny_teachers.paths]
    pytest.importorskip("sklearn")
    args = (*tiny_teachers.arch, "--data", "digits", "--calibration-images", "0", "--json")
    ran = run("eval", tiny_teachers.paths[0], "--teachers", "-", *args, names=names)
    assert ran.exit_code == 0, ran.stderr
    rows = json.loads(ran.stdout)["rows"]
    assert [row["name"] for row in rows if row["kind"] == "teacher"] == [path.name for path in tiny_teachers.paths]


def test_standard_input_that_names_nothing(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    output = tmp_path / "student.safetensors"
    ran = run("fuse", "-", *tiny_teachers.arch, "-o", output, names="\n \n")
    assert ran.exit_code == 1
    assert "error: -: standard input names no checkpoint" in ran.stderr
    assert "hint: one on a line" in ran.stderr
    ran = run("fuse", "-", "-", *tiny_teachers.arch, "-o", output, names="a\n")
    assert ran.exit_code == 2
    assert "standard input can be read once only" in words(ran)
    assert list(tmp_path.iterdir()) == []


def test_one_checkpoint_is_not_asked_for_on_standard_input(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    names = f"{tiny_teachers.paths[0]}\n"
    options = ("--data", "digits", "-o", tmp_path / "out")
    for args in (
        ("finetune", "-", "--teachers", tiny_teachers.paths[1], *tiny_teachers.arch, "--steps", "1", *options),
        ("train-teachers", "--init", "-", "--count", "1", *options),
    ):
        ran = run(*args, names=names)
        assert ran.exit_code == 1
        assert "error: -: no such checkpoint file" in ran.stderr
        assert (
            "hint: names on standard input go where several checkpoints may stand: CKPT..., or --teachers" in ran.stderr
        )


def fused(tiny_teachers: TinyTeachers, *args: str | Path) -> tuple[str | Path, ...]:
    return ("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", *args)


def test_a_student_goes_to_standard_output(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    assert run(*fused(tiny_teachers, "-o", tmp_path / "file.safetensors")).exit_code == 0
    done = subprocess.run(
        [*WFCLI, *map(str, fused(tiny_teachers, "-o", "-"))],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": ROOT},
    )
    assert done.stdout == (tmp_path / "file.safetensors").read_bytes()
    told = done.stderr.decode()
    assert "standard output · sha256" in told
    assert "soup of 3 teachers" in told
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"], "nothing is left in TMPDIR"


def test_a_reader_that_leaves_is_told(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    command = [*WFCLI, *map(str, fused(tiny_teachers, "-o", "-"))]
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": ROOT}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read().decode()
        assert process.wait() == 1
    assert "error: -o -: standard output was closed before all of the student was written" in told
    assert "Traceback" not in told
    assert "BrokenPipe" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--json",), "--json and -o -: got both"),
        (("--max-shard-size", "1MB"), "--max-shard-size and -o -: got both"),
    ],
)
def test_what_does_not_go_with_standard_output(
    tiny_teachers: TinyTeachers, args: tuple[str, ...], message: str
) -> None:
    ran = run(*fused(tiny_teachers, "-o", "-", *args))
    assert ran.exit_code == 2
    assert message in words(ran)
    assert ran.stdout_bytes == b""


def test_a_terminal_gets_no_bytes_and_names_nothing(tiny_teachers: TinyTeachers) -> None:
    env = {**os.environ, "PYTHONPATH": ROOT, "COLUMNS": "200"}
    master, terminal = os.openpty()
    try:
        command = [*WFCLI, *map(str, fused(tiny_teachers, "-o", "-"))]
        done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, check=False, env=env)
        assert done.returncode == 2
        assert "standard output is a terminal" in done.stderr.decode()
        done = subprocess.run([*WFCLI, "inspect", "-"], stdin=terminal, capture_output=True, check=False, env=env)
        assert done.returncode == 2
        assert "expected names on standard input" in done.stderr.decode()
    finally:
        os.close(master)
        os.close(terminal)


def test_a_training_writes_a_file(wfcli: Callable[..., Ran], tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    args = ("--teachers", tiny_teachers.folder, *tiny_teachers.arch, "--data", "digits", "--steps", "1")
    ran = wfcli("finetune", tiny_teachers.paths[0], *args, "-o", "-")
    assert ran.code == 2
    assert "a training writes a file" in " ".join(ran.stderr.split())
