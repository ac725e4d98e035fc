from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from wfcli.core.architectures import find_architecture
from wfcli.core.data import DataSpec
from wfcli.core.zoo import (
    ROLES,
    Zoo,
    ZooTeacher,
    absolute_source,
    class_counts,
    read_zoo,
    relative_source,
    share_images,
    zoo_to_json,
)
from wfcli.errors import CheckpointError, DataError, SourceError

LABELS = [image % 10 for image in range(2000)]


def images_of(shares: list[tuple[int, ...] | None]) -> list[tuple[int, ...]]:
    assert all(share is not None for share in shares)
    return [share for share in shares if share is not None]


def unevenness(shares: list[tuple[int, ...] | None]) -> float:
    """Mean over the teachers of the largest class's part: 0.1 where all ten are even."""
    counts = [class_counts(LABELS, share, 10) for share in shares]
    return float(np.mean([max(row) / sum(row) for row in counts]))


@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_deals_every_image_to_one_teacher(seed: int) -> None:
    shares = images_of(share_images("dirichlet", LABELS, 6, concentration=0.3, seed=seed))
    assert sorted(image for share in shares for image in share) == list(range(2000))
    for share in shares:
        assert list(share) == sorted(share)
        assert len(share) >= 32
        assert sum(n > 0 for n in class_counts(LABELS, share, 10)) >= 2


def test_smaller_concentration_is_more_uneven() -> None:
    found = [unevenness(share_images("dirichlet", LABELS, 4, concentration=c, seed=1)) for c in (0.1, 1.0, 1000.0)]
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("kind", ["dirichlet", "disjoint"])
def test_shares_follow_from_the_seed(kind: str) -> None:
    assert share_images(kind, LABELS, 4, seed=1) == share_images(kind, LABELS, 4, seed=1)
    assert share_images(kind, LABELS, 4, seed=1) != share_images(kind, LABELS, 4, seed=2)


def test_disjoint_teachers_have_no_class_in_common() -> None:
    shares = images_of(share_images("disjoint", LABELS, 3, seed=0))
    known = [{LABELS[image] for image in share} for share in shares]
    assert sorted(len(classes) for classes in known) == [3, 3, 4]
    assert len(set().union(*known)) == 10
    assert sorted(image for share in shares for image in share) == list(range(2000))


def test_same_is_all_images_or_the_same_part_of_them() -> None:
    assert share_images("same", LABELS, 3) == [None, None, None]
    assert share_images("same", LABELS, 3, images_per_teacher=5000) == [None, None, None]
    shares = images_of(share_images("same", LABELS, 3, images_per_teacher=100))
    assert len(set(shares)) == 1
    assert len(set(shares[0])) == 100


@pytest.mark.parametrize("kind", ["dirichlet", "disjoint"])
def test_images_per_teacher_cuts_shares_down(kind: str) -> None:
    shares = images_of(share_images(kind, LABELS, 4, images_per_teacher=50, seed=3))
    assert max(len(share) for share in shares) == 50


def test_class_counts_of_all_and_of_some() -> None:
    assert class_counts([0, 2, 2], None, 4) == (1, 0, 2, 0)
    assert class_counts([0, 2, 2], (1, 2), 3) == (0, 0, 2)


def test_shares_that_cannot_be_are_errors() -> None:
    with pytest.raises(
        DataError, match=r"20 teachers of at least 32 images and 2 classes each .* from 100 images"
    ) as caught:
        share_images("dirichlet", LABELS[:100], 20)
    assert caught.value.hint is not None
    assert "--concentration" in caught.value.hint
    with pytest.raises(
        DataError, match="6 teachers of at least 2 classes each need 12 classes, the data has 10"
    ) as caught:
        share_images("disjoint", LABELS, 6)
    assert caught.value.hint == "ask for at most 5 teachers, or use --shares dirichlet"
    with pytest.raises(DataError, match="unknown kind 'even'"):
        share_images("even", LABELS, 6)
    with pytest.raises(DataError, match="--concentration: got 0, expected more than 0"):
        share_images("dirichlet", LABELS, 6, concentration=0)
    with pytest.raises(DataError, match="--images-per-teacher: got 1, expected at least 2"):
        share_images("same", LABELS, 6, images_per_teacher=1)


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
        roles=ROLES,
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
        ('{"format": 1}', r"damaged \(KeyError"),
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
