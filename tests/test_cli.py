"""The command line: its names are frozen, its exit codes mean what the README says, its examples work."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import typer
from typer.models import ArgumentInfo

from tests.conftest import Ran, TinyTeachers
from wfcli import __version__
from wfcli.cli import app
from wfcli.errors import WfError

# Others call these by name: additions are fine, a changed or missing line breaks somebody's script.
GOLDEN = """
wfcli
  --version switch
  --offline switch
fuse CKPT...
  -o --output required
  --arch
  --arch-arg repeat
  --method = weightformer
  --generator
  --base
  --weights
  --param repeat
  --set repeat
  --heads
  --methods
  --time-budget
  --data
  --split = test
  --label-column
  --classes
  --calibration-images = 4096
  --batch-size = 500
  --dtype = keep (keep float64 float32 bfloat16 float16 float8_e4m3fn float8_e5m2)
  --max-shard-size
  --align = auto (auto weights activations none)
  --guard --no-guard switch
  --probes = 0
  --unlabelled
  --images = 1000
  --distill-steps = 100
  --distill-lr
  --recipe
  --seed = 0
  --device = auto (auto cpu cuda)
  --report
  --json switch
eval CKPT...
  --data required
  --arch
  --teachers repeat
  --arch-arg repeat
  --split = test
  --label-column
  --classes
  --calibration-images = 4096
  --batch-size = 500
  --seed = 0
  --device = auto (auto cpu cuda)
  --report
  --json switch
compare CKPT...
  --data required
  -o --output required
  --arch
  --arch-arg repeat
  --counts
  --seeds = 3
  --methods
  --generator
  --base
  --align = auto (auto weights activations none)
  --split = test
  --label-column
  --classes
  --calibration-images = 4096
  --distill-steps = 0
  --batch-size = 500
  --resume switch
  --seed = 0
  --device = auto (auto cpu cuda)
  --report
  --json switch
finetune CKPT
  --teachers required repeat
  --data required
  --steps required
  -o --output required
  --arch
  --arch-arg repeat
  --label-column
  --classes
  --optimiser
  --lr
  --batch-size = 256
  --distill-weight = 1.0
  --ce-weight = 0.5
  --temperature = 1.0
  --warmup = 0.05
  --weight-decay
  --validate-every = 0
  --resume switch
  --seed = 0
  --device = auto (auto cpu cuda)
  --json switch
train-generator
  --zoo required repeat
  -o --output required
  --preset
  --init
  --train = all (all mixing prior)
  --width
  --blocks
  --attention
  --mask --no-mask
  --flow --no-flow switch
  --shift-weight
  --zoo-teachers
  --max-teachers = 8
  --views = 2
  --steps = 1000
  --lr = 0.002
  --batch-size = 256
  --accumulate
  --resume switch
  --seed = 0
  --device = auto (auto cpu cuda)
  --report
  --json switch
train-teachers
  -o --output required
  --arch
  --data
  --count
  --zoo-recipe
  --arch-arg repeat
  --init
  --label-column
  --classes
  --shares = same (same dirichlet disjoint)
  --concentration = 0.3
  --images-per-teacher
  --epochs = 10.0
  --same-recipe switch
  --faults = none
  --optimiser
  --lr
  --batch-size = 128
  --jobs = 1
  --seed = 0
  --device = auto (auto cpu cuda)
  --json switch
inspect CKPT...
  --weights switch
  --plan switch
  --recipe switch
  --json switch
push SRC REPO
  --private switch
  --revision
  --message
  --create-pr switch
  --license
  --metrics
  --dry-run switch
  --json switch
pull SRC
  -o --output
  --all switch
  --json switch
methods
  --json switch
list
  --hub switch
  --tag = wfcli
  --limit = 50
  --json switch
