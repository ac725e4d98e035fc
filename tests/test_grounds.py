"""Zoos are brought into memory with their roles kept apart: who trains, who validates, and on which images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wfcli.core import views
from wfcli.core.curriculum import Ground, soup_subset
from wfcli.core.data import load_images
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.views import Views
from wfcli.core.zoo import read_zoo
from wfcli.engine import generator_run
from wfcli.engine.generator_run import GeneratorRun, _accuracies
from wfcli.engine.grounds import _roles, hold_out, open_zoos, read_ground
from wfcli.engine.hooks import Silent
from wfcli.engine.team import Team
from wfcli.engine.train_generator import TrainGeneratorConfig
from wfcli.errors import Problems

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("zoos", "whole"), [(1, []), (3, []), (4, [3]), (5, [4]), (6, [5]), (7, [5, 6]), (14, [5, 11, 13])]
)
def test_which_zoos_are_held_out(zoos: int, whole: list[int]) -> None:
    held = [hold_out(number, zoos) for number in range(zoos)]
    if zoos < 4:
        assert held == ["teachers"] * zoos
    else:
        assert [number for number in range(zoos) if held[number] == "zoo"] == whole
        assert set(held) == {"zoo", "nothing"}


def test_the_good_and_the_poor_are_held_out(digits_zoo: Path) -> None:
    zoo = read_zoo(digits_zoo)
    quality = (0.9, 0.5, 0.8, 0.6, 0.95, 0.55, 0.7, 0.85, 0.65, 0.75)
    teachers = tuple(replace(zoo.teachers[0], top1=top1) for top1 in quality)
    trained, held = _roles(replace(zoo, teachers=teachers), "teachers")
    assert sorted(quality[number] for number in held) == [0.55, 0.75, 0.9]
    assert sorted(trained + held) == list(range(10))


def test_teachers_train_or_validate_never_both(digits_zoo: Path, tmp_path: Path) -> None:
    problems = Problems()
    (one,) = open_zoos([digits_zoo], None, problems, Silent())
    assert len(one.held_out) == 2
    assert sorted(one.teachers + one.held_out) == [0, 1, 2, 3, 4]
    zoos = [shutil.copytree(digits_zoo, tmp_path / str(number)) for number in range(4)]
    found = open_zoos(zoos, "4,0-1", problems, Silent())
    assert [(entry.teachers, entry.held_out) for entry in found] == [((0, 1, 2), ())] * 3 + [((), (0, 1, 2))]
    assert [teacher.file[-14:-12] for teacher in found[0].zoo.teachers] == ["04", "00", "01"]
    assert problems.errors == []


def test_a_ground_has_the_images_of_its_roles_and_the_answers_of_its_teachers(digits_zoo: Path) -> None:
    (opened,) = open_zoos([digits_zoo], None, Problems(), Silent())
    ground = read_ground(opened, seed=0, device=CPU, hooks=Silent())
    images = load_images(opened.zoo.data, "generator", 32)
    validation = load_images(opened.zoo.data, "validation", 32)
    assert ground.train.pixels.shape == (2 * len(images), 3, 32, 32)
    assert torch.equal(ground.train.labels, images.labels.repeat(2))
    assert torch.equal(ground.validation.pixels, validation.pixels[torch.arange(len(validation))])
    assert ground.train.log_probs.shape == (5, 2 * len(images), 10)
    torch.testing.assert_close(ground.train.log_probs.exp().sum(2), torch.ones(5, 2 * len(images)))
    right = (ground.validation.log_probs.argmax(2) == validation.labels).float().mean(1)
    recorded = torch.tensor([teacher.top1 for teacher in opened.zoo.teachers])
    torch.testing.assert_close(right, recorded, rtol=0, atol=0.02)
    assert ground.digests == tuple(teacher.sha256 for teacher in opened.zoo.teachers)


def test_the_seed_rules_the_augmentation(digits_zoo: Path) -> None:
    (opened,) = open_zoos([digits_zoo], "0-3", Problems(), Silent())
    one, same, other = (read_ground(opened, seed, CPU, Silent()).train.pixels for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_views_that_do_not_fit_memory_are_the_same_ones(digits_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (opened,) = open_zoos([digits_zoo], "0-3", Problems(), Silent())
    whole = read_ground(opened, 0, CPU, Silent()).train
    monkeypatch.setattr(views, "fits_memory", lambda images, side: False)
    lazy = read_ground(opened, 0, CPU, Silent()).train
    assert isinstance(lazy.pixels, Views)
    assert len(lazy.pixels) == len(whole.pixels)
    index = torch.tensor([len(whole.pixels) - 1, 0, 5, 5])
    assert torch.equal(lazy.pixels[index], whole.pixels[index])
    assert torch.equal(lazy.log_probs, whole.log_probs)


def test_validation_in_parts_is_close_to_all_at_once(digits_zoo: Path) -> None:
    (opened,) = open_zoos([digits_zoo], "0-3", Problems(), Silent())
    ground = read_ground(opened, 0, CPU, Silent())
    students = [soup_subset(ground, torch.arange(4))]
    whole, parts = (_accuracies(ground, students, at_once) for at_once in (360, 100))
    assert parts["data_free"] == pytest.approx(whole["data_free"], abs=1.5 / 360)  # a tie may fall either way
    assert parts["calibrated"] == pytest.approx(whole["calibrated"], abs=0.05)


def test_large_images_are_validated_as_many_at_a_time_as_in_a_step(
    digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def logits(ground: Ground, student: object, pixels: Tensor, batch_statistics: bool) -> Tensor:
        seen.append(len(pixels))
        return torch.zeros(len(pixels), 10)

    (opened,) = open_zoos([digits_zoo], "0-3", Problems(), Silent())
    ground = read_ground(opened, 0, CPU, Silent())
    monkeypatch.setattr(generator_run, "student_logits", logits)
    config = TrainGeneratorConfig((digits_zoo,), tmp_path, batch_size=100)
    GeneratorRun(config, WeightFormer(WeightFormerConfig()), [ground], Team(CPU), Silent())
    assert set(seen) == {360}
    seen.clear()
    large = replace(ground, settings=replace(ground.settings, size=224))
    GeneratorRun(config, WeightFormer(WeightFormerConfig()), [large], Team(CPU), Silent())
    assert set(seen) == {90}
