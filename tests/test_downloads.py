"""A damaged download is used nowhere: what is from the Hub is compared with the sha256 that the Hub gives for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wfcli as library
from tests.conftest import Ran, TinyTeachers
from tests.hub_server import HubServer, use_hub
from wfcli.core import downloads
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.downloads import check_downloads
from wfcli.core.pretrained import pretrained_folder
from wfcli.core.sources import resolve_source
from wfcli.errors import CheckpointError

Run = Callable[..., Ran]
TOLD = r"got sha256 \w{12}, expected \w{12}, as the Hub says: (\S+)"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teachers: TinyTeachers) -> Iterator[HubServer]:
    """Serve a base, two teachers and a generator, each with another last byte than it has."""
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        for name, path in zip(("base", "a", "b"), tiny_teachers.paths, strict=True):
            server.add(f"me/{name}", {"model.safetensors": path.read_bytes()})
        shipped = pretrained_folder() / "universal"
        server.add("me/gen", {file: (shipped / file).read_bytes() for file in ("config.json", "model.safetensors")})
        server.corrupt = True
        yield server


@pytest.mark.parametrize(
    "command",
    [
        "fuse {0} {1} {arch} --method task-arithmetic --base hf:me/base -o {out}/s.safetensors",
        "fuse hf:me/a hf:me/b {arch} --method soup -o {out}/s.safetensors",
        "fuse {0} {1} {arch} --generator hf:me/gen -o {out}/s.safetensors",
        "eval hf:me/base {arch} --data digits",
        "eval {0} --teachers hf:me/a --teachers hf:me/b {arch} --data digits",
        "finetune hf:me/base --teachers {0} {arch} --data digits --steps 1 -o {out}/s.safetensors",
        "finetune {0} --teachers hf:me/a {arch} --data digits --steps 1 -o {out}/s.safetensors",
        "train-teachers --init hf:me/base {arch} --data digits --count 1 --epochs 1 -o {out}/zoo",
        "train-generator --zoo {out}/no --init hf:me/gen -o {out}/gen",
        "inspect --weights hf:me/base",
    ],
)
def test_a_damaged_download_is_refused(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers, command: str
) -> None:
    if "digits" in command:
        pytest.importorskip("sklearn")
    if "--generator" in command or "--init hf:me/gen" in command:  # the JSON is small: the Hub gives no sha256 for it
        hub.corrupt = False
        assert wfcli("pull", "hf:me/gen:config.json").code == 0
        hub.corrupt = True
    before = set(tmp_path.iterdir())
    filled = command.format(*tiny_teachers.paths, arch=" ".join(tiny_teachers.arch), out=tmp_path)
    ran = wfcli(*filled.split())
    assert ran.code == 1
    [*found] = re.findall(TOLD, ran.stderr)
    assert found, ran.stderr
    assert "hint: delete these files, and run again: they are fetched again" in ran.stderr
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"cache"}  # nothing was written


def test_the_library_refuses_it_too(hub: HubServer, tiny_teachers: TinyTeachers) -> None:
    with pytest.raises(CheckpointError, match=TOLD):
        library.load_model("hf:me/base", arch="vgg11_bn_cifar", arch_args={"width": 0.125})
    hub.corrupt = False
    resolve_source("hf:me/gen:config.json")
    hub.corrupt = True
    with pytest.raises(CheckpointError, match=rf"me/gen/model\.safetensors: {TOLD}"):
        library.load_generator("hf:me/gen")


def test_files_that_are_fetched_again_are_taken(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    one, other, _ = tiny_teachers.paths
    options = (*tiny_teachers.arch, "--method", "task-arithmetic", "--base", "hf:me/base")
    ran = wfcli("fuse", one, other, *options, "-o", tmp_path / "s.safetensors")
    hub.corrupt = False
    for path in re.findall(TOLD, ran.stderr):
        Path(path).unlink()  # as the hint says
    third = tiny_teachers.paths[2]
    ran = wfcli("fuse", other, third, *options, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr


def test_damaged_shards_are_named_each(hub: HubServer, tiny_teachers: TinyTeachers) -> None:
    shards = {f"m-{n}.safetensors": path.read_bytes() for n, path in enumerate(tiny_teachers.paths[:2])}
    names = [key for key in open_checkpoint(tiny_teachers.paths[0]) if key.endswith("weight")][:2]
    index = {"weight_map": dict(zip(names, shards, strict=True))}
    hub.corrupt = False
    hub.add("me/big", {"model.safetensors.index.json": json.dumps(index).encode(), **shards})
    source = resolve_source("hf:me/big:model.safetensors.index.json")
    shard = (source.path.parent / "m-1.safetensors").resolve()
    body = shard.read_bytes()
    shard.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(CheckpointError) as caught:
        check_downloads([open_checkpoint(source.path, source.name)])
    [said] = caught.value.problems
    assert re.fullmatch(rf"me/big:model\.safetensors\.index\.json: {TOLD}", said)
    assert said.endswith(str(shard))


def test_local_files_are_not_read_for_it(monkeypatch: pytest.MonkeyPatch, tiny_teachers: TinyTeachers) -> None:
    checkpoint = open_checkpoint(tiny_teachers.paths[0])
    check_downloads([checkpoint])
    assert checkpoint.known_digest is None
    assert downloads.damage("x", tiny_teachers.paths[0], lambda path: pytest.fail("read")) is None
