"""Datasets: roles never share an image, classes are renumbered as asked, pixels come through unchanged."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from wfcli.core import decode, tables
from wfcli.core.architectures import InputConfig
from wfcli.core.data import (
    ROLES,
    DataSpec,
    Images,
    augment,
    available_splits,
    check_unlabelled,
    iterate,
    load_class_names,
    load_images,
    load_labels,
    load_unlabelled,
    normalise,
    to_input,
)
from wfcli.core.decode import LazyPixels, decode_image
from wfcli.core.images import fit
from wfcli.core.roles import stratified_parts
from wfcli.errors import DataError

NAMES = ["ant", "bee", "cat"]
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
PLAIN = InputConfig(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(number: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """An image [H, W, 3] like no other: its number stands in the first pixel."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[0, 0] = (number >> 8, number & 255, 7)
    return pixels


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, lossless=True)
    return out.getvalue()


def numbers(images: Images) -> list[int]:
    first = images.pixels[torch.arange(len(images))][:, :, 0, 0].long()
    return (first[:, 0] * 256 + first[:, 1]).tolist()


def write_split(
    folder: Path, split: str, rows: range, *, columns: Mapping[str, Any] | None = None, features: Any = None
) -> None:
    """Write rows as the Hub does: an Image and a ClassLabel column, three classes in turn."""
    if features is None:
        features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    table = {"img": [{"bytes": encode(picture(i), "WEBP"), "path": None} for i in rows], "label": [i % 3 for i in rows]}
    table = {key: value for key, value in {**table, **(columns or {})}.items() if key in features}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(
        folder / f"{split}-00000-of-00001.parquet"
    )


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    """A dataset of 300 training images, numbered 0..299, and 60 test images, numbered 1000..1059."""
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("data") / "insects"
    write_split(folder, "train", range(300))
    write_split(folder, "test", range(1000, 1060))
    return DataSpec(str(folder))


@pytest.fixture
def image_folder(tmp_path: Path) -> DataSpec:
    number = 0
    for split in ("train", "val", "test"):
        for name in NAMES[:2]:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for _ in range(5):
                path = tmp_path / "images" / split / name / f"{number:03}.png"
                path.write_bytes(encode(picture(number, (20, 30))))
                number += 1
    return DataSpec(str(tmp_path / "images"))


# Roles ----------------------------------------------------------------------------------------------------------------


def test_roles_share_no_image_and_cover_the_training_split(parquet: DataSpec) -> None:
    role = {name: numbers(load_images(parquet, name, 8)) for name in ROLES}
    assert sorted(role["teachers"] + role["generator"]) == role["train"]
    assert sorted(role["train"] + role["validation"]) == list(range(300))
    assert [len(role[name]) for name in ("teachers", "generator", "validation", "test")] == [210, 60, 30, 60]


@pytest.mark.parametrize("split", ROLES)
def test_roles_keep_the_shares_of_the_classes(parquet: DataSpec, split: str) -> None:
    counts = load_images(parquet, split, 8).labels.bincount(minlength=3)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("split", ["teachers", "generator", "validation"])
def test_roles_do_not_depend_on_the_classes_asked_for(parquet: DataSpec, split: str) -> None:
    everything = load_images(parquet, split, 8)
    some = load_images(DataSpec(parquet.source, classes="2,0"), split, 8)
    wanted = [n for n, label in zip(numbers(everything), everything.labels.tolist(), strict=True) if label != 1]
    assert numbers(some) == wanted


def test_the_datasets_own_validation_split_is_taken(image_folder: DataSpec) -> None:
    assert numbers(load_images(image_folder, "validation", 20)) != []
    assert len(load_images(image_folder, "train", 20)) == 10  # nothing is taken off it
    assert available_splits(image_folder) == ROLES


def test_stratified_parts_are_frozen() -> None:
    # zoo.json files hold indices into these parts: they must never change.
    teachers, generator = stratified_parts(np.array([0, 1] * 6), (0.5, 0.5), 20260101)
    assert teachers.tolist() == [3, 4, 8, 9, 10, 11]
    assert generator.tolist() == [0, 1, 2, 5, 6, 7]


def test_a_limit_draws_some_of_the_images(parquet: DataSpec) -> None:
    everything = numbers(load_images(parquet, "train", 8))
    some = numbers(load_images(parquet, "train", 8, limit=50, seed=1))
    assert len(set(some)) == 50
    assert set(some) < set(everything)
    assert some == numbers(load_images(parquet, "train", 8, limit=50, seed=1))
    assert some != numbers(load_images(parquet, "train", 8, limit=50, seed=2))


