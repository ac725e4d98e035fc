"""The soup and the weighted sum, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from wfcli.core.methods import soup, soup_tensor, weighted_sum


def test_the_soup_of_floats_is_their_mean() -> None:
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([8.0, 0.0])]
    assert soup_tensor(tensors).tolist() == [4.0, 2.0]


@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        ((torch.bfloat16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float64, torch.bfloat16), torch.float64),
    ],
)
def test_the_soup_is_not_rounded_to_the_dtypes_of_the_teachers(
    dtypes: tuple[torch.dtype, torch.dtype], wide: torch.dtype
) -> None:
    one, other = torch.tensor([1.0], dtype=dtypes[0]), torch.tensor([1.0078125], dtype=dtypes[1])
    found = soup_tensor([one, other])
    assert (found.dtype, found.item()) == (wide, 1.00390625)  # between two neighbours of bfloat16


def test_the_soup_of_halves_is_taken_in_float32() -> None:
    tensors = [torch.full((1,), 60000.0, dtype=torch.float16)] * 4  # the sum overflows float16
    assert soup_tensor(tensors).item() == pytest.approx(60000, rel=1e-3)


def test_integers_and_bools_are_not_averaged() -> None:
    assert soup_tensor([torch.tensor(7), torch.tensor(9), torch.tensor(8)]).tolist() == 9
    assert soup_tensor([torch.tensor([True, False]), torch.tensor([False, False])]).tolist() == [True, False]


def test_the_soup_of_equal_teachers_is_the_teacher_to_the_bit() -> None:
    state = {"w": torch.randn(100), "n": torch.tensor(3)}
    again = soup([state, dict(state)])
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_inputs_stay_as_they_were() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    soup_tensor([one, two])
    weighted_sum([one, two], [0.25, 0.75])
    assert one.tolist() == [1, 1]


def test_a_weighted_sum_is_as_wide_as_its_widest_whatever_the_order() -> None:
    wide, narrow = torch.tensor([1.0], dtype=torch.float64) / 3, torch.tensor([1.0])
    for tensors in ([wide, narrow], [narrow, wide]):
        found = weighted_sum(tensors, [0.5, 0.5])
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(2 / 3, abs=1e-15)


def test_a_weighted_sum_takes_numbers_and_rows() -> None:
    one, two = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert weighted_sum([one, two], [0.5, 2.0]).tolist() == [[10.5, 13.0], [15.5, 18.0]]
    rows = [torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])]
    assert weighted_sum([one, two], rows).tolist() == [[1.0, 2.0], [7.0, 8.0]]


@pytest.mark.parametrize("empty", [lambda: soup_tensor([]), lambda: weighted_sum([], [])])
def test_nothing_cannot_be_averaged(empty) -> None:
    with pytest.raises(ValueError, match="of no tensors"):
        empty()
