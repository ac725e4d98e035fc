"""Write a large checkpoint as several files and an index of them, as the Hub has it.

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

from wfcli.core.digests import file_digest
from wfcli.core.outputs import INDEX_SUFFIX, SUFFIX, sync, temporary_file, write_json
from wfcli.core.safetensors_io import TensorSpec
from wfcli.core.safetensors_writer import Body, Late, Provenance, file_order

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
        index = path.with_name(path.stem + INDEX_SUFFIX)
        fresh = [name for name in names if not path.with_name(name).exists()]  # others have the same bytes
        try:
            for temporary, name in zip(temporaries, names, strict=True):
                sync(temporary)
                temporary.replace(path.with_name(name))
            weight_map = {name: names[place[name]] for name in sorted(place)}
            total = sum(spec.size for spec in specs.values())
            write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
        except BaseException:
            for name in fresh:
                path.with_name(name).unlink(missing_ok=True)
            raise
    shard = re.compile(re.escape(path.stem) + r"-\d{5}-of-\d{5}-[0-9a-f]{8}" + re.escape(SUFFIX))
    for old in path.parent.iterdir():
        if old.name == path.name or (shard.fullmatch(old.name) and old.name not in names):
            old.unlink()
    return index, hashlib.sha256("".join(digests).encode()).hexdigest()


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
