"""Checkpoints as read-only mappings that read a tensor when it is asked for.

One class, three kinds of file behind it: safetensors, safetensors in shards with an index, and files of ``torch.save``.
Opening reads headers only (safetensors: without torch). The writers live in `safetensors_writer` and `outputs`; their
names are passed on here, so that the rest of the package needs this module alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wfcli.core.digests import file_digest, hashing
from wfcli.core.outputs import INDEX_SUFFIX, atomic_path, check_writable, write_json
from wfcli.core.paths import local_path
from wfcli.core.pieces import PIECE, in_pieces, row_ranges
from wfcli.core.records import read_record
from wfcli.core.safetensors_io import TORCH_DTYPES, TensorSpec, dtype_name, read_header, read_tensor, torch_dtype
from wfcli.core.safetensors_writer import file_order, save_state, state_specs, write_checkpoint
from wfcli.core.shards import find_index, read_index, write_shards
from wfcli.errors import CheckpointError, unreadable

if TYPE_CHECKING:
    import torch

__all__ = [
    "INDEX_SUFFIX",
    "PICKLE_SUFFIXES",
    "TORCH_DTYPES",
    "Checkpoint",
    "TensorSpec",
    "atomic_path",
    "check_writable",
    "dtype_name",
    "file_digest",
    "file_order",
    "open_checkpoint",
    "save_state",
    "state_specs",
    "torch_dtype",
    "write_checkpoint",
    "write_json",
    "write_shards",
]

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
PREFIXES = ("module.", "_orig_mod.", "model.")  # left by DataParallel, torch.compile, Lightning


class Place(NamedTuple):
    """Where the bytes of a tensor begin; `stride` of one that does not lie there row after row."""

    file: Path
    offset: int
    stride: tuple[int, ...] | None = None


class Stamp(NamedTuple):
    """What a file shows of itself when it is written again."""

    size: int
    changed: int  # nanoseconds


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """A checkpoint on disk. ``checkpoint[name]`` reads that tensor into fresh memory, every time.

    Attributes: `path`; `name`, what to show; `specs`, name -> shape and dtype; `metadata`; `files`, all that it is read
    from, and their `size` in bytes; `labels`, the names of its classes where another file beside it has them.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        stamps: Mapping[Path, Stamp],
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str],
        places: Mapping[str, Place],
        loaded: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.metadata = dict(metadata)
        self.files = tuple(stamps)
        self.size = sum(stamp.size for stamp in stamps.values())
        self._keys = _without_prefixes(specs)  # the name here -> the name in the file
        self.specs = {key: specs[stored] for key, stored in self._keys.items()}
        self._stamps = stamps  # of before the headers were read
        self._places = places
        self._loaded = loaded or {}  # tensors of a pickle that do not lie plainly in the file
        self._digest: str | None = None
        self.file_digests: dict[Path, str] = {}  # once the digest is taken
        self.labels: tuple[str, ...] | None = None
        self._provenance: dict[str, Any] | None = None

    def __getitem__(self, key: str) -> torch.Tensor:
        stored = self._keys[key]
        if stored in self._loaded:
            self._check_unchanged(self.path)  # it may be mapped
            tensor = self._loaded[stored].contiguous().clone()
            self._check_unchanged(self.path)
            return tensor
        return self._read(self._places[stored], self.specs[key])

    def pieces(self, key: str) -> Iterator[torch.Tensor]:
        """Read a tensor in pieces of rows, as `in_pieces` tells."""
        stored, spec = self._keys[key], self.specs[key]
        if spec.numel <= PIECE or stored in self._loaded or self._places[stored].stride is not None:
            yield from in_pieces({key: self[key]}, key)
            return
        rows, *row = spec.shape
        file, start, _ = self._places[stored]
        for begin, end in row_ranges(rows, spec.numel // rows):
            place = Place(file, start + begin * (spec.size // rows))
            yield self._read(place, TensorSpec((end - begin, *row), spec.dtype))

    def _read(self, place: Place, spec: TensorSpec) -> torch.Tensor:
        tensor = read_tensor(place.file, spec, place.offset, place.stride)
        self._check_unchanged(place.file)  # now: it may have been written while it was read
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, key: object) -> bool:
        return key in self.specs  # Mapping's own would read the tensor

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {len(self)} tensors)"

    @property
    def provenance(self) -> dict[str, Any] | None:
        """Who made this file from what; None where wfcli did not write it, or what it says is not of the usual form."""
        if self._provenance is None:
            self._provenance = read_record(self.metadata.get("wfcli", "null"))
        return self._provenance

    @property
    def known_digest(self) -> str | None:
        """The digest, where it was taken already."""
        return self._digest

    def digest(self) -> str:
        """Return the sha256 of the file's bytes; of shards: the sha256 over their digests in the order of names.

        Raises:
            CheckpointError: the file has changed.
        """
        for _ in self.digesting():
            pass
        assert self._digest is not None
        return self._digest

    def digesting(self) -> Iterator[None]:
        """Take the digest a stretch at a time; what was read in between belongs to the caller.

        Raises:
            CheckpointError: the file has changed.
        """
        if self._digest is not None:
            return
        for file in self._stamps:
            digest = hashlib.sha256()
            for _ in hashing(file, digest):
                yield
            self._check_unchanged(file)
            self.file_digests[file] = digest.hexdigest()
        digests = list(self.file_digests.values())
        self._digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _check_unchanged(self, file: Path) -> None:
        """A header read earlier says nothing about a file that was written again since."""
        if _stamp(file) != self._stamps[file]:
            raise CheckpointError(
                f"{self.path}: changed while it was in use", hint="leave the file alone and run again"
            )


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
    return Stamp(found.st_size, found.st_mtime_ns)


def _without_prefixes(names: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Map each name without the prefixes that all names share to the name in the file."""
    keys = {name: name for name in sorted(names)}
    while keys:
        weights = [key for key in keys if key != "n_averaged"]  # AveragedModel's counter stands beside "module."
        prefix = next((p for p in PREFIXES if weights and all(key.startswith(p) for key in weights)), None)
        if prefix is None:
            break
        keys = {key.removeprefix(prefix): keys[key] for key in weights}
    return keys


def open_checkpoint(path: Path, name: str | None = None) -> Checkpoint:
    """Open a .safetensors file, a folder or index of shards, or a .pt, .pth or .bin file, by its header.

    Wrappers are seen through: ``state_dict``, ``model``, ``ema`` and the like in pickles; ``module.``, ``_orig_mod.``
    and ``model.`` before all names of any file. `name` is what messages and tables show (default: the base name).

    Raises:
        CheckpointError: no such file, damaged, or a pickle that wants to run code; names the file and the tensors.
    """
    path = local_path(str(path), CheckpointError)
    name = name or path.name
    if path.is_dir() or path.name.endswith(INDEX_SUFFIX):
        return _open_shards(path, name)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", hint="check the path")
    if path.suffix in PICKLE_SUFFIXES:
        return _open_pickle(path, name)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: unknown kind of file {path.suffix!r}",
            hint=f"give .safetensors, *{INDEX_SUFFIX}, {', '.join(PICKLE_SUFFIXES)}",
        )
    stamps = {path: _stamp(path)}
    header = read_header(path)
    places = {key: Place(path, offset) for key, offset in header.offsets.items()}
    return Checkpoint(path, name, stamps, header.specs, header.metadata, places)


def _open_shards(path: Path, name: str) -> Checkpoint:
    index = find_index(path) if path.is_dir() else path
    weight_map = read_index(index)
    shards = {shard: index.parent / shard for shard in sorted(set(weight_map.values()))}
    stamps, headers = {}, {}
    problems: list[str] = []
    home = Path(os.path.realpath(index)).parent  # of the Hub's cache: where the files are that its names lead to
    for shard, file in shards.items():
        target = Path(os.path.realpath(file))  # pathlib's own raises where links go in circles
        if target.parent != home:
            problems.append(f"{index}: {shard}: a link out of its folder, to {target}")
            continue
        try:
            stamps[file] = _stamp(file)
            headers[shard] = read_header(file)
        except CheckpointError as error:
            problems += error.problems
    for key, shard in weight_map.items():
        if shard in headers and key not in headers[shard].specs:
            problems.append(f"{index}: {key}: not in {shard}, where the index says it is")
    if problems:
        raise CheckpointError(*problems, hint="fetch the shards again: all the files that the index names")
    metadata: dict[str, str] = {}
    for shard in reversed(shards):
        metadata |= headers[shard].metadata
    specs = {key: headers[shard].specs[key] for key, shard in weight_map.items()}
    places = {key: Place(shards[shard], headers[shard].offsets[key]) for key, shard in weight_map.items()}
    return Checkpoint(index, name, stamps, specs, metadata, places)


def _open_pickle(path: Path, name: str) -> Checkpoint:
    import torch

    from wfcli.core.pickles import file_offsets, load_pickle

    stamps = {path: _stamp(path)}
    state = load_pickle(path)
    problems = []
    specs = {}
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            problems.append(f"{path}: {key}: a sparse or quantized tensor, expected a dense one")
        elif str(tensor.dtype).removeprefix("torch.") not in {torch_name for torch_name, _ in TORCH_DTYPES.values()}:
            problems.append(f"{path}: {key}: got dtype {tensor.dtype}, which safetensors cannot hold")
        else:
            specs[key] = TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype))
    if problems:
        raise CheckpointError(*problems, hint="save the dense weights: model.state_dict()")
    offsets = file_offsets(path, state)
    strides = {key: None if state[key].is_contiguous() else state[key].stride() for key in offsets}
    places = {key: Place(path, offset, strides[key]) for key, offset in offsets.items()}
    rest = {key: tensor.detach() for key, tensor in state.items() if key not in places}
    return Checkpoint(path, name, stamps, specs, {}, places, rest)
