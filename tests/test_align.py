"""`fuse --align`: independent teachers come into one frame by themselves, and each is shown to be the net it was."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import wfcli.core.small_models  # noqa: F401  registers the small-image variants
from tests.conftest import Ran
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.spaces import Space
from wfcli.core.symmetry import Symmetry, find_symmetry
from wfcli.engine.align import _change

NETS = ("vgg11_bn_cifar", "vgg11_cifar", "vit_tiny_cifar")
WIDTHS = {"vgg11_bn_cifar": 0.125, "vgg11_cifar": 0.125, "vit_tiny_cifar": 0.34}
Cli = Callable[..., Ran]


def net(name: str) -> torch.nn.Module:
    return timm.create_model(name, num_classes=10, width=WIDTHS[name]).eval()


def shuffled_pair(name: str, folder: Path) -> tuple[torch.nn.Module, list[Path]]:
    """Write a net, and a near copy of it with its units in another order; return the net and both files."""
    torch.manual_seed(0)
    model = net(name)
    symmetry = find_symmetry(model, torch.randn(2, 3, 32, 32))
    state = model.state_dict()
    near = {
        key: value + 0.01 * value.std() * torch.randn_like(value) if value.dim() > 1 else value
        for key, value in state.items()
    }
    other = symmetry.permuted(near, symmetry.random(torch.Generator().manual_seed(1)))
    paths = [folder / "one.safetensors", folder / "other.safetensors"]
    for path, tensors in zip(paths, (state, other), strict=True):
        save_state(path, {key: value.contiguous() for key, value in tensors.items()}, {})
    return model, paths


def answers(model: torch.nn.Module, path: Path) -> Tensor:
    model.load_state_dict(dict(open_checkpoint(path)))
    with torch.no_grad():
        found: Tensor = model(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    return found


def weights_apart(one: Path, other: Path) -> float:
    """Return the squared distance of two nets' matrices, relative to the first's squared length."""
    state, theirs = dict(open_checkpoint(one)), dict(open_checkpoint(other))
    weights = [key for key, value in state.items() if value.dim() > 1]
    apart = sum(float((state[key] - theirs[key]).square().sum()) for key in weights)
    return apart / sum(float(state[key].square().sum()) for key in weights)


def arguments(name: str) -> tuple[str, ...]:
    return ("--arch", name, "--arch-arg", f"width={WIDTHS[name]}")


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", ["soup", "weightformer"])
def test_a_shuffled_copy_is_found_again(wfcli: Cli, tmp_path: Path, name: str, method: str) -> None:
    model, paths = shuffled_pair(name, tmp_path)
    ran = wfcli("fuse", *paths, *arguments(name), "--method", method, "-o", tmp_path / "s.safetensors", "--json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)["alignment"]
    assert told["how"] == "weights"
    assert told["moved"] == ["other.safetensors"]
    assert told["share"] > 0.99
    assert told["change"] <= 1e-8
    assert told["fixed"] == []
    teacher, student = answers(model, paths[0]), answers(model, tmp_path / "s.safetensors")
    assert float((student - teacher).norm() / teacher.norm()) < 0.1
    record = open_checkpoint(tmp_path / "s.safetensors").provenance or {}
    assert record["alignment"] == {"how": "weights", "moved": told["moved"]}


@pytest.mark.parametrize("name", NETS)
def test_activations_find_it_again_too(wfcli: Cli, tmp_path: Path, name: str) -> None:
    _, paths = shuffled_pair(name, tmp_path)
    args = ("--align", "activations", "--data", "digits", "--calibration-images", "200", "--method", "soup", "--json")
    ran = wfcli("fuse", *paths, *arguments(name), *args, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)["alignment"]
    assert told["how"] == "activations on 200 images"
    assert told["change"] <= 1e-8
    assert weights_apart(paths[0], tmp_path / "s.safetensors") < 0.1
    without = wfcli("fuse", *paths, *arguments(name), "--align", "activations", "-o", tmp_path / "t.safetensors")
    assert without.code == 1
    assert "--align activations: got no images to look at" in without.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_teachers_of_less_precision(wfcli: Cli, tmp_path: Path, dtype: torch.dtype) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)
    for path in paths:
        state = dict(open_checkpoint(path))
        save_state(path, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, {})
    args = ("--align", "activations", "--data", "digits", "--calibration-images", "50", "--method", "soup", "--json")
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), *args, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)["alignment"]
    assert told["how"] == "activations on 50 images"
    assert told["moved"] == ["other.safetensors"]
    assert open_checkpoint(tmp_path / "s.safetensors")["head.weight"].dtype == dtype


def test_activations_alone_find_it_again(wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)
    monkeypatch.setattr("wfcli.engine.align.comparable", lambda *given: {})  # no weights to match by
    args = ("--align", "activations", "--data", "digits", "--calibration-images", "200", "--method", "aligned-soup")
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), *args, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    assert weights_apart(paths[0], tmp_path / "s.safetensors") < 0.1


def test_activations_are_those_of_as_many_images_as_fit(
    wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)
    monkeypatch.setattr("wfcli.engine.image_methods.MOST_PIXELS", 20 * 32 * 32)
    looked: list[int] = []

    def counted(model: torch.nn.Module, example: Tensor, *given: Any) -> float:
        looked.append(len(example))
        return _change(model, example, *given)

    monkeypatch.setattr("wfcli.engine.align._change", counted)
    args = ("--align", "activations", "--data", "digits", "--calibration-images", "200", "--method", "soup", "--json")
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), *args, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["alignment"]["how"] == "activations on 20 images"
    assert looked == [8, 8]  # in float64, and that on all of them takes long


def test_a_wrong_permutation_is_found_out(wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)

    def wrong(model: torch.nn.Module, example: Tensor) -> Symmetry:
        symmetry = find_symmetry(model, example)
        symmetry.axes["head.weight"][0] = Space(10)  # classes have names
        return symmetry

    def matched(symmetry: Symmetry, *given: object) -> list[dict[Space, Tensor]]:
        return [symmetry.identity(), symmetry.random(torch.Generator().manual_seed(0))]

    monkeypatch.setattr("wfcli.engine.align.find_symmetry", wrong)
    monkeypatch.setattr("wfcli.engine.align.match_all", matched)
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert re.search(r"answers move by \d\.\de[+-]0\d of the largest, expected at most 1e-08", ran.stderr)
    assert "please report it" in ran.stderr
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize("changes", [(1e-16, math.nan), (math.nan, 1e-16), (1.0, math.nan)])
def test_answers_that_are_no_numbers_prove_nothing(
    wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[float, ...]
) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)
    said = iter(changes)
    monkeypatch.setattr("wfcli.engine.align._change", lambda *given: next(said))
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert "answers move by nan of the largest" in ran.stderr
    assert not (tmp_path / "s.safetensors").exists()


def test_answers_that_are_all_zero_stay_so(wfcli: Cli, tmp_path: Path) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)
    for path in paths:
        state = dict(open_checkpoint(path))
        save_state(path, {k: torch.zeros_like(v) if k.startswith("head") else v for k, v in state.items()}, {})
    args = ("--method", "soup", "-o", tmp_path / "s.safetensors", "--json")
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), *args)
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["alignment"]["change"] == 0


def test_without_alignment_the_average_is_another_net(wfcli: Cli, tmp_path: Path) -> None:
    model, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), "--align", "none", "-o", out, "--json")
    assert ran.code == 0
    assert json.loads(ran.stdout)["alignment"] is None
    assert "alignment" not in (open_checkpoint(out).provenance or {})
    teacher, student = answers(model, paths[0]), answers(model, out)
    assert float((student - teacher).norm() / teacher.norm()) > 0.5


def test_fine_tunes_are_left_alone_unless_told(wfcli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = net("vgg11_bn_cifar").state_dict()
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path in paths:
        save_state(
            path, {k: v + 0.001 * torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}, {}
        )
    args = (
        "fuse",
        *paths,
        *arguments("vgg11_bn_cifar"),
        "--method",
        "soup",
        "-o",
        tmp_path / "s.safetensors",
        "--json",
    )
    assert json.loads(wfcli(*args).stdout)["alignment"] is None
    told = json.loads(wfcli(*args, "--align", "weights").stdout)["alignment"]
    assert told["moved"] == []  # they stand in one order already


def test_a_net_that_cannot_be_followed_is_an_error_with_a_way_out(
    wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)

    def broken(model: torch.nn.Module, example: Tensor) -> None:
        raise RuntimeError("data-dependent control flow\nmore")

    monkeypatch.setattr("wfcli.engine.align.find_symmetry", broken)
    ran = wfcli("fuse", *paths, *arguments("vgg11_bn_cifar"), "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert "graph cannot be followed (RuntimeError: data-dependent control flow)" in ran.stderr
    assert "--align none" in ran.stderr
    assert not (tmp_path / "s.safetensors").exists()


def test_inspect_shows_what_may_be_permuted(wfcli: Cli, tmp_path: Path) -> None:
    _, paths = shuffled_pair("vgg11_bn_cifar", tmp_path)
    ran = wfcli("inspect", paths[0], "--plan")
    assert ran.code == 0
    assert "8 spaces whose units may be permuted" in " ".join(ran.stdout.split())
    assert "features.0.weight[0]" in ran.stdout
    (plan,) = json.loads(wfcli("inspect", *paths, "--plan", "--json").stdout)["plans"]
    assert [space["size"] for space in plan["spaces"]] == [8, 16, 32, 32, 64, 64, 64, 64]


@pytest.mark.parametrize("name", NETS)
def test_layers_are_fitted_to_images(wfcli: Cli, tmp_path: Path, name: str) -> None:
    model, paths = shuffled_pair(name, tmp_path)
    args = ("fuse", *paths, *arguments(name), "--method", "least-squares", "-o", tmp_path / "s.safetensors", "--json")
    ran = wfcli(*args, "--unlabelled", "digits", "--distill-steps", "0", "--images", "200")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["method"] == "least-squares"
    assert told["alignment"]["moved"] == ["other.safetensors"]
    assert (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["method"] == "least-squares"
    teacher, student = answers(model, paths[0]), answers(model, tmp_path / "s.safetensors")
    assert torch.isfinite(student).all()
    without = wfcli(*args)
    assert without.code == 1
    assert "--method least-squares: got no images to look at" in without.stderr
    assert not torch.equal(teacher, student)


def test_among_strangers_those_of_one_base_stay_as_they_are(wfcli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    symmetry = find_symmetry(net("vgg11_bn_cifar"), torch.randn(2, 3, 32, 32))
    state = net("vgg11_bn_cifar").state_dict()
    draw = torch.Generator().manual_seed(3)
    paths = []
    for number in range(5):
        other = {k: v + 0.05 * v.std() * torch.randn_like(v) if v.dim() > 1 else v for k, v in state.items()}
        if number in (0, 3):
            other = symmetry.permuted(other, symmetry.random(draw))
        paths.append(tmp_path / f"{number}.safetensors")
        save_state(paths[-1], {k: v.contiguous() for k, v in other.items()}, {})
    ran = wfcli(
        "fuse", *paths, *arguments("vgg11_bn_cifar"), "--method", "soup", "-o", tmp_path / "s.safetensors", "--json"
    )
    told = json.loads(ran.stdout)
    assert told["alignment"]["moved"] == ["0.safetensors", "3.safetensors"]
    assert "0.safetensors, 3.safetensors stand apart" in told["regime"]


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a zoo of teachers with starts of their own."""
    from wfcli.core.architectures import find_architecture
    from wfcli.core.data import DataSpec
    from wfcli.engine.train_teachers import TrainTeachersConfig, train_teachers

    folder = tmp_path_factory.mktemp("independent") / "zoo"
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    train_teachers(TrainTeachersConfig(arch, DataSpec("digits"), 5, folder, epochs=0.5))
    return folder


