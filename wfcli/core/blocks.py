"""The Transformer block of a WeightFormer: who looks at whom.

T teachers, N channels of a layer, M cross tokens, D model width, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Attention = Literal["cross", "full"]
ATTENTIONS: tuple[Attention, ...] = ("cross", "full")
MASK_WIDTH = 4  # numbers a head compares to say whether a token may look at another
OPEN = 4.0  # a mask starts open: sigmoid(4) = 0.98


class Block(nn.Module):
    """Attention across the teachers at one channel, then among the channels, then an MLP.

    Among the channels, ``cross``: each teacher's channels meet in its M cross tokens, at a cost linear in N. ``full``:
    all of them look at each other, as in 2210.01973, at a cost quadratic in N; with `mask` a learned one says who may
    look at whom (soft, so that it has a gradient everywhere). Either way teachers meet in the attention across them.
    """

    def __init__(self, width: int, heads: int, attention: Attention = "cross", mask: bool = False) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm_teachers, self.norm_channels, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.across_teachers = nn.Linear(width, 3 * width)
        self.project_teachers = nn.Linear(width, width)
        if attention == "cross":
            self.gather = nn.Linear(width, 3 * width)
            self.project_gathered = nn.Linear(width, width)
            self.spread = nn.Linear(width, 3 * width)
            self.project_spread = nn.Linear(width, width)
        else:
            self.among = nn.Linear(width, 3 * width)
            self.project_among = nn.Linear(width, width)
        self.mask = nn.Linear(width, 2 * heads * MASK_WIDTH) if mask else None
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens [T, N, D] and cross tokens [T, M, D] to new ones."""
        channels = x.shape[1]
        z = torch.cat([x, cross], dim=1)  # [T, N + M, D]
        q, k, v = (
            self.across_teachers(self.norm_teachers(z)).transpose(0, 1).chunk(3, dim=-1)
        )  # a set: no teacher index
        z = z + self.project_teachers(self._attend(q, k, v)).transpose(0, 1)
        if self.attention == "cross":
            x, cross = self._through_cross_tokens(z[:, :channels], z[:, channels:])
            z = torch.cat([x, cross], dim=1)
        else:
            z = z + self._among_all(z)
        z = z + self.mlp(self.norm_mlp(z))
        return z[:, :channels], z[:, channels:]

    def _through_cross_tokens(self, x: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        x_normed, cross_normed = self.norm_channels(x), self.norm_channels(cross)
        _, k, v = self.gather(x_normed).chunk(3, dim=-1)
        q = self.gather(cross_normed).chunk(3, dim=-1)[0]
        cross = cross + self.project_gathered(self._attend(q, k, v))
        _, k, v = self.spread(self.norm_channels(cross)).chunk(3, dim=-1)
        q = self.spread(x_normed).chunk(3, dim=-1)[0]
        return x + self.project_spread(self._attend(q, k, v)), cross

    def _among_all(self, z: Tensor) -> Tensor:
        """Let the tokens [T, L, D] of each teacher look at each other; return what is to be added to them."""
        tokens = self.norm_channels(z)
        q, k, v = self.among(tokens).chunk(3, dim=-1)
        seen = self._attend(q, k, v, None if self.mask is None else self._openness(tokens))
        added: Tensor = self.project_among(seen)
        return added

    def _openness(self, tokens: Tensor) -> Tensor:
        """Return the log of how open the way from each token to each other is, [T, H, L, L] of [T, L, D]: at most 0."""
        assert self.mask is not None
        asks, answers = self.mask(tokens).chunk(2, dim=-1)
        asks, answers = (t.unflatten(-1, (self.heads, MASK_WIDTH)).transpose(1, 2) for t in (asks, answers))
        return functional.logsigmoid(asks @ answers.transpose(-1, -2) + OPEN)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:-1], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return seen.transpose(1, 2).flatten(2)  # from [batch, heads, length, D / heads]
