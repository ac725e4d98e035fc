"""Fine-tunes of one base and independent nets are told apart, with figures that anyone can compute by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from wfcli.core.pieces import PIECE
from wfcli.core.regime import LEAST_EXCESS, Regime, regime

State = dict[str, Tensor]


def random_state(seed: int, scale: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (64, 32, 3, 3), "norm.weight": (64,), "head.weight": (10, 4096)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(base: State, seed: int, by: float) -> State:
    return {
        name: weight + by * noise
        for (name, weight), noise in zip(base.items(), random_state(seed).values(), strict=True)
    }


@pytest.mark.parametrize("teachers", [2, 6, 20])
def test_independent_weights_lie_at_one_over_root_t(teachers: int) -> None:
    found = regime([random_state(seed) for seed in range(teachers)], random_state(0))
    assert not found.shared_base
    assert found.cosines == pytest.approx([1 / math.sqrt(teachers)] * teachers, abs=0.01)
    assert found.distances == pytest.approx([math.sqrt(teachers - 1)] * teachers, rel=0.02)


@pytest.mark.parametrize("teachers", [2, 6, 20])
@pytest.mark.parametrize("by", [0.01, 0.3])
def test_fine_tunes_lie_near_one(teachers: int, by: float) -> None:
    base = random_state(99)
    found = regime([moved(base, seed, by) for seed in range(teachers)], base)
    assert found.shared_base
    # A teacher is the base plus its own noise; the mean keeps 1/T of the noise.
    cosine = (1 + by**2 / teachers) / math.sqrt((1 + by**2) * (1 + by**2 / teachers))
    assert found.cosines == pytest.approx([cosine] * teachers, abs=0.01)
    assert found.distances == pytest.approx(
        [by * math.sqrt((1 - 1 / teachers) / (1 + by**2 / teachers))] * teachers, rel=0.03
    )


def test_equal_teachers_are_the_mean() -> None:
    found = regime([random_state(0)] * 3, random_state(0))
    assert found.shared_base
    assert found.cosines == pytest.approx([1.0] * 3, abs=1e-6)
    assert found.distances == pytest.approx([0.0] * 3, abs=1e-6)


def test_order_and_names_of_teachers_do_not_matter() -> None:
    teachers = [moved(random_state(9), seed, 0.1 * (seed + 1)) for seed in range(4)]
    one = regime(teachers, list(teachers[0]))
    two = regime(teachers[::-1], list(teachers[0])[::-1])
    assert two.cosines == pytest.approx(one.cosines[::-1], abs=1e-6)
    assert two.distances == pytest.approx(one.distances[::-1], rel=1e-5)


def test_a_layer_too_large_for_one_piece_counts_as_one_layer() -> None:
    draw = torch.Generator().manual_seed(2)
    base = torch.randn(5, PIECE // 2 + 1, generator=draw)
    layers = [base + 1e-3 * torch.randn(base.shape, generator=draw) for _ in range(3)]
    found = regime([{"w": layer} for layer in layers], ["w"])
    rows = torch.stack(layers).flatten(1).double()
    mean = rows.mean(0)
    assert found.cosines == pytest.approx(torch.cosine_similarity(rows, mean[None]).tolist(), abs=1e-5)
    assert found.distances == pytest.approx(((rows - mean).norm(dim=1) / mean.norm()).tolist(), rel=1e-4)


def test_one_stranger_is_found_and_named() -> None:
    base = random_state(99)
    teachers = [moved(base, seed, 0.1) for seed in range(4)] + [random_state(5)]
    found = regime(teachers, base)
    assert not found.shared_base
    assert min(found.cosines) == found.cosines[4] < 0.3
    assert found.sentence(["a", "b", "c", "d", "e"]).startswith(
        "the teachers do not share one base: e stand apart (cosine"
    )


def test_sentences_say_what_was_seen() -> None:
    assert Regime(True, (0.98, 0.91), (0.1, 0.1)).sentence() == (
        "the teachers share a base (cosine to their mean 0.91 to 0.98, 0.71 if independent)"
    )
    assert Regime(False, (0.4,) * 6, (2.0,) * 6).sentence(["x"] * 6) == (
        "the teachers were trained independently (cosine to their mean 0.40 to 0.40, 0.41 if independent)"
    )


def test_what_says_nothing_is_left_out() -> None:
    base = random_state(99)
    teachers = [moved(base, seed, 0.1) for seed in range(3)]
    expected = regime(teachers, base)
    for seed, teacher in enumerate(teachers):
        teacher["gain"] = torch.randn(1000, generator=torch.Generator().manual_seed(seed))  # one dimension
        teacher["zero"] = torch.zeros(4, 4)
        teacher["count"] = torch.full((2, 2), seed)
        teacher["broken"] = torch.full((4, 4), math.nan if seed == 1 else 1.0)
    assert regime(teachers, teachers[0]) == expected
    assert regime(teachers, ["broken", "zero"]) == Regime(False, (0.0,) * 3, (0.0,) * 3)


def test_the_teachers_are_not_touched_and_may_be_of_half_precision() -> None:
    teachers = [{name: weight.bfloat16() for name, weight in random_state(seed).items()} for seed in range(3)]
    before = [{name: weight.clone() for name, weight in teacher.items()} for teacher in teachers]
    found = regime(teachers, teachers[0])
    assert found.cosines == pytest.approx(regime([random_state(s) for s in range(3)], teachers[0]).cosines, abs=1e-3)
    assert all(torch.equal(t[name], b[name]) for t, b in zip(teachers, before, strict=True) for name in t)


def train(state: State | None, seed: int, steps: int, rate: float) -> State:
    """Train a small convolutional net on the digits of scikit-learn, on its own half of them."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(288, 10),
        )
        if state is not None:
            model.load_state_dict(state)
        share = torch.randperm(len(images))[: len(images) // 2]
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        for _ in range(steps):
            batch = share[torch.randint(len(share), (64,))]
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def test_trained_nets_lie_far_on_their_side_of_the_line() -> None:
    base = train(None, 100, 100, 0.05)
    tuned = [train(base, seed, 50, 0.01 * 2**seed) for seed in range(4)]
    apart = [train(None, seed, 50, 0.05) for seed in range(4)]
    shared, independent = regime(tuned, base), regime(apart, base)
    assert shared.shared_base
    assert not independent.shared_base
    line = 0.5 + LEAST_EXCESS * 0.5  # the cosine of the threshold for four teachers
    assert max(independent.cosines) < 0.5 + 0.3 * (line - 0.5)
    assert min(shared.cosines) > line + 0.5 * (1 - line)
    assert max(shared.distances) == shared.distances[3]  # the highest rate leads farthest from the others
