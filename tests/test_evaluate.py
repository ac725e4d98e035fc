"""The comparison: figures against ones worked out by other means, the choice of the best, and every bad input."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import Ran, TinyTeachers
from wfcli.core.architectures import Architecture, build_model, find_architecture, input_config
from wfcli.core.calibrate import calibrate_batchnorm
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.data import DataSpec, iterate, load_images
from wfcli.core.methods import soup
from wfcli.core.metrics import wilson
from wfcli.engine import lineup
from wfcli.engine.doubts import LOOKED_AT
from wfcli.engine.evaluate import Comparison, EvaluateConfig, Row, evaluate
from wfcli.engine.expanded_glob import refuse_expanded_glob
from wfcli.errors import ArchitectureError, CheckpointError, DataError, WfError

DIGITS = DataSpec("digits")
WIDTH = {"width": 0.125}


class Listener:
    """Hooks that remember."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.stages: dict[str, int] = {}

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        assert 0 <= self.stages.get(stage, 0) <= done <= total
        self.stages[stage] = done

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def arch() -> Architecture:
    return find_architecture("vgg11_bn_cifar", WIDTH)


@pytest.fixture(scope="module")
def config(tiny_teachers: TinyTeachers, arch: Architecture) -> EvaluateConfig:
    """Evaluate the first teacher as a checkpoint against all three on the 359 test digits."""
    return EvaluateConfig(
        checkpoints=(str(tiny_teachers.paths[0]),),
        teachers=(str(tiny_teachers.folder),),
        architecture=arch,
        data=DIGITS,
        batch_size=200,
        calibration_images=300,
        device="cpu",
    )


@pytest.fixture(scope="module")
def comparison(config: EvaluateConfig) -> Comparison:
    return evaluate(config)


def of_kind(comparison: Comparison, kind: str) -> list[Row]:
    return [row for row in comparison.rows if row.kind == kind]


def without_speed(comparison: Comparison) -> list[Row]:
    return [replace(row, images_per_second=0.0) for row in comparison.rows]


def logits_of(arch: Architecture, state: dict[str, Tensor], calibrate: bool = False) -> tuple[Tensor, Tensor]:
    """Run one model over the test digits, in another way than the engine does; return logits [B, C] and labels [B]."""
    model = build_model(arch, 10)
    model.load_state_dict(state)
    settings = input_config(arch)
    if calibrate:
        train = load_images(DIGITS, "train", settings.size, limit=300, seed=0)
        draw = torch.Generator().manual_seed(0)
        calibrate_batchnorm(
            model, [x for x, _ in iterate(train, 256, settings, augment=True, generator=draw, shuffle=True)]
        )
    model.eval()
    images = load_images(DIGITS, "test", settings.size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (settings.mean, settings.std))
    with torch.no_grad():
        return model((images.pixels[torch.arange(len(images))] / 255 - mean) / std), images.labels


def states(teachers: TinyTeachers) -> list[dict[str, Tensor]]:
    return [dict(open_checkpoint(path)) for path in teachers.paths]


def constant_teacher(path: Path, answer: int, classes: int = 2) -> str:
    """Write a net without BatchNorm that always gives the same answer."""
    state = build_model(find_architecture("vgg11_cifar", WIDTH), classes).state_dict()
    state["head.weight"].zero_()
    state["head.bias"].copy_(5.0 * torch.eye(classes)[answer])
    save_state(path, state, {"verb": "test"})
    return str(path)


def write_images(folder: Path, counts: dict[str, tuple[int, int]]) -> DataSpec:
    """Write an image folder of two classes with so many images a split."""
    from PIL import Image

    for split, numbers in counts.items():
        for name, number in zip(("no", "yes"), numbers, strict=True):
            (folder / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (32, 32), (i, number, 9)).save(folder / split / name / f"{i}.png")
    return DataSpec(str(folder))


# Figures --------------------------------------------------------------------------------------------------------------


