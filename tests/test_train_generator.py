"""Training a generator on zoos of real (small) teachers: it learns, it repeats, and it refuses what does not fit."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import Ran
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.generator_files import load_generator
from wfcli.core.zoo import read_zoo
from wfcli.engine.grounds import open_zoos
from wfcli.engine.train_generator import TrainGeneratorConfig, TrainGeneratorResult, train_generator
from wfcli.errors import CheckpointError, DataError, GeneratorError, OutputError, Problems, SourceError, WfError

ARCH = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125")
FILES = ["README.md", "config.json", "model.safetensors", "training.jsonl"]


class Listener:
    """Hooks that keep the warnings, and press Ctrl-C at a step."""

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop
        self.warnings: list[str] = []

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        if stage == "training the generator" and done == self.stop:
            raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def options(zoo: Path, output: Path, **changes: object) -> TrainGeneratorConfig:
    usual = TrainGeneratorConfig((zoo,), output, steps=4, batch_size=32, lr=5e-3, device="cpu")
    return replace(usual, **changes)  # type: ignore[arg-type]


def edited(zoo: Path, copy: Path, **changes: object) -> Path:
    """Copy a zoo and change entries of its zoo.json."""
    shutil.copytree(zoo, copy)
    written = json.loads((copy / "zoo.json").read_text())
    (copy / "zoo.json").write_text(json.dumps({**written, **changes}))
    return copy


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def trained(digits_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainGeneratorResult:
    """Return a training long enough to learn something."""
    output = tmp_path_factory.mktemp("trained") / "deep" / "generator"
    return train_generator(options(digits_zoo, output, steps=30, batch_size=64))


@pytest.fixture(scope="module")
def short(digits_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of four steps."""
    output = tmp_path_factory.mktemp("short") / "generator"
    train_generator(options(digits_zoo, output))
    return output


# It learns ------------------------------------------------------------------------------------------------------------


def test_it_beats_the_soup_of_teachers_it_never_saw(trained: TrainGeneratorResult) -> None:
    first = trained.history[0]
    best = next(row for row in trained.history if row["step"] == trained.best_step)
    assert first["calibrated"] == pytest.approx(first["soup_calibrated"], abs=0.01)  # untrained it is the soup
    assert first["data_free"] == pytest.approx(first["soup_data_free"], abs=0.01)
    assert trained.gain == best["gain"] == max(row["gain"] for row in trained.history)
    assert trained.gain > 0.03
    assert best["calibrated"] > best["soup_calibrated"] + 0.02
    losses = [row["loss"] for row in trained.history[1:]]
    assert sum(losses[5:]) < sum(losses[:5])


def test_what_it_writes(trained: TrainGeneratorResult, digits_zoo: Path) -> None:
    assert sorted(path.name for path in trained.folder.iterdir()) == FILES
    log = [json.loads(line) for line in (trained.folder / "training.jsonl").read_text().splitlines()]
    assert tuple(log) == trained.history
    assert [row["step"] for row in log] == [*range(0, 31, 3)]
    card = (trained.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: wfcli\n")
    assert "license" not in card  # that is for whoever trained it to say
    assert "30 steps of 64 images" in card
    assert f"step {trained.best_step}." in card
    assert "- zoo: 5 x vgg11_bn_cifar(width=0.125), 10 classes, split data, disjoint" in card
    generator, digest = load_generator(trained.folder, "mine")
    assert digest == trained.digest
    assert sum(p.numel() for p in generator.parameters()) == trained.parameters
    config = generator.config
    assert (config.preset, config.norms, config.knowledge) == ("universal", ("batch",), ("split",))
    assert config.trained_on == ("vgg11_bn_cifar(width=0.125)",)
    assert str(digits_zoo.parent) not in (trained.folder / "config.json").read_text() + card


def test_fuse_uses_it_and_the_student_is_better_than_the_soup(
    wfcli: Callable[..., Ran], trained: TrainGeneratorResult, digits_zoo: Path, tmp_path: Path
) -> None:
    (opened,) = open_zoos([digits_zoo], None, Problems(), Listener())
    held_out = [opened.zoo.paths[number] for number in opened.held_out]
    args = (*ARCH, "--data", "digits", "--generator", trained.folder, "-o", tmp_path / "student.safetensors", "--json")
    ran = wfcli("fuse", *held_out, *args)
    assert (ran.code, ran.stderr) == (0, "")
    top1 = {row["kind"]: row["top1"] for row in json.loads(ran.stdout)["comparison"]["rows"]}
    assert top1["checkpoint"] > top1["calibrated_soup"] + 0.02


# It repeats -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    digits_zoo: Path, short: Path, tmp_path: Path
) -> None:
    torch.manual_seed(123)  # the caller's random state plays no part
    before = torch.random.get_rng_state()
    train_generator(options(digits_zoo, tmp_path / "again"))
    assert torch.equal(torch.random.get_rng_state(), before)  # nor is it changed
    assert bytes_of(tmp_path / "again") == bytes_of(short)
    train_generator(options(digits_zoo, tmp_path / "other", seed=1, steps=1))
    assert (tmp_path / "other" / "training.jsonl").read_bytes() != (short / "training.jsonl").read_bytes()


