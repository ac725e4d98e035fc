"""Large tensors in pieces of rows: what is used once, on its way from file to file, needs no memory of its own size.

A piece stays in the processor's cache and its memory is used again: reading into fresh memory takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 18  # numbers: 1 MB in float32


def row_ranges(rows: int, width: int, most: int = PIECE) -> Iterator[tuple[int, int]]:
    """Yield the begins and ends of pieces of `most` numbers at most, but of one row at least, of `rows` of `width`."""
    step = max(1, most // max(1, width))
    yield from ((begin, min(begin + step, rows)) for begin in range(0, rows, step))


def in_pieces(state: Mapping[str, Tensor], name: str) -> Iterator[Tensor]:
    """Yield a tensor in pieces of whole rows, in order: [N, ...] as several [n, ...], a small one as it is.

    Tensors of one shape come in the same pieces. A mapping with a method `pieces` of its own is asked for them: a file
    reads them one by one. Such a method yields what it holds nowhere else (no ``for piece in ...: yield piece``), so
    that T half-read tensors do not keep T pieces in memory.
    """
    own: Callable[[str], Iterator[Tensor]] | None = getattr(state, "pieces", None)
    if own is not None:
        yield from own(name)
        return
    tensor = state[name]
    if tensor.numel() <= PIECE:
        yield tensor
        return
    yield from (tensor[begin:end] for begin, end in row_ranges(len(tensor), tensor[0].numel()))