def test_the_rows_come_in_order(comparison: Comparison, tiny_teachers: TinyTeachers) -> None:
    names = [path.name for path in tiny_teachers.paths]
    assert [row.kind for row in comparison.rows] == [
        "teacher", "teacher", "teacher", "mean", "best", "ensemble", "soup", "calibrated_soup", "checkpoint"
    ]  # fmt: skip
    assert [row.name for row in comparison.rows[:3]] == names
    assert comparison.best in names
    assert of_kind(comparison, "best")[0].name == comparison.best
    assert comparison.best_chosen_on == "validation"
    assert (comparison.architecture, comparison.data) == ("vgg11_bn_cifar(width=0.125)", "digits")
    assert (comparison.split, comparison.images) == ("test", 359)


def test_teachers_soups_and_ensemble_score_what_other_means_give(
    comparison: Comparison, arch: Architecture, tiny_teachers: TinyTeachers
) -> None:
    teachers = states(tiny_teachers)
    mean = soup(teachers)
    answers = [logits_of(arch, state)[0] for state in teachers]
    labels = logits_of(arch, mean)[1]
    expected = {
        "teacher": [logits.log_softmax(1) for logits in answers],
        "ensemble": [torch.stack(answers).softmax(2).mean(0).log()],
        "soup": [logits_of(arch, mean)[0].log_softmax(1)],
        "calibrated_soup": [logits_of(arch, mean, calibrate=True)[0].log_softmax(1)],
        "checkpoint": [answers[0].log_softmax(1)],
    }
    for kind, all_log_probs in expected.items():
        for row, log_probs in zip(of_kind(comparison, kind), all_log_probs, strict=True):
            right = int((log_probs.argmax(1) == labels).sum())
            assert row.top1 == pytest.approx(right / 359, abs=1.5 / 359), kind  # a tie may fall either way
            assert row.top1_ci == wilson(round(row.top1 * 359), 359)
            assert row.nll == pytest.approx(torch.nn.functional.nll_loss(log_probs, labels).item(), rel=1e-3), kind
            assert 0 <= row.ece <= 1


def test_the_mean_is_over_the_teachers(comparison: Comparison) -> None:
    teachers, (mean,) = of_kind(comparison, "teacher"), of_kind(comparison, "mean")
    for figure in ("top1", "nll", "ece", "images_per_second"):
        assert getattr(mean, figure) == pytest.approx(sum(getattr(row, figure) for row in teachers) / 3)


def test_differences_are_against_the_best_teacher(comparison: Comparison) -> None:
    (best,) = of_kind(comparison, "best")
    assert best.delta_best == 0
    for row in comparison.rows:
        assert row.delta_best == pytest.approx(row.top1 - best.top1)


def test_what_the_rows_cost(comparison: Comparison, arch: Architecture, tiny_teachers: TinyTeachers) -> None:
    parameters = sum(p.numel() for p in build_model(arch, 10).parameters())
    sizes = [path.stat().st_size for path in tiny_teachers.paths]
    (ensemble,) = of_kind(comparison, "ensemble")
    for row in comparison.rows:
        assert row.parameters == parameters * (3 if row is ensemble else 1)
        assert row.images_per_second > 0
    assert ensemble.size == sum(sizes)
    assert of_kind(comparison, "checkpoint")[0].size == sizes[0]
    assert of_kind(comparison, "soup")[0].size == pytest.approx(sizes[0], rel=0.02)  # tensors, without a header
    slowest = min(row.images_per_second for row in of_kind(comparison, "teacher"))
    assert ensemble.images_per_second < slowest


def test_the_order_of_the_teachers_does_not_matter(
    config: EvaluateConfig, comparison: Comparison, tiny_teachers: TinyTeachers
) -> None:
    paths = tuple(str(path) for path in reversed(tiny_teachers.paths))
    other = evaluate(replace(config, teachers=paths))
    for kind in ("mean", "best", "ensemble", "soup", "calibrated_soup"):
        (one,), (two,) = of_kind(comparison, kind), of_kind(other, kind)
        assert one.name == two.name
        assert two.nll == pytest.approx(one.nll, rel=1e-4)