def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(digits_zoo: Path, short: Path, tmp_path: Path) -> None:
    config = options(digits_zoo, tmp_path / "generator")
    with pytest.raises(KeyboardInterrupt):
        train_generator(config, Listener(stop=2))
    assert sorted(bytes_of(config.output)) == ["resume.pt", "training.jsonl"]
    with pytest.raises(WfError, match="lr: the interrupted run had 0.005, this one has 0.1") as caught:
        train_generator(replace(config, lr=0.1, resume=True))
    assert "run without --resume" in (caught.value.hint or "")
    before = bytes_of(config.output)
    with pytest.raises(WfError, match="this very run was interrupted") as caught:
        train_generator(config)
    assert "add --resume to go on" in (caught.value.hint or "")
    assert bytes_of(config.output) == before
    ears = Listener()
    result = train_generator(replace(config, resume=True), ears)
    assert ears.warnings == []
    log = [json.loads(line) for line in (config.output / "training.jsonl").read_text().splitlines()]
    assert list(result.history) == log  # of both parts: a report shows the whole training
    assert [row["step"] for row in log] == [0, 1, 2, 3, 4]
    (zoo,) = result.zoos
    assert (zoo.name, zoo.data, zoo.classes, zoo.trained_on + zoo.held_out) == (digits_zoo.name, "digits", 10, 5)
    assert result.settings["preset"] == "universal"
    assert (result.settings["steps"], result.settings["width"], result.settings["init"]) == (4, 32, None)
    assert bytes_of(config.output) == bytes_of(short)


def test_nothing_to_resume_is_told(digits_zoo: Path, tmp_path: Path) -> None:
    ears = Listener()
    train_generator(options(digits_zoo, tmp_path / "generator", steps=1, resume=True), ears)
    assert ears.warnings == [
        f"{tmp_path}/generator/resume.pt: not there, nothing to resume: starting from the beginning"
    ]


# Presets and zoos -----------------------------------------------------------------------------------------------------


def test_the_weightformer_preset_reads_raw_rows(digits_zoo: Path, tmp_path: Path) -> None:
    result = train_generator(options(digits_zoo, tmp_path / "generator", preset="weightformer", steps=4))
    generator, _ = load_generator(result.folder, "mine")
    assert generator.config.raw_widths == (27, 64, 72, 144, 288, 576)
    learned = any(parameter.any() for parameter in generator.decode_rows.parameters())
    assert learned == (result.best_step > 0)


def test_the_specialised_preset_belongs_to_its_base(
    wfcli: Callable[..., Ran], digits_zoo: Path, tmp_path: Path
) -> None:
    result = train_generator(options(digits_zoo, tmp_path / "generator", preset="specialised", steps=2))
    generator, _ = load_generator(result.folder, "mine")
    frame = generator.config.frame
    assert frame is not None
    assert (frame.architecture, frame.base) == ("vgg11_bn_cifar(width=0.125)", "teacher-00.safetensors")
    assert frame.class_names == tuple("0123456789")
    assert frame.shapes["head.weight"] == (10, 64)
    assert generator.fingerprint.norm(dim=1).tolist() == pytest.approx([1.0] * len(frame.anchors))
    card = (result.folder / "README.md").read_text()
    assert "It belongs to one base (teacher-00.safetensors)" in card
    out = tmp_path / "student.safetensors"
    # After two steps it is no better than the soup: no guard.
    assert wfcli("fuse", digits_zoo, *ARCH, "--generator", result.folder, "--no-guard", "-o", out).code == 0
    assert (open_checkpoint(out).provenance or {})["method"] == "weightformer"


