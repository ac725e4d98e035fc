"""A large checkpoint as several files and an index of them, as the Hub has it.

The shards are named by what is in them, so that a reader of an older index never meets a newer shard; the index gets
its name last.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from wfcli.core.bounded import read_json
from wfcli.core.digests import file_digest
from wfcli.core.forms import misfit
from wfcli.core.leftovers import one_at_a_time
from wfcli.core.outputs import INDEX_SUFFIX, SUFFIX, sync, temporary_file, write_json
from wfcli.core.safetensors_io import TensorSpec
from wfcli.core.safetensors_writer import Body, Late, Provenance, file_order
from wfcli.errors import CheckpointError, unreadable

if TYPE_CHECKING:
    import torch


def write_shards(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    provenance: Provenance,
    most: int,
    late: Late | None = None,
) -> tuple[Path, str]:
    """Write tensors as shards of at most `most` bytes (a larger tensor has one of its own), and the index of them.

    Returns the index, ``x.safetensors.index.json`` for the path ``x.safetensors``, and the sha256 over the shards'
    digests in the order of their names. Otherwise as `write_checkpoint`. Shards of an older index, and an older file at
    `path` itself, are removed once the new index has its name.

    Raises:
        OutputError: the place cannot be written.
    """
    parts = _shards(specs, most)
    place = {name: number for number, part in enumerate(parts) for name in part}
    with ExitStack() as stack:
        temporaries = [stack.enter_context(temporary_file(path)) for _ in parts]
        with ExitStack() as files:
            opened = [files.enter_context(temporary.open("wb", buffering=0)) for temporary in temporaries]
            bodies = [
                Body(file.fileno(), {name: specs[name] for name in part}, provenance, late)
                for file, part in zip(opened, parts, strict=True)
            ]
            for name, tensor in tensors:
                assert name in place, f"{name}: unexpected"
                bodies[place[name]].put(name, tensor)
            for body in bodies:
                body.close()
        digests = [body.digest() or file_digest(file) for body, file in zip(bodies, temporaries, strict=True)]
        names = [
            f"{path.stem}-{number:05d}-of-{len(parts):05d}-{digest[:8]}{SUFFIX}"
            for number, digest in enumerate(digests, start=1)
        ]
        index = index_of(path)
        stack.enter_context(one_at_a_time(path.parent))  # else one's old shards are another's new ones
        fresh = [name for name in names if not path.with_name(name).exists()]  # others have the same bytes
        try:
            for temporary, name in zip(temporaries, names, strict=True):
                sync(temporary)
                temporary.replace(path.with_name(name))
            weight_map = {name: names[place[name]] for name in sorted(place)}
            total = sum(spec.size for spec in specs.values())
            write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
        except BaseException:
            kept = set(_named(index))  # an interrupt may come when the index has its name already
            for name in fresh:
                if name not in kept:
                    path.with_name(name).unlink(missing_ok=True)
            raise
        for old in path.parent.iterdir():
            if old.name == path.name or (is_shard_of(path, old.name) and old.name not in names):
                old.unlink()
    return index, hashlib.sha256("".join(digests).encode()).hexdigest()


def remove_shards(path: Path) -> None:
    """Remove the index and the shards of an earlier student at `path`: a folder with an index means its shards."""
    index = index_of(path)
    names = set(_named(index))
    if names and all(is_shard_of(path, name) for name in names):
        for name in (index.name, *names):
            path.with_name(name).unlink(missing_ok=True)


def _named(index: Path) -> Iterable[str]:
    try:
        return read_index(index).values() if index.is_file() else ()
    except CheckpointError:
        return ()


def index_of(path: Path) -> Path:
    """Return the index that is written where a student of several files goes to `path`."""
    return path.with_name(path.stem + INDEX_SUFFIX)


def is_shard_of(path: Path, name: str) -> bool:
    """Tell whether a file of this name is taken for a shard of `path`: it goes when others take their place."""
    return re.fullmatch(re.escape(path.stem) + r"-\d{5}-of-\d{5}-[0-9a-f]{8}" + re.escape(SUFFIX), name) is not None


def _shards(specs: Mapping[str, TensorSpec], most: int) -> list[list[str]]:
    """Cut the names, in the order of a file, into parts of `most` bytes at most, or of one tensor."""
    parts: list[list[str]] = [[]]
    room = most
    for name in file_order(specs):
        if parts[-1] and specs[name].size > room:
            parts.append([])
            room = most
        parts[-1].append(name)
        room -= specs[name].size
    return parts


def find_index(folder: Path) -> Path:
    """Return the one index in a folder.

    Raises:
        CheckpointError: there is none, or several.
    """
    found = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(
            f"{folder}: expected one *{INDEX_SUFFIX} in this folder, got {names}", hint="name a checkpoint file instead"
        )
    return found[0]


def read_index(index: Path) -> dict[str, str]:
    """Return tensor -> shard. A shard is a plain file name: an index may not lead out of its folder.

    Raises:
        CheckpointError: it cannot be read, or is no index.
    """
    try:
        found = read_json(index)
    except OSError as error:
        raise unreadable(index, error) from error
    except ValueError as error:
        raise CheckpointError(
            f"{index}: not an index of shards with a weight_map ({error})", hint="fetch the index again"
        ) from error
    if problem := misfit(found, {"weight_map": {"*": str}}):
        raise CheckpointError(
            f"{index}: not an index of shards with a weight_map: {problem}", hint="fetch the index again"
        )
    pairs: dict[str, str] = found["weight_map"]
    outside = sorted({shard for shard in pairs.values() if shard in ("", ".", "..") or "/" in shard or "\\" in shard})
    if outside:
        raise CheckpointError(
            *(f"{index}: the shard {shard!r} lies outside the folder of the index" for shard in outside),
            hint="shards stand beside their index, named without folders",
        )
    if not pairs:
        raise CheckpointError(f"{index}: its weight_map is empty", hint="fetch the index again")
    return pairs
