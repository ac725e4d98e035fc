"""Figures: against values worked out by hand, and against what they must not change with."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest

from wfcli.core.metrics import agreement, ensemble, reliability, score, wilson


def log_probs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def random_logits(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_scores_worked_out_by_hand() -> None:
    found = score(
        log_probs([0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4]), torch.tensor([0, 1, 1, 2])
    )
    assert found.top1 == 0.75
    assert found.nll == pytest.approx(-(math.log(0.7) + math.log(0.2) + math.log(0.5) + math.log(0.4)) / 4, abs=1e-6)
    # confidence 0.7 twice (right half the time), 0.5 once (right), 0.4 once (right)
    assert found.ece == pytest.approx((2 * 0.2 + 0.5 + 0.6) / 4, abs=1e-6)


def test_scores_of_a_perfect_and_a_hopeless_model() -> None:
    labels = torch.tensor([0, 1, 2])
    perfect = score((torch.eye(3) * 200).log_softmax(1), labels)
    assert (perfect.top1, perfect.top1_ci[1]) == (1.0, 1.0)
    assert perfect.nll == pytest.approx(0, abs=1e-6)
    assert perfect.ece == pytest.approx(0, abs=1e-6)
    hopeless = score((torch.eye(3).roll(1, 0) * 200).log_softmax(1), labels)
    assert (hopeless.top1, hopeless.top1_ci[0]) == (0.0, 0.0)
    assert hopeless.nll == pytest.approx(200, rel=1e-3)
    assert hopeless.ece == pytest.approx(1, abs=1e-6)


def test_probabilities_a_hair_above_one_are_not_taken_for_logits() -> None:
    sure = torch.tensor([[1e-7, -50.0], [-50.0, 1e-7]])  # exp(1e-7) > 1
    assert score(sure, torch.tensor([0, 1])).ece == pytest.approx(0, abs=1e-6)


def test_scores_do_not_depend_on_the_order_of_the_images() -> None:
    answers = random_logits(500, 10).log_softmax(1)
    labels = torch.randint(0, 10, (500,), generator=torch.Generator().manual_seed(1))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    one, other = score(answers, labels), score(answers[order], labels[order])
    assert (one.top1, one.top1_ci) == (other.top1, other.top1_ci)
    assert (one.nll, one.ece) == (pytest.approx(other.nll), pytest.approx(other.ece, abs=1e-6))


def test_an_image_with_nan_is_wrong() -> None:
    answers = torch.zeros(4, 3).log_softmax(1)
    answers[0] = math.nan
    found = score(answers, torch.zeros(4, dtype=torch.int64))
    assert found.top1 == 0.75
    assert math.isnan(found.nll)
    assert math.isnan(found.ece)


@pytest.mark.parametrize(("right", "images"), [(8, 10), (0, 20), (20, 20), (9000, 10000), (1, 3)])
def test_wilson_interval(right: int, images: int) -> None:
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson(right, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_ensemble_is_the_mean_of_probabilities() -> None:
    logits = random_logits(3, 20, 5)
    mean = logits.softmax(-1).mean(0)
    torch.testing.assert_close(ensemble(logits).exp(), mean)
    assert not torch.allclose(ensemble(logits), logits.mean(0).log_softmax(-1), atol=1e-2)  # not the mean of logits


def test_an_ensemble_of_equal_teachers_is_the_teacher() -> None:
    logits = random_logits(1, 20, 5)
    torch.testing.assert_close(ensemble(logits.expand(4, -1, -1)), logits[0].log_softmax(-1))


def test_the_ensemble_does_not_depend_on_the_order_or_offset_of_the_teachers() -> None:
    logits = random_logits(3, 20, 5)
    torch.testing.assert_close(ensemble(logits.flip(0)), ensemble(logits))
    torch.testing.assert_close(ensemble(logits + torch.tensor([0.0, 5.0, -9.0]).view(3, 1, 1)), ensemble(logits))


def test_the_ensemble_stands_large_logits() -> None:
    logits = random_logits(2, 5, 3) * 1e4
    assert torch.isfinite(ensemble(logits)).all()


def test_reliability_worked_out_by_hand() -> None:
    answers = log_probs([0.7, 0.2, 0.1], [0.68, 0.22, 0.1], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [1.0, 0.0, 0.0])
    found = reliability(answers, torch.tensor([0, 1, 1, 2, 0]), bins=10)
    assert [(one.low, one.high, one.images) for one in found] == [
        (0.4, 0.5, 1), (0.5, 0.6, 1), (0.6, 0.7, 1), (0.7, 0.8, 1), (0.9, 1.0, 1)
    ]  # fmt: skip
    assert [one.top1 for one in found] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert [one.confidence for one in found] == pytest.approx([0.4, 0.5, 0.68, 0.7, 1.0])
    (both,) = reliability(answers[:2], torch.tensor([0, 1]), bins=2)
    assert (both.images, both.top1, both.top1_ci) == (2, 0.5, wilson(1, 2))
    assert both.confidence == pytest.approx(0.69)


def test_reliability_and_calibration_error_belong_together() -> None:
    answers = random_logits(400, 10).mul(2).log_softmax(1)
    labels = torch.randint(0, 10, (400,), generator=torch.Generator().manual_seed(1))
    found = reliability(answers, labels)
    assert sum(one.images for one in found) == 400
    error = sum(one.images * abs(one.top1 - one.confidence) for one in found) / 400
    assert error == pytest.approx(score(answers, labels).ece, abs=1e-6)


def test_images_with_nan_have_no_confidence_and_agree_with_nobody() -> None:
    answers = log_probs([0.9, 0.1], [0.9, 0.1], [0.2, 0.8])
    broken = answers.clone()
    broken[0, 1] = math.nan
    labels = torch.tensor([0, 0, 0])
    assert sum(one.images for one in reliability(broken, labels)) == 2
    found = agreement([answers, broken], labels)
    assert found.same == ((1.0, 2 / 3), (2 / 3, 2 / 3))
    assert found.both_wrong == ((1 / 3, 1 / 3), (1 / 3, 2 / 3))


def test_agreement_worked_out_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    said = [[0, 1, 2, 1], [0, 2, 1, 1], [1, 2, 2, 0]]
    found = agreement([torch.eye(3)[answers].log_softmax(1) for answers in said], labels)
    assert found.same == ((1.0, 0.5, 0.25), (0.5, 1.0, 0.25), (0.25, 0.25, 1.0))
    assert found.both_wrong == ((0.25, 0.25, 0.0), (0.25, 0.75, 0.25), (0.0, 0.25, 0.5))
