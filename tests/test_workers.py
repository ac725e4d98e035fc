"""Jobs in processes of their own: results, errors, and that nothing goes on when the work has ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_train_teachers import options
from wfcli.engine.hooks import Silent
from wfcli.engine.teacher_jobs import make_teachers
from wfcli.engine.train_teachers import plan_zoo
from wfcli.engine.workers import InWorkerError, run_in_workers
from wfcli.errors import DataError, WfError

ROOT = Path(__file__).resolve().parents[1]


class Counted:
    """A job that tells when it is pickled."""

    pickled = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type[Counted], tuple[int]]:
        Counted.pickled += 1
        return Counted, (self.number,)


def double(job: Counted) -> int:
    return 2 * job.number


def live(job: tuple[str, Path]) -> None:
    """Fail, be killed, or leave a file at the start and one at the end."""
    what, place = job
    if what == "fail":
        raise DataError("it is bad", hint="do better")
    if what == "bug":
        raise ZeroDivisionError("by nothing")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    place.write_text(str(os.getpid()))
    try:
        time.sleep(float(what))
        place.with_suffix(".done").write_text("")
    finally:
        place.with_suffix(".tidy").write_text("")


def named(job: tuple[str, Path]) -> str:
    return job[1].name


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_every_job_is_done_and_none_is_pickled_early() -> None:
    Counted.pickled = 0
    jobs = [Counted(number) for number in range(6)]
    found = {}
    with closing(run_in_workers(double, jobs, 2, str)) as done:
        for number, result in done:
            found[number] = result
            assert Counted.pickled <= len(found) + 2
    assert found == {number: 2 * number for number in range(6)}
    assert Counted.pickled == 6


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [("fail", DataError, "it is bad\nhint: do better"), ("bug", ZeroDivisionError, "by nothing")],
)
def test_an_error_ends_the_others(what: str, kind: type[Exception], message: str, tmp_path: Path) -> None:
    jobs = [("60", tmp_path / "long"), (what, tmp_path / "bad"), ("0", tmp_path / "next")]
    began = time.monotonic()
    with pytest.raises(kind) as caught, closing(run_in_workers(live, jobs, 2, named)) as done:
        list(done)
    assert time.monotonic() - began < 40
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, InWorkerError)
    assert "in live" in str(caught.value.__cause__)
    assert not (tmp_path / "next").exists()
    assert not (tmp_path / "long.done").exists()
    if (tmp_path / "long").exists():
        assert gone(int((tmp_path / "long").read_text()))
        assert (tmp_path / "long.tidy").exists()  # what it had half written is removed


def test_a_killed_worker_is_an_error_with_a_hint(tmp_path: Path) -> None:
    jobs = [("killed", tmp_path / "bad"), ("60", tmp_path / "long")]
    with pytest.raises(WfError, match=r"bad: the process that made it was killed by SIGKILL") as caught:
        list(run_in_workers(live, jobs, 2, named))
    assert caught.value.hint == "out of memory? use fewer --jobs"


SCRIPT = """
from pathlib import Path
from tests.test_workers import live, named
from wfcli.engine.workers import run_in_workers
if __name__ == "__main__":
    list(run_in_workers(live, [("60", Path("a")), ("60", Path("b")), ("0", Path("c"))], 2, named))
"""


def test_an_interrupt_ends_the_workers_without_a_word_of_theirs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    patience = time.monotonic() + 60
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"):
        assert time.monotonic() < patience
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: all of them
    _, told = run.communicate(timeout=30)
    assert run.returncode != 0
    assert told.count("KeyboardInterrupt") == told.count("Traceback") == 1
    assert all(gone(int((tmp_path / name).read_text())) for name in "ab")
    assert not (tmp_path / "c").exists()


SLOW_TO_END = """
import threading, time
from wfcli.engine.workers import run_in_workers
def task(job):
    if job == "slow to end":
        threading.Thread(target=time.sleep, args=(30,)).start()  # Python waits for it at the end
    else:
        time.sleep(3)  # meanwhile the other one is told that there is no more to do
    return job
if __name__ == "__main__":
    print(sorted(job for _, job in run_in_workers(task, ["slow to end", "other"], 2, str)))
"""


def test_a_worker_that_takes_its_time_to_end_is_ended_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SLOW_TO_END)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "['other', 'slow to end']\n", "")


def test_a_failing_teacher_stops_those_that_wait(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    jobs = plan_zoo(options(tmp_path / "zoo", count=8, epochs=100), Silent()).jobs
    bad = replace(jobs[0], recipe=replace(jobs[0].recipe, lr=float("inf"), epochs=200.0))  # the longest: made first
    with pytest.raises(WfError, match=r"teacher-00 of 8: the loss is nan"):
        make_teachers([bad, *jobs[1:]], 2, "cpu", Silent())
    assert not multiprocessing.active_children()  # none goes on in the background
    assert len(list((tmp_path / "zoo").iterdir())) <= 1  # that of the other process