@pytest.mark.parametrize("preset", ["universal", "specialised"])
def test_a_generator_of_independent_teachers(wfcli: Cli, independent: Path, tmp_path: Path, preset: str) -> None:
    made = tmp_path / "generator"
    args = ("--preset", preset, "--steps", "4", "--batch-size", "32", "--max-teachers", "3")
    ran = wfcli("train-generator", "--zoo", independent, *args, "-o", made)
    assert ran.code == 0, ran.stderr
    config = json.loads((made / "config.json").read_text())
    assert config["relations"] == ["independent"]
    state = dict(open_checkpoint(made / "model.safetensors"))
    assert any(name.startswith("reference/") for name in state) == (preset == "specialised")
    paths = sorted(independent.glob("teacher-*.safetensors"))[:2]
    common = (*arguments("vgg11_bn_cifar"), "--generator", made, "--no-guard", "--json")
    told = json.loads(wfcli("fuse", *paths, *common, "-o", tmp_path / "s.safetensors").stdout)
    assert told["generator"] == str(made) or told["generator"] == made.name
    frame = ", in the generator's frame" if preset == "specialised" else ""
    assert told["alignment"]["how"] == f"weights{frame}"
    # Another order of a teacher's units is the same teacher: the student is the same net.
    symmetry = find_symmetry(net("vgg11_bn_cifar"), torch.randn(2, 3, 32, 32))
    shuffled = symmetry.permuted(dict(open_checkpoint(paths[1])), symmetry.random(torch.Generator().manual_seed(5)))
    save_state(tmp_path / "o.safetensors", {key: value.contiguous() for key, value in shuffled.items()}, {})
    ran = wfcli("fuse", paths[0], tmp_path / "o.safetensors", *common, "-o", tmp_path / "t.safetensors")
    assert ran.code == 0, ran.stderr
    model = net("vgg11_bn_cifar")
    one, two = answers(model, tmp_path / "s.safetensors"), answers(model, tmp_path / "t.safetensors")
    torch.testing.assert_close(two, one, atol=1e-3 * float(one.abs().max()), rtol=1e-3)


def test_a_generator_of_independent_teachers_is_out_of_its_depth_with_fine_tunes(
    wfcli: Cli, independent: Path, tmp_path: Path
) -> None:
    made = tmp_path / "generator"
    ran = wfcli("train-generator", "--zoo", independent, "--steps", "1", "--batch-size", "32", "-o", made)
    assert ran.code == 0, ran.stderr
    state = dict(open_checkpoint(independent / "teacher-00.safetensors"))
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path in paths:
        save_state(
            path, {k: v + 0.001 * torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}, {}
        )
    args = ("fuse", *paths, *arguments("vgg11_bn_cifar"), "--generator", made, "-o", tmp_path / "s.safetensors")
    assert "it was trained on independent teachers, but" in " ".join(wfcli(*args).stderr.split())
    independent_paths = sorted(independent.glob("teacher-*.safetensors"))[:2]
    ran = wfcli("fuse", *independent_paths, *args[3:], "--align", "none")
    assert "--align none leaves the teachers out of its frame" in " ".join(ran.stderr.split())
