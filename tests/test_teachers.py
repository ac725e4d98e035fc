"""Teachers that belong together are opened; what does not is named, all of it at once, before any weight is read."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hub_server import HubServer, use_hub
from wfcli.core.architectures import Architecture, find_architecture, key_layout
from wfcli.core.checkpoint import Checkpoint, TensorSpec, save_state, state_specs
from wfcli.core.safetensors_writer import _lay_out
from wfcli.engine.teachers import Teachers, open_teachers
from wfcli.errors import ArchitectureError, CheckpointError, SourceError, WfError

VGG = find_architecture("vgg11_cifar", {"width": 0.125})
VGG_BN = find_architecture("vgg11_bn_cifar", {"width": 0.125})


def make_state(arch: Architecture, classes: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(spec.shape, generator=generator) if spec.dtype == "F32" else torch.tensor(1)
        for key, spec in key_layout(arch, classes).items()
    }


def write(path: Path, seed: int, arch: Architecture = VGG, classes: int = 10, **changes: Tensor | None) -> str:
    state: dict[str, Any] = make_state(arch, classes, seed)
    state.update({key.replace("__", "."): value for key, value in changes.items()})
    path.parent.mkdir(exist_ok=True)
    save_state(path, {key: value for key, value in state.items() if value is not None}, {})
    return str(path)


def fail(texts: list[str], arch: Architecture = VGG, minimum: int = 2) -> WfError:
    with pytest.raises(WfError) as caught:
        open_teachers(texts, arch, minimum=minimum)
    return caught.value


def test_teachers_are_opened_in_order(tmp_path: Path) -> None:
    texts = [write(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("bac")]
    teachers = open_teachers(texts, VGG)
    assert [checkpoint.name for checkpoint in teachers.checkpoints] == [
        "b.safetensors",
        "a.safetensors",
        "c.safetensors",
    ]
    assert (teachers.num_classes, teachers.layout.name) == (10, "timm")
    assert teachers.layout.files == {key: spec.shape for key, spec in key_layout(VGG, 10).items()}
    assert open_teachers(sorted(texts), VGG).layout == open_teachers([str(tmp_path)], VGG).layout


def test_provenance_names_files_without_their_folders(tmp_path: Path) -> None:
    texts = [write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 1)]
    assert open_teachers(texts, VGG).provenance() == [
        {"name": Path(text).name, "sha256": hashlib.sha256(Path(text).read_bytes()).hexdigest()} for text in texts
    ]


def test_provenance_holds_the_commit_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write(tmp_path / "a.safetensors", 0)
    content = Path(write(tmp_path / "b.safetensors", 1)).read_bytes()
    with HubServer() as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
        commit = hub.add("me/net", {"model.safetensors": content})
        found = open_teachers([local, "hf:me/net"], VGG).provenance()
    assert found[1] == {"name": "me/net", "sha256": hashlib.sha256(content).hexdigest(), "revision": commit}


def test_provenance_tells_equal_base_names_apart_by_their_digests(tmp_path: Path) -> None:
    texts = [write(tmp_path / folder / "x.safetensors", seed) for seed, folder in enumerate("ab")]
    texts.append(write(tmp_path / "y.safetensors", 2))
    teachers = open_teachers(texts, VGG)
    assert [checkpoint.name for checkpoint in teachers.checkpoints] == [
        "a/x.safetensors",
        "b/x.safetensors",
        "y.safetensors",
    ]
    digests = [hashlib.sha256(Path(text).read_bytes()).hexdigest() for text in texts]
    assert teachers.provenance() == [
        {"name": f"x.safetensors ({digests[0][:8]})", "sha256": digests[0]},
        {"name": f"x.safetensors ({digests[1][:8]})", "sha256": digests[1]},
        {"name": "y.safetensors", "sha256": digests[2]},
    ]


@pytest.mark.parametrize(("minimum", "plural"), [(2, "teachers"), (1, "teacher")])
def test_too_few_teachers(tmp_path: Path, minimum: int, plural: str) -> None:
    error = fail([], minimum=minimum)
    assert error.problems == (f"expected at least {minimum} {plural}, got none",)
    error = fail([write(tmp_path / "a.safetensors", 0)], minimum=3)
    assert isinstance(error, CheckpointError)
    assert error.problems == ("expected at least 3 teachers, got only 1: a.safetensors",)
    assert error.hint is not None
    assert error.hint.startswith("name more, each a file, a folder, a glob in quotes, hf:owner/name")


def test_one_teacher_is_enough_where_it_is(tmp_path: Path) -> None:
    assert isinstance(open_teachers([write(tmp_path / "a.safetensors", 0)], VGG, minimum=1), Teachers)


def test_the_same_file_twice(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 1)
    (tmp_path / "link.safetensors").symlink_to(a)
    error = fail([a, b, a, str(tmp_path / "link.safetensors"), f"{tmp_path}/./b.safetensors"])
    assert isinstance(error, CheckpointError)
    assert error.problems == (
        "a.safetensors: the same file twice",
        "link.safetensors: the same file twice",
        "b.safetensors: the same file twice",
    )
    assert error.hint == "give every teacher once"


def test_the_same_bytes_under_another_name(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 1)
    shutil.copy(a, tmp_path / "copy.safetensors")
    error = fail([a, b, str(tmp_path / "copy.safetensors")])
    digest = hashlib.sha256(Path(a).read_bytes()).hexdigest()[:12]
    assert error.problems == (f"copy.safetensors: the same bytes as a.safetensors (sha256 {digest}...)",)
    assert error.hint == "give every teacher once"


def test_missing_extra_and_misshaped_tensors_of_all_teachers(tmp_path: Path) -> None:
    texts = [
        write(tmp_path / "a.safetensors", 0),
        write(tmp_path / "b.safetensors", 1, features__0__bias=None, extra__weight=torch.zeros(3)),
        write(tmp_path / "c.safetensors", 2, features__3__weight=torch.zeros(16, 8, 5, 5)),
    ]
    error = fail(texts)
    assert isinstance(error, ArchitectureError)
    assert error.problems == (
        "b.safetensors: features.0.bias: missing, expected [8]",
        "b.safetensors: extra.weight: got [3], expected no such tensor in vgg11_cifar(width=0.125)",
        "c.safetensors: features.3.weight: got [16, 8, 5, 5], expected [16, 8, 3, 3]",
    )
    assert error.hint is not None
    assert "wfcli inspect" in error.hint


def test_another_architecture_is_told_once_with_a_guess(tmp_path: Path) -> None:
    other = find_architecture("vgg11_bn_cifar", {"width": 0.25})
    texts = [write(tmp_path / f"{name}.safetensors", seed, other) for seed, name in enumerate("abc")]
    error = fail(texts)
    assert isinstance(error, ArchitectureError)
    assert error.problems[-2:] == (
        "b.safetensors: the same tensors as a.safetensors",
        "c.safetensors: the same tensors as a.safetensors",
    )
    assert all(problem.startswith("a.safetensors: ") for problem in error.problems[:-2])
    assert (
        error.hint
        == "the tensors look like vgg11_bn_cifar: --arch vgg11_bn_cifar --arch-arg width=0.25; or leave the file out"
    )


def test_one_teacher_of_another_architecture(tmp_path: Path) -> None:
    texts = [
        write(tmp_path / "a.safetensors", 0),
        write(tmp_path / "b.safetensors", 1, find_architecture("vgg11_cifar", {"width": 0.25})),
        write(tmp_path / "c.safetensors", 2),
    ]
    error = fail(texts)
    assert "b.safetensors: features.0.weight: got [16, 3, 3, 3], expected [8, 3, 3, 3]" in error.problems
    assert all(problem.startswith("b.safetensors: ") for problem in error.problems)
    assert (
        error.hint
        == "the tensors look like vgg11_cifar: --arch vgg11_cifar --arch-arg width=0.25; or leave the file out"
    )


def test_a_head_with_other_classes(tmp_path: Path) -> None:
    texts = [write(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab")]
    error = fail([write(tmp_path / "x.safetensors", 7, classes=100), *texts])
    assert isinstance(error, CheckpointError)
    assert error.problems == ("x.safetensors: head.weight: got 100 classes, expected 10 as in a.safetensors",)
    assert (
        error.hint
        == "teachers share their classes: leave out those of other classes, or join their heads with fuse --heads"
    )


def test_teachers_of_other_class_names(tmp_path: Path) -> None:
    usual = [str(number) for number in range(10)]
    swapped = [*usual[:7], "9", "8", "7"]
    known = {"a": usual, "b": swapped, "c": None, "d": usual, "e": ["x", *usual[1:]]}
    for seed, (name, classes) in enumerate(known.items()):
        record = {"classes": classes} if classes else {}
        save_state(tmp_path / f"{name}.safetensors", make_state(VGG, 10, seed), record)
    error = fail([str(tmp_path)])
    assert isinstance(error, CheckpointError)
    assert error.problems == (
        "b.safetensors: class 7: got 9, expected 7 as in a.safetensors, and 1 more differ",
        "e.safetensors: class 0: got x, expected 0 as in a.safetensors",
    )
    assert error.hint is not None
    assert "leave out teachers of other classes" in error.hint
    assert len(open_teachers([str(tmp_path / f"{name}.safetensors") for name in "acd"], VGG).checkpoints) == 3


def write_header(path: Path, specs: dict[str, TensorSpec], number: int) -> None:
    """Write a file with a header and a hole where the tensors would be: big nets cost nothing."""
    header, _ = _lay_out(specs, {"number": number})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(spec.size for spec in specs.values()))


def test_two_layouts_of_one_architecture(tmp_path: Path) -> None:
    from torchvision.models import vit_b_32

    arch = find_architecture("vit_b_32")
    with torch.device("meta"):
        torchvision = state_specs(vit_b_32(num_classes=2).half().state_dict())
    timm = {key: TensorSpec(spec.shape, "F16") for key, spec in key_layout(arch, 2).items()}
    for number, (name, specs) in enumerate({"a": timm, "b": timm, "c": torchvision}.items()):
        write_header(tmp_path / f"{name}.safetensors", specs, number)
    error = fail([str(tmp_path)], arch)
    assert isinstance(error, CheckpointError)
    assert error.problems == ("c.safetensors: got tensors named as in torchvision, expected timm as in a.safetensors",)
    assert error.hint == "teachers share one layout: load and save the others with the same library and version"
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "b.safetensors").unlink()
    write_header(tmp_path / "d.safetensors", torchvision, 9)
    assert open_teachers([str(tmp_path)], arch).layout.name == "torchvision"


def test_counters_that_some_teachers_lack_are_left_out(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", 0, VGG_BN)
    counters = {key: None for key in key_layout(VGG_BN, 10) if key.endswith("num_batches_tracked")}
    b = write(tmp_path / "b.safetensors", 1, VGG_BN, **{key.replace(".", "__"): None for key in counters})
    for texts in ([a, b], [b, a]):
        layout = open_teachers(texts, VGG_BN).layout
        assert counters
        assert set(layout.files) == set(layout.to_timm) == set(key_layout(VGG_BN, 10)) - set(counters)


def test_everything_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    good = write(tmp_path / "good.safetensors", 0)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(good).read_bytes()[:-100])
    other = write(tmp_path / "other.safetensors", 3, features__0__bias=None)
    classes = write(tmp_path / "classes.safetensors", 4, classes=7)
    error = fail(
        [good, good, str(tmp_path / "none*.pt"), str(cut), other, classes, write(tmp_path / "k.safetensors", 5)]
    )
    assert [problem.split(": ")[0].removeprefix(f"{tmp_path}/") for problem in error.problems] == [
        f"the teacher glob '{tmp_path}/none*.pt' matches no checkpoint",
        "cut.safetensors",
        "other.safetensors",
        "classes.safetensors",
        "good.safetensors",
    ]
    lines = str(error).splitlines()
    assert len(lines) == 10
    assert all(line.startswith("hint: ") for line in lines[1::2])


def test_only_sources_wrong_is_a_source_error(tmp_path: Path) -> None:
    assert isinstance(fail([str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]), SourceError)


def test_hashing_stops_where_headers_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def endless(checkpoint: Checkpoint) -> Iterator[None]:
        begun.append(checkpoint.name)
        while True:
            sleep(0.001)
            yield

    monkeypatch.setattr(Checkpoint, "digesting", endless)
    texts = [write(tmp_path / f"{seed}.safetensors", seed) for seed in range(12)]
    fail([*texts, write(tmp_path / "x.safetensors", 7, classes=100)])
    begun.clear()
    fail([*texts, str(tmp_path / "gone.safetensors")])
    assert begun == []  # not even begun


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wfcli.core import checkpoint

    def read(*args: Any) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(checkpoint, "read_tensor", read)
    assert (
        len(open_teachers([write(tmp_path / f"{seed}.safetensors", seed) for seed in range(3)], VGG).checkpoints) == 3
    )
