"""The record inside a written file: enough to make it again, and nothing of this machine or of today."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import wfcli
from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import Checkpoint, open_checkpoint, save_state
from wfcli.core.data import DataSpec
from wfcli.engine.provenance import data_record, known_classes, made_by


def test_a_record_begins_with_versions_verb_architecture_and_seed() -> None:
    record = made_by("fuse", find_architecture("vgg11_bn_cifar", {"width": 0.5}), 7)
    assert record == {
        "wfcli": wfcli.__version__,
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "verb": "fuse",
        "architecture": {"name": "vgg11_bn_cifar", "args": {"width": 0.5}},
        "seed": 7,
    }
    assert json.loads(json.dumps(record)) == record


def test_an_architecture_is_written_as_the_user_typed_it() -> None:
    assert made_by("fuse", find_architecture("vit_b_32"), 0)["architecture"] == {"name": "vit_b_32", "args": {}}


def test_a_dataset_is_named_without_the_place_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for source in (str(folder), f"{folder}/", "../cifar10", "."):
        assert data_record(DataSpec(source)) == {"source": "cifar10", "label_column": None, "classes": None}
    spec = DataSpec("hf:uoft-cs/cifar100", "fine_label", "0-9,20")
    assert data_record(spec) == {"source": "hf:uoft-cs/cifar100", "label_column": "fine_label", "classes": "0-9,20"}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([["cat", "dog"], ["cat", "dog"]], ["cat", "dog"]),
        ([["cat", "dog"], ["dog", "cat"]], None),  # another order is another head
        ([["cat", "dog"], None], None),
        ([None, None], None),
    ],
)
def test_classes_are_known_where_all_files_agree(
    tmp_path: Path, records: list[list[str] | None], expected: list[str] | None
) -> None:
    files: list[Checkpoint] = []
    for number, classes in enumerate(records):
        path = tmp_path / f"{number}.safetensors"
        save_state(path, {"head.weight": torch.full((2, 2), number)}, {"classes": classes} if classes else {})
        files.append(open_checkpoint(path))
    assert known_classes(files) == expected
