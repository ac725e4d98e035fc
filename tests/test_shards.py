"""Students of several files, and digests that are taken while the files are merged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import Ran, TinyTeachers
from wfcli.core import shards
from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import file_digest, open_checkpoint, save_state, state_specs, write_checkpoint, write_shards
from wfcli.core.digests import STRETCH, digests_beside
from wfcli.core.pieces import in_pieces
from wfcli.engine import fuse as engine
from wfcli.engine import writing
from wfcli.engine.finite import Finite
from wfcli.engine.relation import LOOKED_AT, is_ancestor
from wfcli.engine.teachers import open_teachers
from wfcli.errors import CheckpointError, OutputError
from wfcli.units import parse_size

Cli = Callable[..., Ran]


def make_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "large": torch.randn(700, 500),  # 1.4 MB: comes in pieces
        "small": torch.randn(3),
        "half": torch.randn(40, 5).half(),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 4),
    }


def pieces(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, piece) for name in sorted(state) for piece in in_pieces(state, name))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_shards_are_read_back_and_each_is_a_file_of_its_own(tmp_path: Path) -> None:
    state = make_state()
    index, digest = write_shards(tmp_path / "x.safetensors", state_specs(state), pieces(state), {"verb": "t"}, 1000)
    assert index == tmp_path / "x.safetensors.index.json"
    told = json.loads(index.read_text())
    assert told["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    names = sorted(set(told["weight_map"].values()))
    assert files(tmp_path) == [*names, index.name]
    assert len(names) == 3  # the large tensor has one of its own
    loaded = {name: tensor for shard in names for name, tensor in load_file(tmp_path / shard).items()}
    assert {name: told["weight_map"][name] for name in state}.keys() == loaded.keys()
    checkpoint = open_checkpoint(index)
    assert all(
        torch.equal(checkpoint[name], tensor) and torch.equal(loaded[name], tensor) for name, tensor in state.items()
    )
    assert checkpoint.provenance == {"verb": "t"}
    assert checkpoint.digest() == digest
    for number, shard in enumerate(names, start=1):
        sha = hashlib.sha256((tmp_path / shard).read_bytes()).hexdigest()
        assert shard == f"x-{number:05d}-of-00003-{sha[:8]}.safetensors"


def test_shards_hold_at_most_so_many_bytes(tmp_path: Path) -> None:
    state = {f"t{number}": torch.randn(number, 10) for number in range(1, 20)}
    index, _ = write_shards(tmp_path / "x.safetensors", state_specs(state), state.items(), {}, 2000)
    by_shard: dict[str, int] = {}
    for name, shard in json.loads(index.read_text())["weight_map"].items():
        by_shard[shard] = by_shard.get(shard, 0) + state[name].nbytes
    assert max(by_shard.values()) <= 2000
    assert len(by_shard) < len(state)


def test_new_shards_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    state, path = make_state(), tmp_path / "x.safetensors"
    save_state(path, state, {})
    save_state(tmp_path / "x-1.safetensors", state, {})
    one, _ = write_shards(path, state_specs(state), state.items(), {}, 1000)
    before = files(tmp_path)
    assert not path.exists()  # it was to be replaced
    again, _ = write_shards(path, state_specs(state), state.items(), {}, 1000)
    assert (again, files(tmp_path)) == (one, before)
    other = {name: tensor + 1 for name, tensor in state.items()}
    write_shards(path, state_specs(other), other.items(), {}, 1000)
    assert len(files(tmp_path)) == len(before)
    assert set(files(tmp_path)) & set(before) == {"x-1.safetensors", "x.safetensors.index.json"}
    assert torch.equal(open_checkpoint(one)["small"], other["small"])


@pytest.mark.parametrize("when", ["tensors", "index"])
def test_a_failure_leaves_the_old_shards_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    state, path = make_state(), tmp_path / "x.safetensors"
    index, digest = write_shards(path, state_specs(state), state.items(), {}, 1000)
    before = files(tmp_path)
    other = {name: tensor + 1 for name, tensor in state.items()}

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "small", other["small"]
        broken()

    if when == "index":
        monkeypatch.setattr(shards, "write_json", broken)
    with pytest.raises(OutputError, match="No space left on device"):
        write_shards(path, state_specs(other), other.items() if when == "index" else tensors(), {}, 1000)
    assert files(tmp_path) == before
    assert open_checkpoint(index).digest() == digest


def test_fuse_writes_shards(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup")
    assert wfcli("fuse", *args, "-o", tmp_path / "one.safetensors").code == 0
    ran = wfcli("fuse", *args, "--max-shard-size", "20kB", "--json", "-o", tmp_path / "many.safetensors")
    assert ran.code == 0
    index = Path(json.loads(ran.stdout)["output"])
    assert index == tmp_path / "many.safetensors.index.json"
    one, many = open_checkpoint(tmp_path / "one.safetensors"), open_checkpoint(index)
    assert len(many.files) > 1
    assert one.specs == many.specs
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert json.loads(ran.stdout)["digest"] == many.digest()
    assert wfcli("inspect", index).code == 0
    small = wfcli("fuse", *args, "--max-shard-size", "5 GB", "-o", tmp_path / "small.safetensors")
    assert (small.code, (tmp_path / "small.safetensors").exists()) == (0, True)
    wrong = wfcli("fuse", *args, "--max-shard-size", "much", "-o", tmp_path / "x.safetensors")
    assert wrong.code == 2
    assert "got 'much', expected a size" in wrong.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5_000_000_000), ("1.5 MiB", 1_572_864), ("300", 300), ("7b", 7), ("2k", 2000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "5XB", "5iB", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


# Digests that come late


def test_a_late_provenance_stands_in_the_file(tmp_path: Path) -> None:
    state, path = make_state(), tmp_path / "x.safetensors"
    digest = write_checkpoint(path, state_specs(state), pieces(state), {"a": "0"}, lambda: {"a": "1"})
    assert digest == save_state(tmp_path / "y.safetensors", state, {"a": "1"}) == file_digest(path)
    with pytest.raises(AssertionError, match="changed its length"):
        write_checkpoint(path, state_specs(state), pieces(state), {"a": "0"}, lambda: {"a": 8 * "long"})
    assert open_checkpoint(path).provenance == {"a": "1"}


def test_digests_beside_other_work(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.safetensors").unlink(missing_ok=True)
        save_state(tmp_path / f"{number}.safetensors", {"x": torch.full((number * STRETCH // 8 + 1,), 1.0)}, {})
    opened = [open_checkpoint(path) for path in sorted(tmp_path.iterdir())]
    with digests_beside(opened) as wait:
        wait()
    assert [checkpoint.known_digest for checkpoint in opened] == [file_digest(checkpoint.path) for checkpoint in opened]
    changed = open_checkpoint(opened[0].path)
    changed.path.write_bytes(b"other")
    with digests_beside([changed, opened[1]]) as wait, pytest.raises(CheckpointError, match="changed while"):
        wait()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all teachers count as too large to be read twice."""
    monkeypatch.setattr(engine, "AHEAD", 0)
    monkeypatch.setattr(writing, "AHEAD", 0)


