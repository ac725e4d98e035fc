"""Is a student broken? Told without labels, from what it says beside its teachers' ensemble and their soup.

B images, C classes. The images may be real or made up (`probes`): a student that is worth having is nearer to the
ensemble than the soup is, and what it says depends on what it sees. It may be nearer as it answers, or once both have
the temperature that brings each nearest: many teachers together are hardly ever sure, on made-up images least of all,
and a student that is would look farther away than it is; teachers that know two classes each are sure of what they have
never seen, and there the temperature hides that a student is nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST_INFORMATION = 0.5  # of the soup's
SHARPNESS = torch.logspace(-1, 0.6, 17)  # what logits are multiplied by, where a net is brought near the ensemble


@dataclass(frozen=True)
class Verdict:
    """How a student compares with the soup, in nats.

    `divergence` from the ensemble as it answers, `tempered` at the best temperature; `information` about the images.
    """

    divergence: float
    soup_divergence: float
    tempered: float
    soup_tempered: float
    information: float
    soup_information: float

    @property
    def broken(self) -> bool:
        """Whether the soup is to be preferred; never where the soup itself is not finite."""
        if not math.isfinite(self.soup_divergence):
            return False
        pairs = ((self.divergence, self.soup_divergence), (self.tempered, self.soup_tempered))
        far = all(not own <= 1.001 * other + 1e-6 for own, other in pairs)  # more than rounding, or not a number
        return far or self.information < LEAST_INFORMATION * self.soup_information

    def sentence(self) -> str:
        """Give the figures in words."""
        return (
            f"KL from the ensemble {self.divergence:.2f} (soup {self.soup_divergence:.2f}), "
            f"at the best temperatures {self.tempered:.2f} (soup {self.soup_tempered:.2f}), "
            f"information about the images {self.information:.2f} nats (soup {self.soup_information:.2f})"
        )


def judge(ensemble: Tensor, student: Tensor, soup: Tensor) -> Verdict:
    """Compare a student with the soup; all three are log-probabilities [B, C]."""
    nets = (student, soup)
    plain, tempered = [divergence(x, ensemble) for x in nets], [tempered_divergence(x, ensemble) for x in nets]
    return Verdict(*plain, *tempered, *map(information, nets))


def divergence(log_probs: Tensor, ensemble: Tensor) -> float:
    """Return the mean KL(ensemble || net) over the images; not a number where the net's answers are not."""
    return float(functional.kl_div(log_probs, ensemble, reduction="batchmean", log_target=True))


def tempered_divergence(log_probs: Tensor, ensemble: Tensor) -> float:
    """Return the same at the temperature where it is the least."""
    found = [divergence((factor * log_probs).log_softmax(1), ensemble) for factor in SHARPNESS]
    return math.nan if math.isnan(sum(found)) else min(found)


def information(log_probs: Tensor) -> float:
    """Return the mutual information between images and predicted class: entropy of the mean less mean entropy.

    It is 0 for a net that says the same whatever it sees, however sure it is.
    """
    mean = torch.logsumexp(log_probs, 0) - torch.tensor(float(len(log_probs))).log()
    return float(_entropy(mean[None]) - _entropy(log_probs))


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs.clamp_min(-100)).sum(1).mean()