"""

CONFIGS = {
    "fuse": ("fuse", "FuseConfig"),
    "eval": ("evaluate", "EvaluateConfig"),
    "compare": ("compare", "CompareConfig"),
    "finetune": ("finetune", "FinetuneConfig"),
    "list": ("listing", "ListConfig"),
    "pull": ("pull", "PullConfig"),
    "push": ("push", "PushConfig"),
    "train-generator": ("train_generator", "TrainGeneratorConfig"),
    "train-teachers": ("train_teachers", "TrainTeachersConfig"),
}
CALLBACKS = {info.name or info.callback.__name__.replace("_", "-"): info.callback for info in app.registered_commands}


def _declared(callback: Callable[..., None]) -> dict[str, tuple[Any, Any, Any]]:
    """Return name -> (type, typer's info, default) of a command's parameters."""
    hints = get_type_hints(callback, include_extras=True)
    defaults = {name: param.default for name, param in inspect.signature(callback).parameters.items()}
    mine = (name for name, hint in hints.items() if name != "return" and hint is not typer.Context)
    return {name: (*get_args(hints[name]), defaults[name]) for name in mine}


def _written_out(callback: Callable[..., None], command: Any) -> str:
    flags = {param.name: sorted([*param.opts, *param.secondary_opts], key=len) for param in command.params}
    lines = [command.name or "wfcli"]
    for name, (kind, info, default) in _declared(callback).items():
        if isinstance(info, ArgumentInfo):
            lines[0] += f" {info.metavar}" + ("..." if kind == list[str] else "")
            continue
        words = flags[name] + ["required"] * (default is inspect.Parameter.empty) + ["repeat"] * ("list" in str(kind))
        words += ["switch"] * (kind is bool)
        if default is not inspect.Parameter.empty and default is not None and kind is not bool:
            words += ["=", str(default)]
        if get_origin(kind) is Literal:
            words += [f"({' '.join(get_args(kind))})"]
        lines.append("  " + " ".join(words))
    return "\n".join(lines)


def test_the_names_of_commands_and_options_are_frozen() -> None:
    group = typer.main.get_command(app)
    lines = [_written_out(app.registered_callback.callback, group)]
    lines += [_written_out(CALLBACKS[name], command) for name, command in group.commands.items()]
    assert "\n".join(lines) == GOLDEN.strip()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_defaults_are_those_of_the_library(name: str) -> None:
    module, config = CONFIGS[name]
    shown = {option: default for option, (_, _, default) in _declared(CALLBACKS[name]).items()}
    library = getattr(importlib.import_module(f"wfcli.engine.{module}"), config)
    for field in fields(library):
        if field.default is not MISSING and field.name in shown and field.name != "teachers":
            assert shown[field.name] == field.default, field.name


@pytest.mark.parametrize("name", CALLBACKS)
def test_help_has_an_example_that_parses(name: str, wfcli: Callable[..., Ran]) -> None:
    ran = wfcli(name, "--help")
    assert ran.code == 0
    assert re.search(rf"^ *Example: *\n +wfcli {name} ", ran.stdout, re.MULTILINE)
    example = (CALLBACKS[name].__doc__ or "").split("Example:")[1].replace("\\\n", " ")
    program, command, *args = shlex.split(example)
    assert (program, command) == ("wfcli", name)
    typer.main.get_command(app).commands[name].make_context(name, args)


def test_version(wfcli: Callable[..., Ran]) -> None:
    assert wfcli("--version") == Ran(0, f"wfcli {__version__}\n", "")


def test_the_module_runs_too() -> None:
    ran = subprocess.run([sys.executable, "-m", "wfcli", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"wfcli {__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fuse"], "Missing argument 'CKPT"),
        (["fuse", "a", "b", "--arch", "resnet18"], "Missing option '--output'"),
        (["fuse", "a", "b", "--arch", "resnet18", "-o", "s", "--dtype", "float8"], "Invalid value for '--dtype'"),
        (
            ["fuse", "a", "b", "--arch", "resnet18", "-o", "s", "--classes", "0-4", "--split", "test"],
            "--split, --classes: of no use without --data",
        ),
        (
            ["fuse", "a", "--arch", "resnet18", "-o", "s", "--calibration-images", "0", "--batch-size", "9"],
            "--calibration-images, --batch-size: of no use without --data",
        ),
        (
            ["finetune", "s", "t", "u", "--teachers", "z", "--arch", "a", "--data", "d", "--steps", "1", "-o", "o"],
            "got also t, u; a glob after --teachers needs quotes, --teachers 'zoo/*.safetensors'",
        ),
        (
            ["train-teachers", "--arch", "a", "--data", "d", "--count", "2", "-o", "z", "--concentration", "1"],
            "--concentration goes with --shares dirichlet, got --shares same",
        ),
        (["train-teachers", "--arch", "a", "--data", "d", "-o", "z", "--count", "four"], "Invalid value for '--count'"),
        (["train-teachers", "--arch", "a", "-o", "z"], "give --data, --count, or a --zoo-recipe"),
        (
            ["train-teachers", "--zoo-recipe", "r.toml", "-o", "z", "--count", "4", "--lr", "0.1"],
            "--zoo-recipe says all of that itself; leave out --count, --lr",
        ),
        (["train-generator", "--zoo", "z", "-o", "g", "--max-teachers", "1"], "Invalid value for '--max-teachers'"),
        (
            ["eval", "a", "--arch", "resnet18", "--data", "digits", "--batch-size", "0"],
            "Invalid value for '--batch-size'",
        ),
        (["fuse", "a", "--arch", "resnet18", "-o", "s", "--report", "r.html"], "--report: of no use without --data"),
        (["inspect", "a", "--weight"], "--weights"),
        (["inspect", "a", "--offline"], "write it before the command: wfcli --offline inspect ..."),
        (
            ["finetune", "--offline", "a", "--teachers", "b"],
            "write it before the command: wfcli --offline finetune ...",
        ),
        (["pull", "hf:a/b", "--offlin"], "No such option"),
        (["evaluate", "a"], "No such command"),
    ],
)
def test_a_wrong_command_line_exits_with_2(wfcli: Callable[..., Ran], args: list[str], message: str) -> None:
    ran = wfcli(*args)
    assert ran.code == 2
    assert ran.stdout == ""
    assert message in " ".join(re.sub("[│╭╮╰╯─]", "", ran.stderr).split())


def _fails(ran: Ran, *lines: str) -> None:
    """Check that our error was printed, and that only: problems and hint on lines of their own."""
    assert ran.code == 1
    assert ran.stdout == ""
    found = ran.stderr.splitlines()
    for line in lines:
        assert any(re.fullmatch(line, got) for got in found), f"{line}\nnot in\n{ran.stderr}"
    assert all(re.match("(error|hint|warning): ", line) for line in found)


def test_an_error_is_lines_and_a_hint(wfcli: Callable[..., Ran], tmp_path: Path) -> None:
    ran = wfcli(
        "fuse",
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        "--arch",
        "resnet18",
        "-o",
        tmp_path / "s.safetensors",
    )
    _fails(ran, r"error: .*a\.safetensors: no such .* file", r"error: .*b\.safetensors: no such .* file", "hint: .+")
    assert list(tmp_path.iterdir()) == []


def test_json_leaves_stdout_empty_on_an_error(wfcli: Callable[..., Ran], tmp_path: Path) -> None:
    _fails(wfcli("inspect", tmp_path / "a.safetensors", "--json"), "error: .*no such .* file.*")


def test_an_unknown_architecture_suggests_the_nearest(wfcli: Callable[..., Ran], tmp_path: Path) -> None:
    ran = wfcli("fuse", "a", "b", "--arch", "vgg11_bn_cifr", "-o", tmp_path / "s.safetensors")
    _fails(ran, "error: .*vgg11_bn_cifr.*", "hint: .*vgg11_bn_cifar.*")


def test_an_unknown_method_suggests_the_nearest(
    wfcli: Callable[..., Ran], tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", out, "--method", "sop")
    _fails(ran, "error: .*sop.*", "hint: .*soup.*")
    assert not out.exists()


def test_cuda_where_there_is_none(wfcli: Callable[..., Ran], tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", out, "--method", "soup", "--device", "cuda")
    _fails(ran, "error: .*no CUDA device.*", "hint: .*--device (auto|cpu).*")
    assert not out.exists()


def test_fuse_prints_json_alone(wfcli: Callable[..., Ran], tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", tiny_teachers.folder, *tiny_teachers.arch, "-o", out, "--method", "soup", "--json")
    assert ran.code == 0
    result = json.loads(ran.stdout)
    assert result["output"] == str(out)
    assert result["method"] == "soup"
    assert result["comparison"] is None


def test_list(wfcli: Callable[..., Ran]) -> None:
    assert wfcli("list").code == 0
    assert "universal" in [entry["name"] for entry in json.loads(wfcli("list", "--json").stdout)["pretrained"]]


def test_a_bug_keeps_its_traceback(wfcli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("wfcli.engine.listing.list_pretrained", broken)
    with pytest.raises(ZeroDivisionError):
        wfcli("list")


def test_every_problem_is_a_line(wfcli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise WfError("a: got [3], expected [4]", "b " + 60 * "long " + "end", hint="look again")

    monkeypatch.setattr("wfcli.engine.listing.list_pretrained", refused)
    ran = wfcli("list")
    assert ran == Ran(1, "", f"error: a: got [3], expected [4]\nerror: b {60 * 'long '}end\nhint: look again\n")


@pytest.mark.parametrize(
    ("error", "problem", "hint"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            "the GPU's memory ran out: CUDA out of memory. Tried to allocate 2 GiB.",
            "use a smaller --batch-size where there is one, or --device cpu",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 9 bytes."),
            "memory ran out: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
            "use a smaller --batch-size where there is one, or a machine with more memory",
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
            "memory ran out: DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
            "use a smaller --batch-size where there is one, or a machine with more memory",
        ),
    ],
)
def test_memory_that_runs_out_is_no_traceback(
    wfcli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str, hint: str
) -> None:
    def greedy() -> None:
        raise error

    monkeypatch.setattr("wfcli.engine.listing.list_pretrained", greedy)
    assert wfcli("list") == Ran(1, "", f"error: {problem}\nhint: {hint}\n")


def test_another_runtime_error_is_a_bug(wfcli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("wfcli.engine.listing.list_pretrained", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        wfcli("list")


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        ran = subprocess.run(
            [sys.executable, "-m", "wfcli", "list", "--json"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    args = [
        "--arch",
        "vgg11_bn_cifar",
        "--arch-arg",
        "width=0.125",
        "--data",
        "digits",
        "--count",
        "90",
        "--epochs",
        "1",
    ]
    command = [sys.executable, "-m", "wfcli", "train-teachers", *args, "-o", str(zoo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        give_up = time.monotonic() + 60
        while not (zoo / "teacher-00.safetensors").exists() and running.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    assert (running.returncode, stdout) == (130, "")
    assert stderr == "interrupted\nhint: the same command goes on: the teachers that are done are kept\n"
    assert all(re.fullmatch(r"teacher-\d\d\.safetensors", path.name) for path in zoo.iterdir())
