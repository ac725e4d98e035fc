from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wfcli.core.architectures import InputConfig
from wfcli.core.images import Images
from wfcli.core.training import (
    BatchOrder,
    Loss,
    accuracy,
    cosine_rate,
    make_optimiser,
    mean_probabilities,
    repeatable,
    seed_for,
    train_step,
    training_batch,
)

CPU = torch.device("cpu")
INPUTS = InputConfig(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def some_images(count: int) -> Images:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return Images("noise", "train", pixels, torch.arange(count) % 3, ("a", "b", "c"), flip=False)


def test_rate_rises_to_its_peak_then_falls_to_nearly_nothing() -> None:
    rates = [cosine_rate(step, 100, 0.1, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-4


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (3, 0.1), (3, 1.0)])
def test_rate_is_positive_however_short_the_run(steps: int, warmup: float) -> None:
    assert all(0 < cosine_rate(step, steps, 1.0, warmup) <= 1 for step in range(steps))


@pytest.mark.parametrize(("images", "batches"), [(64, [16] * 4), (70, [16] * 4 + [6]), (65, [16] * 4), (5, [5])])
def test_an_epoch_sees_each_image_once_and_has_no_batch_of_one(images: int, batches: list[int]) -> None:
    order = BatchOrder(images, 16, seed=3)
    for epoch in range(2):
        seen = [order.indices(epoch * order.per_epoch + batch) for batch in range(order.per_epoch)]
        assert [len(batch) for batch in seen] == batches
        together = torch.cat(seen)
        assert len(together.unique()) == len(together)


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    images = some_images(50)
    straight, jumped = BatchOrder(50, 16, seed=3), BatchOrder(50, 16, seed=3)
    batches = [training_batch(images, straight, step, INPUTS, 1, CPU) for step in range(6)]
    x, labels = training_batch(images, jumped, 5, INPUTS, 1, CPU)
    assert torch.equal(x, batches[5][0])
    assert torch.equal(labels, batches[5][1])
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(BatchOrder(50, 16, seed=4).indices(0), straight.indices(0))


def test_seeds_of_neighbours_differ() -> None:
    assert len({seed_for(seed, stream, step) for seed in range(5) for stream in range(5) for step in range(40)}) == 1000


def test_mean_probabilities_are_those_of_the_ensemble_at_this_temperature() -> None:
    teachers = [nn.Linear(5, 3) for _ in range(4)]
    x = torch.randn(6, 5)
    wanted = sum(F.softmax(teacher(x) / 2.0, dim=1) for teacher in teachers) / 4
    got = mean_probabilities(teachers, x, 2.0)
    torch.testing.assert_close(got, wanted.detach())
    assert not got.requires_grad


def test_loss_is_cross_entropy_plus_scaled_divergence() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    wanted = F.softmax(torch.randn(6, 3), dim=1)
    divergence = (wanted * (wanted.log() - F.log_softmax(logits / 2, dim=1))).sum(dim=1).mean()
    expected = 0.5 * F.cross_entropy(logits, labels) + 3.0 * 4.0 * divergence
    torch.testing.assert_close(Loss(0.5, 3.0, 2.0)(logits, labels, wanted), expected)
    torch.testing.assert_close(Loss()(logits, labels, wanted), F.cross_entropy(logits, labels))
    at_goal = Loss(0.0, 1.0, 1.0)(wanted.log(), labels, wanted)
    assert at_goal.abs() < 1e-6


def test_step_learns_and_leaves_biases_and_norms_undecayed() -> None:
    torch.manual_seed(0)
    model, images = small_net().to(memory_format=torch.channels_last), some_images(48)
    optimiser = make_optimiser(model, weight_decay=0.1)
    decayed = {id(p) for g in optimiser.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}
    order = BatchOrder(48, 48, seed=0)
    losses = []
    for _ in range(40):
        x, labels = training_batch(images, order, 0, INPUTS, 0, CPU)
        losses.append(train_step(model, optimiser, x, labels, rate=0.02, loss=Loss(), autocast=nullcontext()).item())
    assert losses[-1] < 0.3 * losses[0]
    assert accuracy(model, images, INPUTS, device=CPU, autocast=nullcontext(), batch_size=7) > 0.8
    assert not model.training


def test_repeatable_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with repeatable(CPU):
        torch.manual_seed(99)
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)
