from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from wfcli.core.architectures import find_architecture
from wfcli.core.data import DataSpec
from wfcli.core.zoo import (
    Zoo,
    ZooTeacher,
    absolute_source,
    find_zoos,
    read_zoo,
    relative_source,
    zoo_to_json,
)
from wfcli.errors import CheckpointError, SourceError


def make_zoo(folder: Path, source: str) -> Zoo:
    folder.mkdir(parents=True)
    names = ["teacher-00.safetensors", "teacher-01.safetensors"]
    for name in names:
        (folder / name).write_bytes(b"")
    shares = ((0, 2, 5), None)
    teachers = [
        ZooTeacher(name, "ab", share, (2, 1), {"lr": 0.05, "pad": 4}, 0.75, seed)
        for seed, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    zoo = Zoo(
        folder=folder,
        architecture=find_architecture("vgg11_bn_cifar", {"width": 0.25}),
        data=DataSpec(source, "fine_label", "3,5"),
        class_names=("cat", "dog"),
        base={"name": "base.safetensors", "sha256": "cd"},
        shares={"kind": "dirichlet", "concentration": 0.3, "images_per_teacher": None, "seed": 0},
        teachers=tuple(teachers),
    )
    (folder / "zoo.json").write_text(json.dumps(zoo_to_json(zoo)))
    return zoo


@pytest.mark.parametrize("source", ["digits", "hf:owner/name", "owner/name"])
def test_zoo_comes_back_from_its_file(tmp_path: Path, source: str) -> None:
    zoo = make_zoo(tmp_path / "zoo", source)
    assert read_zoo(tmp_path / "zoo") == zoo
    assert [path.name for path in zoo.paths] == ["teacher-00.safetensors", "teacher-01.safetensors"]


@pytest.mark.parametrize("place", ["data/cifar", "zoos/a/data"])
def test_zoo_moves_together_with_its_data(tmp_path: Path, place: str) -> None:
    first = tmp_path / "first"
    (first / place).mkdir(parents=True)
    (first / "zoos" / "a").mkdir(parents=True, exist_ok=True)
    make_zoo(first / "zoos" / "a" / "zoo", str(first / place))
    text = (first / "zoos/a/zoo/zoo.json").read_text()
    assert str(tmp_path) not in text
    shutil.move(first, tmp_path / "second")
    found = read_zoo(tmp_path / "second/zoos/a/zoo").data.source
    assert Path(found) == (tmp_path / "second" / place).resolve()


def test_data_inside_the_zoo_is_not_taken_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    spelled = relative_source(str(tmp_path / "owner" / "name"), tmp_path)
    assert spelled == "./owner/name"
    assert Path(absolute_source(spelled, tmp_path)) == (tmp_path / "owner" / "name").resolve()


def test_folder_without_zoo_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no zoo\.json there") as caught:
        read_zoo(tmp_path)
    assert caught.value.hint == "a zoo is a folder written by wfcli train-teachers"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "got format 'list', expected 1"),
        ('{"format": 2}', "got format 2, expected 1"),
        ('{"format": 1}', r"damaged \(architecture: missing"),
    ],
)
def test_damaged_zoo_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "zoo.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_zoo(tmp_path)


def test_teacher_outside_the_folder_is_an_error(tmp_path: Path) -> None:
    make_zoo(tmp_path / "zoo", "digits")
    path = tmp_path / "zoo" / "zoo.json"
    path.write_text(path.read_text().replace("teacher-01", "../teacher-01"))
    with pytest.raises(SourceError, match="not a plain file name"):
        read_zoo(tmp_path / "zoo")


def test_missing_teachers_are_all_named(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", "digits")
    for path in zoo.paths:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"teacher-00\.safetensors: not there") as caught:
        read_zoo(tmp_path / "zoo")
    assert len(caught.value.problems) == 2


def test_a_glob_finds_zoos_alone(tmp_path: Path) -> None:
    for name in ("task-01", "task-00", "other", "task-02"):
        (tmp_path / name).mkdir()
    for name in ("task-01", "task-00", "other"):
        (tmp_path / name / "zoo.json").write_text("{}")
    assert [path.name for path in find_zoos(str(tmp_path / "task-*"))] == ["task-00", "task-01"]
    assert find_zoos(str(tmp_path / "nowhere")) == (tmp_path / "nowhere",)  # read_zoo says that it is not there
    with pytest.raises(SourceError, match=r"none-\*: no zoo matches"):
        find_zoos(str(tmp_path / "none-*"))


def test_a_zoo_of_the_hub_is_to_be_fetched_first() -> None:
    told = r"hf:me/zoo@v1: a zoo is a folder here\nhint: fetch it: wfcli pull hf:me/zoo@v1 --all -o zoo"
    with pytest.raises(SourceError, match=told):
        find_zoos("hf:me/zoo@v1")
    with pytest.raises(SourceError, match=r"hint: fetch it: wfcli pull hf:me/zoo --all -o zoo"):
        find_zoos("hf:me/zoo:teacher-*.safetensors")
