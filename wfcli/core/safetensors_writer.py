"""Write safetensors files as their tensors arrive: the format is described in `safetensors_io`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfcli.core.digests import file_digest
from wfcli.core.outputs import atomic_path
from wfcli.core.safetensors_io import TORCH_DTYPES, TensorSpec, dtype_name

if TYPE_CHECKING:
    import torch

Provenance = Mapping[str, Any]
Late = Callable[[], Provenance]  # what it says in the end, in as many bytes


def write_checkpoint(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    provenance: Provenance,
    late: Late | None = None,
) -> str:
    """Write a safetensors file as its tensors arrive (in any order, each once); return the sha256 of its bytes.

    A tensor may come in several pieces of rows, one after the other. The same specs, tensors and provenance give the
    same bytes. A tensor that is not in `specs`, comes twice, or has another shape or dtype is a bug of the caller
    (`AssertionError`). If anything fails, nothing is left behind.

    Where a provenance is not complete before the tensors are read (digests of their files), `late` is asked for it
    after the last of them.

    Raises:
        OutputError: the place cannot be written.
    """
    with atomic_path(path) as temporary:
        with temporary.open("wb", buffering=0) as file:
            body = Body(file.fileno(), specs, provenance, late)
            for name, tensor in tensors:
                body.put(name, tensor)
            body.close()
        return body.digest() or file_digest(temporary)


class Body:
    """The tensors of a file, as they arrive behind the header."""

    def __init__(
        self, descriptor: int, specs: Mapping[str, TensorSpec], provenance: Provenance, late: Late | None = None
    ) -> None:
        header, self._offsets = _lay_out(specs, provenance)
        self._late = late
        self._descriptor = descriptor
        self._specs = specs
        self.left = {name: spec.size for name, spec in specs.items()}  # bytes that are still to come
        self._size = len(header) + sum(self.left.values())
        os.truncate(descriptor, self._size)
        _write_all(descriptor, memoryview(header), 0)
        self._hash, self._hashed = hashlib.sha256(header), len(header)  # of what came in the order of the file
        if late is not None:  # the header will be another one
            self._hashed = -1

    def put(self, name: str, piece: torch.Tensor) -> None:
        """Write a tensor, or the next rows of it."""
        assert name in self.left, f"{name}: unexpected, or written twice"
        got, spec, left = TensorSpec(tuple(piece.shape), dtype_name(piece.dtype)), self._specs[name], self.left[name]
        row = (spec.dtype, len(spec.shape), spec.shape[1:])
        assert (got.dtype, len(got.shape), got.shape[1:]) == row, f"{name}: got {got}, expected {spec}"
        assert got.size <= left, f"{name}: got {got}, expected {spec}"
        offset, view = self._offsets[name] + spec.size - left, _bytes_of(piece)
        _write_all(self._descriptor, view, offset)
        if offset == self._hashed:
            self._hash.update(view)
            self._hashed += len(view)
        self.left[name] -= len(view)
        if not self.left[name]:
            del self.left[name]

    def close(self) -> None:
        """Make sure that all has come, and complete the header."""
        assert not self.left, f"never written: {', '.join(self.left)}"
        if self._late is not None:
            header, offsets = _lay_out(self._specs, self._late())
            assert offsets == self._offsets, "the provenance has changed its length"
            _write_all(self._descriptor, memoryview(header), 0)

    def digest(self) -> str | None:
        """Return the sha256 of the file, or None where the tensors did not come in its order."""
        return self._hash.hexdigest() if self._hashed == self._size else None


def file_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Return the names in the order in which the tensors stand in a file: wide dtypes first, all stay aligned."""
    return sorted(specs, key=lambda name: (-TORCH_DTYPES[specs[name].dtype][1], name))


def _lay_out(specs: Mapping[str, TensorSpec], provenance: Provenance) -> tuple[bytes, dict[str, int]]:
    """Return the header's bytes and each tensor's place in the file."""
    fields: dict[str, Any] = {}
    begins: dict[str, int] = {}
    cursor = 0
    for name in file_order(specs):
        spec, begins[name] = specs[name], cursor
        cursor += spec.size
        fields[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begins[name], cursor]}
    fields["__metadata__"] = {"format": "pt", "wfcli": _canonical_json(provenance)}
    text = _canonical_json(fields).encode("utf-8", "replace")  # a file may have a name that is no text
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
