"""Fixtures for all tests: the command line in this process, and teachers small enough to make in no time."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads only cost
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as the command line has it: the same last bits in all processes

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from wfcli.cli import app

# A script's job in the background does not hear of Ctrl-C, nor do the processes it starts: tests interrupt some.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Ran:
    """What one call of the command line gave."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def wfcli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the command line in this process; a bug's exception is raised, not caught."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args: str | Path) -> Ran:
        result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="wfcli")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@dataclass(frozen=True)
class TinyTeachers:
    """Fine-tunes of one base, to all appearance: the base plus a tenth of noise. `arch` are the options for them."""

    folder: Path
    paths: tuple[Path, ...]
    arch: tuple[str, ...]


@pytest.fixture(scope="session")
def tiny_teachers(tmp_path_factory: pytest.TempPathFactory) -> TinyTeachers:
    """Make three checkpoints of a narrow VGG with BatchNorm and ten classes, in timm's layout: not to be changed."""
    from wfcli.core.architectures import build_model, find_architecture
    from wfcli.core.checkpoint import save_state

    folder = tmp_path_factory.mktemp("teachers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = build_model(find_architecture("vgg11_bn_cifar", {"width": 0.125}), 10).state_dict()
        paths = []
        for index in range(3):
            noisy = {
                key: value + 0.1 * value.std(correction=0) * torch.randn_like(value)
                if value.is_floating_point()
                else value
                for key, value in base.items()
            }
            paths.append(folder / f"teacher-{index:02d}.safetensors")
            save_state(paths[-1], noisy, {"verb": "test"})
    return TinyTeachers(folder, tuple(paths), ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125"))


@pytest.fixture(scope="session")
def digits_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a zoo whose soup falls short: five fine-tunes of one base, each on two digits of its own. Not to change."""
    pytest.importorskip("sklearn")
    from wfcli.core.architectures import find_architecture
    from wfcli.core.data import DataSpec
    from wfcli.engine.train_teachers import TrainTeachersConfig, train_teachers

    root = tmp_path_factory.mktemp("zoos")
    base = TrainTeachersConfig(
        architecture=find_architecture("vgg11_bn_cifar", {"width": 0.125}),
        data=DataSpec("digits"),
        count=1,
        output=root / "base",
        epochs=3,
        lr=0.1,
        batch_size=64,
        same_recipe=True,
        device="cpu",
    )
    train_teachers(base)
    init = str(root / "base" / "teacher-00.safetensors")
    train_teachers(
        replace(base, count=5, output=root / "zoo", init=init, shares="disjoint", epochs=2, lr=0.02, batch_size=32)
    )
    return root / "zoo"
