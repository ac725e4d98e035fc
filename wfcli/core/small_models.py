"""Nets for images of 32 x 32, registered with timm under names that end in `_cifar`; `width` scales their channels.

    vgg11_cifar, vgg11_bn_cifar        8 convolutions, global average pooling, one linear head
    resnet18_cifar, resnet50_cifar     timm's ResNet with a 3 x 3 stem of stride 1 and no max pooling
    vit_tiny_cifar, vit_base_cifar     timm's VisionTransformer with patches of 4 x 4 (`patch_size`)

Importing this module registers them; `architectures.build_model` does so.
B images, C classes, N channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wfcli.core.layouts import scaled

CHANNEL_STEP = 8  # channels of convolutions are multiples of 8, as vector units like them
HEAD_DIM = 64  # a Transformer of another width has other heads, not narrower ones
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def _default_cfg(first_conv: str, classifier: str) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR10_MEAN,
        "std": CIFAR10_STD,
        "first_conv": first_conv,
        "classifier": classifier,
    }


default_cfgs = generate_default_cfgs(
    {
        "vgg11_cifar": _default_cfg("features.0", "head"),
        "vgg11_bn_cifar": _default_cfg("features.0", "head"),
        "resnet18_cifar": _default_cfg("conv1", "fc"),
        "resnet50_cifar": _default_cfg("conv1", "fc"),
        "vit_tiny_cifar": _default_cfg("patch_embed.proj", "head"),
        "vit_base_cifar": _default_cfg("patch_embed.proj", "head"),
    }
)

VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")  # M: max pooling
RESNET = (64, 128, 256, 512)


class SmallVGG(nn.Module):
    """VGG's convolutions, global average pooling and one linear head."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        width: float = 1.0,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_chans
        for entry in VGG11:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            wider = scaled(entry, width, CHANNEL_STEP)
            layers.append(nn.Conv2d(channels, wider, 3, padding=1))
            layers += [nn.BatchNorm2d(wider)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = wider
        self.features = nn.Sequential(*layers)
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, channels, channels
        self.drop = nn.Dropout(drop_rate)
        self.head = _linear(channels, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                # By fan-in the signal keeps its size on the way forward, which the net without BatchNorm needs.
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def get_classifier(self) -> nn.Module:
        """Return the head (timm's interface)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new head; pooling is always the average (timm's interface)."""
        self.num_classes = num_classes
        self.head = _linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature maps, [B, N, H / 32, W / 32], of images [B, 3, H, W]."""
        features: Tensor = self.features(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, C], or the pooled features [B, N], of feature maps."""
        x = self.drop(x.mean(dim=(2, 3)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C] of images [B, 3, H, W]."""
        return self.forward_head(self.forward_features(x))


def _linear(channels: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(channels, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


class SmallResNet(ResNet):  # type: ignore[misc]
    """timm's ResNet with a 3 x 3 stem of stride 1 and no max pooling."""

    def __init__(self, *, width: float = 1.0, in_chans: int = 3, **kwargs: Any) -> None:
        channels = tuple(scaled(planes, width, CHANNEL_STEP) for planes in RESNET)
        # Residual branches that start at zero are for long training: after 60 steps on the digits 51 % against 92 %.
        kwargs.setdefault("zero_init_last", False)
        # timm's plain stem always has 64 channels; its deep one has twice `stem_width`, and is replaced at once.
        super().__init__(in_chans=in_chans, channels=channels, stem_type="deep", stem_width=channels[0] // 2, **kwargs)
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for info in self.feature_info:
            info["reduction"] = max(1, info["reduction"] // 4)


class SmallVisionTransformer(VisionTransformer):  # type: ignore[misc]
    """timm's VisionTransformer for 32 x 32 pixels; `width` scales the number of heads."""

    def __init__(self, *, heads: int, width: float = 1.0, patch_size: int = 4, **kwargs: Any) -> None:
        dim = scaled(heads * HEAD_DIM, width, HEAD_DIM)
        kwargs.setdefault("img_size", 32)  # timm gives it where a config.json says that the size is fixed
        super().__init__(patch_size=patch_size, embed_dim=dim, num_heads=dim // HEAD_DIM, **kwargs)


def _build(net: type[nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    model: nn.Module = build_model_with_cfg(net, variant, pretrained, **kwargs)
    return model


@register_model  # type: ignore[untyped-decorator]
def vgg11_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-11 without BatchNorm."""
    return _build(SmallVGG, "vgg11_cifar", pretrained, batch_norm=False, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def vgg11_bn_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-11 with BatchNorm."""
    return _build(SmallVGG, "vgg11_bn_cifar", pretrained, batch_norm=True, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18."""
    return _build(SmallResNet, "resnet18_cifar", pretrained, block=BasicBlock, layers=(2, 2, 2, 2), **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50."""
    return _build(SmallResNet, "resnet50_cifar", pretrained, block=Bottleneck, layers=(3, 4, 6, 3), **kwargs)


@register_model  # type: ignore[untyped-decorator]
def vit_tiny_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vision Transformer, 6 blocks, 192 wide."""
    return _build(SmallVisionTransformer, "vit_tiny_cifar", pretrained, depth=6, heads=3, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def vit_base_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vision Transformer, 12 blocks, 768 wide."""
    return _build(SmallVisionTransformer, "vit_base_cifar", pretrained, depth=12, heads=12, **kwargs)
