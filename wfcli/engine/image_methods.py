"""Merge methods that look at images: which images, and how the student is judged.

B images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wfcli.core.calibrate import calibrate_batchnorm, has_batchnorm
from wfcli.core.image_merges import adamerging, fisher, greedy, learned_soup, regmean
from wfcli.core.images import Images, iterate, to_input
from wfcli.core.least_squares import least_squares
from wfcli.core.methods import METHODS, soup
from wfcli.core.metrics import score
from wfcli.core.plan import plan_layers
from wfcli.engine.lineup import load_model
from wfcli.engine.merging import Settings
from wfcli.engine.polish import Nets, look, some_pixels
from wfcli.errors import DataError

if TYPE_CHECKING:
    from wfcli.engine.fuse import FuseConfig

MOST_IMAGES, MOST_PIXELS = 2000, 128 * 224 * 224  # a net has so many in memory at a time
FISHER_IMAGES = 256  # one after the other, each with a gradient
CALIBRATION_IMAGES = 1000  # of a soup that is tried


def learn(
    config: FuseConfig, settings: Settings, nets: Nets, images: Images | None, base: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Return the student of a method that looks at images (timm's names, those of `base` too).

    `images` are those without labels; a method that wants labels takes validation images besides.

    Raises:
        DataError: there are none.
    """
    if images is None:
        raise DataError(
            f"--method {config.method}: there is no training split to look at",
            hint="give --unlabelled, or data with a training split, or --method soup",
        )
    states = [dict(teacher) for teacher in nets.teachers]
    nets.bench.hooks.progress(config.method, 0, 1)
    plan, params = plan_layers(nets.blank, nets.head), settings.params
    if METHODS[config.method].data == "labels":
        student = _with_labels(config, settings, nets, states, images)
    elif config.method == "fisher":
        student = fisher(nets.blank, states, _inputs(nets, images, FISHER_IMAGES), config.seed)
    elif config.method == "regmean":
        with torch.inference_mode():
            student = regmean(nets.blank, plan, states, _inputs(nets, images), params["diagonal"])
    elif config.method == "adamerging":
        x, steps = _inputs(nets, images), int(params["steps"])
        student = adamerging(nets.blank, states, base, x, params["start"], steps, params["lr"], config.seed)
    else:
        with torch.inference_mode():
            student = least_squares(nets.blank, plan, soup(states), states, _inputs(nets, images))
    nets.bench.hooks.progress(config.method, 1, 1)
    return student


def _inputs(nets: Nets, images: Images, number: int = MOST_IMAGES) -> Tensor:
    """Return some of the images as a net takes them: as many as may be in memory together."""
    side = nets.bench.settings.size
    return to_input(some_pixels(images, max(16, min(number, MOST_PIXELS // side**2))), nets.bench.settings)


def _with_labels(
    config: FuseConfig, settings: Settings, nets: Nets, states: list[dict[str, Tensor]], images: Images
) -> dict[str, Tensor]:
    from wfcli.core.data import load_images

    assert config.data is not None
    side = nets.bench.settings.size
    labelled = load_images(config.data, "validation", side, limit=MOST_IMAGES, seed=config.seed)
    if config.method == "learned-soup":
        number = max(16, min(len(labelled), MOST_PIXELS // side**2))
        x = to_input(labelled.pixels[torch.arange(number)], nets.bench.settings)
        steps, lr = int(settings.params["steps"]), settings.params["lr"]
        return learned_soup(nets.blank, states, x, labelled.labels[:number], steps, lr, config.seed)
    some = images.subset(torch.arange(min(len(images), CALIBRATION_IMAGES)))

    def judge(state: Mapping[str, Tensor]) -> float:
        model = load_model(nets.blank, state, nets.bench.device)
        trial: Mapping[str, Tensor] = state
        if has_batchnorm(model) and not any(state is one for one in states):
            draw = torch.Generator().manual_seed(config.seed)
            views = iterate(some, 256, nets.bench.settings, augment=True, generator=draw, shuffle=True)
            calibrate_batchnorm(model, (x.to(nets.bench.device) for x, _ in views))
            trial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return score(look(nets, trial, labelled.pixels)[1], labelled.labels).top1

    return greedy(states, judge)[0]
