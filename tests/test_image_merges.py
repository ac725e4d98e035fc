"""Merge methods that look at images: against sums worked out otherwise, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import Ran
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.image_merges import adamerging, fisher, greedy, information, learned_soup, regmean
from wfcli.core.methods import METHODS, WHOLE
from wfcli.core.plan import plan_layers

Cli = Callable[..., Ran]
BY_IMAGES = sorted(name for name, method in METHODS.items() if method.data)


class Flat(nn.Module):
    """One linear layer on all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x.flatten(1))
        return found


@pytest.fixture
def two() -> tuple[Flat, list[dict[str, Tensor]], Tensor]:
    torch.manual_seed(0)
    states = [dict(Flat().state_dict()) for _ in range(2)]
    return Flat(), states, torch.randn(300, 3, 2, 2)


def test_regmean_is_what_its_formula_says(two: tuple[Flat, list[dict[str, Tensor]], Tensor]) -> None:
    model, states, images = two
    found = regmean(model, plan_layers(model, "head"), states, images, diagonal=0.0)
    torch.testing.assert_close(found["head.weight"], (states[0]["head.weight"] + states[1]["head.weight"]) / 2)


@pytest.mark.parametrize("diagonal", [0.0, 0.5, 1.0])
def test_regmean_weighs_by_what_a_layer_is_fed(diagonal: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    states = [
        dict(nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)).state_dict())
        for _ in range(2)
    ]
    images = torch.randn(50, 1, 2, 2)
    found = regmean(model, plan_layers(model, "2"), states, images, diagonal=diagonal)
    grams, sums = torch.zeros(4, 4), torch.zeros(4, 2)
    for state in states:
        z = images.flatten(1) @ state["1.weight"].T
        gram = z.T @ z * torch.where(torch.eye(4) > 0, 1.0, 1 - diagonal)
        grams += gram
        sums += gram @ state["2.weight"].T
    torch.testing.assert_close(found["2.weight"], torch.linalg.solve(grams, sums).T, atol=1e-4, rtol=1e-3)


def test_fisher_information_is_the_mean_square_of_slopes(two: tuple[Flat, list[dict[str, Tensor]], Tensor]) -> None:
    model, states, images = two
    state = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
    found = information(model, state, images, 0)
    # All classes have a probability of 1/4: the slope of the drawn class's bias is 3/4, of the others' -1/4.
    assert float(found["head.bias"].sum()) == pytest.approx((0.75**2 + 3 * 0.25**2), abs=1e-5)
    assert float(found["head.weight"].sum()) == pytest.approx(
        (0.75**2 + 3 * 0.25**2) * float(images.flatten(1).square().sum(1).mean()), rel=1e-4
    )


def test_where_no_teacher_knows_anything_fisher_gives_the_soup(
    two: tuple[Flat, list[dict[str, Tensor]], Tensor],
) -> None:
    model, states, images = two
    images[:, 0] = 0  # inputs that are always off
    states[0] = {name: 3 * tensor for name, tensor in states[0].items()}
    found = fisher(model, states, images[:50])
    off = slice(0, 4)  # of the first channel
    mean = (states[0]["head.weight"] + states[1]["head.weight"]) / 2
    torch.testing.assert_close(found["head.weight"][:, off], mean[:, off])
    assert not torch.allclose(found["head.weight"], mean)


def test_adamerging_draws_nothing_but_from_its_seed(two: tuple[Flat, list[dict[str, Tensor]], Tensor]) -> None:
    _, states, images = two
    model = Flat()
    model.head = nn.Sequential(nn.Dropout(0.5), model.head)  # type: ignore[assignment]
    renamed = [{name.replace("head.", "head.1."): tensor for name, tensor in state.items()} for state in states]
    one, other = (adamerging(model, renamed, None, images, 0.3, 3, 0.05) for _ in range(2))
    assert all(one[name].equal(other[name]) for name in one)


