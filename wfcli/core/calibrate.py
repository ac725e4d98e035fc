"""BatchNorm statistics again, from images: a student's channels have another mean and variance than any teacher's.

Momentum none: the new statistics are the plain mean over the images of one pass (REPAIR, Jordan et al. 2023, arXiv
2211.08403; `torch.optim.swa_utils.update_bn`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wfcli.core.precision import whole_float32


def has_batchnorm(model: nn.Module) -> bool:
    """Tell whether `model` keeps running statistics that can be computed anew."""
    return bool(batchnorms(model))


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """Return every BatchNorm of `model` that keeps running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def calibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the running mean and variance of every BatchNorm of `model` in one pass over `batches` [B, 3, H, W].

    Weights stay untouched, `num_batches_tracked` and momentum are as before, dropout is off; the model is left in eval
    mode. Without a batch, or without BatchNorm, nothing changes. Give it augmented training images.
    """
    layers = batchnorms(model)
    model.eval()
    if not layers:
        return
    before = [(layer.momentum, _count(layer).clone()) for layer in layers]
    images = 0
    try:
        for x in batches:
            if images == 0:
                for layer in layers:
                    layer.reset_running_stats()
                    layer.train()
            elif len(x) == 1:
                continue  # a single image may have no variance
            images += len(x)
            for layer in layers:
                layer.momentum = len(x) / images  # so that every image counts the same, in a smaller last batch too
            with torch.inference_mode(), whole_float32():
                model(x)
    finally:
        model.eval()
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum = momentum
            _count(layer).copy_(count)


def _count(layer: _BatchNorm) -> Tensor:
    count = layer.num_batches_tracked
    assert isinstance(count, Tensor)  # there whenever running_mean is
    return count
