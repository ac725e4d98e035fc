"""The straight line between two nets, in the space of their weights: how far apart are they as functions?

Along it the loss stays low between nets of one basin, whose average is worth something, and rises between others
(linear mode connectivity: Frankle et al. 2020, arXiv 1912.05671).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wfcli.core.methods import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

POINTS = 11
SHARES = tuple(step / (POINTS - 1) for step in range(POINTS))  # of the second net


def between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the net at `share` (0..1) of the way from `first` to `second`, in float32 (float64 where an input is).

    Running statistics are mixed as weights are, and mean little between the ends: calibrate them. Counters are those of
    `first`. At the ends it is the net there, to the bit.
    """
    found = {}
    for name in first:
        one = first[name]
        found[name] = weighted_sum((one, second[name]), (1 - share, share)) if one.is_floating_point() else one
    return found
