"""The average of independent nets, mended: by whose spreads, in which layers; and what a method must not do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import Ran, TinyTeachers
from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.repair import repair

Cli = Callable[..., Ran]


def write_nets(folder: Path, name: str, args: dict[str, float], lengths: list[float]) -> list[Path]:
    """Write independent nets, their convolutions so many times as long as drawn."""
    paths = []
    for number, length in enumerate(lengths):
        torch.manual_seed(number)
        state = build_model(find_architecture(name, args), 10).state_dict()
        state = {key: length * value if value.dim() == 4 else value for key, value in state.items()}
        paths.append(folder / f"net-{number}.safetensors")
        save_state(paths[-1], state, {})
    return paths


@pytest.mark.parametrize("data", [False, True])
def test_the_average_is_mended_by_the_weights_of_the_teachers(wfcli: Cli, tmp_path: Path, data: bool) -> None:
    if data:
        pytest.importorskip("sklearn")
    paths = write_nets(tmp_path, "vgg11_cifar", {"width": 0.125}, [1, 3])
    out = tmp_path / "s.safetensors"
    args = ["--arch", "vgg11_cifar", "--arch-arg", "width=0.125", "--method", "weighted", "--weights", "1,0"]
    args += ["--unlabelled", "digits", "--images", "64", "--distill-steps", "0"] if data else []
    ran = wfcli("fuse", *paths, *args, "-o", out)
    assert ran.code == 0, ran.stderr
    student, first = load_file(out), load_file(paths[0])
    for name, tensor in first.items():
        if tensor.dim() == 4:
            torch.testing.assert_close(student[name].norm(), tensor.norm(), rtol=1e-3, atol=0)


class Standardised(nn.Conv2d):
    """A convolution that divides its weights by their spread."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, padding=1)


class Odd(nn.Module):
    """One layer that makes its own weights, one whose weight others use, one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.standardised = Standardised(8, 8, 3, padding=1)
        self.used = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.standardised(self.plain(x).relu()).relu().mean((2, 3))
        x = nn.functional.linear(x, self.used.weight, self.used.bias).relu()
        found: Tensor = self.head(self.twice(self.twice(x).relu()).relu())
        return found


def test_repair_leaves_layers_that_it_cannot_scale() -> None:
    torch.manual_seed(0)
    states = [dict(Odd().state_dict()) for _ in range(3)]
    average = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    mended = repair(Odd(), "head", average, states, torch.randn(32, 3, 8, 8))
    moved = {name for name in average if not mended[name].equal(average[name])}
    assert moved == {"plain.weight", "plain.bias"}


def test_repair_goes_through_a_net_that_takes_weights_apart() -> None:
    model = timm.create_model("beit_base_patch16_224", num_classes=10, img_size=32, embed_dim=48, depth=2, num_heads=3)
    torch.manual_seed(0)
    start = model.state_dict()
    states = [
        {n: t + 0.02 * torch.randn_like(t) if t.is_floating_point() else t for n, t in start.items()} for _ in range(2)
    ]
    average = {n: (a + states[1][n]) / 2 if a.is_floating_point() else a for n, a in states[0].items()}
    mended = repair(model, "head", average, states, torch.randn(8, 3, 32, 32))
    assert mended["blocks.0.attn.qkv.weight"].equal(average["blocks.0.attn.qkv.weight"])
    assert not mended["blocks.0.mlp.fc1.weight"].equal(average["blocks.0.mlp.fc1.weight"])


def test_the_base_is_not_overwritten(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(tiny_teachers.paths[0].read_bytes())
    before = base.read_bytes()
    ran = wfcli("fuse", *tiny_teachers.paths[1:], *tiny_teachers.arch, "--method", "ties", "--base", base, "-o", base)
    assert ran.code == 1
    assert "which would be overwritten" in ran.stderr
    assert base.read_bytes() == before


def test_a_greedy_soup_of_one_is_that_teacher(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    """The base has learned all digits, the others two each: nothing helps it."""
    good = digits_zoo.parent / "base" / "teacher-00.safetensors"
    out = tmp_path / "s.safetensors"
    others = sorted(digits_zoo.glob("teacher-*.safetensors"))[:2]
    args = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--data", "digits", "--method", "greedy")
    ran = wfcli("fuse", *others, good, *args, "-o", out, "--json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["weights"] == [0.0, 0.0, 1.0]
    assert told["calibrated"] is False
    student, teacher = load_file(out), load_file(good)
    assert all(student[name].equal(teacher[name]) for name in teacher)
    assert (open_checkpoint(out).provenance or {})["weights"] == [0.0, 0.0, 1.0]


def test_without_images_to_look_at_the_reason_is_told(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    args = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--data", "digits", "--calibration-images", "0")
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", digits_zoo, *args, "--method", "fisher", "-o", out)
    assert ran.code == 1
    assert "--method fisher: --calibration-images 0 leaves no images to look at" in ran.stderr
    assert wfcli("fuse", digits_zoo, *args, "--method", "learned-soup", "--param", "steps=2", "-o", out).code == 0
