"""Write the student of a fuse, with the digests of all that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfcli.core.checkpoint import write_checkpoint, write_shards
from wfcli.core.digests import digests_beside
from wfcli.core.safetensors_writer import Late
from wfcli.core.shards import remove_shards
from wfcli.engine.teachers import check_bytes

if TYPE_CHECKING:
    from wfcli.engine.fuse import FuseConfig
    from wfcli.engine.made import Made

AHEAD = 1 << 31  # bytes of teachers whose digests are taken while torch is loaded; of more: while they are merged


def write_student(config: FuseConfig, made: Made) -> tuple[Path, str]:
    """Write the student; return its file, or the index of its shards, and the sha256.

    Large teachers whose digests nobody has taken are read for them now, beside the merge.

    Raises:
        CheckpointError: weights that are not finite; the same teacher under two names.
        OutputError: the place cannot be written.
    """
    base, teachers = made.work.settings.base, made.work.teachers.checkpoints
    own = base.file.checkpoint if base else None
    files = [*teachers, *([own] if own else [])]
    unread = [checkpoint for checkpoint in files if checkpoint.known_digest is None]
    if sum(checkpoint.size for checkpoint in unread) <= AHEAD:
        return _write(config, made, made.provenance())
    with digests_beside(unread) as wait:

        def complete() -> Mapping[str, Any]:
            wait()
            check_bytes(teachers, own)
            return made.provenance()

        return _write(config, made, made.record, complete)


def _write(config: FuseConfig, made: Made, provenance: Mapping[str, Any], late: Late | None = None) -> tuple[Path, str]:
    specs, most = made.work.specs, config.max_shard_size
    if most is not None and sum(spec.size for spec in specs.values()) > most:
        return write_shards(config.output, specs, made.tensors, provenance, most, late)
    digest = write_checkpoint(config.output, specs, made.tensors, provenance, late)
    remove_shards(config.output)
    return config.output, digest
