"""`fuse --method auto` and `compare`: what is tried, how it is judged, what is written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.conftest import Ran, TinyTeachers
from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import DataSpec, same_dataset
from wfcli.engine.compare import CompareResult
from wfcli.engine.draws import Line, summarise
from wfcli.engine.fuse import FuseConfig, fuse
from wfcli.report import methods_compared

pytest.importorskip("sklearn")
Cli = Callable[..., Ran]
ARCH = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--data", "digits")
FEW = ("--methods", "soup,weightformer,greedy")


def test_auto_writes_the_best_by_validation_and_shows_all(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", digits_zoo, *ARCH, "--method", "auto", *FEW, "-o", out, "--json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    tried = {one["method"]: one for one in told["contest"]["candidates"]}
    assert list(tried) == ["best single", "soup", "weightformer", "greedy"]
    assert all(one["validation"] is not None and one["test"] is not None for one in tried.values())
    best = max(tried.values(), key=lambda one: (one["validation"], -one["nll"]))
    assert told["contest"]["chosen"] == told["method"] == best["method"]
    assert best["validation"] >= tried["best single"]["validation"]
    student = next(row for row in told["comparison"]["rows"] if row["kind"] == "checkpoint")
    assert student["top1"] == best["test"]  # the figure is that of the file
    record = open_checkpoint(out).provenance or {}
    assert record["method"] == best["method"]
    assert record["auto"] == {"tried": list(tried), "validation_images": told["contest"]["images"]}
    assert record["recipe"]["method"] == "auto"


def test_auto_halves_the_validation_images_only_for_methods_that_learn_from_them(
    wfcli: Cli, digits_zoo: Path, tmp_path: Path
) -> None:
    images = {}
    for methods in ("soup", "soup,greedy"):
        ran = wfcli(
            "fuse",
            digits_zoo,
            *ARCH,
            "--method",
            "auto",
            "--methods",
            methods,
            "-o",
            tmp_path / "s.safetensors",
            "--json",
        )
        images[methods] = json.loads(ran.stdout)["contest"]["images"]
    assert images["soup"] in (2 * images["soup,greedy"], 2 * images["soup,greedy"] - 1)


def test_auto_takes_a_copy_of_the_best_teacher_where_nothing_is_better(
    wfcli: Cli, digits_zoo: Path, tmp_path: Path
) -> None:
    """One of them has learned, the others are its base with noise: their mean knows less."""
    import torch

    from wfcli.core.checkpoint import save_state

    good = digits_zoo.parent / "base" / "teacher-00.safetensors"
    state = load_file(good)
    paths = [good]
    for number in range(2):
        torch.manual_seed(number)
        noisy = {k: v + 0.5 * v.std() * torch.randn_like(v) if v.dim() > 1 else v for k, v in state.items()}
        paths.append(tmp_path / f"noisy-{number}.safetensors")
        save_state(paths[-1], noisy, {})
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *paths, *ARCH, "--method", "auto", "--methods", "soup", "--align", "none", "-o", out)
    assert ran.code == 0, ran.stderr
    assert "best single" in ran.stdout
    written = load_file(out)
    assert all((written[name] == state[name]).all() for name in state)


def test_a_copy_of_the_best_of_independent_teachers_stands_as_it_was(
    wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frame is its own: nothing was aligned, and the line to the student goes from one net to the same net."""
    teachers = tmp_path / "zoo"
    assert wfcli("train-teachers", *ARCH, "--count", "3", "--epochs", "0.5", "-o", teachers).code == 0
    config = FuseConfig(
        (str(teachers),), find_architecture(ARCH[1], {"width": 0.125}), tmp_path / "s.safetensors", method="auto",
        methods=("soup",), data=DataSpec("digits"), pictures=True, align="weights",
    )  # fmt: skip
    monkeypatch.setattr("wfcli.engine.auto.rank", lambda one: (one.method == "best single", 0.0))
    result = fuse(config)
    assert result.method == "best single"
    assert result.alignment is None
    assert result.comparison is not None
    assert result.comparison.pictures is not None
    lines = result.comparison.pictures.lines
    assert lines is not None
    assert not lines.aligned
    starts = {line.start for line in lines.lines if line.end == "s.safetensors"}
    ends = {name: load_file(teachers / name) for name in starts}
    written = load_file(tmp_path / "s.safetensors")
    (same,) = [name for name, state in ends.items() if all((state[key] == written[key]).all() for key in state)]
    (flat,) = [line for line in lines.lines if (line.start, line.end) == (same, "s.safetensors")]
    assert max(flat.nll) - min(flat.nll) < 1e-4


