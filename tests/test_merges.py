"""Merge methods that go tensor by tensor: by hand, against mergekit, and what all of them have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from wfcli.core.merges import MERGES, RULES, Versions, dare, merge
from wfcli.core.methods import METHODS, TENSORWISE

ALL = sorted(TENSORWISE)


def versions(
    tensors: list[list[float]] | list[Tensor],
    base: list[float] | Tensor | None = None,
    weights: list[float] | None = None,
    name: str = "w",
    **params: float,
) -> Versions:
    found = [{name: torch.as_tensor(tensor)} for tensor in tensors]
    origin = None if base is None else {name: torch.as_tensor(base)}
    return Versions(name, found, origin, weights or [1 / len(found)] * len(found), params)


def merged(method: str, given: Versions) -> Tensor:
    usual: Mapping[str, float] = METHODS[method].params
    given = Versions(given.name, given.teachers, given.base, given.weights, {**usual, **given.params}, given.seed)
    return torch.cat([piece.reshape(-1) for piece in merge(method, given)])


def close(found: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-6, rtol=1e-6)


def test_every_method_is_listed_once() -> None:
    assert set(RULES) | set(MERGES) == TENSORWISE
    assert not set(RULES) & set(MERGES)


def test_weights() -> None:
    close(merged("weighted", versions([[1.0, 2.0], [5.0, 6.0]], weights=[0.25, 0.75])), [4.0, 5.0])


def test_distance_weighs_what_has_moved_farther() -> None:
    # The mean is 2: distances 2, 1 and 3; to the power of 2: 4, 1 and 9 of 14.
    close(merged("distance", versions([[0.0], [1.0], [5.0]])), [(0 * 4 + 1 * 1 + 5 * 9) / 14])
    close(merged("distance", versions([[0.0], [1.0], [5.0]], power=0.0)), [2.0])


def test_slerp_goes_along_the_circle() -> None:
    half = math.sqrt(0.5)
    close(merged("slerp", versions([[1.0, 0.0], [0.0, 1.0]])), [half, half])
    third = merged("slerp", versions([[1.0, 0.0], [0.0, 1.0]], weights=[2 / 3, 1 / 3]))
    close(third, [math.cos(math.pi / 6), math.sin(math.pi / 6)])
    close(merged("slerp", versions([[1.0, 1.0], [2.0, 2.0]])), [1.5, 1.5])  # parallel: on a line


def test_karcher_is_in_the_middle_at_the_mean_length() -> None:
    half = math.sqrt(0.5)
    close(merged("karcher", versions([[1.0, 0.0], [0.0, 3.0]])), [2 * half, 2 * half])
    found = merged("karcher", versions([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]))
    close(found, [1 / math.sqrt(3)] * 3)
    close(merged("karcher", versions([[0.0, 0.0], [2.0, 0.0]])), [1.0, 0.0])  # a zero has no direction
    close(merged("karcher", versions([[0.0, 0.0], [0.0, 0.0]])), [0.0, 0.0])


def test_task_arithmetic_adds_what_was_learned() -> None:
    close(merged("task-arithmetic", versions([[2.0, 1.0], [1.0, 4.0]], [1.0, 1.0], scale=0.5)), [1.5, 2.5])
    weighted = versions([[2.0], [5.0]], [1.0], weights=[0.75, 0.25], scale=1.0)
    close(merged("task-arithmetic", weighted), [1 + 2 * (0.75 * 1 + 0.25 * 4)])


def test_ties_by_hand() -> None:
    # Learned: [4, -1, 2, .1], [-1, -3, 2, .2], [3, 2, -.5, 4]. Half of each kept: [4, 0, 2, 0], [0, -3, 2, 0],
    # [3, 0, 0, 4]. Signs +, -, +, +; means of those that have them: 3.5, -3, 2, 4.
    base = [1.0, 1.0, 1.0, 1.0]
    learned = torch.tensor([[4, -1, 2, 0.1], [-1, -3, 2, 0.2], [3, 2, -0.5, 4]])
    given = versions(list(learned + 1), base, density=0.5)
    close(merged("ties", given), [4.5, -2.0, 3.0, 5.0])
    close(merged("ties", versions(list(learned + 1), base, density=0.5, scale=2.0)), [8.0, -5.0, 5.0, 9.0])


def test_dare_with_the_masks_given() -> None:
    masks = [torch.tensor([True, False]), torch.tensor([True, True])]
    given = versions([[2.0, 3.0], [4.0, 5.0]], [1.0, 1.0], density=0.5, scale=1.0)
    close(dare(given, masks), [1 + (2 * 1 + 2 * 3) / 2, 1 + (0 + 2 * 4) / 2])


def test_dare_keeps_the_share_and_is_drawn_by_name_and_seed() -> None:
    given = [torch.ones(20_000), torch.ones(20_000)]
    found = merged("dare", versions(given, torch.zeros(20_000), density=0.3))
    assert float(found.mean()) == pytest.approx(1, abs=0.02)
    assert float((found == 0).float().mean()) == pytest.approx(0.49, abs=0.02)
    assert torch.equal(found, merged("dare", versions(given, torch.zeros(20_000), density=0.3)))
    assert not torch.equal(found, merged("dare", versions(given, torch.zeros(20_000), name="v", density=0.3)))


def test_model_stock_by_hand() -> None:
    # Learned at right angles: the cosine is 0, so is the share of the mean. Alike: the mean. At 60 degrees: 2/3.
    close(merged("model-stock", versions([[2.0, 1.0], [1.0, 2.0]], [1.0, 1.0])), [1.0, 1.0])
    close(merged("model-stock", versions([[2.0, 1.0], [2.0, 1.0]], [1.0, 1.0])), [2.0, 1.0])
    sixty = [[1.0, 0.0], [0.5, math.sqrt(0.75)]]
    close(merged("model-stock", versions(sixty, [0.0, 0.0])), [0.5, math.sqrt(0.75) / 3])
    close(merged("model-stock", versions([[2.0], [0.0]], [1.0])), [1.0])  # opposite: the base
    close(merged("model-stock", versions([[1.0, 0.0], [-0.5, math.sqrt(0.75)]], [0.0, 0.0])), [0.0, 0.0])  # at 120
    close(merged("model-stock", versions([[1.0], [1.1], [-1.0]], [0.0])), [0.0])  # no pole
    close(
        1e4 * merged("model-stock", versions([[1e-4, 0.0], [1e-4, 0.0]], [0.0, 0.0])), [1.0, 0.0]
    )  # small steps count


def test_opposite_directions_have_no_mean_on_the_sphere() -> None:
    for given in ([[-2.0, 1.0], [2.0, -1.0]], [[0.3], [-0.2], [-0.4], [0.1], [0.6]], [[-0.267], [0.189], [-0.219]]):
        close(merged("karcher", versions(given)), torch.tensor(given).mean(0).tolist())


@pytest.mark.parametrize("method", ALL)
def test_copies_of_one_teacher_give_that_teacher(method: str) -> None:
    torch.manual_seed(0)
    one, base = torch.randn(5, 7), torch.randn(5, 7)
    count = 2 if method == "slerp" else 4
    params = {"scale": 1 / count} if method == "task-arithmetic" else {"density": 1.0}
    params = {key: value for key, value in params.items() if key in METHODS[method].params}
    given = versions([one] * count, base if METHODS[method].base else None, **params)
    torch.testing.assert_close(merged(method, given), one.flatten(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ALL)
def test_statistics_counters_and_low_precision(method: str) -> None:
    torch.manual_seed(0)
    two = [torch.rand(6) + 0.1 for _ in range(2)]
    base = torch.rand(6) * 9
    takes = METHODS[method].base
    statistics = versions(two, base if takes else None, weights=[0.25, 0.75], name="bn.running_var")
    torch.testing.assert_close(merged(method, statistics), 0.25 * two[0] + 0.75 * two[1])
    counters = versions([torch.tensor(3), torch.tensor(5)], torch.tensor(1) if takes else None)
    assert merged(method, counters).tolist() == [5]
    halves = versions([tensor.half() for tensor in two], base.half() if takes else None)
    assert merged(method, halves).dtype == torch.float32
    assert torch.isfinite(merged(method, halves)).all()


@pytest.mark.parametrize("method", ALL)
def test_pieces_give_what_the_whole_gives(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    two, base = [torch.randn(40, 8) for _ in range(2)], torch.randn(40, 8)
    given = versions(two, base if METHODS[method].base else None)
    whole = merged(method, given)
    monkeypatch.setattr("wfcli.core.pieces.row_ranges.__defaults__", (64,))
    monkeypatch.setattr("wfcli.core.pieces.PIECE", 64)
    torch.testing.assert_close(merged(method, given), whole, atol=1e-6, rtol=1e-6)


GIVEN = [
    [0.9, -1.3, 0.05, 2.2, -0.35, 1.6],
    [0.6, -0.8, 0.41, 1.7, -1.05, 1.4],
    [0.2, -1.1, 0.75, 2.1, -0.70, 2.3],
]
ORIGIN = [0.5, -1.0, 0.25, 2.0, -0.75, 1.5]


def test_the_numbers_of_mergekit() -> None:
    """What mergekit 0.1.5 gives; `TestMergekit` asks the one that is installed."""
    close(merged("karcher", versions(GIVEN)), [0.5974993, -1.0834746, 0.4064927, 2.0426235, -0.743704, 1.7851185])
    two = versions(GIVEN[:2], weights=[0.7, 0.3])
    close(merged("slerp", two), [0.8197989, -1.1637858, 0.1606249, 2.0752418, -0.5683215, 1.5592614])
    close(merged("ties", versions(GIVEN, ORIGIN, density=0.5)), [0.9, -1.3, 0.75, 1.7, -0.35, 2.3])


class TestMergekit:
    """The same numbers as mergekit, where it is installed: `pip install '.[mergekit]'`."""

    @pytest.fixture
    def tensors(self) -> list[Tensor]:
        draw = torch.Generator().manual_seed(0)
        base = torch.randn(16, 9, generator=draw)
        return [base, *(base + 0.1 * torch.randn(16, 9, generator=draw) for _ in range(3))]

    @staticmethod
    def function(module: str, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(pytest.importorskip(f"mergekit.{module}"), name)
        return found

    def test_karcher(self, tensors: list[Tensor]) -> None:
        theirs = self.function("merge_methods.karcher", "karcher_merge_tensors")(tensors[1:], [1 / 3] * 3)
        torch.testing.assert_close(merged("karcher", versions(tensors[1:])), theirs.flatten(), atol=1e-6, rtol=1e-5)

    def test_slerp(self, tensors: list[Tensor]) -> None:
        slerp = self.function("merge_methods.slerp", "slerp")
        theirs = slerp(torch.tensor([0.3]), *(tensor.flatten()[None] for tensor in tensors[1:3]))
        ours = merged("slerp", versions(tensors[1:3], weights=[0.7, 0.3]))
        torch.testing.assert_close(ours, theirs.flatten(), atol=1e-6, rtol=1e-5)

    def test_ties(self, tensors: list[Tensor]) -> None:
        magnitude = self.function("sparsify", "magnitude")
        get_mask = self.function("merge_methods.generalized_task_arithmetic", "get_mask")
        learned = torch.stack([magnitude(tensor - tensors[0], density=0.4) for tensor in tensors[1:]])
        mask = get_mask(learned, method="sum")
        theirs = tensors[0] + (learned * mask).sum(0) / mask.sum(0).clamp_min(1)
        ours = merged("ties", versions(tensors[1:], tensors[0], density=0.4))
        torch.testing.assert_close(ours, theirs.flatten(), atol=1e-6, rtol=1e-5)
