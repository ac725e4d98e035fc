"""The sha256 of files, of several at a time, beside other work. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from wfcli.errors import unreadable

if TYPE_CHECKING:
    from hashlib import _Hash

    from wfcli.core.checkpoint import Checkpoint

AT_ONCE = 1 << 20  # bytes
STRETCH = 1 << 24  # bytes of a file before it is the next one's turn


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    for _ in hashing(path, digest):
        pass
    return digest.hexdigest()


def hashing(path: Path, digest: _Hash) -> Iterator[None]:
    """Take a file's bytes into a digest, a stretch at a time.

    Raises:
        CheckpointError: the file cannot be read.
    """
    buffer = bytearray(AT_ONCE)
    view, done = memoryview(buffer), 0
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
                done += count
                if done >= STRETCH:
                    done = 0
                    yield
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def digests_beside(checkpoints: Sequence[Checkpoint]) -> Iterator[Callable[[], None]]:
    """Take the digests of checkpoints in threads, while others work: what is yielded waits until all are taken.

    All files go ahead at one pace, a stretch of each in turn, as a merge does that reads the same tensor of all of
    them: whoever of the two comes second finds the bytes in memory, and the disk is read once. It stops when the
    context is left.

    Raises:
        CheckpointError: a file has changed; when the digests are waited for.
    """
    stop = Event()
    workers = max(1, min(os.cpu_count() or 1, len(checkpoints)))
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_in_turn, checkpoints[first::workers], stop) for first in range(workers)]

        def wait() -> None:
            for each in running:
                each.result()

        try:
            yield wait
        finally:
            stop.set()


def _in_turn(checkpoints: Sequence[Checkpoint], stop: Event) -> None:
    turns = [checkpoint.digesting() for checkpoint in checkpoints]
    while turns and not stop.is_set():
        turns = [turn for turn in turns if next(turn, turn) is None]  # None: more of it is left
