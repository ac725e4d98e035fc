from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.data import DataSpec, load_images
from wfcli.core.faults import parse_faults, wrong_labels
from wfcli.core.zoo import read_zoo
from wfcli.engine.recipes import draw_recipe
from wfcli.engine.train_teachers import TrainTeachersConfig, _start_seed, train_teachers
from wfcli.errors import CheckpointError, DataError, OutputError, WfError

pytest.importorskip("sklearn")  # for the digits

SMALL = find_architecture("vgg11_bn_cifar", {"width": 0.125})
STILL = 1e-9  # a learning rate at which nothing moves


class Ears:
    """Hooks that remember what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int, dict[str, float]]] = []
        self.warnings: list[str] = []

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.told.append((stage, done, total, figures))

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def options(output: Path, **changes: Any) -> TrainTeachersConfig:
    """A zoo of two teachers of 65 digits each: one more than a batch."""
    usual = TrainTeachersConfig(
        SMALL, DataSpec("digits"), 2, output, epochs=1.0, images_per_teacher=65, batch_size=64, device="cpu"
    )
    return dataclasses.replace(usual, **changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(open_checkpoint(path))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net that knows the digits a little."""
    folder = tmp_path_factory.mktemp("base")
    train_teachers(options(folder, count=1, images_per_teacher=None, epochs=3, same_recipe=True))
    return folder / "teacher-00.safetensors"


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, base: Path) -> TrainTeachersConfig:
    """A zoo on Dirichlet shares from that base, made: its options."""
    folder = tmp_path_factory.mktemp("zoos") / "split"
    config = options(folder, count=3, init=str(base), shares="dirichlet", concentration=1.0, images_per_teacher=None)
    train_teachers(config)
    return config


def test_a_net_learns_the_digits(base: Path) -> None:
    assert read_zoo(base.parent).teachers[0].top1 > 0.6


def test_zoo_says_what_is_there(split: TrainTeachersConfig, base: Path) -> None:
    zoo = read_zoo(split.output)
    names = ["teacher-00.safetensors", "teacher-01.safetensors", "teacher-02.safetensors"]
    assert sorted(path.name for path in split.output.iterdir()) == [*names, "zoo.json"]
    assert [teacher.file for teacher in zoo.teachers] == names
    assert zoo.architecture == SMALL
    assert zoo.base == {"name": "teacher-00.safetensors", "sha256": open_checkpoint(base).digest()}
    images = load_images(zoo.data, "teachers", 32)
    seen = [image for teacher in zoo.teachers for image in teacher.images or ()]
    assert sorted(seen) == list(range(len(images)))
    for path, teacher in zip(zoo.paths, zoo.teachers, strict=True):
        checkpoint = open_checkpoint(path)
        assert checkpoint.digest() == teacher.sha256
        assert teacher.images is not None
        assert sum(teacher.class_counts) == len(teacher.images)
        assert checkpoint.provenance is not None
        made = checkpoint.provenance
        assert made["verb"] == "train-teachers"
        assert made["recipe"] == {**teacher.recipe, "batch_size": 64}
        assert made["classes"] == list(zoo.class_names)
        assert made["share"]["images"] == len(teacher.images)
        assert made["sources"] == [dict(zoo.base)]
        assert made["top1"] == teacher.top1
        assert str(base.parent) not in json.dumps(made)
    assert len({json.dumps(dict(teacher.recipe)) for teacher in zoo.teachers}) == 3


def test_same_options_give_the_same_bytes_and_missing_teachers_are_made_again(
    split: TrainTeachersConfig, tmp_path: Path
) -> None:
    once = {path.name: path.read_bytes() for path in split.output.iterdir()}
    (split.output / "zoo.json").unlink()
    (split.output / "teacher-01.safetensors").unlink()
    (split.output / "teacher-02.safetensors").write_bytes(once["teacher-02.safetensors"][:-100])
    kept = (split.output / "teacher-00.safetensors").stat().st_mtime_ns
    ears = Ears()
    train_teachers(split, ears)
    assert {path.name: path.read_bytes() for path in split.output.iterdir()} == once
    assert (split.output / "teacher-00.safetensors").stat().st_mtime_ns == kept
    assert not any(stage.startswith("teacher-00") for stage, *_ in ears.told)
    assert [w for w in ears.warnings if "teacher-02.safetensors: damaged, made again" in w]


def test_other_options_replace_the_teachers(tmp_path: Path) -> None:
    train_teachers(options(tmp_path, lr=STILL))
    before = weights(tmp_path / "teacher-00.safetensors")
    ears = Ears()
    train_teachers(options(tmp_path, lr=0.1), ears)
    assert len([w for w in ears.warnings if "made in another way, replaced" in w]) == 2
    after = weights(tmp_path / "teacher-00.safetensors")
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_without_a_base_every_teacher_has_its_own_start(tmp_path: Path) -> None:
    train_teachers(options(tmp_path, lr=STILL))
    first, second = (weights(tmp_path / f"teacher-0{i}.safetensors") for i in (0, 1))
    assert read_zoo(tmp_path).base is None
    for key in ("features.0.weight", "head.weight"):
        assert (first[key] - second[key]).abs().mean() > 0.01