def test_a_dataset_with_a_test_split_only(tmp_path: Path) -> None:
    write_split(tmp_path / "only", "test", range(6))
    spec = DataSpec(str(tmp_path / "only"))
    assert available_splits(spec) == ("test",)
    with pytest.raises(DataError, match="no split for 'validation'; it has test") as error:
        load_images(spec, "validation", 8)
    assert error.value.hint == "this needs a training split"


def test_an_unknown_split(parquet: DataSpec) -> None:
    with pytest.raises(DataError, match="unknown split 'tset'") as error:
        load_images(parquet, "tset", 8)
    assert error.value.hint == "use train, validation, test, teachers, generator"


# Classes and columns --------------------------------------------------------------------------------------------------


def test_classes_are_renumbered_in_the_given_order(parquet: DataSpec) -> None:
    images = load_images(DataSpec(parquet.source, classes="2,0-1"), "test", 8)
    assert images.class_names == ("cat", "ant", "bee")
    assert images.labels.tolist() == [(n % 3 + 1) % 3 for n in numbers(images)]
    assert load_class_names(DataSpec(parquet.source, classes="2,0-1")) == ("cat", "ant", "bee")


def test_only_the_rows_of_the_classes_are_decoded(parquet: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(decode, "decode_image", lambda encoded: decoded.append(1) or decode_image(encoded))
    images = load_images(DataSpec(parquet.source, classes="1"), "test", 8)
    assert len(decoded) == len(images) + 1  # the first one also tells the size


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ("3", "3 is out of range, the data has 3 classes"),
        ("0-7", "0-7 is out of range"),
        ("a", "'a' is neither a class number nor a range"),
        ("2-0", "'2-0' is neither"),
        ("", "no problem: all classes"),
        ("0,,1", "'' is neither"),
        ("0-1,1", "given twice: 1"),
    ],
)
def test_wrong_classes_are_explained(parquet: DataSpec, classes: str, problem: str) -> None:
    spec = DataSpec(parquet.source, classes=classes)
    if not classes:
        assert load_class_names(spec) == tuple(NAMES)
        return
    with pytest.raises(DataError, match=re.escape(problem)) as error:
        load_images(spec, "test", 8)
    assert error.value.hint == "write numbers and ranges from 0 to 2, like 0-4,7"


def test_all_wrong_classes_at_once(parquet: DataSpec) -> None:
    with pytest.raises(DataError) as error:
        load_class_names(DataSpec(parquet.source, classes="x,9,0,0"))
    assert len(error.value.problems) == 3


def label_features(**labels: Any) -> dict[str, Any]:
    return {"img": datasets.Image(), **labels}


def test_fine_labels_are_found_and_others_can_be_named(tmp_path: Path) -> None:
    features = label_features(
        coarse_label=datasets.ClassLabel(names=["legs", "no legs"]), fine_label=datasets.ClassLabel(names=NAMES)
    )
    columns = {"fine_label": [0, 1, 2, 0, 1, 2], "coarse_label": [0, 1, 0, 1, 0, 1]}
    write_split(tmp_path / "d", "test", range(6), columns=columns, features=features)
    assert load_images(DataSpec(str(tmp_path / "d")), "test", 8).labels.tolist() == columns["fine_label"]
    coarse = load_images(DataSpec(str(tmp_path / "d"), label_column="coarse_label"), "test", 8)
    assert coarse.labels.tolist() == columns["coarse_label"]
    assert coarse.class_names == ("legs", "no legs")


@pytest.mark.parametrize(
    ("labels", "wanted", "problem"),
    [
        (
            {"a": 1, "b": 2},
            None,
            r"several columns may be the labels; it has the columns img \(Image\), a \(ClassLabel\), b",
        ),
        ({}, None, r"no column is called label or fine_label; it has the columns img \(Image\)"),
        ({"label": 3}, "lable", r"no column 'lable'; it has the columns img \(Image\), label \(ClassLabel\)"),
        ({"label": 3}, "img", "column 'img' holds no class labels"),
    ],
)
def test_label_columns_that_are_not_clear(
    tmp_path: Path, labels: dict[str, int], wanted: str | None, problem: str
) -> None:
    features = label_features(**{name: datasets.ClassLabel(names=NAMES[:2]) for name in labels})
    write_split(tmp_path / "d", "test", range(4), columns={name: [0, 1, 0, 1] for name in labels}, features=features)
    with pytest.raises(DataError, match=problem) as error:
        load_class_names(DataSpec(str(tmp_path / "d"), label_column=wanted))
    assert error.value.hint == "name the column of the labels with --label-column"


