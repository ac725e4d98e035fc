"""Encoded images (WebP, PNG, JPEG) to uint8 tensors, on all cores: into memory, or on access if they do not fit."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wfcli.core.bounded import read_bounded
from wfcli.core.image_sizes import check_size, claimed_size, png_size
from wfcli.core.images import fit
from wfcli.core.memory import available_memory
from wfcli.errors import DataError

CHUNK = 128  # images a thread takes at a time
WORST_SHOWN = 10
UNREADABLE = (OSError, ValueError)  # what is raised for a broken image
MOST_BYTES = 1 << 28  # of an encoded image
SMALL = 1 << 22  # pixels: larger ones are decoded one at a time
# Pillow's formats of pixels and no more: it would also start Ghostscript, for a PostScript file of any name.
FORMATS = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_ONE_AT_A_TIME = RLock()


def decode_image(encoded: Any) -> Tensor:
    """Decode one image, given as bytes or as the Hub's ``{"bytes": ..., "path": ...}``, to uint8 RGB [3, H, W].

    torchvision decodes JPEG and WebP (two to three times as fast as Pillow, the same pixels), Pillow the rest: PNG too,
    for torchvision's decoder of it brings the process down where the pixels are damaged.

    Raises:
        one of UNREADABLE: not an image, too large a one, or no such file.
    """
    from torchvision.io import ImageReadMode, decode_image

    data = _bytes(encoded)
    size = claimed_size(data)
    if size is None:
        return _decode_with_pillow(data)
    check_size(*size)
    try:
        pixels: Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (RuntimeError, ValueError):
        return _decode_with_pillow(data)
    return pixels


def _bytes(encoded: Any) -> bytes:
    if isinstance(encoded, dict):
        data, path = encoded.get("bytes"), encoded.get("path")
        encoded = data if data is not None or path is None else read_bounded(Path(path), MOST_BYTES)
    if not isinstance(encoded, bytes) or not encoded:
        raise ValueError("it holds no image")
    return encoded


def _decode_with_pillow(data: bytes) -> Tensor:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a file; large ones are refused here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_size(*image.size)
                if image.mode.startswith("I;16"):  # converted, it would be cut off at 255
                    pixels = (np.asarray(image) >> 8).astype(np.uint8)
                    return torch.from_numpy(pixels).expand(3, -1, -1)
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except MemoryError:
        raise
    except Exception as error:  # each of Pillow's formats has errors of its own for a damaged file
        raise ValueError(str(error) or type(error).__name__) from error


def _room(data: bytes) -> AbstractContextManager[Any]:
    """Return what is held while an image is decoded: large ones, and those of rare formats, come one at a time."""
    size = claimed_size(data) or png_size(data)
    return nullcontext() if size and size[0] * size[1] <= SMALL else _ONE_AT_A_TIME


def native_side(encoded: Any, size: int) -> int:
    """Return the side at which images like this are kept: its own if it is square and at most `size`, else `size`."""
    try:
        height, width = decode_image(encoded).shape[-2:]
    except UNREADABLE:
        return size  # the error is reported with the row when all are decoded
    return height if height == width and height <= size else size


def decode_all(
    batches: Callable[[], Iterable[list[Any]]], rows: np.ndarray, size: int, side: int, where: str
) -> Tensor:
    """Decode images to uint8 [B, 3, side, side], or [B, 3, size, size] if not all of them are `side` x `side`.

    `batches` starts the encoded images anew at each call; `rows` are their row numbers, for messages.

    Raises:
        DataError: images that cannot be decoded, with their rows.
    """
    pixels = _decode_to(batches(), rows, side, where, alike=side < size)
    if pixels is None:
        pixels = _decode_to(batches(), rows, size, where, alike=False)
    assert pixels is not None
    return pixels


def _decode_to(batches: Iterable[list[Any]], rows: np.ndarray, side: int, where: str, *, alike: bool) -> Tensor | None:
    """Decode into one tensor; give up with None if `alike` is asked for and an image has another size than `side`."""
    out = torch.empty((len(rows), 3, side, side), dtype=torch.uint8)
    problems: dict[int, str] = {}

    def decode_chunk(start: int, chunk: list[Any]) -> bool:
        for place, encoded in enumerate(chunk, start):
            try:
                data = _bytes(encoded)
                with _room(data):
                    pixels = decode_image(data)
                    if alike and pixels.shape[-2:] != (side, side):
                        return False
                    out[place] = fit(pixels, side)
            except UNREADABLE as error:  # noqa: PERF203 (all problems at once)
                problems[int(rows[place])] = f"{where}: row {rows[place]}: not a readable image ({_one_line(error)})"
        return True

    done = 0
    with ThreadPoolExecutor(_threads()) as pool:
        for batch in batches:
            starts = range(0, len(batch), CHUNK)
            chunks = [batch[start : start + CHUNK] for start in starts]
            if not all(list(pool.map(decode_chunk, [done + start for start in starts], chunks))):
                return None
            done += len(batch)
    if problems:
        raise _unreadable(problems)
    return out


@dataclass(frozen=True)
class LazyPixels:
    """Images that stay encoded on disk; indexed with an int64 tensor [B] it decodes to uint8 [B, 3, side, side]."""

    read: Callable[[list[int]], list[Any]]  # row numbers -> encoded images
    rows: np.ndarray
    side: int
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), 3, self.side, self.side))

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = self.rows[index.cpu().numpy()]
        pixels = _decode_to([self.read(rows.tolist())], rows, self.side, self.where, alike=False)
        assert pixels is not None
        return pixels

    def subset(self, index: Tensor) -> LazyPixels:
        return replace(self, rows=self.rows[index.cpu().numpy()])


def fits_memory(images: int, side: int) -> bool:
    """Tell whether so many decoded images take at most half of the memory that can be had."""
    return images * 3 * side * side <= available_memory() // 2


def _threads() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _unreadable(problems: dict[int, str]) -> DataError:
    shown = [problems[row] for row in sorted(problems)[:WORST_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    return DataError(*shown, hint="repair or remove these images; WebP needs a torchvision or Pillow built with it")
