"""What users type leads to the right files, in order; what leads nowhere is named, all of it at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.hub_server import HubServer, use_hub
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.sources import Source, resolve_generator, resolve_source, resolve_sources
from wfcli.errors import CheckpointError, SourceError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(found: list[Source]) -> list[str]:
    return [source.name for source in found]


# Local files


def test_files_keep_their_order_and_globs_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(*(tmp_path / name for name in ("b.safetensors", "a.safetensors", "z.pt", "zoo.json", ".hidden.safetensors")))
    assert names(resolve_sources(["z.pt", "*.safetensors"])) == ["z.pt", "a.safetensors", "b.safetensors"]
    assert names(resolve_sources(["*"])) == ["a.safetensors", "b.safetensors", "z.pt"]
    assert names(resolve_sources(["./?.safetensors", "**/z.pt"])) == ["a.safetensors", "b.safetensors", "z.pt"]
    assert resolve_source("z.pt") == Source("z.pt", Path("z.pt"), "z.pt")


def test_a_folder_is_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(
        *(tmp_path / "zoo" / name for name in ("teacher-01.safetensors", "teacher-00.safetensors", "zoo.json", "a.pt"))
    )
    assert names(resolve_sources([str(tmp_path / "zoo")])) == ["teacher-00.safetensors", "teacher-01.safetensors"]
    monkeypatch.chdir(tmp_path / "zoo")
    assert names(resolve_sources(["."])) == ["teacher-00.safetensors", "teacher-01.safetensors"]


def test_a_folder_with_an_index_is_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        touch(tmp_path / folder / "m-00001-of-00001.safetensors", tmp_path / folder / "m.safetensors.index.json")
    for text in (str(tmp_path / "one"), str(tmp_path / "on*"), str(tmp_path / "one" / "*")):
        assert len(resolve_sources([text])) == 1
    assert resolve_source(str(tmp_path / "one")).name == "one"
    assert names(resolve_sources([str(tmp_path / "*")])) == ["one", "two"]
    index = tmp_path / "one" / "m.safetensors.index.json"
    assert resolve_source(str(index)).path == index
    monkeypatch.chdir(tmp_path / "one")
    assert resolve_source(".").name == "one"


def test_names_are_told_apart_by_parents(tmp_path: Path) -> None:
    paths = [tmp_path / part / "x.safetensors" for part in ("a/k", "b/k", "c")] + [tmp_path / "c" / "y.safetensors"]
    touch(*paths)
    found = resolve_sources([str(path) for path in paths])
    assert names(found) == ["a/k/x.safetensors", "b/k/x.safetensors", "c/x.safetensors", "y.safetensors"]
    assert [source.path for source in found] == paths


def test_a_file_named_twice_stays_twice(tmp_path: Path) -> None:
    touch(tmp_path / "x.safetensors")
    assert len(resolve_sources([str(tmp_path / "x.safetensors")] * 2)) == 2


def test_the_home_folder_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "x.safetensors", tmp_path / "a[1].safetensors", tmp_path / "s3:x.safetensors")
    assert resolve_source("~/x.safetensors").path == tmp_path / "x.safetensors"
    assert resolve_source(str(tmp_path / "a[1].safetensors")).name == "a[1].safetensors"
    monkeypatch.chdir(tmp_path)
    assert resolve_source("s3:x.safetensors").path == Path("s3:x.safetensors")


def test_one_checkpoint_where_one_is_wanted(tmp_path: Path) -> None:
    touch(tmp_path / "a.safetensors")
    assert resolve_source(str(tmp_path)).name == "a.safetensors"
    touch(tmp_path / "b.safetensors")
    with pytest.raises(
        SourceError, match=r"expected one checkpoint, got 2: a\.safetensors, b\.safetensors\nhint: name one"
    ):
        resolve_source(str(tmp_path))


def test_all_that_leads_nowhere_comes_at_once(tmp_path: Path) -> None:
    touch(tmp_path / "teacher-00.safetensors")
    wrong = tmp_path / "teacher-0.safetensors"
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        resolve_sources(
            [
                str(wrong),
                str(tmp_path / "*.pth"),
                str(tmp_path / "teacher-00.safetensors"),
                "s3://b/x",
                str(tmp_path / "empty"),
            ]
        )
    assert caught.value.problems == (
        f"{wrong}: no such teacher file",
        f"the teacher glob '{tmp_path / '*.pth'}' matches no checkpoint",
        "s3://b/x: unknown prefix 's3:'",
        f"{tmp_path / 'empty'}: no *.safetensors for a teacher in this folder",
    )
    assert caught.value.hint is not None
    assert f"did you mean {tmp_path / 'teacher-00.safetensors'}?" in caught.value.hint
    assert "hf:owner/name[@revision][:file], or pretrained:NAME" in caught.value.hint


def test_an_empty_glob_says_what_it_did_match(tmp_path: Path) -> None:
    touch(tmp_path / "zoo.json", tmp_path / "log.txt")
    with pytest.raises(
        SourceError, match=r"matches no checkpoint, of 2 that it matches\nhint: check it with ls"
    ) as caught:
        resolve_sources([f"{tmp_path}/*"])
    assert ".safetensors" in str(caught.value.hint)


def test_hints_of_folders(tmp_path: Path) -> None:
    touch(tmp_path / "a.pt")
    with pytest.raises(SourceError, match=rf"hint: name them by a glob: '{tmp_path}/\*\.pt'"):
        resolve_sources([str(tmp_path)])
    with pytest.raises(SourceError, match=rf"hint: there is no folder {tmp_path}/no either"):
        resolve_sources([f"{tmp_path}/no/x.pt"])
    with pytest.raises(SourceError, match="an empty teacher name"):
        resolve_sources([""])


@pytest.mark.parametrize("text", ["hg:owner/name", "https://host/x.safetensors", "timm:resnet50"])
def test_unknown_prefixes_show_the_spellings(text: str) -> None:
    with pytest.raises(
        SourceError, match=r"unknown prefix '\w+:'\nhint: give a file, a folder, a glob in quotes, hf:owner"
    ):
        resolve_source(text)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, wfcli.core.sources; print([n for n in ('torch', 'timm', 'huggingface_hub') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Generators


def test_a_folder_that_holds_no_generator(tmp_path: Path) -> None:
    touch(tmp_path / "gen" / "model.safetensors", tmp_path / "gen" / "config.json")
    assert resolve_generator(str(tmp_path / "gen")) == Source(str(tmp_path / "gen"), tmp_path / "gen", "gen")
    with pytest.raises(SourceError, match=r"got no such folder\nhint: did you mean pretrained:universal\?"):
        resolve_generator("universl")
    with pytest.raises(SourceError, match="expected the folder of a generator, got a file"):
        resolve_generator(str(tmp_path / "gen" / "config.json"))
    with pytest.raises(
        SourceError, match=r"holds no generator: config\.json and model\.safetensors missing\nhint: give the"
    ):
        resolve_generator(str(tmp_path))
    with pytest.raises(SourceError, match=r"unknown prefix 'zoo:'"):
        resolve_generator("zoo:universal")


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        yield server


def weights(value: float) -> bytes:
    return save({"w": torch.full((2,), value)})


def value(source: Source) -> float:
    return float(open_checkpoint(source.path)["w"][0])


def test_the_weights_of_a_repository(hub: HubServer) -> None:
    commit = hub.add("me/net", {"model.safetensors": weights(1), "pytorch_model.bin": b""})
    source = resolve_source("hf:me/net")
    assert (source.name, source.revision, value(source)) == ("me/net", commit, 1.0)


def test_a_revision_and_a_file(hub: HubServer) -> None:
    old = hub.add("me/net", {"model.safetensors": weights(1)}, branch="v1")
    new = hub.add("me/net", {"model.safetensors": weights(2), "sub/x.safetensors": weights(3)})
    found = resolve_sources(["hf:me/net@v1", "hf:me/net", f"hf:me/net@{old}", "hf:me/net:sub/x.safetensors"])
    assert [value(source) for source in found] == [1, 2, 1, 3]
    assert [source.revision for source in found] == [old, new, old, new]
    assert names(found) == [
        f"me/net@{old[:12]}",
        f"me/net@{new[:12]}",
        f"me/net@{old[:12]}",
        "me/net:sub/x.safetensors",
    ]


def test_the_order_of_the_weight_files(hub: HubServer) -> None:
    hub.add("me/bin", {"pytorch_model.bin": b"x"})
    assert resolve_source("hf:me/bin").path.name == "pytorch_model.bin"
    shards = {
        "m-00001-of-00002.safetensors": save({"w": torch.ones(2)}),
        "m-00002-of-00002.safetensors": save({"v": torch.ones(2)}),
    }
    index = {"weight_map": {"w": "m-00001-of-00002.safetensors", "v": "m-00002-of-00002.safetensors"}}
    files = {**shards, "model.safetensors.index.json": json.dumps(index).encode(), "other.safetensors": b"not fetched"}
    commit = hub.add("me/shards", {**files, "pytorch_model.bin": b"x"})
    source = resolve_source("hf:me/shards")
    assert source.revision == commit
    assert set(open_checkpoint(source.path)) == {"w", "v"}
    assert not (source.path.parent / "other.safetensors").exists()


def test_a_second_time_comes_from_the_cache_even_offline(hub: HubServer) -> None:
    hub.add("me/net", {"pytorch_model.bin": b"x"})
    first = resolve_source("hf:me/net")
    hub.stop()
    assert resolve_source("hf:me/net") == first


def test_a_generator_of_the_hub(hub: HubServer) -> None:
    commit = hub.add("me/gen", {"config.json": b"{}", "model.safetensors": weights(1), "README.md": b"card"})
    source = resolve_generator("hf:me/gen")
    assert (source.name, source.revision) == ("me/gen", commit)
    assert {path.name for path in source.path.iterdir()} == {"config.json", "model.safetensors"}
    assert resolve_generator(f"hf:me/gen@{commit}").path == source.path
    with pytest.raises(SourceError, match=r"a generator is a whole repository, not a file\nhint: write hf:me/gen"):
        resolve_generator("hf:me/gen:model.safetensors")
    hub.add("me/net", {"model.safetensors": weights(1)})
    with pytest.raises(SourceError, match=r"hf:me/net: holds no generator: config\.json missing"):
        resolve_generator("hf:me/net")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:me/no", r"no repository me/no on the Hub, or it is private\nhint: check the spelling; .* hf auth login"),
        ("hf:me/net@v9", r"me/net has no revision v9\nhint: name a branch, a tag or a whole commit id"),
        ("hf:me/net:x.safetensors", r"no file x\.safetensors in me/net\nhint: name the file: hf:owner/name"),
        ("hf:me/card", r"none of model\.safetensors, .*, pytorch_model\.bin in me/card\nhint: name the file: "),
        ("hf:me/gated", r"me/gated is gated, and you have no access\nhint: accept its terms .* log in: hf auth login"),
        ("hf:me", r"hf:me: not a name on the Hub\nhint: write hf:owner/name\[@revision\]\[:file\], for example"),
        ("hf:me/net:../x", r"\.\./x leads out of the repository"),
        ("hf:me/no--t..ok-", r"hf:me/no--t\.\.ok-: not a name on the Hub"),
    ],
)
def test_what_the_hub_does_not_have(hub: HubServer, text: str, message: str) -> None:
    hub.add("me/net", {"model.safetensors": weights(1)})
    hub.add("me/card", {"README.md": b"card"})
    hub.add("me/gated", {"model.safetensors": weights(1), "config.json": b"{}"}, gated=True)
    with pytest.raises(SourceError, match=message):
        resolve_sources([text])
    if ":" not in text.removeprefix("hf:"):
        with pytest.raises(SourceError, match=rf"{text}: "):
            resolve_generator(text)


def test_all_problems_of_the_hub_come_at_once(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        resolve_sources(["hf:me/no", str(tmp_path / "x.pt"), "hf:me/nor"])
    # Those of one hint stand together.
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "hf:me/no",
        "hf:me/nor",
        str(tmp_path / "x.pt"),
    ]
    assert str(caught.value).count("hint: ") == 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (None, r"the Hub cannot be reached, and the cache does not hold .*\nhint: .*HF_ENDPOINT"),
        (429, r"HTTP 429, too many requests: it did not deliver .*\nhint: try again later, or log in.*HF_TOKEN"),
        (503, r"HTTP 503, the Hub has trouble: it did not deliver .*\nhint: try again later"),
        (401, r"(refuses access \(HTTP 401\)|no repository me/net).*\nhint: .*log in"),
    ],
)
def test_a_hub_that_cannot_be_reached_or_refuses(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, status: int | None, reason: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)  # between the client's retries
    if status is None:
        hub.stop()
    hub.status = status
    for resolve, text in (
        (resolve_source, "hf:me/net"),
        (resolve_generator, "hf:me/net"),
        (resolve_source, "hf:me/net:*.safetensors"),
    ):
        waits.clear()
        with pytest.raises(SourceError, match=reason):
            resolve(text)
        assert len(waits) < 8  # not again for each of the file names that are tried


def test_offline_mode(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add("me/net", {"model.safetensors": weights(1)})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"cannot be reached, and the cache does not hold(?s:.*)HF_HUB_OFFLINE"):
        resolve_source("hf:me/net")
    assert hub.requests == []


def test_an_index_on_the_hub_that_points_outside(hub: HubServer) -> None:
    index = {"weight_map": {"w": "../../secret.safetensors"}}
    hub.add("me/evil", {"model.safetensors.index.json": json.dumps(index).encode()})
    hub.add("me/odd", {"model.safetensors.index.json": b"[]"})
    with pytest.raises(CheckpointError, match="lies outside the folder of the index"):
        open_checkpoint(resolve_source("hf:me/evil").path)
    with pytest.raises(SourceError, match="its index of shards has no weight_map"):
        resolve_source("hf:me/odd")


def test_the_endpoint_is_taken_from_the_environment(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add("me/net", {"model.safetensors": weights(1)})
    code = "from wfcli.core.sources import resolve_source; print(resolve_source('hf:me/net').revision)"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "fresh")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == commit