@pytest.mark.parametrize("shard", [(), ("--max-shard-size", "20kB")], ids=["one", "shards"])
def test_large_teachers_are_hashed_while_they_are_merged(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: tuple[str, ...]
) -> None:
    base = tmp_path.parent / f"{tmp_path.name}-base.safetensors"
    save_state(base, {name: tensor * 1 for name, tensor in load_file(tiny_teachers.paths[0]).items()}, {"a": "base"})
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "ties", "--base", base, *shard)
    early = json.loads(wfcli("fuse", *args, "--json", "-o", tmp_path / "x.safetensors").stdout)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setattr(engine, "AHEAD", 0)
    monkeypatch.setattr(writing, "AHEAD", 0)
    late = json.loads(wfcli("fuse", *args, "--json", "-o", tmp_path / "x.safetensors").stdout)
    assert early["digest"] == late["digest"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("large")
def test_large_teachers_with_the_same_bytes_leave_nothing(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(tiny_teachers.paths[0].read_bytes())
    args = (*tiny_teachers.paths, copy, *tiny_teachers.arch, "--method", "soup")
    ran = wfcli("fuse", *args, "-o", tmp_path / "student.safetensors")
    assert ran.code == 1
    assert "copy.safetensors: the same bytes as" in ran.stderr
    assert files(tmp_path) == ["copy.safetensors"]


# float8


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float64"])
def test_narrow_and_wide_teachers(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, dtype: str) -> None:
    args = (*tiny_teachers.arch, "--method", "soup")
    kind = getattr(torch, dtype)
    states, paths = [], []
    for number, path in enumerate(tiny_teachers.paths):
        state = {n: t.to(kind) if t.is_floating_point() else t for n, t in load_file(path).items()}
        paths.append(tmp_path / f"{number}.safetensors")
        save_state(paths[-1], state, {})
        states.append(state)
    assert wfcli("fuse", *paths, *args, "--dtype", "float32", "-o", tmp_path / "wide.safetensors").code == 0
    wide = load_file(tmp_path / "wide.safetensors")
    mean = torch.stack([state["head.weight"].double() for state in states]).mean(0)
    torch.testing.assert_close(wide["head.weight"].double(), mean, rtol=1e-6, atol=1e-7)
    assert wfcli("fuse", *paths, *args, "-o", tmp_path / "kept.safetensors").code == 0
    assert load_file(tmp_path / "kept.safetensors")["head.weight"].dtype == kind
    mixed = (paths[0], *tiny_teachers.paths[1:])
    assert wfcli("fuse", *mixed, *args, "-o", tmp_path / "mixed.safetensors").code == 0
    assert load_file(tmp_path / "mixed.safetensors")["head.weight"].dtype == torch.promote_types(
        torch.float32, torch.float64 if dtype == "float64" else torch.float32
    )


def test_what_float8_cannot_hold_is_refused(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    paths = []
    for number, path in enumerate(tiny_teachers.paths):
        state = load_file(path)
        state["head.bias"][0] = 1e4
        paths.append(tmp_path / f"{number}.safetensors")
        save_state(paths[-1], state, {})
    args = (*paths, *tiny_teachers.arch, "--method", "soup", "--dtype", "float8_e4m3fn")
    ran = wfcli("fuse", *args, "-o", tmp_path / "x.safetensors")
    assert ran.code == 1
    assert "student: head.bias: got 1 numbers too large for float8_e4m3fn" in ran.stderr
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.usefixtures("large")
def test_a_large_base_is_looked_at_in_part_and_refused_where_it_is_a_teacher(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wfcli.engine.merging.AHEAD", 0)
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "task-arithmetic")
    ran = wfcli("fuse", *args, "--base", tiny_teachers.paths[1], "-o", tmp_path / "student.safetensors")
    assert ran.code == 1
    assert f"it is the teacher {tiny_teachers.paths[1].name} itself" in ran.stderr
    assert files(tmp_path) == []
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    teachers = open_teachers([str(path) for path in tiny_teachers.paths], arch)
    base = Finite(open_checkpoint(tiny_teachers.paths[1]))
    assert is_ancestor(arch, teachers, Finite(teachers.checkpoints[0]), base, frozenset())
    assert 0 < len(base.seen) <= LOOKED_AT
