"""Write safetensors files as their tensors arrive: the format is described in `safetensors_io`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfcli.core.outputs import atomic_path
from wfcli.core.safetensors_io import TORCH_DTYPES, TensorSpec, dtype_name

if TYPE_CHECKING:
    import torch


def write_checkpoint(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    provenance: Mapping[str, Any],
) -> str:
    """Write a safetensors file as its tensors arrive (in any order, each once); return the sha256 of its bytes.

    The same specs, tensors and provenance give the same bytes. A tensor that is not in `specs`, comes twice, or has
    another shape or dtype is a bug of the caller (`AssertionError`). If anything fails, nothing is left behind.

    Raises:
        OutputError: the place cannot be written.
    """
    header, offsets = _lay_out(specs, provenance)
    with atomic_path(path) as temporary:
        with temporary.open("wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(header), 0)
            os.truncate(file.fileno(), len(header) + sum(spec.size for spec in specs.values()))
            for name, tensor in tensors:
                assert name in offsets, f"{name}: unexpected, or written twice"
                got = TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype))
                assert got == specs[name], f"{name}: got {got}, expected {specs[name]}"
                _write_all(file.fileno(), _bytes_of(tensor), offsets.pop(name))
            assert not offsets, f"never written: {', '.join(offsets)}"
        return file_digest(temporary)


def _lay_out(specs: Mapping[str, TensorSpec], provenance: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """Return the header's bytes and each tensor's place in the file. Wide dtypes come first: all stay aligned."""
    fields: dict[str, Any] = {}
    begins: dict[str, int] = {}
    cursor = 0
    for name in sorted(specs, key=lambda name: (-TORCH_DTYPES[specs[name].dtype][1], name)):
        spec, begins[name] = specs[name], cursor
        cursor += spec.size
        fields[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begins[name], cursor]}
    fields["__metadata__"] = {"format": "pt", "wfcli": _canonical_json(provenance)}
    text = _canonical_json(fields).encode("utf-8")
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}


def _canonical_json(obj: Any) -> str:
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    while len(view):  # one write takes 2 GiB at most
        view = view[os.write(descriptor, view) :]


def state_specs(state: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Return the spec of every tensor of a state dict."""
    return {name: TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype)) for name, tensor in state.items()}


def save_state(path: Path, state: Mapping[str, torch.Tensor], provenance: Mapping[str, Any]) -> str:
    """Write a state dict that is in memory; return the sha256 of the file.

    Raises:
        OutputError: the place cannot be written.
    """
    return write_checkpoint(path, state_specs(state), state.items(), provenance)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
