"""The guard knows a broken student, and the head is fitted to what is asked of it."""

from __future__ import annotations

import math

import pytest
import torch

from wfcli.core.guard import Verdict, information, judge
from wfcli.core.head_fit import fit_head

B, C = 200, 5


@pytest.fixture
def answers() -> torch.Tensor:
    """Log-probabilities of an ensemble that is fairly sure."""
    return (3 * torch.randn(B, C, generator=torch.Generator().manual_seed(0))).log_softmax(1)


@pytest.fixture
def soup(answers: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of a soup that has a good part of it wrong."""
    return (answers + 2 * torch.randn(B, C, generator=torch.Generator().manual_seed(1))).log_softmax(1)


def test_a_student_nearer_to_the_ensemble_than_the_soup_is_sound(answers: torch.Tensor, soup: torch.Tensor) -> None:
    verdict = judge(answers, (answers + soup).log_softmax(1), soup)
    assert not verdict.broken
    assert 0 < verdict.divergence < verdict.soup_divergence
    assert not judge(answers, soup, soup).broken  # an untrained generator gives the soup
    assert judge(answers, answers, soup).divergence == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sure", [0.3, 1.0, 3.0])
def test_how_sure_a_student_is_does_not_count(answers: torch.Tensor, soup: torch.Tensor, sure: float) -> None:
    near, far = (answers + soup), (answers + 5 * soup.roll(1, 0))
    assert not judge(answers, (sure * near).log_softmax(1), soup).broken
    assert judge(answers, (sure * far).log_softmax(1), soup).broken


def test_a_student_nearer_either_way_is_sound() -> None:
    assert not Verdict(0.5, 1.0, 0.4, 0.3, 1.0, 1.0).broken  # sure teachers of a few classes each
    assert not Verdict(1.0, 0.5, 0.3, 0.4, 1.0, 1.0).broken  # a student surer than many teachers
    assert Verdict(1.0, 0.5, 0.4, 0.3, 1.0, 1.0).broken
    assert Verdict(0.1, 0.5, 0.1, 0.3, 0.4, 1.0).broken  # it hardly looks at the image


def test_broken_students_are_known(answers: torch.Tensor, soup: torch.Tensor) -> None:
    for broken in (answers.roll(1, 1), 40 * answers.roll(1, 0), torch.zeros(B, C)):
        assert judge(answers, broken.log_softmax(1), soup).broken
    assert judge(answers, torch.full((B, C), torch.nan), soup).broken
    assert not judge(answers, answers, torch.full((B, C), torch.nan)).broken  # then the soup is no better
    # Nearer than a soup that is surely wrong, but it says the same of all images.
    wrong = (2 * answers.roll(1, 1)).log_softmax(1)
    verdict = judge(answers, torch.zeros(B, C).log_softmax(1), wrong)
    assert verdict.divergence < verdict.soup_divergence
    assert verdict.broken


def test_information_is_that_between_images_and_classes() -> None:
    sure = torch.eye(4).repeat(5, 1).clamp_min(1e-30).log()
    assert information(sure) == pytest.approx(math.log(4), rel=1e-4)
    assert information(sure[:1].repeat(20, 1)) == pytest.approx(0, abs=1e-5)
    assert information(torch.zeros(20, 4).log_softmax(1)) == pytest.approx(0, abs=1e-5)


def test_a_head_is_found_again() -> None:
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(500, 6, generator=draw) * torch.tensor([1, 1, 5, 0.1, 1, 1]) + 2
    weight, bias = torch.randn(C, 6, generator=draw), torch.randn(C, generator=draw)
    wanted = (features @ weight.T + bias).softmax(1)
    found, shift = fit_head(features, wanted, torch.zeros(C, 6), torch.zeros(C), strength=0.0)
    assert (found.dtype, shift.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close((features @ found.T + shift).softmax(1), wanted, atol=2e-3, rtol=0)


def test_a_strong_prior_holds_and_a_perfect_one_stays() -> None:
    draw = torch.Generator().manual_seed(2)
    features, prior = torch.randn(300, 6, generator=draw), torch.randn(C, 6, generator=draw)
    other = torch.randn(300, C, generator=draw).softmax(1)
    near = [fit_head(features, other, prior, torch.zeros(C), s)[0].sub(prior).norm() for s in (1e-3, 1e-1, 1e4)]
    assert near[0] > near[1] > near[2]
    assert near[2] < 1e-3
    own = (features @ prior.T).softmax(1)
    torch.testing.assert_close(fit_head(features, own, prior, torch.zeros(C), 0.01)[0], prior, atol=1e-4, rtol=0)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    features = torch.cat([torch.randn(100, 3, generator=torch.Generator().manual_seed(3)), torch.ones(100, 1)], 1)
    wanted = torch.eye(3)[features[:, :3].argmax(1)] * 0.9 + 1 / 30
    weight, bias = fit_head(features, wanted, torch.zeros(3, 4), torch.zeros(3), 1e-3)
    assert weight.isfinite().all()
    assert ((features @ weight.T + bias).argmax(1) == wanted.argmax(1)).float().mean() > 0.9
