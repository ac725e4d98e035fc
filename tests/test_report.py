"""What a reader sees: units, tables that fit their width, JSON that any program reads, streams that do not mix."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.style import Style

from wfcli import report, terminal, units
from wfcli.engine.align import Alignment
from wfcli.engine.evaluate import Comparison, Row
from wfcli.engine.finetune import FinetuneResult
from wfcli.engine.fuse import FuseResult
from wfcli.engine.inspect import Entry, InspectResult, NonFinite, WeightsReport
from wfcli.engine.train_generator import TrainGeneratorResult
from wfcli.engine.train_teachers import TrainTeachersResult


def _row(name: str, kind: Any, top1: float, delta: float | None, nll: float, ece: float, **more: Any) -> Row:
    rest = {"parameters": 9_231_114, "size": 36_942_080, "images_per_second": 1234.5, **more}
    return Row(name, kind, top1, (top1 - 0.011, top1 + 0.009), delta, nll, ece, **rest)


COMPARISON = Comparison(
    rows=(
        _row("teacher-00.safetensors", "teacher", 0.61, -0.06, 1.2, 0.05),
        _row("teacher-01.safetensors", "teacher", 0.67, 0.0, 0.9, 0.04),
        _row("mean of the teachers", "mean", 0.64, -0.03, 1.05, 0.045),
        _row("teacher-01.safetensors", "best", 0.67, 0.0, 0.9, 0.04),
        _row("ensemble", "ensemble", 0.7012, 0.0312, 0.6, 0.12, parameters=18_462_228),
        _row(
            "student-with-a-name-that-is-rather-long.safetensors",
            "checkpoint",
            0.6612,
            -0.0088,
            0.7,
            0.03,
            note="a note",
        ),
    ),
    architecture="vgg11_bn_cifar",
    data="digits",
    split="test",
    images=10_000,
    best="teacher-01.safetensors",
    best_chosen_on="validation",
)


def _drawn(what: Any, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _bold(what: Any) -> list[str]:
    console = Console(width=100, file=io.StringIO())
    return [
        s.text.strip()
        for line in console.render_lines(what)
        for s in line
        if (s.style or Style()).bold and s.text.strip()
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (12, "12"),
        (999, "999"),
        (1000, "1.0 k"),
        (9_231_114, "9.2 M"),
        (86_567_656, "87 M"),
        (999_600, "1.0 M"),
        (2.5e9, "2.5 G"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert units.count(number) == text


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 B"), (36_942_080, "37 MB"), (2_500_000, "2.5 MB"), (591_968, "592 kB")]
)
def test_sizes(size: int, text: str) -> None:
    assert units.megabytes(size) == text


@pytest.mark.parametrize(("share", "text"), [(0.0123, "+1.23"), (-0.3, "-30.00"), (0.0, "0.00"), (-0.00001, "0.00")])
def test_differences_have_a_sign(share: float, text: str) -> None:
    assert units.points(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_the_table_of_eval() -> None:
    lines = [line.rstrip() for line in _drawn(report.compared(COMPARISON), width=100).splitlines()]
    assert lines[0] == "vgg11_bn_cifar · digits, test split · 10,000 images"
    assert " ".join(lines[2].split()) == "top-1 % 95 % vs best NLL ECE % params size images/s"
    assert " ".join(lines[4].split()) == "teacher-00 61.00 59.9–61.9 -6.00 1.200 5.0 9.2 M 37 MB 1,234"
    assert "" in lines[6:8]  # teachers and baselines stand apart
    assert next(line for line in lines if line.startswith("ensemble")).split()[1:4] == ["70.12", "69.0–71.0", "+3.12"]
    assert lines[-2:] == [
        "student-with-a-name-that-is-rather-long: a note",
        "best teacher: teacher-01, chosen on the validation split",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_no_figure(width: int) -> None:
    drawn = _drawn(report.compared(COMPARISON), width)
    assert max(map(len, drawn.splitlines())) <= width
    assert "…" not in drawn
    for row in COMPARISON.rows:
        assert f" {100 * row.top1:.2f} " in drawn
        assert f" {row.nll:.3f} " in drawn


def test_only_the_best_figures_are_bold() -> None:
    assert _bold(report.comparison_table(COMPARISON)) == ["70.12", "+3.12", "0.600", "3.0"]


def test_rows_of_one_name_are_told_apart() -> None:
    rows = (_row("soup", "soup", 0.5, None, 1.0, 0.1), _row("soup.safetensors", "checkpoint", 0.5, None, 1.0, 0.1))
    drawn = _drawn(report.comparison_table(Comparison(rows, "a", "d", "test", 1, None, None)), 120)
    assert re.search(r"^soup +50", drawn, re.MULTILINE)
    assert re.search(r"^soup.safetensors +50", drawn, re.MULTILINE)
    assert re.search(r"^best: teacher-01 +67", _drawn(report.comparison_table(COMPARISON)), re.MULTILINE)


def test_eval_without_teachers() -> None:
    alone = Comparison(
        (_row("a.pt", "checkpoint", 0.5, None, 1.0, 0.1),), "resnet18", "digits", "test", 360, None, None
    )
    assert "a.pt" in _drawn(report.compared(alone))


def test_brackets_in_names_are_no_markup() -> None:
    odd = Comparison(
        (_row("[red]x[/].pt", "checkpoint", 0.5, None, 1.0, 0.1, note="[b]n"),), "a[b]", "d[e]", "test", 1, None, None
    )
    drawn = _drawn(report.compared(odd), 120)
    assert all(text in drawn for text in ("[red]x[/].pt", "[b]n", "a[b]", "d[e]"))


def test_fuse_says_what_made_the_student() -> None:
    result = FuseResult(
        output=Path("out/s.safetensors"),
        digest="ab" * 32,
        method="weightformer",
        generator="universal",
        generator_digest="cd" * 32,
        teachers=("a", "b"),
        base=None,
        origin=None,
        weights=(0.81, 0.19),
        alignment=None,
        regime="the teachers share a base",
        calibrated=True,
        learned=0,
        probes=0,
        unlabelled=0,
        guard=None,
        seconds=2.34,
        comparison=COMPARISON,
    )
    drawn = _drawn(report.fused(result), 100)
    assert drawn.startswith(
        "out/s.safetensors · sha256 abababababab · 2.3 s\n"
        "weightformer of 2 teachers · generator universal (cdcdcdcdcdcd) · BatchNorm calibrated\n"
        "the teachers share a base\n"
        "weight of the teachers: a 81 %, b 19 %\n"
    )
    assert "teacher-01" in drawn
    alignment = Alignment("weights", ("b",), 8, 0.998, ("cumsum in norm",), 2e-15)
    other = replace(result, method="ties", generator=None, base="base.safetensors", alignment=alignment)
    drawn = _drawn(report.fused(other), 200)
    assert "ties of 2 teachers · base base.safetensors · BatchNorm calibrated\n" in drawn
    assert (
        "aligned by weights: b · 8 spaces, 100 % of the parameters · each answers as before (to 2e-15) · "
        "left as they are: cumsum in norm\n"
    ) in drawn


def test_finetune_shows_every_validation_and_the_best() -> None:
    result = FinetuneResult(Path("t.safetensors"), "cd" * 32, 20, 10, ((0, 0.9), (10, 0.9412), (20, 0.94)), 5120, 4.0)
    drawn = _drawn(report.finetuned(result))
    assert "20 steps · best step 10 · 5,120 images · 1,280 images/s" in drawn
    assert _bold(report.finetuned(result))[-2:] == ["10", "94.12"]


def test_a_zoo_shows_who_saw_what() -> None:
    recipe = {"lr": 0.0514, "epochs": 2.81}
    zoo = {
        "architecture": {"name": "vgg11_bn_cifar", "args": {"width": 0.25}},
        "data": {"source": "../data/cifar10"},
        "shares": {"kind": "dirichlet"},
        "base": {"name": "base.safetensors", "sha256": "ab"},
        "teachers": [
            {"file": "teacher-00.safetensors", "class_counts": [300, 0, 41], "recipe": recipe, "top1": 0.5722}
        ],
    }
    drawn = _drawn(report.teachers_trained(TrainTeachersResult(Path("zoo"), zoo, 9.4)))
    assert drawn.startswith(
        "zoo · 9.4 s\nvgg11_bn_cifar(width=0.25) · ../data/cifar10 · shares dirichlet · base base\n"
    )
    assert re.search(r"teacher-00 +341 +2 +0\.0514 +2\.81 +57\.22", drawn)


def test_a_generator_shows_what_it_gained() -> None:
    result = TrainGeneratorResult(
        folder=Path("g"),
        digest="ab" * 32,
        parameters=22_400,
        steps=700,
        best_step=600,
        gain=0.1412,
        history=(),
        seconds=181.0,
    )
    drawn = _drawn(report.generator_trained(result))
    assert "g · sha256 abababababab · 3 min 01 s" in drawn
    assert "22 k parameters · 700 steps, best 600 · +14.12 points over the soup, held out" in drawn


def test_inspect_with_weights() -> None:
    made = {
        "wfcli": "0.1.0",
        "verb": "fuse",
        "method": "soup",
        "seed": 3,
        "sources": [{"name": "a.safetensors"}],
        "generator": None,
    }
    entries = (
        Entry("a.safetensors", "a.safetensors", None, None, 2, 1000, {"F32": 2}, None, 4100, None),
        Entry(
            "s.safetensors",
            "s.safetensors",
            "resnet18",
            "timm",
            122,
            11_689_512,
            {"BF16": 102, "I64": 20},
            1000,
            46_800_000,
            made,
        ),
    )
    weights = WeightsReport(None, None, None, "not compared", (NonFinite("a.safetensors", "w", 2, 1000),))
    drawn = _drawn(report.inspected(InspectResult(entries, weights)), 100)
    assert "unknown" in drawn
    assert re.search(r"s +resnet18 +122 +12 M +BF16 +1,000 +47 MB", drawn)
    foreign = replace(entries[1], layout="torchvision")
    drawn_too = _drawn(report.inspected(InspectResult((*entries, foreign), None)), 100)
    assert re.search(r"s +resnet18 +timm +122 .*\n *s +resnet18 +torchvision +122 ", drawn_too)
    assert "s: made by wfcli 0.1.0 fuse · soup · from a.safetensors · seed 3" in drawn
    assert "a.safetensors: w: 2 NaN, 1,000 Inf" in drawn


def test_json_has_the_names_and_values_of_the_dataclasses() -> None:
    read = json.loads(report.as_json(COMPARISON))
    assert read["rows"][0]["top1"] == 0.61
    assert read["rows"][0]["top1_ci"] == [pytest.approx(0.599), pytest.approx(0.619)]
    assert [row["kind"] for row in read["rows"]] == ["teacher", "teacher", "mean", "best", "ensemble", "checkpoint"]
    assert set(read) == {"rows", "architecture", "data", "split", "images", "best", "best_chosen_on", "pictures"}


def test_json_is_json_even_for_what_is_not_finite() -> None:
    @dataclass(frozen=True)
    class Odd:
        path: Path
        values: tuple[float, ...]

    assert json.loads(report.as_json(Odd(Path("a") / "b", (float("nan"), float("inf"), 1.0)))) == {
        "path": "a/b",
        "values": [None, None, 1.0],
    }


def test_results_go_to_stdout_and_warnings_once_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.TerminalHooks() as hooks:
        hooks.progress("training", 1, 10, loss=0.5)
        hooks.warn("no generator fits [really]")
        hooks.warn("no generator fits [really]")
    terminal.write("a result")
    assert capsys.readouterr() == ("a result\n", "warning: no generator fits [really]\n")


def test_what_the_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    terminal.write("59.9–61.9")
    assert raw.getvalue() == b"59.9?61.9\n"


PROGRESS = """
import time
from wfcli.terminal import TerminalHooks
with TerminalHooks() as hooks:
    for step in range(1, 41):
        hooks.progress("training", step, 100, loss=0.25, top1=0.5, images_per_second=12345.6)
        time.sleep(0.02)
    hooks.warn("beside the bar")
    hooks.progress("validation", 1, 2)
    time.sleep(0.2)