def test_with_four_zoos_the_last_is_held_out_whole(digits_zoo: Path, tmp_path: Path) -> None:
    zoos = [shutil.copytree(digits_zoo, tmp_path / f"zoo-{number}") for number in range(4)]
    config = options(digits_zoo, tmp_path / "generator", zoos=tuple(zoos), teachers="0-1", steps=1)
    result = train_generator(config)  # two teachers a zoo are enough: none of them is held out
    assert [row["step"] for row in result.history] == [0, 1]
    assert (result.folder / "README.md").read_text().count(": 2 x vgg11_bn_cifar") == 4


# Bad input: one error, all problems, nothing left behind --------------------------------------------------------------


def refuse(config: TrainGeneratorConfig) -> WfError:
    with pytest.raises(WfError) as caught:
        train_generator(config)
    assert not config.output.exists()
    return caught.value


def test_a_specialised_generator_refuses_two_different_zoos(digits_zoo: Path, tmp_path: Path) -> None:
    other = edited(digits_zoo, tmp_path / "other", base={"name": "stranger.safetensors", "sha256": "0" * 64})
    error = refuse(options(digits_zoo, tmp_path / "generator", zoos=(digits_zoo, other), preset="specialised"))
    assert isinstance(error, GeneratorError)
    assert error.problems == (
        f"{digits_zoo}: vgg11_bn_cifar(width=0.125), 10 classes, base teacher-00.safetensors",
        f"{other}: vgg11_bn_cifar(width=0.125), 10 classes, base stranger.safetensors",
    )
    assert "use --preset universal" in (error.hint or "")


def test_too_few_teachers(digits_zoo: Path, tmp_path: Path) -> None:
    error = refuse(options(digits_zoo, tmp_path / "generator", teachers="0-2"))
    assert isinstance(error, GeneratorError)
    assert error.problems == (
        f"{digits_zoo}: got 3 teachers, expected at least 4: two to train on, two to validate on",
    )
    assert "give four or more zoos" in (error.hint or "")
    zoos = tuple(shutil.copytree(digits_zoo, tmp_path / f"zoo-{number}") for number in range(4))
    error = refuse(options(digits_zoo, tmp_path / "generator", zoos=zoos, teachers="3"))
    assert error.problems == tuple(f"{zoo}: got 1 teacher, expected at least 2" for zoo in zoos)


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ("0-9", "--zoo-teachers 0-9: 0-9 is out of range, {zoo} has 5 teachers"),
        ("0-3,x", "--zoo-teachers 0-3,x: 'x' is neither a teacher number nor a range"),
        ("3-0", "--zoo-teachers 3-0: '3-0' is neither a teacher number nor a range"),
        ("0-4,1", "--zoo-teachers 0-4,1: given twice: 1"),
        ("", "--zoo-teachers : '' is neither a teacher number nor a range"),
    ],
)
def test_a_wrong_choice_of_teachers(digits_zoo: Path, tmp_path: Path, chosen: str, problem: str) -> None:
    error = refuse(options(digits_zoo, tmp_path / "generator", teachers=chosen))
    assert error.problems == (problem.format(zoo=digits_zoo),)
    assert error.hint == "write numbers and ranges from 0 to 4, like 0-4,7"


def test_all_that_is_wrong_with_all_zoos_comes_at_once(digits_zoo: Path, tmp_path: Path) -> None:
    cut, seven = edited(digits_zoo, tmp_path / "cut"), edited(digits_zoo, tmp_path / "seven")
    path = cut / "teacher-01.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    edited(digits_zoo, tmp_path / "nodata", data={"source": "./gone", "label_column": None, "classes": None})
    (seven / "teacher-03.safetensors").unlink()
    names = ("cut", "none", "seven", "nodata")
    config = options(digits_zoo, tmp_path / "generator", zoos=tuple(tmp_path / n for n in names), lr=0, batch_size=1)
    told = str(refuse(config))
    problems = [line.split(": got")[0] for line in told.splitlines() if not line.startswith("hint: ")]
    assert problems == [
        "--batch-size",
        "--lr",
        f"{path}: head.weight: truncated",
        f"{tmp_path}/none: no zoo.json there",
        f"{seven}/teacher-03.safetensors: not there, though zoo.json names it",
        f"{tmp_path}/nodata: data {tmp_path}/nodata/gone: no such folder",
    ]
    assert "hint: see wfcli train-generator --help" in told
    assert "hint: a zoo is a folder written by wfcli train-teachers" in told


