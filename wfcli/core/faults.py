"""What may be wrong with a teacher, on purpose: for zoos that teach a generator that not all are good, and test it.

In a zoo of sound teachers those that moved farthest from the base are often the best. A generator that learns this
shortcut is of no use where a teacher moved far because its rate was too high or its labels wrong.

C classes, B images.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wfcli.core.training import seed_for
from wfcli.errors import WfError


@dataclass(frozen=True)
class Fault:
    """How a teacher's training differs from that of a sound one."""

    epochs: float = 1.0  # times those of a sound one
    lr: float = 1.0  # likewise
    label_noise: float = 0.0  # share of its images that have a wrong label
    weight_noise: float = 0.0  # added to each weight at the end, in units of the root mean square of its tensor


FAULTS = {
    "none": Fault(),
    "short": Fault(epochs=0.1),
    "long": Fault(epochs=4.0),
    "rate": Fault(lr=8.0),
    "labels": Fault(label_noise=0.5),
    "noise": Fault(weight_noise=0.3),
}


def parse_faults(text: str) -> tuple[str, ...]:
    """Read a list like ``none,none,labels``: the faults of teachers, in turn.

    Raises:
        WfError: an unknown fault.
    """
    found = tuple(part.strip() for part in text.split(","))
    problems = []
    for name in dict.fromkeys(found):
        if name not in FAULTS:
            near = difflib.get_close_matches(name, FAULTS, n=1)
            found_near = f"; did you mean {near[0]}?" if near else f", expected some of {', '.join(FAULTS)}"
            problems.append(f"--faults: unknown fault {name!r}{found_near}")
    if problems:
        raise WfError(*problems, hint=f"faults are {', '.join(FAULTS)}")
    return found


def wrong_labels(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Return labels [B] of which a share is another class of the C, drawn from `seed`."""
    draw = torch.Generator().manual_seed(seed_for(seed, 30))
    chosen = torch.randperm(len(labels), generator=draw)[: round(share * len(labels))]
    spoilt = labels.clone()
    spoilt[chosen] = (labels[chosen] + torch.randint(1, classes, (len(chosen),), generator=draw)) % classes
    return spoilt


@torch.no_grad()
def add_noise(model: nn.Module, share: float, seed: int) -> None:
    """Add noise to every weight of more than one axis, `share` times the root mean square of its tensor."""
    draw = torch.Generator().manual_seed(seed_for(seed, 31))
    for weight in model.parameters():
        if weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=draw).to(weight.device)
            weight.add_(share * weight.square().mean().sqrt() * noise)
