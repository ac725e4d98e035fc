"""The safetensors format by hand: headers without torch, tensors into own memory. To write: `safetensors_writer`.

    8 bytes      n, little endian
    n bytes      JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__": str -> str
    the rest     the tensors, without holes; offsets count from here

By hand because the library maps files into memory (mapped pages count as resident), imports torch before a header can
be read, and writes only what is in memory all at once. Format: https://github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfcli.core.bounded import parse_json
from wfcli.errors import CheckpointError, unreadable

if TYPE_CHECKING:
    import torch

# Bytes. The library's own limit is 100 MB, which as JSON may take gigabytes; ten thousand tensors have one of 1 MB.
MAX_HEADER = 1 << 24
MOST_AXES = 64  # NumPy's limit
MOST_NUMBERS = 2**63 - 1  # that fit an int64

# safetensors name -> (torch name, bytes). The 4 and 6 bit floats are left out: no vision checkpoint has them.
TORCH_DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_NAMES = {torch_name: name for name, (torch_name, _) in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor; dtype by its safetensors name (``F32``, ``BF16``, ``I64``, ...)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.numel * TORCH_DTYPES[self.dtype][1]


@dataclass(frozen=True)
class Header:
    """What stands before the tensors: specs, where each tensor lies (bytes from the start of the file), metadata."""

    specs: dict[str, TensorSpec]
    offsets: dict[str, int]
    metadata: dict[str, str]


def torch_dtype(name: str) -> torch.dtype:
    """Turn ``F32`` into ``torch.float32``."""
    import torch

    dtype = getattr(torch, TORCH_DTYPES[name][0])
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Turn ``torch.float32`` into ``F32``. A `KeyError` where the format has no such dtype."""
    return _NAMES[str(dtype).removeprefix("torch.")]


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file: offsets, sizes, overlaps, truncation. Imports no torch.

    Raises:
        CheckpointError: the file is missing, truncated, or not a safetensors file; names every bad tensor.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise CheckpointError(f"{path}: is not a plain file", hint="put the file itself there")
        size = found.st_size
        with path.open("rb") as file:
            start = file.read(8) if size else b""  # one of the kernel's has no size, and may have no end
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= MAX_HEADER else b""
    except OSError as error:
        raise unreadable(path, error) from error
    _check_start(path, start, length, size, text)
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its header is not valid JSON ({error})", hint=_DAMAGED) from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object", hint=_DAMAGED)
    metadata = fields.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a table of strings", hint=_DAMAGED)
    specs, begins = _check_tensors(path, fields, size - 8 - length)
    return Header(specs, {name: 8 + length + begin for name, begin in begins.items()}, metadata)


_DAMAGED = "fetch or write the file again: it is damaged"


def _check_start(path: Path, start: bytes, length: int, size: int, text: bytes) -> None:
    if start.startswith(b"version "):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights", hint="fetch the weights: git lfs pull")
    if not text.startswith(b"{") and (
        start[:2] == b"PK" or start[:1] == b"\x80"
    ):  # a header may be 128 or 19280 bytes long
        raise CheckpointError(
            f"{path}: a file of torch.save, not safetensors",
            hint="rename it to .pt (it is then read by the safe unpickler)",
        )
    if len(start) < 8 or (len(text) < length <= MAX_HEADER and text[:1] in (b"", b"{")):
        raise CheckpointError(
            f"{path}: truncated: got {size} bytes, expected {8 + (length if len(start) == 8 else 2)} at least",
            hint=_DAMAGED,
        )
    if length > MAX_HEADER or not text.startswith(b"{"):
        raise CheckpointError(f"{path}: not a safetensors file", hint="give .safetensors, .pt, .pth or .bin")


def _check_tensors(path: Path, fields: dict[str, Any], available: int) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    """Return the specs and begins (bytes after the header) in the order of the names; all problems in one error."""
    specs: dict[str, TensorSpec] = {}
    begins: dict[str, int] = {}
    problems = []
    for name in sorted(fields):
        try:
            specs[name], begins[name] = _parse_tensor(fields[name])
        except ValueError as error:  # noqa: PERF203 (all problems at once)
            problems.append(f"{path}: {name}: {error}")
    cursor = 0
    for name in sorted(begins, key=lambda name: (begins[name], specs[name].size)):
        if begins[name] < cursor:
            problems.append(f"{path}: {name}: overlaps the tensor before it (byte {begins[name]}, expected {cursor})")
        elif begins[name] > cursor and not problems:
            problems.append(f"{path}: {name}: a hole of {begins[name] - cursor} bytes before it")
        cursor = max(cursor, begins[name] + specs[name].size)
        if cursor > available:
            problems.append(f"{path}: {name}: truncated: got {available} bytes of tensors, expected at least {cursor}")
            break  # all the later ones are cut off too
    if not problems and cursor < available:
        problems.append(f"{path}: {available - cursor} bytes after the last tensor belong to none")
    if problems:
        raise CheckpointError(*problems, hint=_DAMAGED)
    return specs, begins


def _parse_tensor(field: Any) -> tuple[TensorSpec, int]:
    if not isinstance(field, dict) or not {"dtype", "shape", "data_offsets"} <= field.keys():
        raise ValueError("got no dtype, shape and data_offsets")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TORCH_DTYPES:
        raise ValueError(f"got dtype {dtype!r}, expected one of {', '.join(TORCH_DTYPES)}")
    if not _are_sizes(shape):
        raise ValueError(f"got shape {shape!r}, expected a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"got data_offsets {offsets!r}, expected [begin, end]")
    if len(shape) > MOST_AXES:
        raise ValueError(f"got a shape of {len(shape):,} axes, expected {MOST_AXES} at most")
    if math.prod(size or 1 for size in shape) > MOST_NUMBERS:  # no tensor can be made of it, though it be empty
        raise ValueError(f"got shape {shape!r}, expected one of {MOST_NUMBERS:,} numbers at most")
    spec = TensorSpec(tuple(shape), dtype)
    if offsets[1] - offsets[0] != spec.size:
        raise ValueError(f"got {offsets[1] - offsets[0]} bytes, expected {spec.size} for {dtype} {list(shape)}")
    return spec, offsets[0]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def read_tensor(path: Path, spec: TensorSpec, offset: int, stride: tuple[int, ...] | None = None) -> torch.Tensor:
    """Read one tensor at `offset` (bytes from the start of the file) into memory of its own.

    `stride`, in elements, of one that does not lie there row after row, as torch.save keeps them.

    Raises:
        CheckpointError: the file cannot be read, or ends too early.
    """
    import torch

    numel = spec.numel
    if stride is not None and numel:
        numel = 1 + sum((size - 1) * step for size, step in zip(spec.shape, stride, strict=True))
    tensor = torch.empty(numel, dtype=torch_dtype(spec.dtype))
    view = tensor.view(torch.uint8).numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while view.nbytes:  # one read gives 2 GiB at most
                count = file.readinto(view)
                if not count:
                    raise CheckpointError(f"{path}: became shorter while it was read", hint="leave the file alone")
                view = view[count:]
    except OSError as error:
        raise unreadable(path, error) from error
    if stride is not None:
        return tensor.as_strided(spec.shape, stride).contiguous()
    return tensor.view(spec.shape)
