"""The index of the generators: what is written is read back; files are those it means, here or on the Hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.conftest import Ran, TinyTeachers
from tests.hub_server import HubServer, use_hub
from wfcli.core.checkpoint import file_digest, open_checkpoint
from wfcli.core.pretrained import (
    Pretrained,
    Result,
    describe_generator,
    list_pretrained,
    pretrained_folder,
    write_entry,
)
from wfcli.core.sources import Source, resolve_generator, resolve_source, resolve_sources
from wfcli.errors import CheckpointError, SourceError

Run = Callable[..., Ran]
RESULTS = [Result("t.json", "silos", "resnet18", count, 5, 0.5, 0.625, 0.75) for count in (6, 3)]
CONFIG = {"preset": "universal", "trained_on": ["resnet18"], "relations": ["base"], "knowledge": ["same"]}


def make(folder: Path, value: float, base: bool = False) -> Pretrained:
    """Write the files of a generator."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("model", "base")[: 1 + base]:
        (folder / f"{name}.safetensors").write_bytes(save({"w": torch.full((2,), value)}))
    return describe_generator(folder, "me/data", RESULTS)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let two generators come with the package."""
    root = tmp_path / "pretrained"
    write_entry(make(root / "universal", 1), root)
    write_entry(make(root / "special", 2, base=True), root)
    monkeypatch.setattr("wfcli.core.pretrained.pretrained_folder", lambda: root)
    return root


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        yield server


def publish(hub: HubServer, root: Path, name: str) -> str:
    """Put the files of a generator on the Hub, say so in the index, and take them away here; return the commit."""
    commit = hub.add(f"me/{name}", {file.name: file.read_bytes() for file in (root / name).iterdir()})
    point(root, name, f"me/{name}", commit)
    shutil.rmtree(root / name)
    return commit


def point(root: Path, name: str, hub: str, revision: str) -> None:
    """Write where an entry is on the Hub, as a person does."""
    index = json.loads((root / "index.json").read_text())
    index["generators"][name] |= {"hub": hub, "revision": revision}
    (root / "index.json").write_text(json.dumps(index))


# The index


def test_what_is_written_is_read_back(shipped: Path) -> None:
    special, universal = list_pretrained()
    assert special == describe_generator(shipped / "special", "me/data", RESULTS)
    assert (universal.name, universal.path, universal.here) == ("universal", shipped / "universal", True)
    assert (universal.counts, universal.results) == ((3, 6), tuple(RESULTS))
    assert universal.sha256["model.safetensors"] == file_digest(shipped / "universal" / "model.safetensors")
    assert (set(universal.sha256), set(special.sha256) - set(universal.sha256)) == (
        {"config.json", "model.safetensors"},
        {"base.safetensors"},
    )


def test_an_entry_leaves_the_others_alone_and_is_in_its_place(shipped: Path) -> None:
    before = (shipped / "index.json").read_bytes()
    write_entry(make(shipped / "middle", 3), shipped)
    assert [one.name for one in list_pretrained()] == ["middle", "special", "universal"]
    index = json.loads((shipped / "index.json").read_text())
    del index["generators"]["middle"]
    assert index == json.loads(before)
    assert not list(shipped.glob(".*"))


def test_a_place_on_the_hub_belongs_to_the_files(shipped: Path) -> None:
    point(shipped, "universal", "me/gen", "0" * 40)
    entry = describe_generator(shipped / "universal", "me/other", RESULTS)
    write_entry(entry, shipped)
    assert list_pretrained()[1] == replace(entry, hub="me/gen", revision="0" * 40)
    (shipped / "universal" / "config.json").write_text(json.dumps(CONFIG | {"preset": "weightformer"}))
    entry = describe_generator(shipped / "universal", "me/other", RESULTS)
    write_entry(entry, shipped)
    assert list_pretrained()[1] == entry
    assert (entry.preset, entry.hub) == ("weightformer", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: None, r"index\.json: damaged \(TypeError"),
        (lambda index: index | {"format": 2}, r"index\.json: got format 2, expected 1"),
        (lambda index: {"format": 1}, r"index\.json: damaged \(KeyError: 'generators'\)"),
        (
            lambda index: _changed(index, hub="me/gen", revision="main"),
            r"special: revision: got 'main', expected a whole commit id",
        ),
        (lambda index: _changed(index, revision="0" * 40), r"special: revision: got '0{40}', expected none"),
        (
            lambda index: _changed(index, sha256={"config.json": "0"}),
            r"special: sha256: got \['config\.json'\], expected config\.json and model\.safetensors too",
        ),
    ],
)
def test_a_damaged_index_is_told(shipped: Path, change: Callable[[object], object], message: str) -> None:
    index = json.loads((shipped / "index.json").read_text())
    (shipped / "index.json").write_text(json.dumps(change(index)))
    with pytest.raises(SourceError, match=rf"{message}(?s:.*)hint: install wfcli again"):
        resolve_generator("pretrained:universal")


def _changed(index: dict[str, dict[str, dict[str, object]]], **fields: object) -> object:
    index["generators"]["special"] |= fields
    return index


def test_no_index_at_all(shipped: Path) -> None:
    (shipped / "index.json").unlink()
    with pytest.raises(
        SourceError, match=r"index\.json: cannot be read \(No such file(?s:.*)hint: install wfcli again"
    ):
        list_pretrained()
    assert resolve_generator(str(shipped / "universal")).name == "universal"  # a folder needs no index


# Here


def test_names_and_what_is_near_them(shipped: Path) -> None:
    text = "pretrained:universal"
    assert resolve_generator(text) == Source(text, shipped / "universal", "universal")
    with pytest.raises(
        SourceError, match=r"pretrained:univrsal: no such generator\nhint: did you mean pretrained:universal\?"
    ):
        resolve_generator("pretrained:univrsal")
    with pytest.raises(SourceError, match="there are pretrained:special, pretrained:universal"):
        resolve_generator("pretrained:x")
    base = shipped / "special" / "base.safetensors"
    for text in ("pretrained:special/base", "pretrained:special/base.safetensors"):
        assert resolve_source(text) == Source(text, base, "base.safetensors")
    found = resolve_sources(["pretrained:special"])
    assert {source.name for source in found} == {"base.safetensors", "model.safetensors"}
    (shipped / "special" / "other.safetensors").write_bytes(base.read_bytes())
    for text in ("special/bas", "special/other", "spcial/base", "../special/base", f"{shipped}/special/base", ""):
        with pytest.raises(
            SourceError, match=r"no such teacher comes with wfcli\nhint: .*pretrained:special/base"
        ) as caught:
            resolve_sources([f"pretrained:{text}"])
        assert f"pretrained:{text}: " in str(caught.value)


def test_files_that_have_changed_are_refused(shipped: Path) -> None:
    folder = shipped / "special"
    wanted = list_pretrained()[0].sha256
    for file in ("model.safetensors", "config.json"):
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    with pytest.raises(CheckpointError) as caught:
        resolve_generator("pretrained:special")
    assert caught.value.problems == tuple(
        f"{folder / file}: got sha256 {file_digest(folder / file)[:12]}, expected {wanted[file][:12]} as in index.json"
        for file in ("config.json", "model.safetensors")
    )
    assert caught.value.hint == "install wfcli again"
    assert resolve_source("pretrained:special/base").path == folder / "base.safetensors"  # which has not
    (folder / "base.safetensors").write_bytes(save({"w": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"base\.safetensors: got sha256"):
        resolve_source("pretrained:special/base")


def test_files_that_are_nowhere(shipped: Path) -> None:
    (shipped / "special" / "model.safetensors").unlink()
    assert [one.here for one in list_pretrained()] == [False, True]
    with pytest.raises(SourceError) as caught:
        resolve_generator("pretrained:special")
    assert caught.value.problems == (
        f"pretrained:special: model.safetensors not in {shipped / 'special'}, and index.json names no place on the Hub",
    )
    assert caught.value.hint == "install wfcli again"


# On the Hub


def test_files_come_from_the_hub_at_the_commit_of_the_index(hub: HubServer, shipped: Path, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in (shipped / "special").iterdir()}
    commit = publish(hub, shipped, "special")
    hub.add("me/special", {"config.json": b"{}", "model.safetensors": b"newer"})  # the branch goes on
    found = resolve_generator("pretrained:special")
    assert (found.name, found.revision) == ("special", commit)
    assert found.path.is_relative_to(tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in found.path.iterdir()} == {
        name: files[name] for name in ("config.json", "model.safetensors")
    }
    base = resolve_source("pretrained:special/base")
    assert (base.name, base.revision) == ("me/special:base.safetensors", commit)  # as a recipe spells it
    assert base.path.read_bytes() == files["base.safetensors"]
    hub.stop()
    assert resolve_generator("pretrained:special") == found  # from the cache


def test_other_files_on_the_hub_are_refused(hub: HubServer, shipped: Path) -> None:
    files = {file.name: file.read_bytes() for file in (shipped / "special").iterdir()}
    publish(hub, shipped, "special")
    wrong = hub.add("me/special", {**files, "model.safetensors": save({"w": torch.zeros(2)})})
    point(shipped, "special", "me/special", wrong)
    wanted = list_pretrained()[0].sha256["model.safetensors"]
    with pytest.raises(CheckpointError) as caught:
        resolve_generator("pretrained:special")
    [problem] = caught.value.problems
    place, told = problem.split(": ", 1)
    assert told == f"got sha256 {file_digest(Path(place))[:12]}, expected {wanted[:12]} as in index.json"
    assert "delete these files, and try again; if they come again, install wfcli again: me/special" in str(caught.value)


def test_a_download_that_was_damaged_is_mended_as_the_hint_says(hub: HubServer, shipped: Path) -> None:
    publish(hub, shipped, "special")
    hub.corrupt = True
    with pytest.raises(CheckpointError) as caught:
        resolve_generator("pretrained:special")
    hub.corrupt = False
    for problem in caught.value.problems:
        Path(problem.split(": ")[0]).unlink()
    assert resolve_generator("pretrained:special").name == "special"


def test_what_the_hub_does_not_have(hub: HubServer, shipped: Path) -> None:
    commit = publish(hub, shipped, "special")
    cut = hub.add("me/cut", {"config.json": b"{}"})
    for place, revision, message in (
        ("me/no", commit, "no repository me/no on the Hub, or it is private"),
        ("me/special", "0" * 40, f"me/special has no revision {'0' * 40}"),
        ("me/cut", cut, r"holds no generator: model\.safetensors missing"),
    ):
        point(shipped, "special", place, revision)
        with pytest.raises(SourceError, match=f"pretrained:special: {message}"):
            resolve_generator("pretrained:special")


def test_offline_without_a_cache(hub: HubServer, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    publish(hub, shipped, "special")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for resolve in (resolve_generator, lambda text: resolve_source(f"{text}/base")):
        with pytest.raises(SourceError, match=r"pretrained:special: the Hub cannot be reached(?s:.*)--offline"):
            resolve("pretrained:special")
    assert hub.requests == []


def test_fuse_takes_a_generator_that_did_not_come_along(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wfcli: Run, tiny_teachers: TinyTeachers
) -> None:
    root = tmp_path / "pretrained"
    shutil.copytree(pretrained_folder() / "universal", root / "far")
    write_entry(describe_generator(root / "far", "uoft-cs/cifar100", []), root)
    digest = file_digest(root / "far" / "model.safetensors")
    monkeypatch.setattr("wfcli.core.pretrained.pretrained_folder", lambda: root)
    publish(hub, root, "far")
    out = tmp_path / "s.safetensors"
    fuse = ("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", out)
    ran = wfcli(*fuse, "--generator", "pretrained:far", "--no-guard")
    assert ran.code == 0, ran.stderr
    made = (open_checkpoint(out).provenance or {})["generator"]
    assert (made["name"], made["sha256"]) == ("far", digest)
    ran = wfcli(*fuse)  # the default one is not in this index
    assert ran.code == 0
    assert re.search("warning: .*there is no pretrained:universal in this installation", ran.stderr)
