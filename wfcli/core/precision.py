"""Products in whole float32, for figures and statistics: GPUs round to 10 bits (TF32) unless told not to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def whole_float32() -> Iterator[None]:
    """Switch TF32 off for convolutions and matrix products on CUDA; nothing changes on other devices."""
    if not torch.cuda.is_available():
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