"""


def test_a_terminal_shows_rate_time_left_and_figures() -> None:
    pytest.importorskip("termios")  # POSIX
    from tests.terminals import on_terminal, plain

    code, printed, drawn = on_terminal([sys.executable, "-c", PROGRESS], {})
    assert (code, printed) == (0, "")
    shown = plain(drawn)
    assert re.search(
        r"training [^\r]* [1-9]\d*/100 [^\r]*\d/s .*0:0\d .*loss 0\.25  top1 50\.0 %  images per second 12,346", shown
    )
    assert "warning: beside the bar" in shown
    assert re.search(r"validation .* 1/2 ", shown)


ANOTHER = """
import sys, time
from wfcli.terminal import TerminalHooks
with TerminalHooks() as hooks:
    before = sys.stderr
    hooks.progress("reading", 1, 2)
    time.sleep(0.2)
    for turn in range(3):
        sys.stderr.write(f"\\rtheirs {turn}\\n\\x1b[A")
        time.sleep(0.2)
    assert sys.stderr is before
    sys.stderr.write("\\nours again\\n")
    hooks.progress("reading", 2, 2)
    time.sleep(0.2)
assert sys.stderr is before
"""


def test_the_bar_goes_before_others_write_and_comes_back() -> None:
    pytest.importorskip("termios")  # POSIX
    from tests.terminals import on_terminal

    code, _, drawn = on_terminal([sys.executable, "-c", ANOTHER], {})
    assert code == 0, drawn
    first, theirs = drawn.split("\rtheirs 0")
    assert "1/2" in first
    assert theirs.startswith("\r\n\x1b[A\rtheirs 1\r\n\x1b[A\rtheirs 2\r\n\x1b[A\r\nours again")  # and nothing between
    assert "2/2" in theirs
    assert "\u241b" not in drawn  # which would be the picture of an escape code
