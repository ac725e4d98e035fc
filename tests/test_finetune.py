from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.data import DataSpec
from wfcli.core.methods import soup
from wfcli.engine.finetune import FinetuneConfig, _open, _write_student, finetune, settled
from wfcli.engine.train_teachers import TrainTeachersConfig, train_teachers
from wfcli.errors import ArchitectureError, CheckpointError, DataError, OutputError, Problems, SourceError, WfError

pytest.importorskip("sklearn")  # for the digits

SMALL = find_architecture("vgg11_bn_cifar", {"width": 0.125})
DIGITS = DataSpec("digits")


class Interrupt:
    """Hooks of a user who presses Ctrl-C when a run has got to a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.warnings: list[str] = []

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        if done == self.step:
            raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three teachers from one base on uneven shares, and their soup beside the folder."""
    root = tmp_path_factory.mktemp("finetune")
    usual = TrainTeachersConfig(SMALL, DIGITS, 1, root / "base", epochs=2.0, batch_size=64, device="cpu")
    train_teachers(usual)
    split = dataclasses.replace(
        usual, count=3, output=root / "zoo", init=str(root / "base" / "teacher-00.safetensors"), shares="dirichlet"
    )
    train_teachers(split)
    teachers = [dict(open_checkpoint(path)) for path in sorted((root / "zoo").glob("*.safetensors"))]
    save_state(root / "soup.safetensors", soup(teachers), {})
    return root / "zoo"


