"""The last layer of a student fitted to what its teachers say together, on images without labels or no real images.

B images, N features, C classes. The body of a fused student keeps its teachers' features; what averaging loses is the
head, which each teacher fitted to its own. Given the features and the teachers' common answers on any images, the best
head is the solution of a convex problem: multinomial logistic regression to soft targets, with the generator's head as
its prior.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MOST_STEPS = 400  # of L-BFGS; it stops by itself long before
HISTORY = 10  # pairs it remembers: memory is about 30 times the head in float64


def fit_head(features: Tensor, wanted: Tensor, weight: Tensor, bias: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Return the weight [C, N] and bias [C] that bring a head closest to `wanted`, float32.

    Minimises KL(wanted || softmax(features W' + b)), mean over the images, + `strength` * |(W - weight) s|^2, where s
    are the standard deviations of the features: the prior holds what the images do not tell. The bias is free.

    Args:
        features: what the head sees, [B, N].
        wanted: probabilities, [B, C].
        weight: of the prior, [C, N].
        bias: of the prior, [C].
    """
    features, wanted, weight, bias = (t.double() for t in (features, wanted, weight, bias))
    mean, spread = features.mean(0), features.std(0, correction=0)
    spread = spread + 1e-3 * spread.mean() + 1e-12
    scaled, start = (features - mean) / spread, features @ weight.T + bias
    change = torch.zeros_like(weight).requires_grad_()  # of the weight, in units of 1 / spread
    shift = torch.zeros_like(bias).requires_grad_()
    search = torch.optim.LBFGS(
        [change, shift], max_iter=MOST_STEPS, history_size=HISTORY, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        logits = start + scaled @ change.T + shift
        divergence = functional.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")
        value = divergence + strength * change.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    moved = (change / spread).detach()
    return (weight + moved).float(), (bias + shift.detach() - moved @ mean).float()
