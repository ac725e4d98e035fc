"""Common corruptions of images at three strengths, after Hendrycks and Dietterich 2019 (arXiv 1903.12261).

uint8 [B, 3, H, W] in and out; what is measured in pixels is for 32 x 32 and grows with the side.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, pad

STRENGTHS = (0, 1, 2)
NOISE = (0.04, 0.08, 0.16)  # standard deviation, of 0..1
BLUR = (0.5, 0.9, 1.5)  # sigma in pixels
CONTRAST = (0.6, 0.4, 0.2)  # of the distance from the image's mean
QUALITY = (40, 20, 8)  # of JPEG
BRIGHTNESS = (0.15, 0.3, 0.45)  # added, of 0..1


def noise(pixels: Tensor, strength: int) -> Tensor:
    """Add Gaussian noise, the same at every call."""
    draw = torch.Generator().manual_seed(strength)
    added = torch.randn(pixels.shape, generator=draw).to(pixels.device)
    return _whole(pixels.float() + 255 * NOISE[strength] * added)


def blur(pixels: Tensor, strength: int) -> Tensor:
    """Blur by a Gaussian; the edges are mirrored."""
    sigma = BLUR[strength] * pixels.shape[-1] / 32
    reach = min(max(1, round(3 * sigma)), pixels.shape[-1] - 1)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=pixels.device)
    line = torch.exp(-(places**2) / (2 * sigma**2))
    line = line / line.sum()
    flat = pad(pixels.float(), (reach,) * 4, mode="reflect").flatten(0, 1)[:, None]
    flat = conv2d(conv2d(flat, line[None, None, None]), line[None, None, :, None])
    return _whole(flat.reshape(pixels.shape))


def contrast(pixels: Tensor, strength: int) -> Tensor:
    """Move every pixel towards the mean of its image."""
    mean = pixels.float().mean((1, 2, 3), keepdim=True)
    return _whole(mean + CONTRAST[strength] * (pixels.float() - mean))


def jpeg(pixels: Tensor, strength: int) -> Tensor:
    """Compress and decompress."""
    seen = []
    for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY[strength])
        seen.append(np.array(Image.open(buffer)))
    return torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous().to(pixels.device)


def brightness(pixels: Tensor, strength: int) -> Tensor:
    """Make all pixels brighter."""
    return _whole(pixels.float() + 255 * BRIGHTNESS[strength])


def _whole(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


CORRUPTIONS = {"noise": noise, "blur": blur, "contrast": contrast, "JPEG": jpeg, "brightness": brightness}
