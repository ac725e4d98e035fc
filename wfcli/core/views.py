"""Augmented copies of images, for networks that answer each of them once: in memory, or made anew at every access."""

from __future__ import annotations

import torch
from torch import Tensor

from wfcli.core.decode import fits_memory
from wfcli.core.images import Crops, Images, crop, crop_padding, draw_crops


class Views:
    """So many random crops of each of P images, copy after copy; the same ones whenever they are asked for.

    Index it with an int64 tensor [B] to get uint8 pixels [B, 3, H, W] on `device`. Only where the crops lie is kept.
    """

    def __init__(self, images: Images, copies: int, generator: torch.Generator, device: torch.device) -> None:
        self.images, self.device = images, device
        height, width = images.pixels.shape[-2:]
        # The wide padding, of digits too: generators are trained so since the first one.
        pad = crop_padding(height, flip=True)
        drawn = [draw_crops(len(images), height, width, generator, images.flip, pad) for _ in range(copies)]
        self.crops = Crops(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))

    def __len__(self) -> int:
        return len(self.crops.down)

    def __getitem__(self, index: Tensor) -> Tensor:
        index = index.cpu()
        pixels = self.images.pixels[index % len(self.images)].to(self.device)
        return crop(pixels, Crops(*(part[index] for part in self.crops)))


def make_views(images: Images, copies: int, generator: torch.Generator, device: torch.device) -> Tensor | Views:
    """Return `copies` augmented copies of the images, all of them in one tensor where that fits memory."""
    views = Views(images, copies, generator, device)
    if not fits_memory(len(views), images.pixels.shape[-1]):
        return views
    # A copy at a time: looking up the pixels takes more memory than the pixels.
    return torch.cat([views[part] for part in torch.split(torch.arange(len(views)), len(images))])
