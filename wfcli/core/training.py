"""Training a network on labels, on its teachers' probabilities, or on both: one step, and what is around it.

Nothing here remembers anything between steps but the model and the optimiser: which images step 17 sees, how they are
augmented and which units it drops follow from the seed and the number 17 alone. So a run that was interrupted and
resumed gives the bytes of one that was not.

B images, C classes, T teachers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wfcli.core.architectures import InputConfig
from wfcli.core.images import Images, augment, to_input

GRADIENT_NORM = 5.0
Optimiser = Literal["sgd", "adamw"]


def cosine_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate of step 0 <= `step` < `steps`: a rising line, then half a cosine down to 0.

    `warmup` is the fraction of the steps with a rising rate; the last of them has the rate `peak`.
    Loshchilov and Hutter 2017 (arXiv 1608.03983), one period.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def usual_optimiser(model: nn.Module) -> Optimiser:
    """Return what nets of this kind are trained with: AdamW where there is a layer norm, else SGD."""
    return "adamw" if any(isinstance(module, nn.LayerNorm) for module in model.modules()) else "sgd"


def make_optimiser(model: nn.Module, weight_decay: float, kind: Optimiser = "sgd") -> torch.optim.Optimizer:
    """Make the optimiser of all parameters: SGD with Nesterov momentum 0.9, or AdamW with betas 0.9 and 0.999.

    Biases and norms (one axis) are not decayed. The learning rate is given at every step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=True)


def seed_for(seed: int, *stream: int) -> int:
    """Mix a seed with the numbers of a stream (an epoch, a step): 32 bits, unrelated for related inputs."""
    return int(np.random.SeedSequence([seed % 2**64, *stream]).generate_state(1)[0])


class BatchOrder:
    """Which images each step sees: epochs of shuffled batches, the last of an epoch smaller, none of a single image.

    A batch of one image has no variance, on which BatchNorm cannot train: it is left out.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.per_epoch = max(1, images // batch_size + (1 if images % batch_size > 1 else 0))
        self._epoch: tuple[int, Tensor] | None = None

    def indices(self, step: int) -> Tensor:
        """Return the images of `step`: int64 [B]."""
        epoch, batch = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            shuffle = torch.Generator().manual_seed(seed_for(self.seed, 0, epoch))
            self._epoch = (epoch, torch.randperm(self.images, generator=shuffle))
        return self._epoch[1][batch * self.batch_size : (batch + 1) * self.batch_size]

    def generator(self, step: int) -> torch.Generator:
        """Return the random numbers with which `step` augments its images."""
        return torch.Generator().manual_seed(seed_for(self.seed, 1, step))


def training_batch(
    images: Images, order: BatchOrder, step: int, config: InputConfig, pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the augmented, normalised images of `step` [B, 3, H, W] (channels last) and their labels [B]."""
    chosen = order.indices(step)
    pixels = augment(images.pixels[chosen].to(device), order.generator(step), images.flip, pad)
    return to_input(pixels, config), images.labels[chosen].to(device)


@torch.no_grad()
def mean_probabilities(teachers: Sequence[nn.Module], x: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean over the teachers (in eval mode) of softmax(logits / temperature): float32 [B, C]."""
    total = torch.stack([F.softmax(teacher(x).float() / temperature, dim=1) for teacher in teachers])  # [T, B, C]
    return total.mean(dim=0)


@dataclass(frozen=True)
class Loss:
    """What a step minimises: `ce_weight` x cross entropy + `distill_weight` x temperature^2 x KL(teachers, student).

    The square keeps the gradients of the two comparable (Hinton et al. 2015, arXiv 1503.02531, section 2).
    """

    ce_weight: float = 1.0
    distill_weight: float = 0.0
    temperature: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor, wanted: Tensor | None) -> Tensor:
        """Return the loss of `logits` [B, C]; `wanted` [B, C] is the teachers' probabilities at this temperature."""
        logits = logits.float()
        loss = logits.new_zeros(())
        if self.ce_weight:
            loss = loss + self.ce_weight * F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if wanted is not None and self.distill_weight:
            log_student = F.log_softmax(logits / self.temperature, dim=1)
            divergence = F.kl_div(log_student, wanted, reduction="batchmean")
            loss = loss + self.distill_weight * self.temperature**2 * divergence
        return loss


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    labels: Tensor,
    *,
    rate: float,
    loss: Loss,
    wanted: Tensor | None = None,
    autocast: AbstractContextManager[object],
) -> Tensor:
    """Move `model` (in train mode) by one step of learning rate `rate` and return the loss before it.

    The gradient is cut to norm 5. `wanted` is what the teachers say of the very images of the step
    (`mean_probabilities`).
    """
    with autocast:
        logits = model(x)
    value = loss(logits, labels, wanted)
    optimiser.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    return value.detach()


@torch.no_grad()
def accuracy(
    model: nn.Module,
    images: Images,
    config: InputConfig,
    *,
    device: torch.device,
    autocast: AbstractContextManager[object],
    batch_size: int = 500,
) -> float:
    """Return the top-1 accuracy (0..1) on `images`, in the precision of training; leaves the model in eval mode."""
    model.eval()
    right = 0
    for start in range(0, len(images), batch_size):
        chosen = torch.arange(start, min(start + batch_size, len(images)))
        x = to_input(images.pixels[chosen].to(device), config)
        with autocast:
            found = model(x).argmax(dim=1)
        right += int((found == images.labels[chosen].to(device)).sum())
    return right / len(images)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Keep the caller's random state untouched and let cuDNN choose only algorithms that repeat their sums."""
    devices = [device] if device.type == "cuda" else []
    cudnn = torch.backends.cudnn
    with torch.random.fork_rng(devices=devices), cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def seed_layers(seed: int, step: int) -> None:
    """Seed what dropout and stochastic depth draw in `step`; inside `repeatable`."""
    torch.manual_seed(seed_for(seed, 2, step))
