"""What teachers say together, where each knows other classes than the next."""

from __future__ import annotations

import torch

from wfcli.core.metrics import ensemble
from wfcli.core.votes import presence, weighted_votes


def test_presence_is_the_mean_answer() -> None:
    log_probs = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.2, 0.8], [0.4, 0.6]]]).log()
    assert torch.allclose(presence(log_probs).exp(), torch.tensor([[0.8, 0.2], [0.3, 0.7]]))


def test_a_vote_weighs_by_the_root_of_the_presence() -> None:
    present = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).log()
    log_probs = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
    weights = torch.tensor([2 / 3, 1 / 3])  # of class 0: sqrt(0.8) to sqrt(0.2) are 2 to 1; of class 1 the other way
    wanted = torch.stack([weights @ torch.tensor([0.9, 0.5]), weights.flip(0) @ torch.tensor([0.1, 0.5])])
    assert torch.allclose(weighted_votes(log_probs, present).exp()[0], wanted / wanted.sum())


def test_votes_of_teachers_that_know_the_same_are_the_plain_mean() -> None:
    log_probs = torch.randn(3, 5, 4).log_softmax(-1)
    alike = torch.randn(1, 4).expand(3, -1)
    assert torch.allclose(weighted_votes(log_probs, alike), ensemble(log_probs), atol=1e-6)


def test_a_class_that_one_teacher_knows_is_left_to_it() -> None:
    # Teacher 0 knows classes 0 and 1, teacher 1 knows 2; of an image of class 2 teacher 0 is sure that it is a 1.
    present = torch.tensor([[0.5, 0.5, 1e-4], [1e-4, 1e-4, 1.0]]).log()
    log_probs = torch.tensor([[[0.1, 0.899, 0.001]], [[0.05, 0.05, 0.9]]]).log()
    assert weighted_votes(log_probs, present).argmax() == 2