def test_labels_without_names(tmp_path: Path) -> None:
    for split, texts in {"train": ["b", "c", "b", "c"], "test": ["a", "c", "a", "c"]}.items():
        write_split(
            tmp_path / "d", split, range(4),
            columns={"label": [3, 0, 1, 2], "kind": texts},
            features=label_features(label=datasets.Value("int64"), kind=datasets.Value("string")),
        )  # fmt: skip
    as_numbers = load_images(DataSpec(str(tmp_path / "d")), "test", 8)
    assert as_numbers.labels.tolist() == [3, 0, 1, 2]
    assert as_numbers.class_names == ("0", "1", "2", "3")
    as_texts = load_images(DataSpec(str(tmp_path / "d"), label_column="kind"), "test", 8)
    assert as_texts.class_names == ("a", "b", "c")  # "b" is in the other split
    assert as_texts.labels.tolist() == [0, 2, 0, 2]


def test_rows_without_a_label(tmp_path: Path) -> None:
    write_split(tmp_path / "d", "test", range(4), columns={"label": [0, -1, 1, None]})
    with pytest.raises(DataError, match="test: 2 of 4 rows have no label in 'label', the first is row 1"):
        load_images(DataSpec(str(tmp_path / "d")), "test", 8)


def test_no_column_of_images(tmp_path: Path) -> None:
    write_split(tmp_path / "d", "test", range(4), features={"label": datasets.ClassLabel(names=NAMES)})
    with pytest.raises(DataError, match=r"no column holds images; it has the columns label \(ClassLabel\)"):
        load_images(DataSpec(str(tmp_path / "d")), "test", 8)


def test_images_as_plain_bytes_under_another_name(tmp_path: Path) -> None:
    features = {"photo": datasets.Value("binary"), "label": datasets.ClassLabel(names=NAMES)}
    columns = {"photo": [encode(picture(i)) for i in range(4)]}
    write_split(tmp_path / "d", "test", range(4), columns=columns, features=features)
    assert numbers(load_images(DataSpec(str(tmp_path / "d")), "test", 8)) == [0, 1, 2, 3]


# Sources --------------------------------------------------------------------------------------------------------------


def test_parquet_pixels_and_labels_come_through_unchanged(parquet: DataSpec) -> None:
    images = load_images(parquet, "test", 8)
    assert images.pixels.dtype == torch.uint8
    assert images.labels.tolist() == [n % 3 for n in range(1000, 1060)]
    for row in (0, 31, 59):
        np.testing.assert_array_equal(images.pixels[torch.tensor([row])][0].permute(1, 2, 0), picture(1000 + row))


def test_reading_leaves_no_trace(
    parquet: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    asked: list[Any] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    datasets.enable_progress_bars()
    before = sorted(Path(parquet.source).rglob("*"))
    load_images(parquet, "train", 8)
    assert datasets.are_progress_bars_disabled() is False  # as it was
    datasets.disable_progress_bars()
    assert sorted(Path(parquet.source).rglob("*")) == before
    assert list(tmp_path.rglob("*")) == []
    assert asked == []  # no network
    assert capfd.readouterr() == ("", "")


def test_image_folder(image_folder: DataSpec) -> None:
    images = load_images(image_folder, "test", 16)
    assert images.class_names == ("ant", "bee")
    assert images.labels.tolist() == [0] * 5 + [1] * 5
    assert images.pixels.shape == (10, 3, 16, 16)


def test_digits() -> None:
    role = {name: load_images(DataSpec("digits"), name, 32) for name in ROLES}
    assert [len(role[name]) for name in ("train", "validation", "test")] == [1078, 360, 359]
    assert len(role["teachers"]) + len(role["generator"]) == len(role["train"])
    test = role["test"]
    assert test.pixels.shape == (359, 3, 32, 32)
    assert test.pixels.max() == 255
    assert torch.equal(test.pixels[:, 0], test.pixels[:, 2])
    assert not test.flip
    assert test.class_names == tuple("0123456789")
    assert test.labels.bincount().min() >= 34


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from wfcli.core import digits

    digits._load.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="scikit-learn is not installed") as error:
        load_class_names(DataSpec("digits"))
    assert error.value.hint == "pip install 'wfcli[demo]'"


