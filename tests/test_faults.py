"""What wfcli survives: killed processes, full disks, inputs that change, two writers, signals; see examples/faults/."""

from __future__ import annotations

import importlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import Ran, TinyTeachers
from wfcli import terminal
from wfcli.core import leftovers, shards
from wfcli.core.checkpoint import open_checkpoint, save_state, state_specs, write_checkpoint, write_shards
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.generator_files import CONFIG, RESUME, WEIGHTS, load_generator, save_generator
from wfcli.core.leftovers import ENDING, new_file, new_folder, remove_leftovers
from wfcli.core.outputs import atomic_folder, atomic_path, check_folder, check_writable, scratch_folder
from wfcli.core.runs import RunLog, is_log, load_run, save_run
from wfcli.errors import CheckpointError, GeneratorError, OutputError

Cli = Callable[..., Ran]
ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "examples" / "faults"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
linux = pytest.mark.skipif(sys.platform != "linux", reason="locks, /proc and limits of Linux")


def state(fill: float, numbers: int = 1000) -> dict[str, Tensor]:
    return {"a": torch.full((numbers,), float(fill)), "b": torch.full((numbers, 2), fill + 1.0)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *args: str | Path) -> subprocess.Popen[str]:
    """Start a Python of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Killed while it writes

WRITE = """
import sys
from pathlib import Path
from wfcli.core.outputs import {what}
with {what}(Path(sys.argv[1])) as temporary:
    (temporary / "a" if temporary.is_dir() else temporary).write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@linux
@pytest.mark.parametrize("what", ["atomic_path", "atomic_folder"])
def test_what_a_killed_process_leaves_goes_and_what_a_living_one_writes_stays(tmp_path: Path, what: str) -> None:
    output = tmp_path / "x.safetensors"
    process = python(WRITE.format(what=what), output)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    check_writable(output)
    check_folder(tmp_path)
    [half] = names(tmp_path)
    assert half.endswith(ENDING)
    process.kill()
    process.communicate()
    check_writable(tmp_path / "y.safetensors")
    assert names(tmp_path) == [half]  # of another output
    check_writable(output)
    assert names(tmp_path) == []


@linux
def test_leftovers_are_told_from_files_of_others(tmp_path: Path) -> None:
    ours = [f".x.safetensors.0123abcd{ENDING}", f".x.safetensors.resume.0123abcd{ENDING}", f".x.0123abcd{ENDING}"]
    others = [
        ".x.safetensors.0123abcd.tmp",
        f"x.safetensors.0123abcd{ENDING}",
        f".x.safetensors{ENDING}",
        "x.safetensors",
    ]
    for name in (*ours, *others):
        (tmp_path / name).write_text("")
    (tmp_path / f".x.safetensors.01234567{ENDING}").symlink_to(tmp_path / "x.safetensors")
    check_writable(tmp_path / "x.safetensors")
    assert set(ours) & set(names(tmp_path)) == {ours[2]}
    check_folder(tmp_path)
    assert set(names(tmp_path)) == {*others, f".x.safetensors.01234567{ENDING}"}


@linux
def test_a_file_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, made = leftovers._lock, []

    def late(temporary: Path) -> object:
        if not made:  # another run comes between
            made.append(temporary.name)
            remove_leftovers(tmp_path)
        return lock(temporary)

    def now(folder: Path, of: str | None = None) -> None:
        for path in folder.iterdir():
            path.unlink()

    monkeypatch.setattr(leftovers, "_lock", late)
    monkeypatch.setitem(globals(), "remove_leftovers", now)
    with atomic_path(tmp_path / "x") as temporary:
        assert [temporary.name] != made
        temporary.write_text("whole")
    assert (tmp_path / "x").read_text() == "whole"


def test_without_locks_nothing_is_removed_and_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(leftovers.fcntl, "flock", unsupported)
    (tmp_path / f".x.0123abcd{ENDING}").write_text("")
    with atomic_path(tmp_path / "x") as temporary:
        remove_leftovers(tmp_path)
        temporary.write_text("whole")
    write_shards(tmp_path / "s.safetensors", state_specs(state(0)), state(0).items(), {}, 5000)
    assert (tmp_path / "x").read_text() == "whole"
    assert (tmp_path / f".x.0123abcd{ENDING}").exists()


