from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from wfcli.core.runs import RunLog, load_run, save_run
from wfcli.errors import CheckpointError, WfError

FINGERPRINT = {"lr": 0.1, "sources": [{"name": "a", "sha256": "00"}], "classes": ("x", "y")}


def test_parts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "out.resume"
    assert load_run(path, FINGERPRINT) is None
    save_run(path, FINGERPRINT, {"step": 3, "weights": {"a": torch.arange(4.0)}, "validation": [(0, 0.5)]})
    parts = load_run(path, dict(reversed(FINGERPRINT.items())))
    assert parts is not None
    assert parts["step"] == 3
    assert parts["validation"] == [(0, 0.5)]
    assert torch.equal(parts["weights"]["a"], torch.arange(4.0))
    assert [p.name for p in tmp_path.iterdir()] == ["out.resume"]


def test_another_run_is_refused_with_all_differences(tmp_path: Path) -> None:
    path = tmp_path / "out.resume"
    save_run(path, FINGERPRINT, {})
    with pytest.raises(WfError, match=r"lr: the interrupted run had 0\.1, this one has 0\.2") as caught:
        load_run(path, {**FINGERPRINT, "lr": 0.2, "classes": ["x"]})
    assert len(caught.value.problems) == 2
    assert "without --resume" in str(caught.value)


def test_damaged_state_is_one_error_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "out.resume"
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged, cannot be resumed from") as caught:
        load_run(path, FINGERPRINT)
    assert caught.value.hint == "run without --resume: it starts from the beginning"


def test_log_keeps_the_past_and_drops_the_future_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.log.jsonl"
    with RunLog(path) as log:
        for step in range(4):
            log.write(step, loss=1.0 / (step + 1))
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    with RunLog(path, keep_until=2) as log:
        log.write(3, loss=0.1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["loss"] == 0.1
    with RunLog(path):
        pass
    assert path.read_text() == ""
