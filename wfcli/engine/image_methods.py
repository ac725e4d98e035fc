"""Merge methods that look at images: which images, and how the student is judged.

B images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wfcli.core.calibrate import calibrate_batchnorm, has_batchnorm
from wfcli.core.data import load_images
from wfcli.core.image_merges import adamerging, fisher, greedy, learned_soup, regmean
from wfcli.core.images import Images, iterate, to_input
from wfcli.core.least_squares import least_squares
from wfcli.core.methods import METHODS, soup
from wfcli.core.metrics import score
from wfcli.core.plan import LayerPlan
from wfcli.engine.lineup import load_model
from wfcli.engine.merging import Settings
from wfcli.engine.plans import plan_of
from wfcli.engine.polish import Nets, look, some_pixels
from wfcli.errors import DataError

if TYPE_CHECKING:
    from wfcli.core.architectures import InputConfig
    from wfcli.engine.fuse import FuseConfig

MOST_IMAGES, MOST_PIXELS = 2000, 128 * 224 * 224  # a net has so many in memory at a time
FISHER_IMAGES = 256  # one after the other, each with a gradient
CALIBRATION_IMAGES = 1000  # of a soup that is tried


def learn(
    config: FuseConfig,
    settings: Settings,
    nets: Nets,
    images: Images | None,
    base: Mapping[str, Tensor] | None,
    labelled: Images | None,
    weights: list[float],
) -> tuple[dict[str, Tensor], int]:
    """Return the student of a method that looks at images (timm's names, those of `base` too), and how many it saw.

    `images` are those without labels; a method that wants labels takes `labelled` besides, or else validation images.
    Afterwards `weights` holds what part each teacher has in a student that is the mean of some.

    Raises:
        DataError: there are none.
    """
    bench, method, params = nets.bench, config.method, settings.params
    needs_none = method == "learned-soup" or (method == "greedy" and not has_batchnorm(nets.blank))
    if images is None and not needs_none:
        none = config.data is not None and config.calibration_images == 0
        raise DataError(
            f"--method {method}: "
            + ("--calibration-images 0 leaves" if none else "there is no training split:")
            + " no images to look at",
            hint="give --unlabelled, or data with a training split and --calibration-images above 0, or --method soup",
        )
    blank = copy.deepcopy(nets.blank).to(bench.device)
    states = [{name: tensor.to(bench.device) for name, tensor in teacher.items()} for teacher in nets.teachers]
    bench.hooks.progress(method, 0, 1)
    if METHODS[method].data == "labels":
        if labelled is None:
            assert config.data is not None
            side = bench.settings.size
            labelled = load_images(config.data, "validation", side, limit=MOST_IMAGES, seed=config.seed)
        if method == "greedy":
            student, seen = _greedy(config, nets, states, images, labelled, weights), len(labelled)
        else:
            rows = _evenly(labelled, _most(bench.settings, len(labelled)))
            x, labels = to_input(labelled.pixels[rows], bench.settings), labelled.labels[rows]
            steps, lr, seen = int(params["steps"]), params["lr"], len(rows)
            student = learned_soup(blank, states, x.to(bench.device), labels.to(bench.device), steps, lr, config.seed)
    else:
        assert images is not None
        x = inputs(images, bench.settings, FISHER_IMAGES if method == "fisher" else MOST_IMAGES).to(bench.device)
        plan = plan_of(config.architecture, len(states[0][f"{nets.head}.weight"]))
        student, seen = _from_inputs(config, params, blank, plan, states, x, base), len(x)
    bench.hooks.progress(method, 1, 1)
    return {name: tensor.cpu() for name, tensor in student.items()}, seen


def _from_inputs(
    config: FuseConfig,
    params: Mapping[str, float],
    blank: nn.Module,
    plan: LayerPlan,
    states: list[dict[str, Tensor]],
    x: Tensor,
    base: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Return the student of a method that asks for no labels, from inputs [B, ...]."""
    if config.method == "fisher":
        return fisher(blank, states, x, config.seed)
    if config.method == "adamerging":
        origin = None if base is None else {name: tensor.to(x.device) for name, tensor in base.items()}
        return adamerging(blank, states, origin, x, params["start"], int(params["steps"]), params["lr"], config.seed)
    with torch.inference_mode():
        if config.method == "regmean":
            return regmean(blank, plan, states, x, params["diagonal"])
        return least_squares(blank, plan, soup(states), states, x)


def _greedy(
    config: FuseConfig,
    nets: Nets,
    states: list[dict[str, Tensor]],
    images: Images | None,
    labelled: Images,
    weights: list[float],
) -> dict[str, Tensor]:
    some = None if images is None else images.subset(_evenly(images, CALIBRATION_IMAGES))

    def judge(state: Mapping[str, Tensor]) -> float:
        model = load_model(nets.blank, state, nets.bench.device)
        trial: Mapping[str, Tensor] = state
        if some is not None and has_batchnorm(model) and not any(state is one for one in states):
            draw = torch.Generator().manual_seed(config.seed)
            views = iterate(some, 256, nets.bench.settings, augment=True, generator=draw, shuffle=True)
            calibrate_batchnorm(model, (x.to(nets.bench.device) for x, _ in views))
            trial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return score(look(nets, trial, labelled.pixels)[1], labelled.labels).top1

    student, kept = greedy(states, judge)
    weights[:] = [(number in kept) / len(kept) for number in range(len(states))]
    return student


def inputs(images: Images, settings: InputConfig, number: int = MOST_IMAGES) -> Tensor:
    """Return some of the images as a net takes them, [B, 3, H, W]: as many as may be in memory together."""
    return to_input(some_pixels(images, _most(settings, number)), settings)


def _most(settings: InputConfig, number: int) -> int:
    return max(16, min(number, MOST_PIXELS // settings.size**2))


def _evenly(images: Images, number: int) -> Tensor:
    """Return which images to take: they may be sorted by class."""
    return torch.linspace(0, len(images) - 1, min(number, len(images))).long()