def test_folders_leave_nothing_behind(tmp_path: Path) -> None:
    with scratch_folder("work", tmp_path) as folder:
        (folder / "big").write_text("")
        assert folder.stat().st_mode & 0o077 == 0
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as folder:
        (folder / "half").write_text(str(1 / 0))
    with new_file(tmp_path / "f"), new_folder(tmp_path / "g") as folder:
        (folder / "a").write_text("")
        leftovers.remove_own()
        assert names(tmp_path) == []
    assert names(tmp_path) == []


REPLACE = """
import os, signal, sys
from pathlib import Path
from wfcli.core import generator_files
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
generator_files.save_state = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
generator_files.save_generator(Path(sys.argv[1]), WeightFormer(WeightFormerConfig(flow=False)), "new")
"""


@linux
def test_a_generator_that_is_replaced_by_a_killed_training_is_still_the_old_one(tmp_path: Path) -> None:
    old = WeightFormer(WeightFormerConfig())
    save_generator(tmp_path, old, "old")
    save_run(tmp_path / RESUME, {}, {})  # as every training has it, until it is done
    process = python(REPLACE, tmp_path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert '"flow": false' in (tmp_path / CONFIG).read_text()
    assert load_generator(tmp_path, "g")[0].config == old.config
    (tmp_path / RESUME).unlink()  # somebody has put two generators together
    with pytest.raises(GeneratorError, match=r"config\.json: another flow than model\.safetensors was written with"):
        load_generator(tmp_path, "g")


def test_no_half_replaced_generator_is_pushed(wfcli: Cli, tmp_path: Path) -> None:
    save_generator(tmp_path, WeightFormer(WeightFormerConfig()), "---\ntags: []\n---\n# old\n")
    save_run(tmp_path / RESUME, {}, {})
    (tmp_path / CONFIG).write_text((tmp_path / CONFIG).read_text().replace('"flow": true', '"flow": false'))
    ran = wfcli("push", tmp_path, "hf:me/gen", "--dry-run")
    assert ran.code == 1
    assert f"not that of {WEIGHTS}: a training that was to replace them was killed" in ran.stderr
    assert "with --resume completes it" in ran.stderr


@linux
def test_workers_end_with_a_main_process_that_is_killed(tmp_path: Path) -> None:
    code = r"""
import sys
from wfcli.engine.workers import run_in_workers
job = "import time\nopen({0!r}, 'w')\ntry: time.sleep(60)\nfinally: open({0!r} + '.tidy', 'w')"
list(run_in_workers(exec, [job.format(f"{sys.argv[1]}/{name}") for name in "ab"], 2, str))
"""
    process = python(code, tmp_path)
    give_up = time.monotonic() + 50
    while len(names(tmp_path)) < 2 and time.monotonic() < give_up:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    while len(names(tmp_path)) < 4 and time.monotonic() < give_up:
        time.sleep(0.02)
    assert names(tmp_path) == ["a", "a.tidy", "b", "b.tidy"]


# Full disks


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Let no file get larger than so many bytes: what writes more finds the disk full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def log(path: Path) -> None:
    with RunLog(path) as lines:
        for step in range(1000):
            lines.write(step, loss=0.5)


@linux
@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_state(path, state(0), {}),
        lambda path: write_shards(path, state_specs(state(0)), state(0).items(), {}, 1000),
        lambda path: save_run(path, {}, state(0)),
        log,
    ],
    ids=["checkpoint", "shards", "state of a run", "log"],
)
def test_a_disk_that_is_full_is_one_error_and_the_old_file_stays(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    with pytest.raises(OutputError) as caught, small_files(2048):
        write(path)
    assert caught.value.problems == (f"{path}: cannot be written (File too large)",)
    assert names(tmp_path) == ["x.safetensors"]
    assert path.read_text() == "old" or write is log


@linux
@pytest.mark.parametrize("args", [["list"], ["list", "--json"], ["--version"], ["--help"]], ids=" ".join)
def test_standard_output_that_is_full(args: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "wfcli", *args]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "No space left on device)\nhint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_state_of_a_run_is_read_back_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.resume"
    save_run(path, {"a": 1}, {"step": 3})

    def full(*args: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"x\.resume: cannot be written \(torch\.save has failed\)"):
        save_run(path, {"a": 1}, {"step": 4})
    assert load_run(path, {"a": 1}) == {"step": 3}


def test_a_log_that_was_cut_off_in_its_first_line_is_still_one(tmp_path: Path) -> None:
    path = tmp_path / "training.jsonl"
    for text, ours in (('{"ste', True), ('{"step": 0, "ga', True), ('{"step": 0}\n', False), ("other", False)):
        path.write_text(text)
        assert is_log(path, "gain") == ours, text


def test_a_write_protected_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_state(path, state(0), {})
    path.chmod(0o444)
    for write in (lambda: check_writable(path), lambda: save_state(path, state(1), {})):
        with pytest.raises(OutputError, match="is write-protected\nhint: choose another place, or chmod u\\+w"):
            write()
    assert open_checkpoint(path)["a"][0] == 0


# Inputs and outputs that are the same


def test_shards_are_not_made_over_the_shards_of_a_teacher(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    common = (*tiny_teachers.arch, "--method", "soup", "--max-shard-size", "200KB", "-o", tmp_path / "x.safetensors")
    assert wfcli("fuse", *tiny_teachers.paths, *common).code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    index = tmp_path / "x.safetensors.index.json"
    ran = wfcli("fuse", index, tiny_teachers.paths[0], *common)
    assert ran.code == 1
    assert "x.safetensors: is the checkpoint x.safetensors.index.json itself, which would be overwritten" in ran.stderr
    index.rename(tmp_path / "teacher.safetensors.index.json")
    ran = wfcli("fuse", tmp_path / "teacher.safetensors.index.json", tiny_teachers.paths[0], *common)
    assert ran.code == 1
    assert "x.safetensors: its shards would take the place of x-00001-of-" in ran.stderr
    assert {path.read_bytes() for path in tmp_path.iterdir()} == set(before.values())


def test_a_student_is_not_written_over_its_generator(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    save_generator(tmp_path / "g", WeightFormer(WeightFormerConfig()), "g")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "g" / WEIGHTS)
    for output in (tmp_path / "g" / WEIGHTS, tmp_path / "link.safetensors"):
        ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--generator", tmp_path / "g", "-o", output)
        assert ran.code == 1
        assert "is the weights of the generator g, which would be overwritten" in ran.stderr


# Two writers


def test_two_writers_of_one_place_leave_one_whole_output(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    meet = threading.Barrier(2, timeout=60)

    def tensors(fill: float) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in state(fill).items():
            meet.wait()  # both are in the middle of it
            yield name, tensor

    def write(fill: float) -> None:
        write_checkpoint(path, state_specs(state(0)), tensors(fill), {})

    writers = [threading.Thread(target=write, args=(fill,)) for fill in (1.0, 5.0)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = open_checkpoint(path)
    assert names(tmp_path) == [path.name]
    assert torch.equal(found["b"], found["a"][:, None].expand(1000, 2) + 1)


@linux
def test_shards_of_two_writers_are_put_in_place_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes when the first has renamed its shards, and not written its index yet."""
    path, write_json = tmp_path / "x.safetensors", shards.write_json
    started = threading.Event()

    def write(fill: float) -> None:
        write_shards(path, state_specs(state(fill)), state(fill).items(), {}, 5000)

    second = threading.Thread(target=write, args=(5.0,))

    def between(*args: object) -> None:
        if not started.is_set():
            started.set()
            second.start()
            second.join(0.5)  # as long as it is let
        write_json(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "write_json", between)
    write(1.0)
    second.join()
    assert open_checkpoint(tmp_path / "x.safetensors.index.json")["b"][0, 0] == 6
    assert len(names(tmp_path)) == 3


# Inputs that change


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("how", ["rewritten", "shorter", "gone"])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, suffix: str, how: str) -> None:
    path = tmp_path / f"x{suffix}"

    def write(fill: float) -> None:
        if suffix == ".safetensors":
            save_state(path, state(fill), {})
        else:  # .bin: not row after row, as a net in channels_last is saved
            torch.save({k: v.t() if v.ndim == 2 and suffix == ".bin" else v for k, v in state(fill).items()}, path)

    def change() -> None:
        if how == "rewritten":
            write(9.0)
            os.utime(path, ns=(1, 1))  # whatever the clock of the file system
        elif how == "shorter":
            os.truncate(path, path.stat().st_size // 4)
        else:
            path.unlink()

    write(1.0)
    checkpoint = open_checkpoint(path)
    assert checkpoint["b"].flatten()[0] == 2
    change()
    for read in (lambda: checkpoint["b"], lambda: list(checkpoint.pieces("b")), checkpoint.digest):
        with pytest.raises(CheckpointError, match="changed while it was in use|became shorter|cannot be read") as told:
            read()
        assert told.value.hint


def test_a_file_that_is_written_in_the_middle_of_a_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfcli.core import checkpoint as module

    path, read_tensor, read_header = tmp_path / "x.safetensors", module.read_tensor, module.read_header
    save_state(path, state(1.0), {})

    def change() -> None:
        save_state(path, state(9.0), {})
        os.utime(path, ns=(1, 1))

    def read_and_change(*args: object) -> Tensor:
        tensor = read_tensor(*args)  # type: ignore[arg-type]
        change()
        return tensor

    opened = open_checkpoint(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_tensor", read_and_change)
        with pytest.raises(CheckpointError, match="changed while it was in use"):
            _ = opened["a"]
    save_state(path, state(1.0), {})

    def header_and_change(file: Path) -> object:
        header = read_header(file)
        change()
        return header

    monkeypatch.setattr(module, "read_header", header_and_change)
    opened = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        opened.digest()


@linux
def test_strided_tensors_of_a_pickle_are_read_and_not_mapped(tmp_path: Path) -> None:
    draw = torch.randn(4, 3, 5, 2)
    kept = {
        "last": draw.to(memory_format=torch.channels_last),
        "turned": draw.transpose(0, 3),
        "part": draw[1:3, :, 2],
        "spread": torch.randn(3, 1).expand(3, 4),
        "none": torch.zeros(0, 4).t(),
        "one": torch.tensor(7),
    }
    torch.save(kept, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    for name, tensor in kept.items():
        assert torch.equal(opened[name], tensor), name
        assert opened[name].is_contiguous()
    assert set(opened._loaded) <= {"none"}


# Signals


def interrupted(body: str, path: Path, *numbers: signal.Signals) -> Ran:
    code = f"""
import sys, time
from pathlib import Path
from wfcli import cli
from wfcli.core.outputs import atomic_path
path = Path(sys.argv.pop())
def work():
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        {body}
cli.app.registered_commands[-1].callback = work
sys.argv[1:] = ["list"]
cli.main()
"""
    process = python(code, path)
    assert process.stdout is not None
    for number in numbers:
        process.stdout.readline()
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    return Ran(process.returncode, stdout, stderr)


SLEEP = "print('now', flush=True); time.sleep(60)"
STUBBORN = """
        try:
            print('now', flush=True); time.sleep(60)
        finally:
            print('now', flush=True); time.sleep(60)"""


@linux
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated (SIGTERM)"), (signal.SIGHUP, 129, "")],
)
def test_signals_end_a_command_with_a_word(tmp_path: Path, number: signal.Signals, code: int, said: str) -> None:
    ran = interrupted(SLEEP, tmp_path / "x", number)
    assert (ran.code, ran.stderr) == (code, f"{said or 'terminated (SIGHUP)'}\n")
    assert names(tmp_path) == []


@linux
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    ran = interrupted(STUBBORN, tmp_path / "x", signal.SIGINT, signal.SIGINT)
    assert (ran.code, ran.stderr) == (130, "interrupted\n")
    assert names(tmp_path) == []


@linux
def test_ctrl_c_in_the_middle_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ntry:\n    print('now', flush=True); time.sleep(60)\nexcept BaseException: print('caught')\n"
    )
    (tmp_path / "out").mkdir()
    body = f"sys.path.insert(0, {str(tmp_path)!r}); import slow"
    ran = interrupted(body, tmp_path / "out" / "x", signal.SIGINT)
    assert (ran.code, ran.stdout, ran.stderr) == (130, "", "interrupted\n")
    assert names(tmp_path / "out") == []


@linux
def test_signals_that_are_ignored_stay_so() -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "from wfcli.core import interrupts; interrupts.heed();"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, signal.getsignal(signal.SIGTERM) is interrupts._stop)"
    )
    assert python(code).communicate() == ("True True\n", "")


@linux
@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(tmp_path: Path, redirection: str) -> None:
    code = """
from wfcli.core import interrupts
interrupts.open_streams()
with open("a", "w") as a, open("number", "w") as file:
    file.write(str(a.fileno()))
"""
    for args in (("-c", code), ("-m", "wfcli", "list")):
        line = ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, *args]
        assert subprocess.run(line, check=False, env=ENVIRONMENT, cwd=tmp_path).returncode == 0
    assert int((tmp_path / "number").read_text()) > 2


class Slow(io.RawIOBase):
    """Takes three bytes at a time, as a pipe or a disk may that has room for no more."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.taken += bytes(data[:3])
        return min(3, len(data))


def test_what_is_taken_in_parts_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(Slow(), encoding="utf-8", write_through=True)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdout", stdout)
    terminal.write("a long line")
    terminal.write_whole(stdout.buffer, b"0123456789")
    assert stdout.buffer.taken == b"a long line\n0123456789"  # type: ignore[attr-defined]


# At random: the whole table is made by examples/faults/faults.py


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(FAULTS)
    return FAULTS


@pytest.mark.parametrize("script", sorted(path.stem for path in FAULTS.glob("*.py")))
def test_the_scripts_import_what_there_is(faults: Path, script: str) -> None:
    assert importlib.import_module(script).__doc__


def test_the_table_counts_what_was_lost(faults: Path) -> None:
    from faults import page
    from rig import Ended, Row

    row = Row("kill -9", "fuse", "as it was")
    row.judge([], "one")
    row.judge(Ended(1, "", "Traceback\nZeroDivisionError: a | b").clean(0, "hint"), "two")
    made = {"date": "d", "machine": "m", "versions": {}, "trials": 2, "seed": 0, "minutes": 0.1}
    shown = page({"kill-fuse": {**made, "rows": [{**vars(row), "survived": 1}]}})
    assert "| kill -9 | fuse | 2 | 1 | two: exit code 1, expected 0; a traceback: ZeroDivisionError: a / b; " in shown
    assert "| **all** | | 2 | 1 | 1 |" in shown


def test_what_grows_is_not_flat(faults: Path) -> None:
    from long_run import Gauge, told

    gauge = Gauge([(n, 100 + n / 10, 5, 1) for n in range(100)])
    assert gauge.growth() == {"resident_mb": 8.0, "files": 0.0, "threads": 0.0}
    assert not told(gauge, "", 0.0)["flat"]
    assert told(Gauge([(n, 100 + 50 * (n < 10), 5, 1) for n in range(100)]), "", 0.0)["flat"]
    assert not told(Gauge([(n, 100, 5 + (n > 95), 1) for n in range(100)]), "", 0.0)["flat"]


@linux
def test_a_signal_within_a_callback_of_the_garbage_collector_is_heeded(tmp_path: Path) -> None:
    body = """
        class Held:
            def __del__(self): print('now', flush=True); time.sleep(60)
        Held()
        print('not stopped')"""
    ran = interrupted(body, tmp_path / "x", signal.SIGINT)
    assert (ran.code, ran.stdout, ran.stderr) == (130, "", "interrupted\n")
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_few_faults_at_random(faults: Path, tmp_path: Path) -> None:
    from faults import PARTS
    from kills import kills, stopped, verbs
    from rig import Rig

    rig = Rig(tmp_path / "rig", trials=2, seed=random.randrange(10**6))
    rows = [*kills(rig, "fuse --max-shard-size", "train-teachers"), *PARTS["changed"](rig), *PARTS["two"](rig)]
    rows.append(stopped(rig, verbs(rig)["train-teachers --jobs 2"], signal.SIGINT))
    rows.append(stopped(rig, verbs(rig)["finetune"], signal.SIGTERM))
    assert [lost for row in rows for lost in row.lost] == []
