"""Zoos from a base on the Hub: its commit is on record, and it says itself which net it is of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Ran, TinyTeachers
from tests.hub_server import HubServer, use_hub
from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import file_digest, open_checkpoint
from wfcli.core.zoo import read_zoo

pytest.importorskip("sklearn")  # for the digits

Run = Callable[..., Ran]
CONFIG = b'{"architecture": "vgg11_bn_cifar", "model_args": {"width": 0.125}}'
SHORT = ("--data", "digits", "--count", "1", "--epochs", "1", "--images-per-teacher", "65", "--batch-size", "64")
RECIPE = """
arch = "vgg11_bn_cifar"
arch_args = { width = 0.125 }
data = "digits"
init = "hf:me/base"

[[zoo]]
name = "task"
classes = "0-4"
count = 1
epochs = 0.5
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teachers: TinyTeachers) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        server.add("me/base", {"model.safetensors": tiny_teachers.paths[0].read_bytes()})
        yield server


def sources(zoo: Path) -> list[dict[str, str]]:
    made = open_checkpoint(zoo / "teacher-00.safetensors").provenance or {}
    found: list[dict[str, str]] = made["sources"]
    return found


def test_the_commit_of_the_base_is_on_record(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    zoo, commit = tmp_path / "zoo", hub.repositories["me/base"].references["main"]
    train = ("train-teachers", *tiny_teachers.arch, *SHORT, "--init", "hf:me/base", "-o", zoo)
    ran = wfcli(*train)
    assert ran.code == 0, ran.stderr
    wanted = {"name": "me/base", "sha256": file_digest(tiny_teachers.paths[0]), "revision": commit}
    assert read_zoo(zoo).base == wanted
    assert sources(zoo) == [wanted]
    before = (zoo / "teacher-00.safetensors").stat().st_mtime_ns
    moved = hub.add("me/base", {"model.safetensors": tiny_teachers.paths[0].read_bytes(), "README.md": b"a new card"})
    ran = wfcli(*train)
    assert (ran.code, ran.stderr) == (0, "")  # the same bytes at another commit: the teacher is kept
    assert (zoo / "teacher-00.safetensors").stat().st_mtime_ns == before
    assert read_zoo(zoo).base == {**wanted, "revision": moved}
    hub.add("me/base", {"model.safetensors": tiny_teachers.paths[1].read_bytes()})
    assert "made in another way, replaced" in wfcli(*train).stderr


def test_a_zoo_without_the_commit_is_read(wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    zoo = tmp_path / "zoo"
    ran = wfcli("train-teachers", *tiny_teachers.arch, *SHORT, "--init", tiny_teachers.paths[0], "-o", zoo)
    assert ran.code == 0, ran.stderr
    wanted = {"name": "teacher-00.safetensors", "sha256": file_digest(tiny_teachers.paths[0])}  # as ever
    assert json.loads((zoo / "zoo.json").read_text())["base"] == wanted
    assert read_zoo(zoo).base == sources(zoo)[0] == wanted


def test_the_commit_of_a_recipes_base_is_on_record(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    (tmp_path / "zoos.toml").write_text(RECIPE)
    ran = wfcli("train-teachers", "--zoo-recipe", tmp_path / "zoos.toml", "-o", tmp_path / "zoos")
    assert ran.code == 0, ran.stderr
    commit = hub.repositories["me/base"].references["main"]
    assert (read_zoo(tmp_path / "zoos" / "task").base or {})["revision"] == commit
    assert sources(tmp_path / "zoos" / "task")[0]["revision"] == commit


def test_the_base_says_which_net_it_is_of(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    commit = hub.add("me/timm", {"model.safetensors": tiny_teachers.paths[0].read_bytes(), "config.json": CONFIG})
    zoo = tmp_path / "zoo"
    ran = wfcli("train-teachers", *SHORT, "--init", "hf:me/timm", "-o", zoo)
    assert ran.code == 0, ran.stderr
    found = read_zoo(zoo)
    assert found.architecture == find_architecture("vgg11_bn_cifar", {"width": 0.125})
    assert (found.base or {})["revision"] == commit
    assert (found.base or {})["name"] == "me/timm"
    again = ("train-teachers", *SHORT, "--init", zoo / "teacher-00.safetensors", "-o", tmp_path / "again")
    assert wfcli(*again).code == 0  # its header says it
    assert read_zoo(tmp_path / "again").architecture == found.architecture


def test_a_base_that_does_not_say_its_net(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    ran = wfcli("train-teachers", *SHORT, "--init", "hf:me/base", "-o", tmp_path / "zoo")
    assert ran.code == 1
    assert "hf:me/base: no config.json of timm's beside the weights" in ran.stderr
    assert "give --arch" in ran.stderr
    ran = wfcli("train-teachers", *SHORT, "-o", tmp_path / "zoo")
    assert ran.code == 2
    assert "give --arch, or a --zoo-recipe" in ran.stderr
    ran = wfcli("train-teachers", *SHORT, "--init", "hf:me/base", "--arch-arg", "width=1", "-o", tmp_path / "zoo")
    assert ran.code == 2
    assert "--arch-arg goes with --arch, which is missing" in ran.stderr


def test_the_base_of_a_generator_says_its_net(wfcli: Run, tmp_path: Path) -> None:
    ran = wfcli("train-teachers", *SHORT, "--init", "pretrained:vgg11_bn-cifar10/base", "-o", tmp_path / "zoo")
    assert ran.code == 0, ran.stderr
    assert read_zoo(tmp_path / "zoo").architecture == find_architecture("vgg11_bn_cifar", {"width": 0.25})
