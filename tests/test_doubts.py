"""Teachers that do not belong together: what is told, and that sound ones are left in peace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import Ran, TinyTeachers
from wfcli.core.checkpoint import save_state
from wfcli.core.doubts import is_better, is_guessing, near_copies, reordered_answers, reordered_heads

Run = Callable[..., Ran]
HEAD = ("head.weight", "head.bias")


def answers(right: float, images: int = 1000, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return log probabilities that are right for a share of the images, and the labels."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=draw)
    said = torch.where(
        torch.rand(images, generator=draw) < right, labels, torch.randint(classes, (images,), generator=draw)
    )
    return torch.nn.functional.one_hot(said, classes).double().mul(5).log_softmax(1), labels


def test_a_copy_is_near_its_original() -> None:
    between = [[0, 9, 8, 1], [9, 0, 7, 9], [8, 7, 0, 8], [1, 9, 8, 0]]
    assert near_copies(between) == [(0, 3)]
    assert near_copies([[0, 5, 5], [5, 0, 2], [5, 2, 0]]) == []
    assert near_copies([[0, 2, 3, 20], [2, 0, 3, 20], [3, 3, 0, 20], [20, 20, 20, 0]]) == [], "one stands apart"
    assert near_copies([[0, 1e-9], [1e-9, 0]]) == [], "two alone: nothing says how far apart teachers are"


@pytest.mark.parametrize("right", [0.0, 0.3, 0.9])
def test_answers_in_order_are_in_order(right: float) -> None:
    assert reordered_answers(*answers(right)) is None


@pytest.mark.parametrize("right", [0.6, 0.9])
def test_answers_in_another_order(right: float) -> None:
    said, labels = answers(right)
    found = reordered_answers(said.roll(1, 1), labels)
    assert found is not None
    assert found.moved == 10
    assert found.after == pytest.approx(float((said.argmax(1) == labels).float().mean()))
    assert reordered_answers(said.roll(1, 1)[:50], labels[:50]) is None, "too few images"


def test_a_silo_of_few_classes_is_in_order() -> None:
    said, labels = answers(0.9)
    said[:, 2:] = -50.0  # it answers with two classes alone
    assert reordered_answers(said, labels) is None
    weak, _ = answers(0.2)
    weak[labels == 7, 0] = 50.0  # it never saw class 7, and takes it for 0
    assert reordered_answers(weak, labels) is None


def test_two_classes_that_are_swapped() -> None:
    said, labels = answers(0.95)
    found = reordered_answers(said[:, [1, 0, *range(2, 10)]], labels)
    assert found is not None
    assert found.moved == 2


def heads(count: int, noise: float) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(10, 64, generator=draw)
    return [base + noise * torch.randn(10, 64, generator=draw) for _ in range(count)]


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_heads_in_order_are_in_order(noise: float) -> None:
    assert reordered_heads(heads(4, noise)) == [None] * 4


def test_a_head_in_another_order_is_found() -> None:
    given = heads(4, 0.5)
    given[2] = given[2].roll(3, 0)
    found = reordered_heads(given)
    assert [one is not None for one in found] == [False, False, True, False]
    assert found[2] is not None
    assert found[2].moved == 10
    assert reordered_heads(given[1:3]) == [None, None], "of two none is the odd one"
    shuffled = [head.roll(place, 0) for place, head in enumerate(heads(4, 0.1))]
    assert reordered_heads(shuffled) == [None] * 4, "all stand in orders of their own: there is no common one"


def test_guessing_and_a_clear_gain() -> None:
    _, labels = answers(0.5)
    assert is_guessing(110, labels)
    assert not is_guessing(160, labels)
    assert not is_guessing(0, labels[:50]), "too few images"
    own = torch.arange(400) % 2 == 0
    assert is_better(own, torch.ones(400, dtype=torch.bool))
    assert not is_better(own, ~own)
    assert not is_better(own, own | (torch.arange(400) == 1))


def spoilt(teachers: TinyTeachers, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> list[Path]:
    """Return the teachers and a fourth, a changed copy of the first, in a folder of their own."""
    state = load_file(teachers.paths[0])
    change(state)
    save_state(folder / "odd.safetensors", state, {})
    return [*teachers.paths, folder / "odd.safetensors"]


def test_fuse_tells_of_a_moving_average(wfcli: Run, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    def average(state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = value * 1.001

    paths = spoilt(tiny_teachers, tmp_path, average)
    ran = wfcli("fuse", *paths, *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert ran.code == 0
    assert "teacher-00.safetensors and odd.safetensors are nearly the same net (0.1 % apart)" in ran.stderr
    assert "leave one out" in ran.stderr
    ran = wfcli("fuse", *paths[:3], *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert ran.stderr == ""


def test_fine_tunes_of_the_last_layer_alone_are_no_copies(
    wfcli: Run, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    base = load_file(tiny_teachers.paths[0])
    for number in range(2):
        draw = torch.Generator().manual_seed(number)
        noise = 10 * base["head.weight"].std() * torch.randn(base["head.weight"].shape, generator=draw)
        save_state(tmp_path / f"head-{number}.safetensors", {**base, "head.weight": base["head.weight"] + noise}, {})
    paths = [*tiny_teachers.paths[1:3], *sorted(tmp_path.glob("head-*.safetensors"))]
    ran = wfcli("fuse", *paths, *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert ran.code == 0
    assert "nearly the same net" not in ran.stderr


def test_fuse_tells_of_a_head_in_another_order(wfcli: Run, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    def turn(state: dict[str, Tensor]) -> None:
        draw = torch.Generator().manual_seed(2)
        for name, value in state.items():
            if name in HEAD:
                state[name] = value.roll(1, 0)
            elif value.ndim > 1:  # and it has been trained on
                state[name] = value + 0.1 * value.std() * torch.randn(value.shape, generator=draw)

    paths = spoilt(tiny_teachers, tmp_path, turn)
    ran = wfcli("fuse", *paths, *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert ran.code == 0
    assert "odd.safetensors: its head seems to have 10 of the 10 classes in another order" in ran.stderr


def test_eval_tells_of_other_orders_and_normalisations(wfcli: Run, digits_zoo: Path, tmp_path: Path) -> None:
    base = load_file(digits_zoo.parent / "base" / "teacher-00.safetensors")
    save_state(tmp_path / "plain.safetensors", base, {})
    turned = {name: value.roll(1, 0) if name in HEAD else value for name, value in base.items()}
    save_state(tmp_path / "turned.safetensors", turned, {})
    # Its images are normalised by CIFAR-10's figures; as if it had been trained on those that are not at all.
    std, mean = torch.tensor([0.247, 0.2435, 0.2616]), torch.tensor([0.4914, 0.4822, 0.4465])
    weight = base["features.0.weight"] / std[:, None, None]
    shift = (weight * mean[:, None, None]).sum((1, 2, 3))
    other = {**base, "features.0.weight": weight, "features.1.running_mean": base["features.1.running_mean"] + shift}
    save_state(tmp_path / "other.safetensors", other, {})
    arch = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--data", "digits")
    ran = wfcli("eval", *(tmp_path / f"{name}.safetensors" for name in ("plain", "turned", "other")), *arch)
    assert ran.code == 0, ran.stderr
    told = " ".join(ran.stderr.split())
    assert "plain.safetensors" not in told
    assert "turned.safetensors: " in told
    beside = wfcli("eval", tmp_path / "turned.safetensors", "--teachers", tmp_path / "plain.safetensors",
                   "--teachers", digits_zoo, *arch)  # fmt: skip
    assert "turned.safetensors: " in " ".join(beside.stderr.split())
    assert "with 10 of its classes renamed: it seems to know them in another order" in told
    assert "images normalised by mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0)" in told