def test_fisher_follows_the_teacher_that_knows(two: tuple[Flat, list[dict[str, Tensor]], Tensor]) -> None:
    model, states, images = two
    blind = {name: tensor * 100 for name, tensor in states[0].items()}  # so sure that nothing moves its answers
    found = fisher(model, [blind, states[1]], images[:50])
    apart = [(found["head.bias"] - state["head.bias"]).norm() for state in (blind, states[1])]
    assert apart[1] < 0.2 * apart[0]
    alike = fisher(model, [states[0], states[0]], images[:50])
    torch.testing.assert_close(alike["head.weight"], states[0]["head.weight"])


def test_learned_soup_finds_the_good_teacher(two: tuple[Flat, list[dict[str, Tensor]], Tensor]) -> None:
    model, states, images = two
    model.load_state_dict(states[1])
    labels = model(images).argmax(1)
    found = learned_soup(model, states, images, labels, steps=100, lr=0.1)
    apart = [(found["head.weight"] - state["head.weight"]).norm() for state in states]
    assert apart[1] < 0.2 * apart[0]
    between = (states[0]["head.weight"] + states[1]["head.weight"]) / 2
    same = learned_soup(model, states, images, labels, steps=1, lr=1e-9)
    torch.testing.assert_close(same["head.weight"], between, atol=1e-6, rtol=1e-6)


def test_adamerging_is_surer_than_the_soup(two: tuple[Flat, list[dict[str, Tensor]], Tensor]) -> None:
    model, states, images = two

    def entropy(state: dict[str, Tensor]) -> float:
        model.load_state_dict(state)
        with torch.no_grad():
            said = model(images).log_softmax(1)
        return float(-(said.exp() * said).sum(1).mean())

    start = adamerging(model, states, None, images, 0.3, steps=1, lr=1e-9)
    torch.testing.assert_close(start["head.weight"], (states[0]["head.weight"] + states[1]["head.weight"]) / 2)
    base = {name: torch.zeros_like(tensor) for name, tensor in states[0].items()}
    third = adamerging(model, states, base, images, 0.3, steps=1, lr=1e-9)
    torch.testing.assert_close(third["head.weight"], 0.3 * (states[0]["head.weight"] + states[1]["head.weight"]))
    assert entropy(adamerging(model, states, base, images, 0.3, steps=50, lr=0.05)) < entropy(third) - 0.05


def test_greedy_keeps_what_does_no_harm() -> None:
    states = [{"w": torch.tensor([value])} for value in (1.0, 5.0, 2.0)]
    student, kept = greedy(states, lambda state: -abs(float(state["w"]) - 1.4))
    assert kept == [0, 2]
    assert student["w"].tolist() == [1.5]
    assert greedy(states, lambda state: -abs(float(state["w"]) - 5))[1] == [1]


@pytest.mark.parametrize("method", BY_IMAGES)
def test_every_method_from_the_command_line(wfcli: Cli, digits_zoo: Path, tmp_path: Path, method: str) -> None:
    paths = sorted(digits_zoo.glob("teacher-*.safetensors"))[:3]
    arch = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125")
    args = ("fuse", *paths, *arch, "--method", method, "--data", "digits", "--calibration-images", "200")
    params = ("--param", "steps=5") if "steps" in METHODS[method].params else ()
    found = []
    for name in ("s", "t"):
        ran = wfcli(*args, *params, "-o", tmp_path / f"{name}.safetensors", "--json")
        assert ran.code == 0, ran.stderr
        found.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert found[0] == found[1]
    assert json.loads(ran.stdout)["method"] == method
    record = open_checkpoint(tmp_path / "s.safetensors").provenance or {}
    assert record["method"] == method
    assert wfcli(*args[:-4], "-o", tmp_path / "u.safetensors").code == 1  # without images
    states = [load_file(path) for path in paths]
    student = load_file(tmp_path / "s.safetensors")
    key = next(name for name, tensor in student.items() if tensor.dim() == 4)
    assert not torch.equal(student[key], sum(state[key] for state in states) / 3)  # type: ignore[arg-type]


def test_labels_come_with_data_alone(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    args = ("fuse", digits_zoo, "--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--method", "greedy")
    ran = wfcli(*args, "--unlabelled", "digits", "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert "--method greedy: got no images with labels" in ran.stderr


def test_methods_that_look_at_images_see_the_net_as_a_whole() -> None:
    assert set(BY_IMAGES) < set(WHOLE)