def test_it_repeats_and_batches_make_no_difference(config: EvaluateConfig, comparison: Comparison) -> None:
    again = without_speed(evaluate(replace(config, batch_size=77)))
    for one, two in zip(without_speed(comparison), again, strict=True):
        assert (one.name, one.top1) == (two.name, pytest.approx(two.top1, abs=1.5 / 359))
        assert one.nll == pytest.approx(two.nll, rel=1e-4)


def test_one_pass_over_the_images_for_all_models(config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr(
        lineup, "iterate", lambda images, *a, **k: passes.append(len(images)) or iterate(images, *a, **k)
    )
    hooks = Listener()
    evaluate(config, hooks)
    assert passes[:2] == [300, 359]  # calibration, test
    assert passes[-1] == 360  # validation
    assert set(passes[2:-1]) <= {LOOKED_AT}  # doubts of a teacher's normalisation
    assert hooks.stages == {"calibrating the soup": 300, "evaluating": 359, "choosing the best teacher": 360}


def test_checkpoints_alone_have_no_best(config: EvaluateConfig) -> None:
    found = evaluate(replace(config, teachers=()))
    assert [(row.kind, row.delta_best) for row in found.rows] == [("checkpoint", None)]
    assert (found.best, found.best_chosen_on) == (None, None)


def test_a_checkpoint_in_half_precision(config: EvaluateConfig, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in states(tiny_teachers)[0].items()}
    save_state(tmp_path / "half.safetensors", state, {"verb": "test"})
    whole, half = evaluate(
        replace(config, checkpoints=(*config.checkpoints, str(tmp_path / "half.safetensors")), teachers=())
    ).rows
    assert half.nll == pytest.approx(whole.nll, rel=0.05)
    assert half.size < 0.6 * whole.size


def test_some_classes_of_the_data(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    answers_one = constant_teacher(tmp_path / "one.safetensors", 1)
    found = evaluate(
        EvaluateConfig((answers_one,), (), find_architecture("vgg11_cifar", WIDTH), replace(DIGITS, classes="7,3"))
    )
    assert found.data == "digits (classes 7,3)"
    assert found.rows[0].top1 == pytest.approx(0.5, abs=0.02)


# The best -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def opposed(tmp_path: Path) -> EvaluateConfig:
    """Two teachers: on the validation images the first is right more often, on the test images the second."""
    data = write_images(tmp_path / "data", {"train": (3, 3), "validation": (7, 3), "test": (2, 8)})
    teachers = tuple(constant_teacher(tmp_path / f"teacher-{answer}.safetensors", answer) for answer in (0, 1))
    return EvaluateConfig((), teachers, find_architecture("vgg11_cifar", WIDTH), data, device="cpu")


def test_the_best_is_chosen_by_validation_not_by_the_test(opposed: EvaluateConfig) -> None:
    found = evaluate(opposed)
    assert (found.best, found.best_chosen_on) == ("teacher-0.safetensors", "validation")
    (best,) = of_kind(found, "best")
    assert (best.top1, best.note) == (0.2, "")
    assert [row.delta_best for row in of_kind(found, "teacher")] == pytest.approx([0.0, 0.6])


def test_without_a_validation_split_the_choice_is_marked(opposed: EvaluateConfig, tmp_path: Path) -> None:
    hooks = Listener()
    found = evaluate(replace(opposed, data=write_images(tmp_path / "bare", {"test": (2, 8)})), hooks)
    assert (found.best, found.best_chosen_on) == ("teacher-1.safetensors", "test")
    assert "chosen on the images of this table" in of_kind(found, "best")[0].note


def test_on_the_validation_split_itself_the_choice_is_marked(opposed: EvaluateConfig) -> None:
    found = evaluate(replace(opposed, split="validation"))
    assert (found.best, found.best_chosen_on) == ("teacher-0.safetensors", "validation")
    assert "chosen on the images of this table" in of_kind(found, "best")[0].note


# The calibrated soup --------------------------------------------------------------------------------------------------


def test_without_batchnorm_there_is_no_calibrated_soup(opposed: EvaluateConfig) -> None:
    hooks = Listener()
    assert of_kind(evaluate(opposed, hooks), "calibrated_soup") == []
    assert hooks.warnings == ["no calibrated soup: vgg11_cifar(width=0.125) has no BatchNorm"]


def test_without_training_images_there_is_no_calibrated_soup(
    config: EvaluateConfig, arch: Architecture, tmp_path: Path
) -> None:
    data = write_images(tmp_path / "bare", {"test": (3, 3)})
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.safetensors")
        save_state(paths[-1], build_model(arch, 2).state_dict(), {"verb": "test"})
    hooks = Listener()
    found = evaluate(replace(config, checkpoints=(), teachers=tuple(map(str, paths)), data=data), hooks)
    assert of_kind(found, "calibrated_soup") == []
    assert hooks.warnings == [f"no calibrated soup: {data.source} has no training split"]


def test_no_calibration_images_leave_the_calibrated_soup_out(config: EvaluateConfig) -> None:
    hooks = Listener()
    assert of_kind(evaluate(replace(config, calibration_images=0), hooks), "calibrated_soup") == []
    assert all("no more than by guessing" in told for told in hooks.warnings)  # they have learned nothing


# Bad input ------------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_all_listed(
    config: EvaluateConfig, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    broken = []
    for number, name in enumerate(("features.0.weight", "features.1.running_var")):
        state = states(tiny_teachers)[number]
        state[name].view(-1)[:2] = torch.tensor([math.nan, math.inf])
        broken.append(tmp_path / f"broken-{number}.safetensors")
        save_state(broken[-1], state, {"verb": "test"})
    teachers = (*config.teachers, str(broken[0]))
    with pytest.raises(CheckpointError, match="leave these checkpoints out") as error:
        evaluate(replace(config, checkpoints=(str(broken[1]),), teachers=teachers))
    assert error.value.problems == (
        "broken-0.safetensors: features.0.weight: got 2 of 216 numbers NaN or Inf",
        "broken-1.safetensors: features.1.running_var: got 2 of 8 numbers NaN or Inf",
    )


def test_a_net_whose_numbers_overflow_is_marked(
    config: EvaluateConfig, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    state = states(tiny_teachers)[0]
    state["head.weight"].fill_(3e38)
    save_state(tmp_path / "broken.safetensors", state, {"verb": "test"})
    hooks = Listener()
    (row,) = evaluate(replace(config, checkpoints=(str(tmp_path / "broken.safetensors"),), teachers=()), hooks).rows
    assert (row.top1, row.note) == (0.0, "its outputs are not numbers for 359 of 359 images")
    assert math.isnan(row.nll)
    assert hooks.warnings == ["broken.safetensors: its outputs are not numbers for 359 of 359 images"]


def test_a_head_with_other_classes_than_the_data(config: EvaluateConfig, opposed: EvaluateConfig) -> None:
    with pytest.raises(DataError) as error:
        evaluate(replace(opposed, data=DIGITS))
    assert error.value.problems == (
        "teacher-0.safetensors: its head has 2 classes, the data digits has 10",
        "teacher-1.safetensors: its head has 2 classes, the data digits has 10",
    )
    assert "--classes" in str(error.value.hint)
    with pytest.raises(DataError, match=re.escape("its head has 10 classes, the data digits (classes 0-4) has 5")):
        evaluate(replace(config, data=replace(DIGITS, classes="0-4")))


def test_a_checkpoint_of_other_classes_of_the_same_number(opposed: EvaluateConfig, tmp_path: Path) -> None:
    state = dict(open_checkpoint(Path(opposed.teachers[0])))
    save_state(tmp_path / "cats.safetensors", state, {"classes": ["cat", "dog"]})
    hooks = Listener()
    evaluate(replace(opposed, checkpoints=(str(tmp_path / "cats.safetensors"),), teachers=()), hooks)
    (warning,) = hooks.warnings
    assert warning.startswith("cats.safetensors was trained on the classes cat, dog; ")
    assert warning.endswith(" has no, yes")


def test_all_problems_of_teachers_and_checkpoints_come_at_once(config: EvaluateConfig, tmp_path: Path) -> None:
    save_state(tmp_path / "other.safetensors", {"weight": torch.zeros(3)}, {})
    wrong = replace(
        config,
        checkpoints=("gone.safetensors", str(tmp_path / "other.safetensors")),
        teachers=("nothing-*.safetensors",),
    )
    with pytest.raises(WfError) as error:
        evaluate(wrong)
    text = str(error.value)
    assert "gone.safetensors: no such checkpoint file" in text
    assert "other.safetensors: weight: got [3], expected no such tensor" in text
    assert "the teacher glob 'nothing-*.safetensors' matches no checkpoint" in text


def test_a_checkpoint_of_another_architecture(config: EvaluateConfig, opposed: EvaluateConfig) -> None:
    with pytest.raises(ArchitectureError, match="teacher-0.safetensors"):
        evaluate(replace(config, checkpoints=opposed.teachers[:1]))


def test_a_split_that_is_not_there(opposed: EvaluateConfig, tmp_path: Path) -> None:
    data = write_images(tmp_path / "bare", {"validation": (2, 8)})
    with pytest.raises(DataError, match="no split for 'test'; it has validation"):
        evaluate(replace(opposed, data=data))


def test_numbers_out_of_range(config: EvaluateConfig) -> None:
    with pytest.raises(WfError, match="--batch-size: got 0, expected at least 1") as error:
        evaluate(replace(config, batch_size=0, calibration_images=-1))
    assert len(error.value.problems) == 2
    assert error.value.hint == "see wfcli eval --help"


def names_in(folder: Path, *names: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names]


@pytest.mark.parametrize(
    ("names", "beside"),
    [
        (("teacher-00.safetensors", "teacher-01.safetensors"), "teacher-01.safetensors"),
        (("a.pt", "b.pt", "c.pt", "d.pt"), "b.pt and 2 more"),
    ],
)
def test_a_glob_that_the_shell_expanded(
    config: EvaluateConfig, tmp_path: Path, names: tuple[str, ...], beside: str
) -> None:
    student = names_in(tmp_path / "out", "student.safetensors")
    teacher, *others = names_in(tmp_path / "zoo", *names)
    with pytest.raises(CheckpointError) as error:
        evaluate(replace(config, checkpoints=(*student, *others), teachers=(teacher,)))
    (problem,) = error.value.problems
    assert problem.startswith(
        f"expected at least 2 teachers, got only {names[0]}; {beside} beside it came as checkpoints: "
    )
    assert problem.endswith("it looks as if the shell had expanded the glob after --teachers")
    suffix = Path(names[0]).suffix
    assert f"quote the glob, --teachers '{tmp_path}/zoo/*{suffix}', or repeat --teachers" in str(error.value.hint)


def test_globs_that_the_shell_expanded_after_several_options(config: EvaluateConfig, tmp_path: Path) -> None:
    student = names_in(tmp_path / "out", "student.safetensors")
    numbers = ("teacher-00.safetensors", "teacher-01.safetensors", "teacher-02.safetensors")
    first, second = names_in(tmp_path / "a", *numbers), names_in(tmp_path / "b", *numbers)
    wrong = replace(config, checkpoints=(*student, *first[1:], *second[1:]), teachers=(first[0], second[0]))
    with pytest.raises(CheckpointError) as error:
        evaluate(wrong)
    assert error.value.problems == tuple(
        f"{teacher}: a teacher; teacher-01.safetensors and 1 more beside it came as checkpoints: "
        "it looks as if the shell had expanded the glob after --teachers"
        for teacher in (first[0], second[0])
    )
    globs = f"--teachers '{tmp_path}/a/*.safetensors' --teachers '{tmp_path}/b/*.safetensors'"
    assert f"quote the glob, {globs}, or repeat" in str(error.value.hint)
    with pytest.raises(CheckpointError, match=re.escape(f"{second[0]}: a teacher; teacher-01")):  # one of them quoted
        evaluate(replace(config, checkpoints=second[1:], teachers=(f"{tmp_path}/a/*.safetensors", second[0])))


def test_a_net_of_the_zoo_can_be_compared_with_others_of_it(
    config: EvaluateConfig, tiny_teachers: TinyTeachers
) -> None:
    first, second, third = map(str, tiny_teachers.paths)
    refuse_expanded_glob((third,), (first, second))
    refuse_expanded_glob((second,), (first, third))
    refuse_expanded_glob((third,), (first, "zoo/"))  # not the next one of its folder


def test_a_zoo_in_the_folder_tells_a_glob_too(config: EvaluateConfig, tmp_path: Path) -> None:
    teacher, other, student = names_in(tmp_path / "zoo", "adam.safetensors", "bert.safetensors", "student.safetensors")
    files = [{"file": "adam.safetensors"}, {"file": "bert.safetensors"}]
    (tmp_path / "zoo" / "zoo.json").write_text(json.dumps({"teachers": files}))
    with pytest.raises(CheckpointError, match="bert.safetensors beside it .* the shell had expanded the glob"):
        evaluate(replace(config, checkpoints=(other,), teachers=(teacher,)))
    with pytest.raises(WfError) as error:  # a student in the folder of its teachers is no such sign
        evaluate(replace(config, checkpoints=(student,), teachers=(teacher,)))
    assert "expected at least 2 teachers, got only 1: adam.safetensors" in str(error.value)
    assert "expanded" not in str(error.value)


def test_one_teacher_alone_is_told_otherwise(
    config: EvaluateConfig, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    student = tmp_path / "student.safetensors"
    student.write_bytes(tiny_teachers.paths[0].read_bytes())
    with pytest.raises(CheckpointError, match="expected at least 2 teachers, got only 1: teacher-01.safetensors"):
        evaluate(replace(config, checkpoints=(str(student),), teachers=(str(tiny_teachers.paths[1]),)))


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_gives_json(wfcli: Callable[..., Ran], tiny_teachers: TinyTeachers, comparison: Comparison) -> None:
    ran = wfcli(
        "eval", tiny_teachers.paths[0], "--teachers", tiny_teachers.folder, *tiny_teachers.arch, "--data", "digits",
        "--calibration-images", "300", "--batch-size", "200", "--device", "cpu", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [row["kind"] for row in found["rows"]] == [row.kind for row in comparison.rows]
    assert [row["top1"] for row in found["rows"]] == [row.top1 for row in comparison.rows]
    assert set(found["rows"][0]) == {
        "name", "kind", "top1", "top1_ci", "delta_best", "nll", "ece", "parameters", "size", "images_per_second", "note"
    }  # fmt: skip
    assert (found["best"], found["best_chosen_on"], found["images"]) == (comparison.best, "validation", 359)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_gives_the_figures_of_the_cpu(config: EvaluateConfig, comparison: Comparison) -> None:
    for cpu, cuda in zip(comparison.rows, evaluate(replace(config, device="cuda")).rows, strict=True):
        assert cuda.name == cpu.name
        assert cuda.top1 == pytest.approx(cpu.top1, abs=1.5 / 359)
        assert cuda.nll == pytest.approx(cpu.nll, rel=1e-3)
