"""Images out of nothing: what a net is looked at with where there are no data.

B images of side S. Dead leaves (overlapping shapes of one colour each) under 1/f noise share edges, occlusion and
spectrum with photographs; nets tell far more about themselves on them than on white noise (Baradad et al. 2021,
arXiv 2106.05963).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wfcli.core.training import seed_for

CHUNK = 64  # images drawn at a time
LEAVES = 20
# Brightness, then two opponent colours: how the colours of photographs vary together (rows: red, green, blue).
COLOUR_AXES = ((0.68, 0.48, 0.12), (0.68, 0.0, -0.24), (0.68, -0.48, 0.12))


def probe_images(count: int, side: int, seed: int = 0) -> Tensor:
    """Draw images, uint8 [count, 3, side, side]; the same for the same arguments, on the CPU."""
    pixels = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for number, begin in enumerate(range(0, count, CHUNK)):  # as floats they take ten times the memory
        draw = torch.Generator().manual_seed(seed_for(seed, 20, number))
        some = min(CHUNK, count - begin)
        noise = _one_over_f(some, side, draw) * 0.16 * torch.rand(some, 1, 1, 1, generator=draw)
        pixels[begin : begin + some] = (_dead_leaves(some, side, draw) + noise).clamp(0, 1).mul(255).to(torch.uint8)
    return pixels


def _dead_leaves(count: int, side: int, draw: torch.Generator) -> Tensor:
    """Drop rotated ellipses and rounded boxes on one another, large ones first: [count, 3, side, side], about 0..1."""
    y, x = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    image = _colours(count, draw).expand(-1, -1, side, side)
    for leaf in range(LEAVES):
        numbers = torch.rand(5, count, 1, 1, generator=draw)
        radius = side / 2 * (0.08 + 0.9 * numbers[0].square()) * (1 - 0.6 * leaf / LEAVES)
        across, down, angle = x - numbers[1] * side, y - numbers[2] * side, numbers[3] * math.pi
        stretch = (0.4 * torch.randn(count, 1, 1, generator=draw)).exp()
        u = (across * angle.cos() + down * angle.sin()) / stretch
        v = (down * angle.cos() - across * angle.sin()) * stretch
        power = torch.where(numbers[4] < 0.6, 2.0, 8.0)  # an ellipse or a box
        inside = (u.abs() ** power + v.abs() ** power < radius**power)[:, None]
        slope = 0.3 * torch.randn(2, count, 1, 1, generator=draw)
        shade = (1 + (slope[0] * u + slope[1] * v) / side)[:, None]
        image = torch.where(inside, _colours(count, draw) * shade, image)
    return image


def _colours(count: int, draw: torch.Generator) -> Tensor:
    """Draw one colour an image, [count, 3, 1, 1]: any brightness, little of any hue."""
    grey = torch.rand(count, 1, generator=draw)
    return (grey + 0.15 * torch.randn(count, 3, generator=draw)).clamp(0, 1)[:, :, None, None]


def _one_over_f(count: int, side: int, draw: torch.Generator) -> Tensor:
    """Draw noise whose amplitude falls with the frequency, mean 0 and deviation 1: [count, 3, side, side]."""
    frequency = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt()
    real, imaginary = torch.randn(2, count, 3, *frequency.shape, generator=draw)
    spectrum = torch.complex(real, imaginary) / frequency.clamp_min(1 / side)
    noise = torch.fft.irfft2(spectrum, s=(side, side))
    noise = (noise - noise.mean((2, 3), keepdim=True)) / noise.std((2, 3), keepdim=True)
    return torch.einsum("ca,bahw->bchw", torch.tensor(COLOUR_AXES), noise)
