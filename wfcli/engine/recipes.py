"""How one teacher of a zoo is trained: its recipe, and the training by it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from wfcli.core.architectures import InputConfig
from wfcli.core.devices import training_autocast
from wfcli.core.faults import FAULTS, add_noise, wrong_labels
from wfcli.core.images import CROP_PADDING, Images
from wfcli.core.training import (
    BatchOrder,
    Loss,
    Optimiser,
    cosine_rate,
    make_optimiser,
    seed_for,
    seed_layers,
    train_step,
    training_batch,
)
from wfcli.engine.hooks import Hooks
from wfcli.errors import WfError

WARMUP = 0.1
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Recipe:
    """All that differs from teacher to teacher but its start and its images. `lr` is the peak of the learning rate."""

    lr: float
    weight_decay: float
    epochs: float
    label_smoothing: float
    pad: int
    order_seed: int
    optimiser: Optimiser = "sgd"
    fault: str = "none"  # of `FAULTS`; its factors are in `lr` and `epochs` already

    def record(self) -> dict[str, Any]:
        """Return what is remembered of it; nothing of a fault where there is none."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("fault", "none")}


# The usual peak of the learning rate, the usual weight decay, and those that recipes are drawn from.
USUAL_LR: dict[Optimiser, float] = {"sgd": 0.05, "adamw": 1e-3}
WEIGHT_DECAYS: dict[Optimiser, tuple[float, float, float]] = {"sgd": (1e-4, 5e-4, 1e-3), "adamw": (0.01, 0.05, 0.1)}


def draw_recipe(
    seed: int,
    index: int,
    lr: float,
    epochs: float,
    same: bool,
    flip: bool,
    optimiser: Optimiser = "sgd",
    fault: str = "none",
) -> Recipe:
    """Draw the recipe of teacher `index` round the usual `lr` and `epochs`, with the factors of its `fault`.

    With `same` only the order of the batches differs from teacher to teacher.
    """
    decays = WEIGHT_DECAYS[optimiser]
    lr, epochs = lr * FAULTS[fault].lr, epochs * FAULTS[fault].epochs
    order_seed = seed_for(seed, 10, index)
    pads = CROP_PADDING[flip]
    if same:
        return Recipe(lr, decays[1], epochs, 0.0, pads[1], order_seed, optimiser, fault)
    draw = np.random.default_rng([seed, 11, index])
    return Recipe(
        lr=round(lr * 2.0 ** float(draw.uniform(-1.0, 1.0)), 6),
        weight_decay=float(draw.choice(decays)),
        epochs=round(epochs * float(draw.uniform(0.75, 1.25)), 3),
        label_smoothing=float(draw.choice([0.0, 0.05, 0.1])),
        pad=int(draw.choice(pads)),
        order_seed=order_seed,
        optimiser=optimiser,
        fault=fault,
    )


def steps_of(recipe: Recipe, images: int, batch_size: int) -> int:
    """Return how many steps a recipe takes on so many images."""
    return max(1, round(recipe.epochs * BatchOrder(images, batch_size, recipe.order_seed).per_epoch))


def train_by(
    recipe: Recipe, model: nn.Module, images: Images, inputs: InputConfig, batch_size: int, stage: str, hooks: Hooks
) -> None:
    """Train `model` where it is, on `images`, with its fault; what it says through `hooks` is under the name `stage`.

    Raises:
        WfError: the loss is no longer finite.
    """
    device = next(model.parameters()).device
    fault = FAULTS[recipe.fault]
    if fault.label_noise:
        spoilt = wrong_labels(images.labels, len(images.class_names), fault.label_noise, recipe.order_seed)
        images = replace(images, labels=spoilt)
    order = BatchOrder(len(images), batch_size, recipe.order_seed)
    steps = steps_of(recipe, len(images), batch_size)
    optimiser = make_optimiser(model, recipe.weight_decay, recipe.optimiser)
    loss = Loss(label_smoothing=recipe.label_smoothing)
    autocast = training_autocast(device, model)
    model.train()
    began = told = time.monotonic()
    seen = 0
    for step in range(steps):
        x, labels = training_batch(images, order, step, inputs, recipe.pad, device)
        seed_layers(recipe.order_seed, step)
        rate = cosine_rate(step, steps, recipe.lr, WARMUP)
        value = train_step(model, optimiser, x, labels, rate=rate, loss=loss, autocast=autocast)
        seen += len(labels)
        now = time.monotonic()
        if now - told > PROGRESS_SECONDS or step + 1 == steps:
            told = now
            if not value.isfinite():
                raise WfError(f"{stage}: the loss is {float(value)} after step {step + 1}", hint="lower --lr")
            hooks.progress(stage, step + 1, steps, loss=float(value), images_per_second=seen / (now - began))
    if fault.weight_noise:
        add_noise(model, fault.weight_noise, recipe.order_seed)
