"""What teachers say together, where each knows other classes than the next.

T teachers, B images, C classes. The mean of the probabilities gives all teachers the same vote on every class, also
on those a teacher has hardly seen; it then says something else, and says it with confidence. How much of a class a
teacher has seen shows in how often it answers with it, on any images: its vote on the class is weighted by that.
Teachers that saw the same data answer alike on average, and their votes are the plain mean.
"""

from __future__ import annotations

import math

from torch import Tensor

POWER = 0.5  # of the presence: 0 is the plain mean, 1 counts a teacher's images of the class


def presence(log_probs: Tensor) -> Tensor:
    """Return how often each teacher answers with each class: log-probabilities [T, B, C] -> their log mean [T, C]."""
    return log_probs.logsumexp(1) - math.log(log_probs.shape[1])


def weighted_votes(log_probs: Tensor, present: Tensor) -> Tensor:
    """Return the log of the teachers' common answer, [B, C], of their log-probabilities [T, B, C].

    A weighted mean of the probabilities, class by class, then made to sum to 1 over the classes. The weights of a
    class are in proportion to the teachers' presence to the power `POWER`; `present` is its log, [T, C].
    """
    weights = (POWER * present).log_softmax(0)
    return (log_probs + weights[:, None]).logsumexp(0).log_softmax(1)
