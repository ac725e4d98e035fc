"""Images as tensors: encoded files to uint8 pixels, pixels to the batches a network sees.

B images, H, W height and width in pixels. Pixels are uint8 [B, 3, H, W], 0..255, and stay so in memory; they become
float32 one batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from wfcli.core.architectures import InputConfig
    from wfcli.core.decode import LazyPixels


@dataclass(frozen=True)
class Images:
    """One split of a dataset: `pixels` uint8 [B, 3, H, W], `labels` int64 [B] into `class_names`.

    Index `pixels` with an int64 tensor to get pixels: where the whole set does not fit memory it is a `LazyPixels`,
    which decodes the images asked for. H and W may differ from what a network wants: `iterate` and `to_input` resize.
    `flip` says whether a mirrored image is still of its class (digits are not).
    """

    name: str
    split: str
    pixels: Tensor | LazyPixels
    labels: Tensor
    class_names: tuple[str, ...]
    flip: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | Tensor) -> Images:
        """Return the images with these indices, in their order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        pixels = self.pixels[index] if isinstance(self.pixels, Tensor) else self.pixels.subset(index)
        return replace(self, pixels=pixels, labels=self.labels[index])


def fit(pixels: Tensor, side: int) -> Tensor:
    """Return uint8 images [..., 3, H, W] as [..., 3, side, side]: shorter side to `side`, then the centre.

    Bilinear with antialias; images that have the size already are returned unchanged.
    """
    height, width = pixels.shape[-2:]
    if height == width == side:
        return pixels
    scale = side / min(height, width)
    new = [max(side, round(height * scale)), max(side, round(width * scale))]
    batch = pixels.reshape(-1, *pixels.shape[-3:]).float()
    batch = F.interpolate(batch, size=new, mode="bilinear", antialias=True)
    top, left = (new[0] - side) // 2, (new[1] - side) // 2
    batch = batch[:, :, top : top + side, left : left + side].round_().clamp_(0, 255)
    return batch.to(torch.uint8).reshape(*pixels.shape[:-2], side, side)


# The padding of random crops in pixels, a weak and the usual one, by whether images may be mirrored. Those that may not
# are small symbols (digits): they are shifted by less.
CROP_PADDING = {True: (2, 4), False: (1, 2)}


def crop_padding(height: int, flip: bool) -> int:
    """Return the usual padding for images of this height: in proportion to that of images of 32 pixels."""
    return CROP_PADDING[flip][1] * height // 32


class Crops(NamedTuple):
    """Where the random crop of each of B images lies."""

    down: Tensor  # int64 [B, 1], pixels
    right: Tensor  # int64 [B, 1], pixels
    mirrored: Tensor  # bool [B, 1]


def draw_crops(images: int, height: int, width: int, generator: torch.Generator | None, flip: bool, pad: int) -> Crops:
    """Draw the random crops of so many images padded by `pad` pixels; half of them mirrored if `flip`."""
    down, right = (
        torch.randint(-most, most + 1, (images, 1), generator=generator)
        for most in (min(pad, height - 1), min(pad, width - 1))
    )
    mirrored = torch.randint(0, 2, (images, 1), generator=generator) if flip else torch.zeros(images, 1)
    return Crops(down, right, mirrored.bool())


def crop(pixels: Tensor, crops: Crops) -> Tensor:
    """Return those crops of uint8 [B, 3, H, W], padded by reflection.

    Every output pixel is looked up where padding, crop and mirror lead back to, so nothing is padded or copied twice.
    """
    images, channels, height, width = pixels.shape
    rows = _reflected(height, crops.down)  # [B, H]
    columns = _reflected(width, crops.right)  # [B, W]
    columns = torch.where(crops.mirrored, columns.flip(1), columns)
    lookup = (rows[:, :, None] * width + columns[:, None, :]).reshape(images, 1, height * width)
    lookup = lookup.to(pixels.device).expand(-1, channels, -1)
    return pixels.reshape(images, channels, height * width).gather(2, lookup).reshape(pixels.shape)


def augment(pixels: Tensor, generator: torch.Generator | None, flip: bool, pad: int) -> Tensor:
    """Return a random crop of each image of uint8 [B, 3, H, W] padded by reflection; half of them mirrored if `flip`.

    The random numbers come from the CPU `generator`, whatever the device of the pixels.
    """
    images, _, height, width = pixels.shape
    return crop(pixels, draw_crops(images, height, width, generator, flip, pad))


def _reflected(length: int, shift: Tensor) -> Tensor:
    """Return the positions along one axis, shifted [B, 1] and reflected at its ends: int64 [B, length]."""
    positions = (torch.arange(length)[None] + shift).abs()
    return torch.where(positions < length, positions, 2 * (length - 1) - positions)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 pixels [B, 3, H, W] into float32 (pixel / 255 - mean) / std, channels last."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(1, -1, 1, 1)
    return pixels.to(torch.float32, memory_format=torch.channels_last).mul_(scale).add_(shift)


def to_input(pixels: Tensor, config: InputConfig) -> Tensor:
    """Turn uint8 pixels [B, 3, H, W] into what a network takes: normalised, [B, 3, size, size], channels last."""
    x = normalise(pixels, config.mean, config.std)
    if x.shape[-2:] != (config.size, config.size):
        x = F.interpolate(x, size=[config.size, config.size], mode="bilinear", antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


def iterate(
    images: Images,
    batch_size: int,
    config: InputConfig,
    *,
    augment: bool = False,
    generator: torch.Generator | None = None,
    shuffle: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x float32 [B, 3, size, size], labels int64 [B]) once over `images`; the last batch may be smaller.

    `generator` (on the CPU) rules the order of a shuffle and the augmentation. Bytes go to the `device` before they
    become floats.
    """
    order = torch.randperm(len(images), generator=generator) if shuffle else torch.arange(len(images))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        pixels = images.pixels[chosen].to(device)
        if augment:
            pixels = _augment(pixels, generator, images.flip, crop_padding(pixels.shape[-2], images.flip))
        yield to_input(pixels, config), images.labels[chosen].to(device)


_augment = augment  # `iterate` has an option of that name