def test_missing_datasets_are_explained(parquet: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"insects/tset: no such folder") as error:
        load_class_names(DataSpec(parquet.source + "/tset"))
    assert "digits, a folder of parquet files or of images" in str(error.value.hint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither parquet files nor the folders of an image dataset"):
        load_class_names(DataSpec(str(tmp_path / "empty")))
    with pytest.raises(DataError, match="is a file, expected a folder"):
        load_class_names(DataSpec(str(next(Path(parquet.source).iterdir()))))
    with pytest.raises(DataError, match="not a name on the Hub"):
        load_class_names(DataSpec("hf:cifar10"))


def test_parquet_folders_that_are_not_one_dataset(tmp_path: Path) -> None:
    write_split(tmp_path / "a", "test", range(3))
    write_split(tmp_path / "b", "test", range(3))
    with pytest.raises(DataError, match="parquet files in several folders: a, b"):
        load_class_names(DataSpec(str(tmp_path)))
    write_split(tmp_path / "c", "rows", range(3))
    with pytest.raises(DataError, match=r"no parquet file is named after a split: rows-00000"):
        load_class_names(DataSpec(str(tmp_path / "c")))


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=re.escape(f"data {tmp_path}: ")):
        load_class_names(DataSpec(str(tmp_path)))


class FakeHub:
    """What `datasets.load_dataset` gives for a Hub name, and what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Exception | None = None) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer = answer
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.dataset_info)
        monkeypatch.setattr(datasets, "load_dataset", self.load_dataset)
        from wfcli.core import data_sources

        data_sources._open_hub.cache_clear()

    def dataset_info(self, repo: str, **_: Any) -> None:
        if self.answer is not None:
            raise self.answer

    def load_dataset(self, repo: str, config: str | None, revision: str | None) -> Any:
        self.asked.append((repo, config, revision))
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        rows = {"image": [{"bytes": encode(picture(i)), "path": None} for i in range(9)], "label": [0, 1, 2] * 3}
        table = datasets.Dataset.from_dict(rows, features=features)
        return datasets.DatasetDict({"training": table, "val": table, "test": table, "extra": table})


@pytest.mark.parametrize("source", ["hf:owner/insects@v1:small", "owner/insects@v1:small"])
def test_a_dataset_of_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch)
    images = load_images(DataSpec(source, classes="0,2"), "validation", 8)
    assert numbers(images) == [0, 2, 3, 5, 6, 8]
    assert hub.asked == [("owner/insects", "small", "v1")]


def test_a_dataset_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    FakeHub(monkeypatch, RepositoryNotFoundError.__new__(RepositoryNotFoundError))
    with pytest.raises(DataError, match="data owner/insects: no such folder, and no dataset owner/insects on the Hub"):
        load_class_names(DataSpec("owner/insects"))


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, OSError("no network"))
    with pytest.raises(DataError, match="data owner/insects: no such folder, and the Hub cannot be reached"):
        load_class_names(DataSpec("owner/insects"))
    assert load_class_names(DataSpec("hf:owner/insects")) == tuple(NAMES)  # from the cache
    assert len(hub.asked) == 1


def test_a_local_path_with_a_typing_error_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data data/cifar01: no such folder"):
        load_class_names(DataSpec("data/cifar01"))
    assert hub.asked == []


# Pixels ---------------------------------------------------------------------------------------------------------------


def test_small_square_images_keep_their_pixels_whatever_the_size_asked_for(parquet: DataSpec) -> None:
    assert load_images(parquet, "test", 224).pixels.shape == (60, 3, 8, 8)


def test_images_of_several_sizes_are_brought_to_one(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 8), (30, 20)]
    columns = {"img": [{"bytes": encode(picture(i, size)), "path": None} for i, size in enumerate(sizes)]}
    write_split(tmp_path / "d", "test", range(3), columns=columns)
    assert load_images(DataSpec(str(tmp_path / "d")), "test", 16).pixels.shape == (3, 3, 16, 16)


def test_fit_takes_the_centre() -> None:
    wide = torch.zeros(3, 10, 30, dtype=torch.uint8)
    wide[:, :, 10:20] = 200
    assert torch.equal(fit(wide, 10), torch.full((3, 10, 10), 200, dtype=torch.uint8))
    assert fit(torch.zeros(4, 3, 37, 23, dtype=torch.uint8), 11).shape == (4, 3, 11, 11)


def test_images_that_do_not_fit_memory_are_decoded_on_access(
    image_folder: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = load_images(image_folder, "test", 16)
    monkeypatch.setattr(tables, "fits_memory", lambda images, side: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lazy = load_images(image_folder, "test", 16)
    assert isinstance(lazy.pixels, LazyPixels)
    assert lazy.pixels.shape == eager.pixels.shape
    assert len(lazy.pixels) == 10
    order = torch.tensor([7, 0, 7, 3])
    assert torch.equal(lazy.pixels[order], eager.pixels[order])
    assert torch.equal(lazy.subset([9, 2]).pixels[torch.tensor([1])], eager.pixels[torch.tensor([2])])
    for (x, y), (x2, y2) in zip(iterate(lazy, 4, PLAIN), iterate(eager, 4, PLAIN), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_damaged_images_are_all_named(tmp_path: Path) -> None:
    columns = {"img": [{"bytes": encode(picture(i)), "path": None} for i in range(20)]}
    for row in (0, 5, 11):
        columns["img"][row]["bytes"] = columns["img"][row]["bytes"][:40]
    write_split(tmp_path / "d", "test", range(20), columns=columns)
    with pytest.raises(DataError, match="test: row 0: not a readable image") as error:
        load_images(DataSpec(str(tmp_path / "d")), "test", 8)
    assert [re.findall(r"row \d+", line) for line in error.value.problems] == [["row 0"], ["row 5"], ["row 11"]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_decoding_agrees_with_pillow(kind: str, mode: str) -> None:
    encoded = encode(np.asarray(Image.fromarray(picture(3, (9, 13))).convert(mode).convert("RGB")), kind)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded).permute(1, 2, 0), expected)


def test_sixteen_bits_become_eight() -> None:
    out = io.BytesIO()
    Image.fromarray(np.array([[0, 65535], [256, 511]], dtype=np.uint16)).save(out, "PNG")
    assert decode_image(out.getvalue())[0].tolist() == [[0, 255], [1, 1]]


# Batches --------------------------------------------------------------------------------------------------------------


def random_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def test_augmentation_crops_the_reflected_image_and_mirrors_half() -> None:
    pixels = random_pixels(200, 3, 6, 7)
    changed = augment(pixels, torch.Generator().manual_seed(0), flip=True, pad=2)
    padded = torch.nn.functional.pad(pixels.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    mirrored = 0
    for before, after in zip(padded, changed, strict=True):
        crops = [before[:, y : y + 6, x : x + 7] for y in range(5) for x in range(5)]
        plain = any(torch.equal(after, crop) for crop in crops)
        flipped = any(torch.equal(after, crop.flip(2)) for crop in crops)
        assert plain or flipped
        mirrored += flipped
    assert 70 < mirrored < 130


def test_augmentation_without_padding_or_mirror_changes_nothing() -> None:
    pixels = random_pixels(5, 3, 4, 4)
    assert torch.equal(augment(pixels, None, flip=False, pad=0), pixels)
    assert augment(pixels, None, flip=True, pad=9).shape == pixels.shape


def test_augmentation_follows_its_generator() -> None:
    pixels = random_pixels(20, 3, 8, 8)
    draws = [augment(pixels, torch.Generator().manual_seed(seed), flip=True, pad=1) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_normalise_takes_mean_and_std_of_values_0_to_1() -> None:
    pixels = random_pixels(4, 3, 5, 5)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    x = normalise(pixels, mean, std)
    expected = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(x, expected)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_input_is_resized_to_what_the_network_takes() -> None:
    x = to_input(random_pixels(2, 3, 8, 8), InputConfig(24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    assert x.shape == (2, 3, 24, 24)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_iterate_gives_every_image_once(parquet: DataSpec) -> None:
    images = load_images(parquet, "test", 8)
    in_order = list(iterate(images, 25, PLAIN))
    assert [len(y) for _, y in in_order] == [25, 25, 10]
    assert torch.equal(torch.cat([y for _, y in in_order]), images.labels)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.cat([x for x, _ in iterate(images, 25, PLAIN, shuffle=True, generator=generator)])
    found = [round(v) for v in (shuffled[:, 0, 0, 0] * 255 * 256 + shuffled[:, 1, 0, 0] * 255).tolist()]
    assert found != numbers(images)
    assert sorted(found) == numbers(images)


def test_iterate_with_augmentation_repeats_with_its_seed(parquet: DataSpec) -> None:
    images = load_images(parquet, "test", 8)

    def first(seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        return next(iterate(images, 60, PLAIN, augment=True, shuffle=True, generator=draw))[0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_subset_keeps_the_order_asked_for(parquet: DataSpec) -> None:
    images = load_images(parquet, "test", 8)
    some: Sequence[int] = [5, 3, 3]
    assert numbers(images.subset(some)) == [1005, 1003, 1003]
    assert images.subset(some).labels.tolist() == [1005 % 3, 1003 % 3, 1003 % 3]


# The real thing -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (REAL / "cifar100").is_dir(), reason=f"no real data: {REAL.name}/cifar100 beside the repository"
)
def test_cifar_100_classes() -> None:
    images = load_images(DataSpec(str(REAL / "cifar100"), classes="85-99"), "test", 32)
    assert images.pixels.shape == (1500, 3, 32, 32)
    assert images.class_names[0] == "tank"
    assert images.labels.bincount().tolist() == [100] * 15


@pytest.mark.parametrize("classes", [None, "2,0"])
def test_labels_are_those_of_the_images(
    parquet: DataSpec, classes: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(parquet.source, parquet.label_column, classes)
    wanted = {split: load_images(spec, split, 8).labels.tolist() for split in ("teachers", "validation")}
    monkeypatch.setattr(tables.Table, "pixels", None)  # no image is decoded
    assert {split: load_labels(spec, split) for split in wanted} == wanted


# Without labels -------------------------------------------------------------------------------------------------------


def test_unlabelled_images_of_a_labelled_dataset_are_those_to_train_on(parquet: DataSpec) -> None:
    images = load_unlabelled(parquet.source, 8, limit=1000)
    assert numbers(images) == numbers(load_images(parquet, "train", 8))
    assert images.class_names == ()
    assert set(images.labels.tolist()) == {-1}
    some = load_unlabelled(parquet.source, 8, limit=20, seed=1)
    assert len(some) == 20
    assert set(numbers(some)) < set(numbers(images))
    assert numbers(some) != numbers(load_unlabelled(parquet.source, 8, limit=20, seed=2))


def test_unlabelled_parquet_files_of_any_name(tmp_path: Path) -> None:
    write_split(tmp_path / "photos", "holidays", range(12), features={"img": datasets.Image()})
    images = load_unlabelled(str(tmp_path / "photos"), 8, limit=1000)
    assert sorted(numbers(images)) == list(range(12))
    with pytest.raises(DataError, match="no parquet file is named after a split"):
        load_images(DataSpec(str(tmp_path / "photos")), "train", 8)


def test_a_flat_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "photos [2020]"
    (folder / "test").mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encode(picture(number, (20, 30))))
    (folder / "test" / "7.png").write_bytes(encode(picture(7, (20, 30))))  # no split: there are images beside it
    assert len(load_unlabelled(str(folder), 20, limit=4)) == 4
    assert len(load_unlabelled(str(folder), 20, limit=40)) == 7
    check_unlabelled(str(folder))


def test_unlabelled_images_are_not_taken_from_the_test_split_unasked(tmp_path: Path) -> None:
    write_split(tmp_path, "test", range(3))
    assert len(load_unlabelled(str(tmp_path), 8, limit=9)) == 3  # there is nothing else
    write_split(tmp_path, "validation", range(3))
    for call in (check_unlabelled, partial(load_unlabelled, size=8, limit=9)):
        with pytest.raises(DataError, match="no training split; it has test, validation"):
            call(str(tmp_path))


def test_roles_of_unlabelled_images_are_cut_by_the_labels_in_use(tmp_path: Path) -> None:
    features = {
        "img": datasets.Image(),
        **{n: datasets.ClassLabel(names=NAMES) for n in ("fine_label", "coarse_label")},
    }
    columns = {"fine_label": [i % 3 for i in range(60)], "coarse_label": [i // 20 for i in range(60)]}
    write_split(tmp_path, "train", range(60), columns=columns, features=features)
    for column in ("fine_label", "coarse_label"):
        wanted = numbers(load_images(DataSpec(str(tmp_path), label_column=column), "train", 8))
        assert numbers(load_unlabelled(str(tmp_path), 8, limit=99, label_column=column)) == wanted


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(DataError):
        check_unlabelled(str(tmp_path))
    write_split(tmp_path / "table", "train", range(3), features={"label": datasets.ClassLabel(names=NAMES)})
    with pytest.raises(DataError, match="no column holds images"):
        check_unlabelled(str(tmp_path / "table"))
