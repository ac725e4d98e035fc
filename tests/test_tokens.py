"""Tokens go there and back to the bit; the statistics have the symmetries they promise."""

from __future__ import annotations

import pytest
import torch
from timm.models.nfnet import NfCfg, NormFreeNet

from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.methods import soup
from wfcli.core.pieces import PIECE
from wfcli.core.plan import LayerSpec, plan_layers
from wfcli.core.tokens import NUM_STATISTICS, from_tokens, layer_deviation, row_products, statistics, to_tokens

SPEC = LayerSpec("conv", "conv", 6, "w", "b", "g", "h", "m", "v", ("n",))


def teachers(count: int, spread: float = 0.2) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(4)

    def make(shape: tuple[int, ...]) -> list[torch.Tensor]:
        base = torch.randn(shape, generator=draw)
        return [base + spread * torch.randn(shape, generator=draw) for _ in range(count)]

    columns = {"w": make((6, 3, 3, 3)), "b": make((6,)), "g": make((6,)), "h": make((6,)), "m": make((6,))}
    columns["v"] = [v.exp() for v in make((6,))]
    return [{name: column[t] for name, column in columns.items()} for t in range(count)]


def stats(states: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return statistics(row_products(to_tokens(SPEC, states)), SPEC)


def test_there_and_back_to_the_bit() -> None:
    states = teachers(3)
    tokens = to_tokens(SPEC, states)
    assert tokens.weight is not None
    assert tokens.running is not None
    for t, state in enumerate(states):
        back = from_tokens(SPEC, tokens.weight[t], tokens.affines[:, t], tokens.running[:, t])
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_net_with_scalar_parameters_there_and_through_the_generator() -> None:
    """An NFNet has gains without an axis; an untrained generator gives the soup."""
    torch.manual_seed(0)
    small = NfCfg(depths=(1, 1), channels=(16, 32), stem_chs=8, num_features=32, group_size=8, skipinit=True)
    states = [NormFreeNet(small, num_classes=3).state_dict() for _ in range(3)]
    scalars = [name for name, tensor in states[0].items() if tensor.ndim == 0]
    assert scalars
    for number, state in enumerate(states):
        state.update({name: torch.tensor(0.5 + number) for name in scalars})
    plan = plan_layers(NormFreeNet(small, num_classes=3), "head.fc")
    with torch.no_grad():
        student = dict(WeightFormer(WeightFormerConfig()).eval().generate(plan, states))
    expected = soup(states)
    assert student.keys() == expected.keys()
    for name, tensor in student.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 5])
def test_statistics_have_their_shape_and_follow_the_order_of_the_teachers(count: int) -> None:
    states = teachers(count)
    found = stats(states)
    assert found.shape == (count, 6, NUM_STATISTICS)
    torch.testing.assert_close(stats(states[::-1]), found.flip(0), rtol=1e-4, atol=1e-4)


def test_statistics_are_free_of_scale() -> None:
    states = teachers(4)
    scaled = [{**state, "w": 1000 * state["w"]} for state in states]
    torch.testing.assert_close(stats(scaled), stats(states), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("index", [[0, 1], [4, 1, 2], [0, 1, 2, 3, 4]])
def test_products_of_a_subset_are_those_taken_of_it_alone(index: list[int]) -> None:
    states = teachers(5)
    everyone = row_products(to_tokens(SPEC, states))
    alone = row_products(to_tokens(SPEC, [states[i] for i in index]))
    torch.testing.assert_close(everyone.subset(torch.tensor(index)).own, alone.own, rtol=1e-4, atol=1e-4)
    expected = statistics(alone, SPEC)
    torch.testing.assert_close(statistics(everyone.subset(torch.tensor(index)), SPEC), expected, rtol=1e-2, atol=1e-3)


def test_equal_teachers_deviate_by_exactly_nothing() -> None:
    (state,) = teachers(1)
    products = row_products(to_tokens(SPEC, [state, state, state]))
    assert torch.equal(layer_deviation(products), torch.zeros(6))
    assert torch.isfinite(statistics(products, SPEC)).all()
    assert (layer_deviation(row_products(to_tokens(SPEC, teachers(3)))) > 0.05).all()


def test_zero_and_constant_layers_stay_finite() -> None:
    zeros = [{name: torch.zeros_like(tensor) for name, tensor in state.items()} for state in teachers(3)]
    assert torch.isfinite(stats(zeros)).all()
    assert torch.isfinite(stats([zeros[0], *teachers(2)])).all()


def test_a_teacher_that_learned_one_channel_stands_out_there() -> None:
    states = teachers(3, spread=0.01)
    states[1]["w"][2] += 1.0
    against_own_rows = stats(states)[:, :, 2]  # deviation against the teacher's other rows
    assert against_own_rows[1].argmax() == 2
    assert against_own_rows[1, 2] > against_own_rows[1].median() + 1


@pytest.mark.parametrize("spread", [1e-4, 0.3])
def test_a_layer_too_large_for_one_piece_has_the_products_of_its_definition(spread: float) -> None:
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(9, PIECE // 10, generator=draw)
    states = [{"w": (base + spread * torch.randn(base.shape, generator=draw)).bfloat16()} for _ in range(3)]
    tokens = to_tokens(LayerSpec("fc", "linear", 9, "w"), states)
    assert tokens.weight is not None
    assert torch.equal(tokens.weight, torch.stack([state["w"].float() for state in states]))
    products = row_products(tokens)
    rows = tokens.weight.double()
    relative = torch.cat([rows - rows.mean(0), rows.mean(0, keepdim=True)]).transpose(0, 1)
    centred = relative - relative.mean(0)
    for found, wanted in ((products.own, relative), (products.centred, centred)):
        length = wanted.norm(dim=2)
        error = (found - wanted @ wanted.transpose(1, 2)) / (length[:, :, None] * length[:, None, :])
        assert error.abs().max() < 1e-4
