"""Is a file in the Hub's cache what the Hub has said it is? Its client does not compare. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wfcli.core.digests import file_digest
from wfcli.core.hub import blob_digest
from wfcli.errors import CheckpointError

if TYPE_CHECKING:
    from wfcli.core.checkpoint import Checkpoint


def damage(name: str, file: Path, digest_of: Callable[[Path], str] = file_digest) -> str | None:
    """Say how a file is not the one that the Hub has told of; None where it is, or where the Hub has told nothing.

    A file that is not from the Hub's cache is not read: it may be large.
    """
    wanted = blob_digest(file)
    if wanted is None or (got := digest_of(file)) == wanted:
        return None
    return f"{name}: got sha256 {got[:12]}, expected {wanted[:12]}, as the Hub says: {file.resolve()}"


def check_downloads(checkpoints: Iterable[Checkpoint]) -> None:
    """Compare the files of checkpoints, shards too, with what the Hub has told; digests that were taken are used.

    Raises:
        CheckpointError: downloads that are damaged, all of them.
    """
    problems = []
    for checkpoint in checkpoints:

        def digest_of(file: Path, checkpoint: Checkpoint = checkpoint) -> str:
            checkpoint.digest()  # of all its files at once, and kept: it stands in the provenance too
            return checkpoint.file_digests[file]

        problems += [said for file in checkpoint.files if (said := damage(checkpoint.name, file, digest_of))]
    if problems:
        raise CheckpointError(*problems, hint="delete these files, and run again: they are fetched again")
