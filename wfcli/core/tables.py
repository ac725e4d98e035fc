"""Rows of images and labels, read through `datasets` as Arrow: only the columns and rows that are asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from wfcli.core.columns import check_labels, class_names, image_column, label_column, name_classes
from wfcli.core.decode import LazyPixels, decode_all, fits_memory, native_side
from wfcli.errors import DataError, WfError

BATCH = 1024


@dataclass(frozen=True)
class Table:
    """A dataset with its splits and columns.

    `open_split(split, columns, stream)` gives the split as `datasets` has it, to be read in order or by row number.
    """

    name: str
    splits: tuple[str, ...]  # train, validation, test: those that are there
    features: Mapping[str, Any]
    open_split: Callable[[str, list[str], bool], Any]
    flip: bool = True
    own_files: bool = True  # an image may stand in a file of its own, which the table names

    def labels(self, split: str, column: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the class numbers of a split, int64 [rows], and the names of all classes.

        Raises:
            DataError: no such column, it could be several, or it lacks labels.
        """
        column = label_column(self.name, self.features, column)
        names = class_names(self.features[column])
        values = self._values(split, column)
        if names is None:
            others = (self._values(s, column) for s in self.splits if s != split)
            names, values = name_classes(values, others)
        return check_labels(values, names, f"data {self.name}: {split}", column), names

    def has_labels(self, column: str | None) -> bool:
        """Tell whether it is clear which column holds the labels."""
        try:
            label_column(self.name, self.features, column)
        except DataError:
            return False
        return True

    def rows(self, split: str) -> int:
        """Count the rows of a split, without a column of images if it has others.

        Raises:
            DataError: no column of images.
        """
        images = image_column(self.name, self.features)
        column = next((name for name in self.features if name != images), images)
        return sum(int(batch.num_rows) for batch in self._batches(split, column))

    def pixels(self, split: str, rows: np.ndarray, size: int) -> Tensor | LazyPixels:
        """Decode the images at `rows` (ascending, at least one), into memory where they fit.

        Raises:
            DataError: no column of images, or images that cannot be decoded.
        """
        column = image_column(self.name, self.features)
        where = f"data {self.name}: {split}"
        first = next(self._encoded(split, column, rows[:1]))[0]
        side = native_side(first, size)
        if fits_memory(len(rows), side):
            return decode_all(lambda: self._encoded(split, column, rows), rows, size, side, where)
        return LazyPixels(self._random_access(split, column), rows, side, where)

    def _values(self, split: str, column: str) -> list[Any]:
        return [value for batch in self._batches(split, column) for value in batch.column(column).to_pylist()]

    def _encoded(self, split: str, column: str, rows: np.ndarray) -> Iterator[list[Any]]:
        """Yield the images at `rows` (ascending), still encoded, in lists; the others are passed over."""
        start = 0
        for batch in self._batches(split, column):
            first, last = np.searchsorted(rows, [start, start + batch.num_rows])
            if last > first:
                yield self._images(batch.take(rows[first:last] - start), column)
            start += batch.num_rows

    def _batches(self, split: str, column: str) -> Iterator[Any]:
        with quiet(self.name):
            yield from self.open_split(split, [column], True).with_format("arrow").iter(batch_size=BATCH)

    def _random_access(self, split: str, column: str) -> Callable[[list[int]], list[Any]]:
        """Return a function that reads one column at given rows. Local files go to the Hugging Face cache."""
        with quiet(self.name):
            rows = self.open_split(split, [column], False).with_format("arrow")
        return lambda numbers: self._images(rows[numbers], column)

    def _images(self, batch: Any, column: str) -> list[Any]:
        """Return encoded images; a parquet file may bring them, but not name other files of this machine."""
        cells: list[Any] = batch.column(column).to_pylist()
        return cells if self.own_files else [{**c, "path": None} if isinstance(c, dict) else c for c in cells]


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Silence `datasets` (bars and log lines) and turn what it cannot read into our error."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    bars = not datasets.utils.are_progress_bars_disabled()
    loggers = [(module, module.get_verbosity()) for module in (datasets.utils.logging, hub_logging)]
    datasets.utils.disable_progress_bars()
    for module, _ in loggers:
        module.set_verbosity(logging.CRITICAL)  # what fails is told by our error
    try:
        yield
    except WfError:
        raise
    except Exception as error:  # datasets, Arrow and the Hub's client have many errors for what cannot be read
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        hint = "check the connection, or download the dataset and give its folder"
        raise DataError(f"data {name}: {reason}", hint=hint if name.startswith("hf:") else None) from error
    finally:
        for module, verbosity in loggers:
            module.set_verbosity(verbosity)
        if bars:
            datasets.utils.enable_progress_bars()