def test_a_zoo_of_other_classes_than_its_data(digits_zoo: Path, tmp_path: Path) -> None:
    zoo = edited(digits_zoo, tmp_path / "z", data={"source": "digits", "label_column": None, "classes": "0-6"})
    error = refuse(options(zoo, tmp_path / "generator"))
    assert isinstance(error, DataError)
    expected = "z/teacher-00.safetensors: its head has 10 classes, the data digits (classes 0-6) has 7"
    assert error.problems[0] == f"{zoo}: {expected}"
    assert len(error.problems) == 5


def test_a_teacher_of_another_architecture(digits_zoo: Path, tmp_path: Path) -> None:
    zoo = edited(digits_zoo, tmp_path / "z", architecture={"name": "vgg11_bn_cifar", "args": {"width": 0.25}})
    error = refuse(options(zoo, tmp_path / "generator", teachers="0-3"))
    assert "z/teacher-03.safetensors: features.0.weight: got [8, 3, 3, 3], expected [16, 3, 3, 3]" in error.problems


def test_a_teacher_that_is_not_the_one_of_the_zoo(digits_zoo: Path, tmp_path: Path) -> None:
    zoo = edited(digits_zoo, tmp_path / "z")
    shutil.copy(zoo / "teacher-00.safetensors", zoo / "teacher-04.safetensors")
    error = refuse(options(zoo, tmp_path / "generator"))
    assert isinstance(error, CheckpointError)
    expected = [read_zoo(zoo).teachers[number].sha256[:12] for number in (0, 4)]
    assert error.problems == (f"z/teacher-04.safetensors: got sha256 {expected[0]}..., expected {expected[1]}...",)
    assert "zoo.json describes" in (error.hint or "")


