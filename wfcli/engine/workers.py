"""Jobs done in processes of their own, several at a time. Whatever ends the work early ends those processes too."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from typing import Any, TypeVar

from wfcli.core import interrupts
from wfcli.errors import WfError

Job = TypeVar("Job")
Result = TypeVar("Result")
SECONDS_TO_END = 10.0  # for a worker to remove what it has half written


class InWorkerError(Exception):
    """Where in a worker an error came from: the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"in a worker:\n{self.args[0]}"


@dataclass(frozen=True, eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection  # the main process's end


def run_in_workers(
    task: Callable[[Job], Result], jobs: Sequence[Job], processes: int, name: Callable[[Job], str]
) -> Generator[tuple[int, Result], None, None]:
    """Yield the number and the result of each job when it is done; `task` can be pickled, `name` is for messages.

    A job is pickled only when a worker is free for it. An error in a job, Ctrl-C, or closing this iterator
    (`contextlib.closing`) ends the workers at once, with what they are doing.

    Raises:
        WfError: a worker was killed.
    """
    left = deque(enumerate(jobs))
    workers: list[_Worker] = []
    busy: dict[_Worker, int] = {}

    def give_next(worker: _Worker) -> None:
        if not left:
            worker.connection.close()  # it ends, and what it held is free again
            return
        number, job = left.popleft()
        busy[worker] = number
        try:
            # Through a pipe: multiprocessing would send tensors through /dev/shm, which is small in a container.
            worker.connection.send_bytes(pickle.dumps(job))
        except ConnectionError:
            raise _lost(worker, name(job)) from None

    try:
        for _ in range(min(processes, len(jobs))):
            workers.append(_start(task))  # noqa: PERF401 - if one does not start, those before it are ended
        for worker in workers:
            give_next(worker)
        while busy:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                number = busy.pop(worker)
                result = _receive(worker, name(jobs[number]))
                give_next(worker)
                yield number, result
    finally:
        _end(workers)


def _start(task: Callable[[Job], Result]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, task), daemon=True)
    with _without_interrupts():
        process.start()
    theirs.close()  # only the worker holds it now: when it is gone, our end says so
    return _Worker(process, ours)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C, which reaches all processes of a terminal, from those that are started here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start, else a part of the first worker's, would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, task: Callable[[Any], Any]) -> None:
    """Do one job after the other until the main process closes its end, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when to stop
    try:
        interrupts.heed(silent=True, names=("SIGTERM", "SIGHUP"))  # so that `finally` is heeded
        Thread(target=_end_with_parent, daemon=True).start()
        _work_on(connection, task)
        interrupts.ignore()  # this process ends by itself; the main one may well tell it to
    except interrupts.Stopped as stopped:
        sys.exit(128 + stopped.number)


def _end_with_parent() -> None:
    """End this process when the main one is gone, however that went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _work_on(connection: Connection, task: Callable[[Any], Any]) -> None:
    while True:
        try:
            job = connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        answer: tuple[Any, Exception | None, str]
        try:
            answer = task(pickle.loads(job)), None, ""  # noqa: S301 - from `run_in_workers`
        except Exception as error:  # raised in the main process
            answer = None, _portable(error), traceback.format_exc()
        try:
            connection.send_bytes(pickle.dumps(answer))
        except ConnectionError:
            return


def _portable(error: Exception) -> Exception:
    """Return the error, or one of its words where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _receive(worker: _Worker, name: str) -> Any:
    try:
        answer = worker.connection.recv_bytes()
    except (EOFError, ConnectionError):
        raise _lost(worker, name) from None
    result, error, trace = pickle.loads(answer)  # noqa: S301 - from our own process
    if error is not None:
        raise error from InWorkerError(trace)
    return result


def _lost(worker: _Worker, name: str) -> WfError:
    worker.process.join(SECONDS_TO_END)
    code = worker.process.exitcode
    if code is not None and code < 0:
        how, hint = f"was killed by {signal.Signals(-code).name}", "out of memory? use fewer --jobs"
    else:
        how, hint = f"ended with exit code {code}", "see what it wrote above; --jobs 1 does without other processes"
    return WfError(f"{name}: the process that made it {how}", hint=hint)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(SECONDS_TO_END)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