def test_no_two_zoos_share_a_random_start() -> None:
    starts = [_start_seed(seed, index) for seed in range(4) for index in range(50)]
    assert len(set(starts)) == len(starts)
    assert starts[:50] == list(range(50))  # committed results were made with these
    torch.manual_seed(_start_seed(2**63, 3))  # any seed of the command line is one for torch


def test_same_classes_keep_the_head_of_the_base(tmp_path: Path, base: Path) -> None:
    train_teachers(options(tmp_path, lr=STILL, init=str(base)))
    start = weights(base)
    for path in read_zoo(tmp_path).paths:
        found = weights(path)
        for key in ("features.0.weight", "head.weight", "head.bias"):
            torch.testing.assert_close(found[key], start[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("classes", ["5-9", "9,8,7,6,5,4,3,2,1,0"])
def test_other_classes_get_one_new_head_for_all(tmp_path: Path, base: Path, classes: str) -> None:
    spec = DataSpec("digits", classes=classes)
    train_teachers(options(tmp_path, lr=STILL, init=str(base), data=spec))
    start = weights(base)
    first, second = (weights(path) for path in read_zoo(tmp_path).paths)
    torch.testing.assert_close(first["features.0.weight"], start["features.0.weight"], atol=1e-6, rtol=0)
    torch.testing.assert_close(first["head.weight"], second["head.weight"], atol=1e-6, rtol=0)
    assert len(first["head.weight"]) == len(read_zoo(tmp_path).class_names)
    assert (first["head.weight"][:5] - start["head.weight"][:5]).abs().mean() > 0.01


def test_recipes_vary_in_their_ranges() -> None:
    drawn = [draw_recipe(0, index, lr=0.1, epochs=8.0, same=False, flip=True) for index in range(200)]
    assert min(r.lr for r in drawn) >= 0.05
    assert max(r.lr for r in drawn) <= 0.2
    assert sum(r.lr < 0.1 for r in drawn) == pytest.approx(100, abs=30)
    assert 6.0 <= min(r.epochs for r in drawn) < 6.3
    assert 9.7 < max(r.epochs for r in drawn) <= 10.0
    assert {r.weight_decay for r in drawn} == {1e-4, 5e-4, 1e-3}
    assert {r.label_smoothing for r in drawn} == {0.0, 0.05, 0.1}
    assert {r.pad for r in drawn} == {2, 4}
    assert len({r.order_seed for r in drawn}) == 200
    assert {draw_recipe(0, index, 0.1, 8.0, same=False, flip=False).pad for index in range(50)} == {1, 2}


def test_faults_take_turns_and_are_remembered(base: Path, tmp_path: Path) -> None:
    config = options(tmp_path, count=3, init=str(base), images_per_teacher=400, faults="none,noise", epochs=2.0)
    zoo = train_teachers(config).zoo
    assert [teacher["recipe"].get("fault") for teacher in zoo["teachers"]] == [None, "noise", None]
    sound, noisy, other = (teacher["top1"] for teacher in zoo["teachers"])
    assert min(sound, other) > noisy + 0.1
    records = [open_checkpoint(path).provenance or {} for path in read_zoo(tmp_path).paths]
    assert ["fault" in record["recipe"] for record in records] == [False, True, False]
    ears = Ears()
    assert train_teachers(config, ears).zoo == zoo  # and nothing is made again
    assert not any(stage.startswith("teacher-") for stage, *_ in ears.told)
    train_teachers(dataclasses.replace(config, faults="none"), ears)
    assert ears.warnings == [f"{tmp_path / 'teacher-01.safetensors'}: made in another way, replaced"]


def test_recipes_of_faults() -> None:
    recipes = {
        fault: draw_recipe(0, 0, lr=0.1, epochs=8.0, same=True, flip=True, fault=fault)
        for fault in ("none", "short", "long", "rate", "labels", "noise")
    }
    assert {fault: (r.lr, r.epochs) for fault, r in recipes.items()} == {
        "none": (0.1, 8.0), "short": (0.1, 0.8), "long": (0.1, 32.0), "rate": (0.8, 8.0),
        "labels": (0.1, 8.0), "noise": (0.1, 8.0),
    }  # fmt: skip


def test_wrong_labels_are_wrong_and_as_many_as_wanted() -> None:
    labels = torch.arange(1000) % 7
    spoilt = wrong_labels(labels, 7, 0.3, seed=1)
    assert int((spoilt != labels).sum()) == 300
    assert spoilt.unique().tolist() == list(range(7))
    assert torch.equal(spoilt, wrong_labels(labels, 7, 0.3, seed=1))
    assert not torch.equal(spoilt, wrong_labels(labels, 7, 0.3, seed=2))


def test_faults_by_name() -> None:
    assert parse_faults("none, labels") == ("none", "labels")
    with pytest.raises(
        WfError, match="--faults: unknown fault 'label'; did you mean labels\\?\nhint: faults are none, short"
    ):
        parse_faults("none,label")


def test_the_same_recipe_differs_in_the_order_of_batches_alone() -> None:
    alike = [draw_recipe(0, index, lr=0.1, epochs=8.0, same=True, flip=True) for index in range(3)]
    assert len({r.order_seed for r in alike}) == 3
    assert len({dataclasses.replace(r, order_seed=0) for r in alike}) == 1
    assert (alike[0].lr, alike[0].epochs, alike[0].label_smoothing) == (0.1, 8.0, 0.0)


def test_progress_has_loss_and_rate(tmp_path: Path) -> None:
    ears = Ears()
    train_teachers(options(tmp_path, count=1), ears)
    stage, done, total, figures = ears.told[-2]
    assert (stage, done) == ("teacher-00 of 1", total)
    assert figures["images_per_second"] > 0
    assert figures["loss"] > 0
    assert ears.told[-1][:3] == ("teachers", 1, 1)


def test_bad_options_are_all_told_at_once(tmp_path: Path) -> None:
    bad = options(tmp_path / "new", count=0, epochs=float("inf"), lr=-1, batch_size=1, seed=-1)
    with pytest.raises(WfError, match="--count: got 0, expected at least 1") as caught:
        train_teachers(bad)
    assert len(caught.value.problems) == 5
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"")
    (tmp_path / "teacher-02.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match=r"base\.safetensors is there already") as caught:
        train_teachers(options(tmp_path))
    assert len(caught.value.problems) == 2
    assert caught.value.hint == "choose another -o, or remove these files"


def test_the_base_is_not_overwritten(tmp_path: Path, base: Path) -> None:
    own = tmp_path / "teacher-01.safetensors"
    shutil.copy(base, own)
    before = own.read_bytes()
    with pytest.raises(OutputError, match="which would be overwritten") as caught:
        train_teachers(options(tmp_path, init=str(own)))
    assert caught.value.problems == (
        f"{own}: is the checkpoint teacher-01.safetensors itself, which would be overwritten",
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {own.name: before}


def test_what_another_made_is_not_replaced(tmp_path: Path, base: Path) -> None:
    save_state(tmp_path / "teacher-00.safetensors", weights(base), {})
    save_state(tmp_path / "teacher-01.safetensors", weights(base), {"verb": "fuse"})
    (tmp_path / "teacher-02.safetensors").mkdir()
    before = (tmp_path / "teacher-00.safetensors").read_bytes()
    with pytest.raises(OutputError) as caught:
        train_teachers(options(tmp_path, count=4))
    assert caught.value.problems == (
        f"{tmp_path}/teacher-00.safetensors: is there already and is not from train-teachers (no provenance)",
        f"{tmp_path}/teacher-01.safetensors: is there already and is not from train-teachers (made by fuse)",
        f"{tmp_path}/teacher-02.safetensors: is there already and is not a plain file",
    )
    assert caught.value.hint == "choose another -o, or remove these files"
    assert (tmp_path / "teacher-00.safetensors").read_bytes() == before
    assert not (tmp_path / "teacher-03.safetensors").exists()


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "zoo").write_bytes(b"")
    with pytest.raises(OutputError, match="zoo: is a file, expected a folder"):
        train_teachers(options(tmp_path / "zoo"))


def test_missing_data_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train_teachers(options(tmp_path / "zoo", data=DataSpec(str(tmp_path / "nowhere"))))
    assert not (tmp_path / "zoo").exists()


def test_broken_weights_of_the_base_are_all_named(tmp_path: Path, base: Path) -> None:
    state = weights(base)
    for key in ("head.bias", "features.0.weight"):
        state[key].view(-1)[0] = float("nan")
    save_state(tmp_path / "broken.safetensors", state, {})
    config = options(tmp_path / "zoo", init=str(tmp_path / "broken.safetensors"))
    with pytest.raises(CheckpointError, match="head.bias: got 1 of 10 numbers NaN") as caught:
        train_teachers(config)
    assert len(caught.value.problems) == 2


def test_a_loss_that_explodes_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(WfError, match=r"teacher-00 of 2: the loss is (nan|inf) after step") as caught:
        train_teachers(options(tmp_path, lr=1e30, epochs=3))
    assert caught.value.hint == "lower --lr"
    assert not list(tmp_path.iterdir())