def test_auto_begins_nothing_after_the_time_budget(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", digits_zoo, *ARCH, "--method", "auto", *FEW, "--time-budget", "0.001", "-o", out, "--json")
    assert ran.code == 0, ran.stderr
    contest = json.loads(ran.stdout)["contest"]
    assert contest["chosen"] == "best single"
    assert [one["note"] for one in contest["candidates"][1:]] == ["no time left"] * 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "--method auto: got no images to choose by"),
        (("--data", "digits", "--set", "*:method=soup"), "--set goes with one method"),
        (("--data", "digits", "--methods", "soup,stew"), "--methods: unknown: stew"),
        (("--data", "digits", "--time-budget", "0"), "--time-budget: got 0, expected more than 0 seconds"),
        (("--data", "digits", "--time-budget", "inf"), "--time-budget: got inf, expected more than 0 seconds"),
        (("--data", "digits", "--methods", "soup,weighted"), "weighted goes by --weights"),
    ],
)
def test_auto_refuses(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "auto", *options, "-o", out)
    assert ran.code == 1
    assert told in ran.stderr
    assert not out.exists()


def test_options_of_auto_go_with_auto(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", *FEW, "-o", out)
    assert ran.code == 1
    assert "--methods goes with --method auto, got --method soup" in ran.stderr


def test_a_method_that_fails_is_told_and_left_out(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", digits_zoo, *ARCH, "--method", "auto", "--methods", "soup,slerp", "-o", out, "--json")
    assert ran.code == 0, ran.stderr
    slerp = json.loads(ran.stdout)["contest"]["candidates"][-1]
    assert slerp["validation"] is None
    assert slerp["note"] == "--method slerp: got 5 teachers, expected 2"


def test_compare_writes_lines_and_what_they_say(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["compare", digits_zoo, *ARCH, "--counts", "2,5,2", "--seeds", "2", "--methods", "soup,greedy", "-o", out]
    ran = wfcli(*args)
    assert ran.code == 0, ran.stderr
    assert "--seeds 2: of 5 teachers there are 1 different sets of 5" in ran.stderr
    assert "K = 2: top-1 %" in ran.stdout
    found = json.loads((out / "compare.json").read_text())
    names = ["mean single", "best single", "soup", "greedy", "ensemble", "auto"]
    assert [line["method"] for line in found["lines"]] == names * 3
    assert [(line["count"], line["seed"]) for line in found["lines"][::6]] == [(2, 0), (2, 1), (5, 0)]
    assert found["lines"][0]["teachers"] != found["lines"][6]["teachers"]
    for first in range(0, 18, 6):
        lines = {line["method"]: line for line in found["lines"][first : first + 6]}
        tried = [lines[name]["validation"] for name in ("best single", "soup", "greedy")]
        assert lines["auto"]["validation"] == max(tried)
        assert lines["auto"]["test"] == lines[lines["auto"]["note"]]["test"]
    two = next(one for one in found["summary"] if one["count"] == 2 and one["method"] == "soup")
    tests = [line["test"] for line in found["lines"] if line["count"] == 2 and line["method"] == "soup"]
    assert two["test"] == pytest.approx(sum(tests) / 2)
    assert two["half"] == pytest.approx(12.706 * abs(tests[0] - tests[1]) / 2, rel=1e-3)
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == names * 3
    assert [float(row["test"]) for row in rows] == [line["test"] for line in found["lines"]]


def test_compare_goes_on_where_it_stopped(
    wfcli: Cli, digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    args = ["compare", digits_zoo, *ARCH, "--counts", "2", "--seeds", "2", "--methods", "soup", "-o", out]
    assert wfcli(*args).code == 0
    whole = json.loads((out / "compare.json").read_text())
    half = {**whole, "lines": whole["lines"][:5]}
    half["lines"][0]["note"] = "from before"
    (out / "compare.json").write_text(json.dumps(half))
    ran = wfcli(*args)
    assert ran.code == 1
    assert "there is a comparison already" in ran.stderr
    monkeypatch.setattr("wfcli.engine.pictures.SHARES", (0.0, 1.0))
    ran = wfcli(*args, "--resume", "--report", out / "report.html", "--json")
    assert ran.code == 0, ran.stderr
    teachers = json.loads(ran.stdout)["teachers"]  # all of them beside each other, for the page
    assert [row["kind"] for row in teachers["rows"]][:6] == ["teacher"] * 5 + ["mean"]
    assert "Every method, K = 2" in (out / "report.html").read_text(encoding="utf-8")
    again = json.loads((out / "compare.json").read_text())
    assert again["lines"][0]["note"] == "from before"
    assert [line["test"] for line in again["lines"]] == [line["test"] for line in whole["lines"]]
    ran = wfcli(*args, "--resume", "--seed", "1")
    assert ran.code == 1
    assert "another comparison: it has other seed" in ran.stderr


def test_compare_distils_from_several_starts(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = wfcli(
        "compare", digits_zoo, *ARCH, "--seeds", "1", "--methods", "soup", "--distill-steps", "2", "-o", out, "--json"
    )
    assert ran.code == 0, ran.stderr
    lines = {line["method"]: line for line in json.loads(ran.stdout)["lines"]}
    for name in ("best single + 2 steps", "soup + 2 steps", "auto + 2 steps"):
        assert lines[name]["test"] is not None
        assert lines[name]["validation"] is None  # its best step was chosen by those
    assert sorted(path.name for path in out.iterdir()) == ["compare.csv", "compare.json", "compare.svg"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--counts", "1,9"), "--counts: got 1, 9, expected 2 to 5"),
        (("--methods", "stew"), "--methods: unknown: stew"),
        (("--base", "nowhere.safetensors"), "nowhere.safetensors: no such base file"),
    ],
)
def test_compare_refuses(wfcli: Cli, digits_zoo: Path, tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    ran = wfcli("compare", digits_zoo, *ARCH, *options, "-o", tmp_path / "out")
    assert ran.code == 1
    assert told in ran.stderr
    assert not (tmp_path / "out").exists()


def test_the_best_teacher_is_judged_and_written_in_the_type_that_was_asked_for(
    wfcli: Cli, digits_zoo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    args = ("--method", "auto", "--methods", "soup", "--time-budget", "0.001", "--dtype", "bfloat16")
    ran = wfcli("fuse", digits_zoo, *ARCH, *args, "-o", out, "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["method"] == "best single"
    assert {spec.dtype for spec in open_checkpoint(out).specs.values()} == {"BF16", "I64"}


def test_teachers_of_one_base_are_not_aligned_for_a_method_of_independent_ones(
    wfcli: Cli, digits_zoo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", digits_zoo, *ARCH, "--method", "auto", "--methods", "soup,repair", "-o", out, "--json")
    assert ran.code == 0, ran.stderr
    repair = json.loads(ran.stdout)["contest"]["candidates"][-1]
    assert (repair["method"], repair["validation"]) == ("repair", None)
    assert repair["note"].startswith("the teachers share a base")


def test_teachers_of_all_images_count_alike(wfcli: Cli, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    train = ("train-teachers", *ARCH, "--count", "2", "--epochs", "1", "-o", zoo)
    base = tmp_path / "base"
    assert wfcli("train-teachers", *ARCH, "--count", "1", "--epochs", "1", "-o", base).code == 0
    assert wfcli(*train, "--init", base / "teacher-00.safetensors").code == 0
    students = {}
    for method in ("soup", "fedavg"):
        ran = wfcli("fuse", zoo, *ARCH[:4], "--method", method, "-o", tmp_path / f"{method}.safetensors")
        assert ran.code == 0, ran.stderr
        students[method] = load_file(tmp_path / f"{method}.safetensors")
    for name, tensor in students["soup"].items():
        torch.testing.assert_close(students["fedavg"][name], tensor)
    ran = wfcli("fuse", zoo, *ARCH, "--method", "auto", "--json", "-o", tmp_path / "auto.safetensors")
    assert ran.code == 0, ran.stderr
    assert "fedavg" in [one["method"] for one in json.loads(ran.stdout)["contest"]["candidates"]]


def test_one_candidate_without_memory_does_not_end_the_others(
    wfcli: Cli, digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("wfcli.engine.image_methods.greedy", greedy)
    args = (digits_zoo, *ARCH, "--method", "auto", "--methods", "soup,greedy", "--json")
    ran = wfcli("fuse", *args, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    tried = {one["method"]: one for one in json.loads(ran.stdout)["contest"]["candidates"]}
    assert tried["greedy"]["validation"] is None
    assert "memory" in tried["greedy"]["note"]


def test_nothing_is_chosen_on_the_images_that_are_reported(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    ran = wfcli(
        "fuse", digits_zoo, *ARCH, "--method", "auto", "--split", "validation", "-o", tmp_path / "s.safetensors"
    )
    assert ran.code == 1
    assert "--method auto: it chooses on the validation split" in ran.stderr
    ran = wfcli("compare", digits_zoo, *ARCH, "--split", "validation", "-o", tmp_path / "c")
    assert ran.code == 1
    assert "--split validation" in ran.stderr


def test_a_method_made_in_some_draws_has_no_mean_over_all() -> None:
    lines = [
        Line(3, seed, ("a",), "soup", level, level, 1.0, None, "" if level else "rejected")
        for seed, level in enumerate((0.8, 0.9, None))
    ]
    (summary,) = summarise(lines)
    assert (summary.draws, summary.made) == (3, 2)
    assert summary.test == pytest.approx(0.85)
    result = CompareResult(Path("c"), tuple(lines), (summary,), "net", "digits", "test", 1.0)
    console = Console(file=io.StringIO(), width=120)
    console.print(methods_compared(result))
    assert "(2 of 3)" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "draws: 3 of 3 teachers" in console.file.getvalue()  # type: ignore[attr-defined]
    other = replace(lines[0], method="repair")
    assert [(one.method, one.draws, one.made) for one in summarise([*lines, other])] == [
        ("soup", 3, 2),
        ("repair", 3, 1),  # not possible in the others: its mean is over other teachers
    ]


@pytest.mark.parametrize("other", ["data/", "./data"])
def test_one_dataset_has_many_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "more").mkdir()
    monkeypatch.chdir(tmp_path)
    assert same_dataset("data", other)
    assert not same_dataset("data", "more")
    assert same_dataset("hf:owner/name", "owner/name")
