"""The nets for small images."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from wfcli.core import small_models
from wfcli.core.architectures import build_model, find_architecture, head_keys, input_config
from wfcli.core.layouts import scaled

# Parameters at width 1 with 10 classes, as in the table of the README.
PARAMETERS = {
    "vgg11_cifar": 9_225_610,
    "vgg11_bn_cifar": 9_231_114,
    "resnet18_cifar": 11_173_962,
    "resnet50_cifar": 23_520_842,
    "vit_tiny_cifar": 2_693_578,
    "vit_base_cifar": 85_152_010,
}
NAMES = list(PARAMETERS)


@pytest.mark.parametrize("name", NAMES)
def test_size_at_width_one(name: str) -> None:
    model = build_model(find_architecture(name), 10, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(find_architecture(name, {"width": 0.125}), 7)
    logits = model(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 7)
    assert logits.std() > 0
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_timm_knows_it(name: str) -> None:
    assert timm.is_model(name)
    model = timm.create_model(name, num_classes=3, in_chans=1, drop_rate=0.5, width=0.125)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.modules()) or model.drop_rate == 0.5
    config = input_config(find_architecture(name))
    cfg = model.pretrained_cfg
    assert (config.size, config.mean, config.std) == (cfg["input_size"][-1], cfg["mean"], cfg["std"])
    assert f"{cfg['classifier']}.weight" == head_keys(find_architecture(name))[0]
    assert cfg["first_conv"] + ".weight" in model.state_dict()
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    model.reset_classifier(5)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["vgg11_cifar", "vgg11_bn_cifar", "resnet18_cifar", "vit_tiny_cifar"])
def test_learns_to_tell_two_images_apart(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(find_architecture(name, {"width": 0.125}), 2).train()
    images = torch.randn(8, 3, 32, 32)
    labels = torch.arange(8) % 2
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_width_scales_channels_in_steps_of_eight() -> None:
    assert [scaled(64, width, 8) for width in (0.01, 0.25, 0.4, 1.0, 2.0)] == [8, 16, 24, 64, 128]
    model = build_model(find_architecture("vgg11_bn_cifar", {"width": 0.25}), 10)
    convs = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [16, 32, 64, 64, 128, 128, 128, 128]


def test_width_scales_the_heads_of_a_transformer() -> None:
    for width, heads in ((0.1, 1), (0.34, 1), (0.67, 2), (1.0, 3), (2.0, 6)):
        model = build_model(find_architecture("vit_tiny_cifar", {"width": width}), 10)
        attention = model.get_submodule("blocks.0.attn")
        assert attention.num_heads == heads
        assert attention.head_dim == 64


def test_vgg_tensors() -> None:
    plain = build_model(find_architecture("vgg11_cifar"), 10, device="meta")
    keys = set(plain.state_dict())
    assert all(key.startswith(("features.", "head.")) for key in keys)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert all(m.bias is not None for m in plain.modules() if isinstance(m, nn.Conv2d))
    assert (
        sum(isinstance(m, nn.BatchNorm2d) for m in build_model(find_architecture("vgg11_bn_cifar"), 10).modules()) == 8
    )


def test_vgg_without_batchnorm_keeps_the_size_of_its_signal() -> None:
    torch.manual_seed(0)
    model = small_models.SmallVGG(batch_norm=False)
    features = model.forward_features(torch.randn(16, 3, 32, 32))
    assert features.shape == (16, 512, 1, 1)
    assert 0.3 < features.square().mean().sqrt() < 10  # max pooling lifts it; without care it falls to 0.05


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet50_cifar"])
def test_resnet_keeps_the_resolution_in_its_stem(name: str) -> None:
    model = build_model(find_architecture(name, {"width": 0.25}), 10).eval()
    stem = model.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.out_channels, stem.kernel_size, stem.stride) == (16, (3, 3), (1, 1))
    features: Any = model  # timm's interface, which nn.Module does not have
    maps = features.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [m.shape[-1] for m in maps] == [32, 32, 16, 8, 4]
    assert [info["reduction"] for info in features.feature_info] == [1, 1, 2, 4, 8]


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = small_models.SmallVGG(width=0.125, drop_rate=0.5)
    images = torch.randn(4, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.drop.train()
    assert not torch.equal(model(images), model(images))
