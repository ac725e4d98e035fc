"""Calibration: the statistics are those of the images, and nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from wfcli.core.calibrate import calibrate_batchnorm, has_batchnorm


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )


def images(number: int = 96) -> Tensor:
    return torch.randn(number, 3, 10, 10, generator=torch.Generator().manual_seed(1)) * 3 + 1


def test_the_statistics_are_those_of_the_images() -> None:
    model = make_model()
    x = images()
    calibrate_batchnorm(model, [x])
    first = model[0](x)
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, first.var((0, 2, 3)))
    with torch.no_grad():
        out = model(x)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(5), atol=1e-3, rtol=0)


def test_every_image_counts_the_same_whatever_the_batches() -> None:
    x = images()
    means = []
    for sizes in ([96], [64, 32], [40, 40, 16]):
        model = make_model()
        calibrate_batchnorm(model, x.split(sizes))
        means.append(model[1].running_mean)
    torch.testing.assert_close(means[0], means[1])
    torch.testing.assert_close(means[0], means[2])


def test_earlier_statistics_leave_no_trace_even_if_broken() -> None:
    fresh, broken = make_model(), make_model()
    broken[1].running_mean.fill_(float("nan"))
    broken[5].running_var.fill_(float("inf"))
    for model in (fresh, broken):
        calibrate_batchnorm(model, images().split(48))
    for a, b in zip(fresh.buffers(), broken.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_but_the_statistics_moves() -> None:
    model = make_model()
    model[1].num_batches_tracked.fill_(17)
    model[5].momentum = 0.3
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrate_batchnorm(model, images().split(48))
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.running_mean", "1.running_var", "5.running_mean", "5.running_var"}
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.3)
    assert not any(module.training for module in model.modules())
    assert not any(tensor.is_inference() for tensor in after.values())  # still to be trained


def test_it_repeats_because_dropout_is_off() -> None:
    one, other = make_model(), make_model()
    calibrate_batchnorm(one, [images()])
    torch.manual_seed(5)
    calibrate_batchnorm(other, [images()])
    assert torch.equal(one[5].running_var, other[5].running_var)


def test_no_images_change_nothing() -> None:
    model = make_model()
    calibrate_batchnorm(model, [])
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_a_failure_on_the_way_leaves_momentum_and_mode_in_order() -> None:
    def batches() -> Iterator[Tensor]:
        yield images(8)
        raise OSError("disk")

    model = make_model()
    with pytest.raises(OSError, match="disk"):
        calibrate_batchnorm(model, batches())
    assert model[1].momentum == 0.1
    assert model[1].num_batches_tracked == 0
    assert not model[1].training


def test_a_last_batch_of_one_image_without_variance_is_left_out() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    x = torch.randn(9, 4)
    calibrate_batchnorm(model, x.split(8))
    torch.testing.assert_close(model[2].running_mean, model[1](x[:8]).mean(0))


def test_has_batchnorm() -> None:
    assert has_batchnorm(make_model())
    assert not has_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4)))
    assert not has_batchnorm(nn.BatchNorm2d(3, track_running_stats=False))
    calibrate_batchnorm(nn.Linear(3, 3), [images()])  # nothing to do, not even to run it


def test_timm_batch_norms_are_found() -> None:
    timm = pytest.importorskip("timm")
    assert has_batchnorm(timm.create_model("resnet10t", pretrained=False))
    assert not has_batchnorm(timm.create_model("vit_tiny_patch16_224", pretrained=False))
