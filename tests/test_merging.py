"""`fuse --method` with the methods that go tensor by tensor: options, base, weights, provenance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ran, TinyTeachers
from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.merges import Versions, merge
from wfcli.core.methods import METHODS, TENSORWISE

Cli = Callable[..., Ran]


@pytest.fixture
def base(tiny_teachers: TinyTeachers, tmp_path: Path) -> Path:
    """Make a base: the mean of the teachers, and something more."""
    torch.manual_seed(0)
    states = [load_file(path) for path in tiny_teachers.paths]
    state = {
        name: sum(s[name] for s in states) / len(states) * 1.01 if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    path = tmp_path / "base.safetensors"
    save_state(path, state, {})  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("method", sorted(TENSORWISE - {"fedavg"}))
def test_every_method_from_the_command_line(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, base: Path, method: str
) -> None:
    paths = tiny_teachers.paths[:2] if method == "slerp" else tiny_teachers.paths
    args = ["fuse", *paths, *tiny_teachers.arch, "--method", method]
    weights = [0.2, 0.8] if method == "slerp" else [0.5, 0.25, 0.25]
    if METHODS[method].base:
        args += ["--base", base]
    if METHODS[method].weights:
        args += ["--weights", ",".join(str(4 * weight) for weight in weights)]
    for name in ("s", "t"):
        ran = wfcli(*args, "-o", tmp_path / f"{name}.safetensors", "--json")
        assert ran.code == 0, ran.stderr
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    told = json.loads(ran.stdout)
    assert told["method"] == method
    assert told["base"] == ("base.safetensors" if METHODS[method].base else None) or told["base"] == str(base)
    states = [load_file(path) for path in paths]
    shares = weights if METHODS[method].weights else [1 / len(paths)] * len(paths)
    origin = load_file(base) if METHODS[method].base else None
    found = load_file(tmp_path / "s.safetensors")
    for key, tensor in found.items():
        pieces = [*merge(method, Versions(key, states, origin, shares, METHODS[method].params))]
        torch.testing.assert_close(tensor, torch.cat([piece.reshape(-1) for piece in pieces]).reshape(tensor.shape))
    record = open_checkpoint(tmp_path / "s.safetensors").provenance or {}
    assert record["method"] == method
    assert record.get("params", {}) == dict(METHODS[method].params)
    assert record.get("weights") == (weights if METHODS[method].weights else None)
    assert record.get("base", {}).get("name") == ("base.safetensors" if METHODS[method].base else None)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--method", "task-arithmetic"), "--method task-arithmetic: --base: got none, expected the checkpoint"),
        (("--method", "weighted"), "--method weighted: --weights: got none, expected a number for every teacher"),
        (("--method", "weighted", "--weights", "1,2"), "--weights: got 2 numbers, expected 3"),
        (("--method", "weighted", "--weights", "0,0,0"), "not all of them 0"),
        (("--method", "weighted", "--weights", "1,-2,1"), "expected numbers from 0 on"),
        (("--method", "soup", "--weights", "1,2,1"), "--method soup: --weights: it takes none"),
        (("--method", "soup", "--base", "x"), "--method soup: --base: it takes none"),
        (("--method", "ties", "--param", "scales=2"), "--param scales: unknown, its parameters are: density, scale"),
        (("--method", "ties", "--param", "density=0"), "--param density: got 0, expected above 0, at most 1"),
        (("--method", "slerp"), "--method slerp: got 3 teachers, expected 2"),
        (("--method", "karchr"), "did you mean karcher?"),
        (("--method", "fedavg"), "its file does not say on how many images it was trained"),
        (("--method", "ties", "--base", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_wrong_options(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, args: tuple[str, ...], told: str
) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, *args, "-o", out)
    assert ran.code == 1
    assert told in " ".join(ran.stderr.split())
    assert not out.exists()


@pytest.mark.parametrize("args", [("--weights", "1,a"), ("--param", "density"), ("--param", "density=much")])
def test_what_is_no_number_is_a_usage_error(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, args: tuple[str, ...]
) -> None:
    ran = wfcli(
        "fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "ties", *args, "-o", tmp_path / "s.safetensors"
    )
    assert ran.code == 2


def test_fedavg_counts_the_images_in_the_files(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    paths, states = [], [load_file(path) for path in tiny_teachers.paths]
    for number, state in enumerate(states):
        paths.append(tmp_path / f"{number}.safetensors")
        save_state(paths[-1], state, {"verb": "train-teachers", "share": {"images": (number + 1) * 100}})
    ran = wfcli("fuse", *paths, *tiny_teachers.arch, "--method", "fedavg", "-o", tmp_path / "s.safetensors", "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["weights"] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    name = next(name for name, tensor in states[0].items() if tensor.dim() > 1)
    wanted = sum(state[name] * (number + 1) / 6 for number, state in enumerate(states))
    torch.testing.assert_close(load_file(tmp_path / "s.safetensors")[name], wanted)


def test_a_head_that_the_base_lacks_is_averaged(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    torch.manual_seed(0)
    save_state(tmp_path / "base.safetensors", build_model(arch, 7).state_dict(), {})
    args = ("--method", "task-arithmetic", "--base", tmp_path / "base.safetensors", "-o", tmp_path / "s.safetensors")
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, *args)
    assert ran.code == 0, ran.stderr
    found, states = load_file(tmp_path / "s.safetensors"), [load_file(path) for path in tiny_teachers.paths]
    head = next(name for name in found if name.endswith("weight") and len(found[name]) == 10)
    torch.testing.assert_close(found[head], sum(state[head] for state in states) / 3)  # type: ignore[arg-type]
    assert "without the base: " in " ".join(ran.stderr.split())


def test_a_base_that_is_not_finite_is_no_base(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, base: Path
) -> None:
    state = load_file(base)
    name = next(name for name, tensor in state.items() if tensor.dim() > 1)
    state[name].view(-1)[0] = float("nan")
    save_state(tmp_path / "broken.safetensors", state, {})
    out = tmp_path / "s.safetensors"
    args = ("--method", "ties", "--base", tmp_path / "broken.safetensors", "-o", out)
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, *args)
    assert ran.code == 1
    assert f"broken.safetensors: {name}" in " ".join(ran.stderr.split())
    assert not out.exists()


def test_methods_are_listed(wfcli: Cli) -> None:
    listed = json.loads(wfcli("methods", "--json").stdout)["methods"]
    assert list(listed) == list(METHODS)
    assert listed["ties"]["params"] == {"density": 0.2, "scale": 1.0}
    shown = wfcli("methods").stdout
    assert all(name in shown for name in METHODS)
