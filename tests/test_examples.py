"""The scripts in examples/: the README shows what they measured; the rules we compare the generator with are sound."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

EXAMPLES = Path(__file__).parent.parent / "examples"
HEAD = ("head.weight", "head.bias")


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


@pytest.mark.parametrize("script", sorted(p.stem for p in EXAMPLES.glob("*.py")))
def test_every_script_imports_what_there_is(script: str) -> None:
    assert importlib.import_module(script).__doc__


def _teacher(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(6, 3, 3, 3, generator=draw),
        "bn.running_var": torch.rand(6, generator=draw),
        "bn.num_batches_tracked": torch.tensor(7),
        HEAD[0]: torch.randn(4, 6, generator=draw),
        HEAD[1]: torch.randn(4, generator=draw),
    }


def test_the_readme_shows_the_committed_results_of_the_seen_dataset() -> None:
    from write_seen_results import README, ROWS, committed, table

    assert table(committed(), ROWS) in README.read_text(encoding="utf-8"), "run examples/write_seen_results.py"


def test_every_heuristic_gives_equal_teachers_back() -> None:
    from heuristics import all_heuristics

    teacher = _teacher(0)
    features = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    wanted = (features @ teacher[HEAD[0]].T + teacher[HEAD[1]]).softmax(1)
    for name, student in all_heuristics([teacher] * 3, HEAD, [10, 20, 30]).items():
        torch.testing.assert_close(student["conv.weight"], teacher["conv.weight"], msg=name)
        # Centring shifts all classes alike, which softmax does not see.
        found = (features @ student[HEAD[0]].T + student[HEAD[1]]).softmax(1)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_fedavg_weights_by_the_number_of_images() -> None:
    from heuristics import fedavg

    a, b = _teacher(0), _teacher(1)
    mixed = fedavg([a, b], [1, 3])["conv.weight"]
    torch.testing.assert_close(mixed, 0.25 * a["conv.weight"] + 0.75 * b["conv.weight"])


def test_distance_weights_favour_the_one_that_moved_farthest() -> None:
    from heuristics import by_distance

    near, far = _teacher(0), {name: t * 3 for name, t in _teacher(0).items()}
    students = [by_distance([near, near, far], power, per_layer=False)["conv.weight"] for power in (0.0, 1.0, 4.0)]
    sizes = [float((student / near["conv.weight"]).mean()) for student in students]
    assert sizes == sorted(sizes)
    # Two at distance d of the mean and one at 2 d: weights 1, 1, 2 of 4.
    assert sizes[1] == pytest.approx((1 + 1 + 2 * 3) / 4, rel=1e-5)


def test_centred_head_rows_count_only_who_saw_the_class() -> None:
    from heuristics import head_seen_centred

    def teacher(bias: list[float], rows: list[float]) -> dict[str, Tensor]:
        return {"head.weight": torch.tensor(rows)[:, None], "head.bias": torch.tensor(bias)}

    a = teacher([1.0, 1.0, -2.0], [3.0, 5.0, 100.0])  # saw classes 0 and 1: their rows less 4
    b = teacher([-2.0, 1.0, 1.0], [100.0, 7.0, 9.0])  # saw 1 and 2: less 8
    student = head_seen_centred([a, b], HEAD)
    torch.testing.assert_close(student["head.weight"][:, 0], torch.tensor([-1.0, (1.0 - 1.0) / 2, 1.0]))


def test_the_best_of_several_rows_has_the_highest_mean() -> None:
    from write_silo_results import best_of

    rows = {"distance a": {"p": 0.5, "q": 0.7}, "distance b": {"p": 0.9, "q": 0.1}, "median": {"p": 1.0}}
    assert best_of(rows, ("distance",)) == rows["distance a"]
    assert best_of(rows, ("distance", "median")) == rows["median"]
    assert best_of(rows, ("agreement",)) == {}


def test_the_readme_shows_the_committed_results_of_silo_teachers() -> None:
    from write_silo_results import KINDS, ONE_SHOT, README, one_shot_table

    files = {kind: EXAMPLES / "results" / f"silo_teachers_{kind}.json" for kind in KINDS}
    results = {kind: json.loads(file.read_text()) for kind, file in files.items() if file.exists()}
    table = one_shot_table(results, list(ONE_SHOT), (3, 6))
    assert table in README.read_text(encoding="utf-8"), "run examples/write_silo_results.py"


FIGURES = {
    "dirichlet 0.3/test-00/3/0/soup, data-free": 0.40,
    "dirichlet 0.3/test-00/3/1/soup, data-free": 0.44,
    "dirichlet 0.3/test-00/3/0/ensemble": 0.60,
    "dirichlet 0.3/test-00/3/1/ensemble": 0.64,
    "dirichlet 0.3/test-00/3/0/generator vgg-0, data-free": 0.50,
    "dirichlet 0.3/test-00/3/0/generator vgg-1, data-free": 0.54,
    "dirichlet 0.3/test-00/3/1/generator vgg-0, data-free": 0.58,
    "dirichlet 0.3/test-00/3/1/generator vgg-1, data-free": 0.62,
    "dirichlet 0.3/test-00/3/0/generator vgg-no-flow-0, data-free": 0.1,
    "dirichlet 0.3/test-00/3/0/FedAvg (by number of images), calibrated": 0.46,
    "dirichlet 0.3/test-00/3/1/FedAvg (by number of images), calibrated": 0.46,
    "dirichlet 0.3/test-00/3/0/head rows by their distance ^2, calibrated": 0.30,
    "dirichlet 0.3/test-00/3/1/head rows by their distance ^2, calibrated": 0.48,
    "dirichlet 0.3/test-00/6/0/soup, data-free": 0.30,
    "dirichlet 0.3/test-00/6/0/ensemble": 0.70,
    "dirichlet 0.3/test-00/one net trained on all images": 0.9,
    "dirichlet 0.1/test-00/3/0/ensemble": 0.2,
}


def test_figures_of_silo_teachers_are_averaged_over_seeds_then_pairs() -> None:
    from write_silo_results import differences, one_shot_table, rows_of

    result = {"figures": FIGURES}
    rows = rows_of(result, "dirichlet 0.3", 3)
    assert rows["generator vgg, data-free"] == pytest.approx({"test-00/3/0": 0.52, "test-00/3/1": 0.60})
    assert set(rows["ensemble"]) == {"test-00/3/0", "test-00/3/1"}
    table = one_shot_table({"vgg": result}, ["soup, data-free", "**generator of this kind of net, data-free**"], (3,))
    # Half the interval of two pairs is 12.706 times half their difference.
    assert table.splitlines()[2:] == [
        "| soup, data-free | 42.0 ± 25.4 |",
        "| **generator of this kind of net, data-free** | 56.0 ± 50.8 |",
    ]
    lines = differences({"vgg": result})
    assert "VGG-11 (BatchNorm), K = 3: generator vgg, data-free - soup, data-free: +14.0 ± 25.4" in lines
    # The best heuristic by its mean is FedAvg, though the other one is best on one pair.
    assert "VGG-11 (BatchNorm), K = 3: generator vgg, data-free - best heuristic: +10.0 ± 50.8" in lines
    assert "VGG-11 (BatchNorm), K = 3: generator vgg, data-free: 70 % of the gap from soup to ensemble" in lines


def test_the_benchmark_of_a_training_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    import generator_step

    monkeypatch.setattr(generator_step, "IMAGES", 4)
    device = torch.device("cpu")
    ground = generator_step.make_ground("vgg11_bn_cifar", device)
    generator_step.student_alone(ground)
    for preset in generator_step.GOALS:
        generator_step.whole_step(ground, preset, device)()


def test_rules_that_trust_a_teacher_less_which_stands_apart() -> None:
    from heuristics import robust_heuristics

    sound = [
        {"a": torch.tensor([1.0, 2.0, 3.0]) + 0.01 * torch.eye(3)[i], "num_batches_tracked": torch.tensor(5)}
        for i in range(3)
    ]
    bad = {"a": torch.tensor([9.0, -9.0, 0.0]), "num_batches_tracked": torch.tensor(5)}
    average = sum(s["a"] for s in (*sound, bad)) / 4
    mean = sum(s["a"] for s in sound) / 3
    for name, student in robust_heuristics([*sound, bad]).items():
        assert (student["a"] - mean).norm() < 0.9 * (average - mean).norm(), name
        assert student["num_batches_tracked"] == 5


SEEN = {
    "seen/vgg-cifar10/3/0/mean single": 0.70,
    "seen/vgg-cifar10/3/1/mean single": 0.72,
    "seen/vgg-cifar10/3/0/FedAvg (by number of images), calibrated": 0.71,
    "seen/vgg-cifar10/3/1/FedAvg (by number of images), calibrated": 0.71,
    "seen/vgg-cifar10/3/0/generator specialised-0, calibrated": 0.74,
    "seen/vgg-cifar10/3/1/generator specialised-0, calibrated": 0.76,
    "seen/vgg-cifar10/3/0/generator specialised-1, calibrated": 0.76,
    "seen/vgg-cifar10/3/1/generator specialised-1, calibrated": 0.78,
    "seen/vgg-cifar10/3/0/100 steps of distillation from generator specialised-0": 0.79,
    "seen/vgg-cifar10/3/1/100 steps of distillation from generator specialised-0": 0.79,
    "rate/soup": 0.01,
}


def test_figures_of_the_seen_dataset_are_compared_set_by_set() -> None:
    from write_seen_results import ROWS, differences, table

    results = {"vgg-cifar10": {"figures": SEEN}}
    written = table(results, ROWS)
    assert "| **`specialised`: mixing and prior, calibrated** | 76.0 ± 12.7 |\n" in written
    assert "| best of nine simple heuristics (chosen here), calibrated | 71.0 ± 0.0 |\n" in written
    lines = differences(results)
    assert "VGG-11, CIFAR-10, K = 3: `specialised`: mixing and prior, calibrated - mean single: +5.0 ± 0.0" in lines
    assert any("100 steps of `finetune`" in line and line.endswith("mean single: +8.0 ± 12.7") for line in lines)


SAME = {
    "any/same-test-00/4/0-1-2-9/soup, data-free": 0.50,
    "any/same-cifar10/4/0-1-2-9/soup, data-free": 0.80,
    "any/same-test-00/4/0-1-2-9/soup, calibrated": 0.60,
    "any/same-test-00/4/0-1-2-9/distance from the mean ^4, over all, calibrated": 0.55,
    "any/same-test-00/4/0-1-2-9/distance from the mean ^-4, calibrated": 0.85,
    "any/same-test-00/4/0-1-2-9/generator both-0, data-free": 0.80,
    "any/same-test-00/4/0-1-2-9/generator both-1, data-free": 0.82,
    "any/same-cifar10/4/0-1-2-9/generator both-0, data-free": 0.79,
    "any/same-cifar10/4/0-1-2-9/generator both-1, data-free": 0.79,
    "2 bad/same-test-00/8/0-1-2-3-4-5-9-10/generator both-0, weight of the bad teachers": 0.1,
}


def test_figures_of_teachers_of_the_same_data() -> None:
    from write_same_results import differences, page

    result = {"figures": SAME, "date": "2026-01-01", "machine": "here", "wfcli": "1", "torch": "2", "timm": "3"}
    lines = differences({"vgg": result})
    name = "VGG-11 (BatchNorm), any, K = 4: one generator for all three kinds, data-free - "
    assert f"{name}soup, worst task: -1.0" in lines
    assert f"{name}best of nine simple rules (chosen here), calibrated: +26.0" in lines
    assert f"{name}best of five robust rules (chosen here), calibrated: -4.0" in lines
    assert "| 2 | 25.0 % | 10.0 % |" in page({"vgg": result})


def test_the_index_has_the_figures_of_the_committed_results() -> None:
    from write_index import entries

    from wfcli.core.pretrained import list_pretrained

    found = {one.name: one.results for one in entries()}
    assert {one.name: one.results for one in list_pretrained()} == found, "run examples/write_index.py"


def test_figures_of_the_index_are_those_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ship_universal

    monkeypatch.setattr(ship_universal, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    net = {"name": "vgg11_bn_cifar", "args": {"width": 0.25}}
    measured = {"architecture": net, "generators": {"vgg-0": "0" * 64}, "figures": FIGURES}
    (tmp_path / "results" / "t.json").write_text(json.dumps(measured))
    [found] = ship_universal.results_of("t.json", "dirichlet 0.3", (3,), "vgg", "0" * 64)
    assert (found.architecture, found.count, found.sets) == ("vgg11_bn_cifar(width=0.25)", 3, 2)
    assert (found.soup, found.generator, found.ensemble) == (0.42, 0.56, 0.62)
    with pytest.raises(SystemExit, match=r"t\.json: measured vgg-0 0{12}, expected also 1{12}"):
        ship_universal.results_of("t.json", "dirichlet 0.3", (3,), "vgg", "1" * 64)


def test_the_shipped_card_shows_rows_that_there_are() -> None:
    from ship_universal import SAME_SHOWN, SHOWN
    from write_same_results import ROWS
    from write_silo_results import ONE_SHOT

    assert set(SHOWN) <= set(ONE_SHOT)
    assert set(SAME_SHOWN) <= set(ROWS)


def test_the_readme_shows_the_committed_results_of_the_same_data() -> None:
    from write_same_results import README, committed, readme_table

    assert readme_table(committed()) in README.read_text(encoding="utf-8"), "run examples/write_same_results.py"


SCRATCH = {
    **{f"scratch/vgg11/{k}/{n}/mean single": 0.8 for k in (2, 4, 6) for n in (0, 1)},
    **{f"scratch/vgg11/{k}/{n}/ensemble": 0.85 for k in (2, 4, 6) for n in (0, 1)},
    **{f"scratch/vgg11/{k}/{n}/aligned by weights": 0.5 - 0.05 * k for k in (2, 4, 6) for n in (0, 1)},
    **{f"scratch/vgg11/{k}/{n}/aligned by weights, least squares": 0.7 - 0.01 * k for k in (2, 4, 6) for n in (0, 1)},
    "scratch/vgg11/4/0/100 steps of distillation from best single": 0.82,
    **{f"line/{way}/{at / 10:.1f}": 2.0 for way in ("as they are", "aligned, repaired") for at in range(11)},
}


def test_figures_of_independent_teachers() -> None:
    from write_scratch_results import differences, page, picture, table

    results = {"vgg11": {"figures": SCRATCH, "date": "", "machine": "", "wfcli": "", "torch": "", "timm": ""}}
    assert "| **aligned by weights** | 40.0 ± 0.0 | 20.0 ± 0.0 |" in table(results, (2, 6))
    assert "| best single | 82.0 |  |  |" in page(results)
    lines = differences(results)
    assert (
        "VGG-11, K = 6: best student (chosen here: aligned by weights, least squares) - mean single: -16.0 ± 0.0"
        in lines
    )
    assert "VGG-11: best student, K = 6 less K = 2: -4.0" in lines
    assert len(picture(results).axes) == 1


def test_figures_of_the_comparison_of_methods() -> None:
    from write_compare_results import page, readme_table, verdicts

    made = {
        "soup": (0.5, 0.6),
        "ties": (0.7, 0.5),
        "best single": (0.6, 0.6),
        "auto": (0.7, 0.6),
        "ensemble": (0.8, 0.8),
    }
    lines = [
        {"count": 3, "seed": s, "method": m, "validation": v[s], "test": v[s] - 0.1, "seconds": 2.0, "memory": 10**9}
        for m, v in made.items()
        for s in (0, 1)
    ]
    result = {"split-vgg": {"lines": lines}}
    shown = readme_table(result)
    assert "| ties | 50.0 ± 127.1 |\n| best single | 50.0 ± 0.0 |\n| **auto** | 55.0 ± 63.5 |\n" in shown
    assert "| soup | 55.0 ± 63.5 | 45.0 ± 63.5 | 2.0 s | 1.0 GB |" in page(result)
    said = verdicts("split-vgg", result["split-vgg"])
    assert "VGG-11, split, K = 3, test: auto - the best method, ties: +5.0 ± 63.5" in said
    assert "VGG-11, split, K = 3, test: auto - best single: +5.0 ± 63.5" in said


def test_gains_of_scaling_are_over_the_soup_of_the_same_set() -> None:
    from plot_scaling import gains, lines, picture

    figures = {"parameters/tasks-10-0": 22000.0}
    for count, gain in ((3, 0.1), (6, 0.2)):
        for number in range(5):
            place, soup = f"dirichlet 0.3/test-00/{count}/{number}", 0.4 + 0.01 * number
            figures |= {f"{place}/soup, data-free": soup, f"{place}/ensemble": soup + 0.3}
            figures |= {f"{place}/generator tasks-10-{seed}, data-free": soup + gain * (1 + seed) for seed in (0, 1)}
    result = {"figures": figures}
    places = [f"dirichlet 0.3/test-00/3/{number}" for number in range(5)]
    assert gains(result, 3)["tasks-10"] == pytest.approx(dict.fromkeys(places, 0.15))
    assert "K = 6: tasks-10 (22,000 parameters): +30.0 ± 0.0" in lines(result)
    assert len(picture(result).axes) == 3