def options(zoo: Path, output: Path, **changes: Any) -> FinetuneConfig:
    """Twelve steps from the soup of the zoo."""
    start = str(zoo.parent / "soup.safetensors")
    usual = FinetuneConfig(start, (str(zoo),), SMALL, DIGITS, 12, output, lr=0.05, batch_size=64, device="cpu")
    return dataclasses.replace(usual, **changes)


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.with_name(output.name + ".log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(zoo: Path) -> Path:
    """The student of an uninterrupted run."""
    output = zoo.parent / "whole.safetensors"
    finetune(options(zoo, output, validate_every=3))
    return output


def test_student_gets_better_than_the_soup_and_is_the_best_of_its_run(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "student.safetensors"
    result = finetune(options(zoo, output, steps=20))
    scores = dict(result.validation)
    assert list(scores) == list(range(0, 21, 2))
    assert scores[result.best_step] == max(scores.values())
    assert scores[result.best_step] > scores[0] + 0.03
    assert result.steps == 20
    assert result.images_seen > 19 * 32
    student = open_checkpoint(output)
    assert student.digest() == result.digest
    assert student.specs == open_checkpoint(zoo.parent / "soup.safetensors").specs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.safetensors", "student.safetensors.log.jsonl"]


def test_distillation_alone_brings_the_student_nearer_to_its_teachers(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "student.safetensors"
    finetune(options(zoo, output, steps=18, ce_weight=0.0, temperature=2.0))
    losses = [line["loss"] for line in log_of(output) if "loss" in line]
    assert len(losses) == 18
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_provenance_names_start_teachers_and_recipe(zoo: Path, whole: Path) -> None:
    made = open_checkpoint(whole).provenance
    assert made is not None
    assert made["verb"] == "finetune"
    assert [s["name"] for s in made["sources"]] == ["soup.safetensors"]
    teachers = [open_checkpoint(path) for path in sorted(zoo.glob("*.safetensors"))]
    assert [t["sha256"] for t in made["teachers"]] == [t.digest() for t in teachers]
    assert made["recipe"]["steps"] == 12
    assert made["recipe"]["distill_weight"] == 1.0
    assert (made["recipe"]["optimiser"], made["recipe"]["weight_decay"]) == ("sgd", 5e-4)
    assert made["classes"] == [str(digit) for digit in range(10)]
    assert str(zoo.parent) not in json.dumps(made)


def test_log_has_a_line_for_each_step_and_each_validation(whole: Path) -> None:
    lines = log_of(whole)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation_top1" in line] == [0, 3, 6, 9, 12]
    assert all(line["images_per_second"] > 0 for line in lines if "loss" in line)
    rates = [line["rate"] for line in lines if "loss" in line]
    assert max(rates) == pytest.approx(0.05)


@pytest.mark.parametrize("step", [3, 9, 12])
def test_resumed_run_gives_the_bytes_of_an_uninterrupted_one(zoo: Path, whole: Path, tmp_path: Path, step: int) -> None:
    output = tmp_path / "whole.safetensors"
    config = options(zoo, output, validate_every=3)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, Interrupt(step))
    assert not output.exists()
    ears = Interrupt(-1)
    result = finetune(dataclasses.replace(config, resume=True), ears)
    assert output.read_bytes() == whole.read_bytes()
    assert not output.with_name(output.name + ".resume").exists()
    assert [step for step, _ in result.validation] == [0, 3, 6, 9, 12]
    assert bool(ears.warnings) == (step == 3)  # stopped before the first state was saved
    without_speed = [[{**line, "images_per_second": 0} for line in log_of(path)] for path in (output, whole)]
    assert without_speed[0] == without_speed[1]


def test_a_run_that_could_go_on_is_not_begun_anew(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "student.safetensors"
    with pytest.raises(KeyboardInterrupt):
        finetune(options(zoo, output, validate_every=3), Interrupt(6))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WfError, match="this very run was interrupted") as caught:
        finetune(options(zoo, output, validate_every=3))
    assert caught.value.hint == "add --resume to go on, or remove that file to start from the beginning"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    finetune(options(zoo, output, validate_every=4))  # another run takes its place
    assert output.exists()


def test_a_student_that_its_type_cannot_hold_is_not_written(zoo: Path, tmp_path: Path) -> None:
    state = dict(open_checkpoint(zoo.parent / "soup.safetensors"))
    start, output = tmp_path / "start.safetensors", tmp_path / "student.safetensors"
    save_state(start, {name: t.half() if t.is_floating_point() else t for name, t in state.items()}, {})
    opened = _open(options(zoo, output, checkpoint=str(start)), Problems(), Interrupt(-1))
    state["features.1.running_var"].fill_(1e5)
    with pytest.raises(
        CheckpointError, match=r"features\.1\.running_var: got 8 numbers too large for float16"
    ) as caught:
        _write_student(output, opened, state, {})
    assert caught.value.hint == "start from the same weights in a file of float32; nothing was written"
    assert list(tmp_path.iterdir()) == [start]


def test_resuming_a_run_with_other_options_is_an_error(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "student.safetensors"
    with pytest.raises(KeyboardInterrupt):
        finetune(options(zoo, output, validate_every=3), Interrupt(6))
    with pytest.raises(WfError, match=r"recipe: the interrupted run had .* this one has") as caught:
        finetune(options(zoo, output, validate_every=3, steps=20, resume=True))
    assert caught.value.hint is not None
    assert "run without --resume" in caught.value.hint
    assert output.with_name(output.name + ".resume").exists()


@pytest.mark.parametrize(("steps", "lr"), [(0, 0.01), (4, 5.0)])
def test_where_nothing_gets_better_the_start_is_given_back(zoo: Path, tmp_path: Path, steps: int, lr: float) -> None:
    start = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in open_checkpoint(zoo.parent / "soup.safetensors").items()
    }
    save_state(tmp_path / "start.safetensors", start, {})
    output = tmp_path / "student.safetensors"
    result = finetune(options(zoo, output, checkpoint=str(tmp_path / "start.safetensors"), steps=steps, lr=lr))
    assert result.best_step == 0
    found = open_checkpoint(output)
    assert found.specs == open_checkpoint(tmp_path / "start.safetensors").specs
    assert all(torch.equal(found[key], start[key]) for key in start)


def test_labels_alone_need_no_teachers(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "student.safetensors"
    result = finetune(options(zoo, output, teachers=(), distill_weight=0.0))
    assert result.validation[-1][1] > result.validation[0][1]
    made = open_checkpoint(output).provenance
    assert made is not None
    assert made["teachers"] == []


def test_bad_options_are_all_told_at_once(zoo: Path, tmp_path: Path) -> None:
    bad = options(zoo, tmp_path / "s.safetensors", steps=-1, lr=0, batch_size=1, temperature=0, warmup=2, teachers=())
    with pytest.raises(WfError, match="--temperature: got 0, expected more than 0") as caught:
        finetune(bad)
    assert len(caught.value.problems) == 6
    assert "no teachers to distil from" in str(caught.value)
    with pytest.raises(WfError, match="nothing to learn"):
        finetune(options(zoo, tmp_path / "s.safetensors", ce_weight=0, distill_weight=0))


def test_a_head_with_other_classes_than_the_data_is_an_error_for_each_file(zoo: Path, tmp_path: Path) -> None:
    config = options(zoo, tmp_path / "s.safetensors", data=DataSpec("digits", classes="0-4"))
    expected = r"soup\.safetensors: its head has 10 classes, the data digits \(classes 0-4\) has 5"
    with pytest.raises(DataError, match=expected) as caught:
        finetune(config)
    assert len(caught.value.problems) == 4
    assert caught.value.hint is not None
    assert "--classes" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_wrong_start_and_wrong_teachers_are_told_together(zoo: Path, tmp_path: Path) -> None:
    wide = dataclasses.replace(SMALL, args=(("width", 0.25),))
    with pytest.raises(ArchitectureError, match=r"soup\.safetensors: .*expected") as caught:
        finetune(options(zoo, tmp_path / "s.safetensors", architecture=wide))
    assert "teacher-00.safetensors" in str(caught.value)
    missing = options(zoo, tmp_path / "s.safetensors", checkpoint="gone.safetensors", teachers=("none-*.safetensors",))
    with pytest.raises(SourceError, match=r"gone\.safetensors") as lost:
        finetune(missing)
    assert "none-*.safetensors" in str(lost.value)


def test_the_start_and_the_teachers_are_not_overwritten(zoo: Path) -> None:
    for path in (zoo.parent / "soup.safetensors", zoo / "teacher-01.safetensors"):
        before = path.read_bytes()
        with pytest.raises(OutputError, match="which would be overwritten"):
            finetune(options(zoo, path))
        assert path.read_bytes() == before


def test_all_that_is_wrong_comes_at_once_with_its_own_hint(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(WfError) as caught:
        finetune(
            options(
                zoo,
                tmp_path / "missing" / "s.safetensors",
                lr=float("inf"),
                checkpoint="gone.safetensors",
                data=DataSpec("nowhere"),
            )
        )
    told = str(caught.value).splitlines()
    assert [line for line in told if not line.startswith("hint: ")] == [
        "--lr: got inf, expected more than 0 and finite",
        f"{tmp_path}/missing/s.safetensors: its folder does not exist",
        "gone.safetensors: no such checkpoint file",
        "data nowhere: no such folder",
    ]
    assert told[1] == "hint: see wfcli finetune --help"
    assert told[3] == f"hint: create it first: mkdir -p {tmp_path}/missing"
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_are_all_named_and_nothing_is_written(zoo: Path, tmp_path: Path) -> None:
    state = dict(open_checkpoint(zoo.parent / "soup.safetensors"))
    for key in ("head.bias", "features.0.weight"):
        state[key].view(-1)[0] = float("inf")
    save_state(tmp_path / "broken.safetensors", state, {})
    state["head.bias"].zero_()
    save_state(tmp_path / "broken-too.safetensors", state, {})
    config = options(zoo, tmp_path / "s.safetensors", checkpoint=str(tmp_path / "broken.safetensors"))
    with pytest.raises(CheckpointError, match="nothing was written") as caught:
        finetune(dataclasses.replace(config, teachers=(*config.teachers, str(tmp_path / "broken-too.safetensors"))))
    assert sorted(caught.value.problems) == [
        "broken-too.safetensors: features.0.weight: got 1 of 216 numbers NaN or Inf",
        "broken.safetensors: features.0.weight: got 1 of 216 numbers NaN or Inf",
        "broken.safetensors: head.bias: got 1 of 10 numbers NaN or Inf",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken-too.safetensors", "broken.safetensors"]


def test_a_net_with_layer_norms_gets_adamw_unless_told_otherwise(zoo: Path, tmp_path: Path) -> None:
    usual = options(zoo, tmp_path / "s.safetensors", architecture=find_architecture("vit_tiny_cifar"), lr=None)
    assert (settled(usual).optimiser, settled(usual).lr, settled(usual).weight_decay) == ("adamw", 3e-4, 0.05)
    told = settled(dataclasses.replace(usual, optimiser="sgd", weight_decay=0.1))
    assert (told.optimiser, told.lr, told.weight_decay) == ("sgd", 0.01, 0.1)
    with pytest.raises(WfError, match="--optimiser: got adam, expected one of sgd, adamw"):
        finetune(dataclasses.replace(usual, optimiser="adam"))  # type: ignore[arg-type]


def test_a_loss_that_explodes_is_an_error_with_a_hint(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.safetensors"
    with pytest.raises(WfError, match=r"the loss is (nan|inf) after step") as caught:
        finetune(options(zoo, output, lr=1e30))
    assert caught.value.hint == "lower --lr"
    assert not output.exists()
