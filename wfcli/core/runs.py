"""What a training run leaves on disk while it goes on: a state to resume from, and a log of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import torch

from wfcli.core.checkpoint import atomic_path
from wfcli.errors import CheckpointError, OutputError, WfError, unreadable

FORMAT = 1
FIRST = '{"step": '  # of every line of a log


def save_run(path: Path, fingerprint: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Write the state of a run, atomically. `parts` are state dicts, tensors and plain values.

    `fingerprint` is all that decides about the run's result, as JSON values: `load_run` asks for the same one.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    saved = {"format": FORMAT, "fingerprint": _plain(fingerprint), "parts": dict(parts)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        target = _Target(file)
        try:
            torch.save(saved, cast("IO[bytes]", target))
        except RuntimeError:  # of torch's writer, which says nothing of a full disk
            raise target.error or OSError(0, "torch.save has failed") from None


class _Target:
    """A file to write to that remembers what went wrong."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load_run(path: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the parts that `save_run` wrote, on the CPU, or None where there is no such file.

    Raises:
        CheckpointError: the file is damaged, or cannot be read.
        WfError: it belongs to a run with another fingerprint; says in what.
    """
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']}, expected {FORMAT}")
        found, parts = dict(saved["fingerprint"]), dict(saved["parts"])
    except MemoryError:
        raise
    except OSError as error:  # it may be sound
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged file makes torch.load raise many things
        raise CheckpointError(
            f"{path}: damaged, cannot be resumed from ({type(error).__name__})",
            hint="run without --resume: it starts from the beginning",
        ) from error
    wanted = _plain(fingerprint)
    other = [
        f"{path}: {key}: the interrupted run had {found.get(key, 'none')}, this one has {wanted.get(key, 'none')}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if other:
        raise WfError(*other, hint="resume with the options of the interrupted run, or run without --resume")
    return parts


def refuse_forgotten(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Refuse to begin a run that was interrupted and could go on: its state and its log would be lost.

    A state of another run, or a damaged one, is no reason: the new run replaces it.

    Raises:
        WfError: there is a state with this very fingerprint.
        CheckpointError: there is a state that cannot be read at the moment.
    """
    try:
        found = load_run(path, fingerprint)
    except WfError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return
    if found is not None:
        raise WfError(
            f"{path}: this very run was interrupted and can go on from there",
            hint="add --resume to go on, or remove that file to start from the beginning",
        )


def is_run(path: Path) -> bool:
    """Tell whether `save_run` wrote this file. A damaged one of ours is not known any more."""
    try:
        return {"format", "fingerprint", "parts"} <= set(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # not there, or no file of torch.save: it raises many things
        return False


def is_log(path: Path, figure: str) -> bool:
    """Tell whether a run's log begins here: JSON lines with a step and this figure, or the beginning of one."""
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline()
        if not line.endswith("\n"):  # nothing yet, or the disk was full in the middle of it
            return line.startswith(FIRST) or FIRST.startswith(line)
        return {"step", figure} <= set(json.loads(line))
    except (OSError, ValueError, TypeError):
        return False


def _plain(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value, sort_keys=True) for key, value in fingerprint.items()}


class RunLog:
    """A file of JSON lines, each with the step it is about; every line is on disk when `write` returns."""

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        """Start the log anew, or keep the lines up to step `keep_until`: a resumed run writes the later ones again.

        Raises:
            OutputError: the place cannot be written.
        """
        kept = [] if keep_until is None else _lines_until(path, keep_until)
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._path = path
        with self._told():
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **figures: float) -> None:
        """Add one line.

        Raises:
            OutputError: the disk is full, say.
        """
        with self._told():
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what could not be written was told by then
            self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "choose a place with write permission and space"
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})", hint=hint) from error


def _lines_until(path: Path, step: int) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if (found := _step_of(line)) is not None and found <= step]


def _step_of(line: str) -> int | None:
    """Return the step a line is about; None where the machine stopped in the middle of writing it."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
