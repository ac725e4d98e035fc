"""The table of known key layouts (layouts.json), and how the tensors of a file map to timm's names.

Neither torch nor timm is imported here: a file can be checked against the table in milliseconds. layouts.json is
written by examples/make_layouts.py. Its trees follow the dots of the tensor names; "block{0..3}" stands for four equal
neighbours. A leaf is a shape or, as a text, the channels of a batch norm with its five tensors. A dimension is a
number, "C" for the number of classes, or "4*64w" for 4 times `scaled(64, width)`. torchvision's trees have their leaves
in the order of timm's; a leaf 0 or "" there has the shape that timm has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wfcli.core.checkpoint import TensorSpec
from wfcli.core.pieces import in_pieces

if TYPE_CHECKING:
    from torch import Tensor

    from wfcli.core.architectures import Architecture

Shape = tuple[int, ...]
Dimensions = tuple[int | str, ...]  # a shape whose classes and scaled channels are still open

STATISTICS = ("running_mean", "running_var")
BATCH_NORM = ("weight", "bias", *STATISTICS)
COUNTER = "num_batches_tracked"  # files written before PyTorch 0.4.1 have none, and PyTorch loads them all the same


@dataclass(frozen=True)
class Listing:
    """One architecture of the table."""

    name: str
    head: str  # module name of the classifier
    size: int
    norm: str  # key of Tables.norms
    step: int  # channels are rounded to a multiple of it when `width` scales them; 0: no width
    tensors: dict[str, Dimensions]
    torchvision: dict[str, tuple[str, Dimensions | None]]  # key -> (timm key, shape where it differs); empty: same keys


@dataclass(frozen=True)
class Alias:
    """A torchvision name whose timm net computes the same function from the same weights."""

    name: str
    timm_name: str
    size: int
    norm: str


@dataclass(frozen=True)
class Tables:
    """All of layouts.json but the trees, which are expanded one at a time by `listing`."""

    architectures: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, Alias]
    norms: Mapping[
        str, tuple[tuple[float, float, float], tuple[float, float, float]]
    ]  # mean and std per channel, of 0..1


@cache
def tables() -> Tables:
    """Read layouts.json."""
    raw = json.loads((Path(__file__).parent / "layouts.json").read_text(encoding="utf-8"))
    aliases = {name: Alias(name, *fields) for name, fields in raw["aliases"].items()}
    norms = {name: (tuple(mean), tuple(std)) for name, (mean, std) in raw["norms"].items()}
    return Tables(raw["architectures"], aliases, norms)


@cache
def listing(timm_name: str) -> Listing | None:
    """Return the entry of a timm name, or None where the table has none."""
    raw = tables().architectures.get(timm_name)
    if raw is None:
        return None
    tensors = {key: shape for key, shape in _expand(raw["tensors"]) if shape is not None}
    foreign = list(_expand(raw.get("torchvision", {})))
    pairs = {key: (own, shape) for own, (key, shape) in zip(tensors, foreign, strict=False)}
    return Listing(timm_name, raw["head"], raw["size"], raw["norm"], raw.get("step", 0), tensors, pairs)


def _expand(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Dimensions | None]]:
    for pattern, value in tree.items():
        for key in _names(pattern):
            if isinstance(value, dict):
                yield from _expand(value, f"{prefix}{key}.")
            elif isinstance(value, str):
                channels = (int(value) if value.isdigit() else value,) if value else None
                yield from ((f"{prefix}{key}.{part}", channels) for part in BATCH_NORM)
                yield f"{prefix}{key}.{COUNTER}", () if value else None
            else:
                yield prefix + key, tuple(value) if value else None


def _names(pattern: str) -> Iterator[str]:
    run = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}", pattern)
    if run is None:
        yield pattern
    else:
        yield from (f"{run[1]}{number}" for number in range(int(run[2]), int(run[3]) + 1))


def scaled(channels: int, width: float, step: int) -> int:
    """Return `channels` times `width`, rounded to a multiple of `step` and at least `step`."""
    return max(step, int(channels * width / step + 0.5) * step)


def shape_of(dimensions: Dimensions, num_classes: int, width: float = 1.0, step: int = 0) -> Shape:
    """Fill in the open dimensions of a listed shape."""
    return tuple(_dimension(d, num_classes, width, step) for d in dimensions)


def _dimension(dimension: int | str, num_classes: int, width: float, step: int) -> int:
    if isinstance(dimension, int):
        return dimension
    if dimension == "C":
        return num_classes
    factor, _, channels = dimension.removesuffix("w").rpartition("*")
    return int(factor or 1) * scaled(int(channels), width, step)


def infer_width(entry: Listing, shapes: Mapping[str, Shape]) -> float | None:
    """Return the roundest `width` that gives these shapes, or None where there is none."""
    low, high = 0.0, float("inf")
    for key, dimensions in entry.tensors.items():
        for open_, got in zip(dimensions, shapes.get(key, ()), strict=False):
            if not isinstance(open_, str) or open_ == "C":
                continue
            factor, _, channels = open_.removesuffix("w").rpartition("*")
            unit, base = got / int(factor or 1), int(channels)
            low = max(low, (unit - entry.step / 2) / base if unit > entry.step else 0.0)
            high = min(high, (unit + entry.step / 2) / base)
    if high == float("inf"):
        return None
    middle = (low + high) / 2
    candidates = [round(middle * parts) / parts for parts in (1, 2, 4, 8)]  # 0.125 is rounder than 0.12
    candidates += [round(middle, digits) for digits in range(1, 7)]
    # At `high` the rounding has already gone up.
    return next((width for width in candidates if width > 0 and low <= width < high), None)


@dataclass(frozen=True)
class Layout:
    """How the tensors of a file map to those of timm's model: names, and shapes where they differ."""

    name: Literal["timm", "torchvision"]
    arch: Architecture
    num_classes: int
    files: dict[str, Shape]  # file key -> shape in the file
    to_timm: dict[str, tuple[str, Shape]]  # file key -> (timm key, timm shape)

    @cached_property
    def to_file(self) -> dict[str, tuple[str, Shape]]:
        """Timm key -> (file key, shape in the file)."""
        return {timm_key: (key, self.files[key]) for key, (timm_key, _) in self.to_timm.items()}

    def timm_view(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of a file under timm's names and in timm's shapes; a tensor is read when asked for."""
        return _TimmView(self, state)

    def file_state(self, timm_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a timm state dict under the names and in the shapes of the file: `timm_view` undone.

        Counters of batch norms that the file does not have are left out.
        """
        return {key: timm_state[timm_key].reshape(self.files[key]) for key, (timm_key, _) in self.to_timm.items()}


class _TimmView(Mapping[str, "Tensor"]):
    def __init__(self, layout: Layout, state: Mapping[str, Tensor]) -> None:
        self._layout = layout
        self._state = state

    def __getitem__(self, timm_key: str) -> Tensor:
        key, _ = self._layout.to_file[timm_key]
        return self._state[key].reshape(self._layout.to_timm[key][1])

    def pieces(self, timm_key: str) -> Iterator[Tensor]:
        """Read a tensor in pieces of rows, as `in_pieces` tells."""
        key, file_shape = self._layout.to_file[timm_key]
        shape = self._layout.to_timm[key][1]
        if file_shape[:1] == shape[:1]:  # the same rows
            rows = (-1, *shape[1:]) if shape else ()
            yield from map(methodcaller("reshape", rows), in_pieces(self._state, key))
        else:
            yield from in_pieces({timm_key: self[timm_key]}, timm_key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.to_file)

    def __len__(self) -> int:
        return len(self._layout.to_file)


FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
MOST = 10  # problems of one kind that are spelled out; the rest is counted


def compare_tensors(
    file: str, specs: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec], what: str, most: int = MOST
) -> list[str]:
    """Return one line for every missing, extra or misshaped tensor of a file, not many more than `most` of a kind.

    `what` names the net that is expected. The precision of the numbers is free; counters of batch norms may be missing.
    """
    both = [(key, specs[key], want) for key, want in expected.items() if key in specs]
    kinds = {
        "are missing": [
            f"{file}: {key}: missing, expected {list(want.shape)}"
            for key, want in expected.items()
            if key not in specs and not key.endswith(COUNTER)
        ],
        "are extra": [
            f"{file}: {key}: got {list(got.shape)}, expected no such tensor in {what}"
            for key, got in specs.items()
            if key not in expected
        ],
        "have another shape": [
            f"{file}: {key}: got {list(got.shape)}, expected {list(want.shape)}"
            for key, got, want in both
            if tuple(got.shape) != want.shape
        ],
        "have another type": [
            f"{file}: {key}: got {got.dtype}, expected floating-point numbers"
            for key, got, want in both
            if want.dtype in FLOATS and got.dtype not in FLOATS
        ],
    }
    problems: list[str] = []
    for kind, lines in kinds.items():
        shown = lines if len(lines) <= most + 1 else lines[:most]  # a line that counts one would name it as well
        problems += shown
        if len(lines) > len(shown):
            problems.append(f"{file}: ... and {len(lines) - len(shown)} more tensors {kind}")
    return problems
