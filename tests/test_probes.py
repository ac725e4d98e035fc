from __future__ import annotations

import torch

from wfcli.core.probes import probe_images


def test_probes_are_images_and_always_the_same() -> None:
    pixels = probe_images(8, 32)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (8, 3, 32, 32))
    assert torch.equal(pixels, probe_images(8, 32))
    assert not torch.equal(pixels, probe_images(8, 32, seed=1))
    assert probe_images(2, 45).shape == (2, 3, 45, 45)


def test_probes_look_like_photographs_in_their_statistics() -> None:
    pixels = probe_images(64, 32).float() / 255
    assert 0.4 < pixels.mean() < 0.6
    assert 0.15 < pixels.std() < 0.35
    assert pixels.mean((1, 2, 3)).std() > 0.05  # no two are of one brightness
    # Neighbours are alike, pixels far apart are not; the colours of a pixel go together.
    flat = pixels - pixels.mean((2, 3), keepdim=True)

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())

    assert correlation(flat[..., 1:], flat[..., :-1]) > 0.7
    assert abs(correlation(flat[..., 24:], flat[..., :-24])) < 0.4
    assert correlation(flat[:, 0], flat[:, 1]) > 0.5