def test_teachers_that_are_not_finite_are_all_listed(digits_zoo: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    zoo = edited(digits_zoo, tmp_path / "z")
    written = json.loads((zoo / "zoo.json").read_text())
    for number, name in ((1, "head.bias"), (3, "features.1.running_var")):
        path = zoo / f"teacher-0{number}.safetensors"
        state = load_file(path)
        state[name][:2] = torch.tensor([float("nan"), float("inf")])
        save_file(state, path)
        written["teachers"][number]["sha256"] = open_checkpoint(path).digest()
    (zoo / "zoo.json").write_text(json.dumps(written))
    error = refuse(options(zoo, tmp_path / "generator"))
    assert isinstance(error, CheckpointError)
    assert error.problems == (
        "z/teacher-01.safetensors: head.bias: got 2 of 10 numbers NaN or Inf",
        "z/teacher-03.safetensors: features.1.running_var: got 2 of 8 numbers NaN or Inf",
    )


def test_the_same_zoo_twice(digits_zoo: Path, tmp_path: Path) -> None:
    error = refuse(options(digits_zoo, tmp_path / "g", zoos=(digits_zoo, digits_zoo / ".." / digits_zoo.name)))
    assert isinstance(error, SourceError)
    assert error.problems == (f"{digits_zoo}/../zoo: the same zoo twice",)


def test_an_output_that_cannot_be_made(digits_zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=rf"{tmp_path}/file is a file, expected a folder\nhint: choose another -o"):
        train_generator(options(digits_zoo, tmp_path / "file" / "generator"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_of_others_are_not_replaced(digits_zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    contents = {
        "README.md": "# my project",
        "config.json": '{"theme": "dark"}',
        "training.jsonl": '{"step": 1}\n',
        "resume.pt": "?",
        "model.safetensors": "",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    with pytest.raises(OutputError, match="choose another -o: a new folder") as caught:
        train_generator(options(digits_zoo, folder))
    assert caught.value.problems == tuple(
        f"{folder}: {name} is there already and is not from train-generator"
        for name in ("README.md", "config.json", "model.safetensors", "training.jsonl", "resume.pt")
    )
    assert {path.name: path.read_text() for path in folder.iterdir()} == contents


def test_a_zoo_gets_no_generator(digits_zoo: Path, tmp_path: Path) -> None:
    zoo = edited(digits_zoo, tmp_path / "z")
    before = bytes_of(zoo)
    with pytest.raises(OutputError, match=r"z: is a zoo \(zoo\.json\)"):
        train_generator(options(zoo, zoo))
    assert bytes_of(zoo) == before


def test_a_generator_may_be_trained_again_in_its_place(digits_zoo: Path, short: Path, tmp_path: Path) -> None:
    again = shutil.copytree(short, tmp_path / "again")
    train_generator(options(digits_zoo, again, seed=1, steps=1))
    assert sorted(bytes_of(again)) == FILES
    assert bytes_of(again) != bytes_of(short)


def test_an_unknown_preset_and_options_out_of_range(digits_zoo: Path, tmp_path: Path) -> None:
    error = refuse(options(digits_zoo, tmp_path / "g", preset="universl"))
    assert error.problems == ("unknown preset 'universl'",)
    assert error.hint == "use one of universal, weightformer, specialised"
    error = refuse(
        options(digits_zoo, tmp_path / "g", steps=0, batch_size=1, lr=math.inf, max_teachers=1, seed=-1, zoos=())
    )
    assert len(error.problems) == 6


def test_a_loss_that_explodes_is_an_error_with_a_hint(digits_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(WfError, match=r"the loss is (nan|inf) at step \d+") as caught:
        train_generator(options(digits_zoo, tmp_path / "g", lr=1e30))
    assert caught.value.hint == "lower --lr"
    assert not (tmp_path / "g" / "model.safetensors").exists()


# Going on from a trained one ------------------------------------------------------------------------------------------


def test_a_generator_goes_on_from_another(trained: TrainGeneratorResult, digits_zoo: Path, tmp_path: Path) -> None:
    first = str(trained.folder)
    result = train_generator(options(digits_zoo, tmp_path / "g", init=first, steps=2))
    best = max(row["gain"] for row in trained.history)
    assert result.history[0]["gain"] == pytest.approx(best)  # what was kept, before any step
    assert result.gain >= best
    assert (
        f"It went on from the generator generator (sha256 {trained.digest})" in (tmp_path / "g/README.md").read_text()
    )


def test_prior_and_mixing_are_trained_one_at_a_time(digits_zoo: Path, tmp_path: Path) -> None:
    def parts(name: str, **changes: object) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        result = train_generator(options(digits_zoo, tmp_path / name, steps=12, batch_size=64, **changes))
        assert result.best_step > 0, f"{name}: nothing learned, nothing to compare"
        generator = load_generator(result.folder, name)[0]
        mixing = [tensor for key, tensor in generator.named_parameters() if not key.startswith("prior.")]
        return list(generator.prior.parameters()), mixing

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    first_prior, first_mixing = parts("first", preset="specialised", train="prior")
    assert any(bool(tensor.any()) for tensor in first_prior)
    assert not any(bool(tensor.any()) for tensor in first_mixing[-6:])  # logits, scales, centres: still the soup's
    prior, mixing = parts("then", init=str(tmp_path / "first"), train="mixing")
    assert same(prior, first_prior)
    assert not same(mixing, first_mixing)


def test_a_specialised_one_starts_from_a_universal_one(
    trained: TrainGeneratorResult, digits_zoo: Path, tmp_path: Path
) -> None:
    config = options(digits_zoo, tmp_path / "g", init=str(trained.folder), preset="specialised", train="prior", steps=1)
    result = train_generator(config)
    generator, first = (load_generator(folder, "g")[0] for folder in (result.folder, trained.folder))
    assert generator.config.preset == "specialised"
    own = dict(generator.named_parameters())
    assert all(torch.equal(own[key], tensor) for key, tensor in first.named_parameters())


def test_what_goes_on_stays_of_one_make(trained: TrainGeneratorResult, digits_zoo: Path, tmp_path: Path) -> None:
    first = str(trained.folder)
    error = refuse(options(digits_zoo, tmp_path / "g", init=first, preset="weightformer", width=64, flow=False))
    assert error.problems[:3] == (
        "generator generator: --preset: got weightformer, expected universal",
        "generator generator: --width: got 64, expected 32",
        "generator generator: --no-flow: it was trained with flow",
    )
    error = refuse(options(digits_zoo, tmp_path / "g", init=str(tmp_path / "nothing")))
    assert "expected the folder of a generator, got no such folder" in error.problems[0]


def test_a_prior_goes_on_with_its_own_base_alone(digits_zoo: Path, tmp_path: Path) -> None:
    first = train_generator(options(digits_zoo, tmp_path / "first", preset="specialised", steps=1))
    train_generator(options(digits_zoo, tmp_path / "on", init=str(first.folder), steps=1))  # of the same preset
    assert load_generator(tmp_path / "on", "on")[0].config.preset == "specialised"
    with pytest.raises(OutputError, match="is the generator of --init itself, which would be overwritten"):
        train_generator(options(digits_zoo, first.folder, init=str(first.folder), steps=1))
    weights = tmp_path / "first" / "model.safetensors"
    state = dict(open_checkpoint(weights))
    state["fingerprint"] = -state["fingerprint"]
    save_state(weights, state, {})
    error = refuse(options(digits_zoo, tmp_path / "g", preset="specialised", init=str(first.folder), steps=1))
    likeness = "likeness of the weights: got -1.00, expected above 0.5"
    assert error.problems == (f"generator first: the zoo's base is not teacher-00.safetensors ({likeness})",)
    written = json.loads((tmp_path / "first" / "config.json").read_text())
    written["frame"]["class_names"][4:6] = ["four", "five"]
    (tmp_path / "first" / "config.json").write_text(json.dumps(written))
    error = refuse(options(digits_zoo, tmp_path / "g", init=str(first.folder), steps=1))
    assert error.problems == ("generator first: classes: 2 differ, the first: got 4, expected four",)


def test_the_part_to_train_and_the_size_are_checked(digits_zoo: Path, tmp_path: Path) -> None:
    error = refuse(options(digits_zoo, tmp_path / "g", train="prior", width=30, blocks=0))
    assert error.problems == (
        "--train: got prior, expected --preset specialised for it",
        "--width: got 30, expected a multiple of 4",
        "--blocks: got 0, expected at least 1",
    )
    error = refuse(options(digits_zoo, tmp_path / "g", train="mixing", preset="specialised", width=0))
    assert error.problems == (
        "--width: got 0, expected a multiple of 4",
        "--train mixing: got no generator with a prior to go on from, expected one",
    )
    result = train_generator(options(digits_zoo, tmp_path / "g", width=16, blocks=1, steps=1))
    config = load_generator(result.folder, "small")[0].config
    assert (config.width, config.blocks) == (16, 1)


# The paper's mechanisms ----------------------------------------------------------------------------------------------


def test_the_paper_s_preset_has_its_mechanisms_and_each_can_be_switched_off(digits_zoo: Path, tmp_path: Path) -> None:
    paper = train_generator(options(digits_zoo, tmp_path / "paper", preset="weightformer", batch_size=16))
    config = load_generator(paper.folder, "paper")[0].config
    assert (config.attention, config.mask, config.flow) == ("full", True, True)
    assert 27 in config.raw_widths
    seen = {bytes_of(paper.folder)["training.jsonl"]}  # the best of so few steps may be the untrained one
    for number, off in enumerate(({"attention": "cross"}, {"mask": False}, {"flow": False}, {"shift_weight": 0.0})):
        other = options(digits_zoo, tmp_path / str(number), preset="weightformer", batch_size=16, **off)
        seen.add(bytes_of(train_generator(other).folder)["training.jsonl"])
    assert len(seen) == 5


def test_a_mask_needs_the_full_attention(digits_zoo: Path, tmp_path: Path) -> None:
    error = refuse(options(digits_zoo, tmp_path / "g", mask=True, attention="both", shift_weight=-1.0))
    assert error.problems == (
        "--attention: got both, expected one of cross, full",
        "--mask: got True, expected the full attention for it",
        "--shift-weight: got -1.0, expected at least 0 and finite",
    )


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes_give_what_one_gives_with_as_many_pairs(digits_zoo: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    train_generator(options(digits_zoo, alone, accumulate=2))
    launch = ("torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    args = ("train-generator", "--zoo", str(digits_zoo), "--steps", "4", "--batch-size", "32", "--lr", "5e-3")
    command = [sys.executable, "-m", *launch, "-m", "wfcli", *args, "--device", "cpu", "-o", str(together)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("sha256") == 1  # one of them speaks
    assert bytes_of(together)["model.safetensors"] == bytes_of(alone)["model.safetensors"]
    assert sorted(bytes_of(together)) == FILES


def test_pairs_are_shared_out_evenly(digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wfcli.engine.team.Team.__init__", lambda self, device: vars(self).update(size=2, rank=0))
    error = refuse(options(digits_zoo, tmp_path / "g", accumulate=3))
    assert error.problems == ("--accumulate: got 3, expected a multiple of the 2 processes",)


def test_more_pairs_take_another_way(digits_zoo: Path, short: Path, tmp_path: Path) -> None:
    train_generator(options(digits_zoo, tmp_path / "g", accumulate=2))
    assert bytes_of(tmp_path / "g")["training.jsonl"] != bytes_of(short)["training.jsonl"]
    same = train_generator(options(digits_zoo, tmp_path / "one", accumulate=1))
    assert bytes_of(same.folder)["model.safetensors"] == bytes_of(short)["model.safetensors"]
