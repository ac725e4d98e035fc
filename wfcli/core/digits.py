"""The handwritten digits that come with scikit-learn: 1,797 gray images of 8 x 8 pixels, the data of the demo."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from wfcli.core.images import fit
from wfcli.core.roles import stratified_parts
from wfcli.errors import DataError

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
SEED = 1797  # of the split
BRIGHTEST = 16


class Digits:
    """The digits in the shape of a `Table`, in a fixed stratified split. Not flipped: a mirrored digit is none."""

    name = "digits"
    splits = tuple(SHARES)
    flip = False

    def labels(self, split: str, column: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the class numbers of a split, int64 [rows], and the names of the ten classes."""
        if column not in (None, "label"):
            raise DataError(
                f"data digits: no column {column!r}; it has image and label", hint="leave --label-column out"
            )
        _, labels = _load()
        return labels[_rows(split)], tuple("0123456789")

    def has_labels(self, column: str | None) -> bool:
        """They are known."""
        return True

    def rows(self, split: str) -> int:
        """Count the images of a split."""
        return len(_rows(split))

    def pixels(self, split: str, rows: np.ndarray, size: int) -> Tensor:
        """Return the images at `rows` as uint8 [B, 3, size, size]: three equal channels, resized bilinearly."""
        gray, _ = _load()
        chosen = torch.from_numpy(gray[_rows(split)[rows]])  # [B, 8, 8]
        return fit(chosen[:, None].expand(-1, 3, -1, -1), size).contiguous()


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return all gray images uint8 [1797, 8, 8], 0..255, and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data digits: scikit-learn is not installed", hint="pip install 'wfcli[demo]'") from error
    digits = load_digits()
    gray = np.round(digits.images * (255 / BRIGHTEST)).astype(np.uint8)
    return gray, digits.target.astype(np.int64)


def _rows(split: str) -> np.ndarray:
    _, labels = _load()
    return stratified_parts(labels, list(SHARES.values()), SEED)[list(SHARES).index(split)]
