"""Files: what is written can be read by everyone, what is damaged is named, nothing half-written stays behind."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from wfcli.core.checkpoint import (
    TORCH_DTYPES,
    Checkpoint,
    TensorSpec,
    atomic_path,
    check_writable,
    dtype_name,
    open_checkpoint,
    save_state,
    state_specs,
    torch_dtype,
    write_checkpoint,
    write_json,
)
from wfcli.errors import CheckpointError, OutputError


def make_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "features.0.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "features.1.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "mask": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
        "head.weight": torch.randn(2, 4, generator=generator),
    }


def same(one: dict[str, Tensor] | Checkpoint, other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(
        torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in other
    )


def leftovers(folder: Path, *expected: str) -> set[str]:
    return {path.name for path in folder.iterdir()} - set(expected)


# Writing


def test_written_file_is_read_back_by_us_and_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = save_state(path, make_state(), {"verb": "fuse", "sources": [{"name": "ä", "sha256": "0"}]})
    assert same(safetensors.torch.load_file(path), make_state())
    checkpoint = open_checkpoint(path)
    assert same(checkpoint, make_state())
    assert checkpoint.specs == state_specs(make_state())
    assert checkpoint.provenance == {"verb": "fuse", "sources": [{"name": "ä", "sha256": "0"}]}
    assert checkpoint.metadata["format"] == "pt"
    assert checkpoint.digest() == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (checkpoint.name, checkpoint.size) == ("x.safetensors", path.stat().st_size)
    assert leftovers(tmp_path, "x.safetensors") == set()


def test_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    state = make_state()
    backwards = dict(reversed(state.items()))
    one = save_state(tmp_path / "1.safetensors", state, {"a": 1, "b": 2})
    two = write_checkpoint(
        tmp_path / "2.safetensors", state_specs(backwards), iter(backwards.items()), {"b": 2, "a": 1}
    )
    assert one == two
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_golden_bytes(tmp_path: Path) -> None:
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([3, 4], dtype=torch.uint8)}
    save_state(tmp_path / "x.safetensors", state, {"verb": "t"})
    header = (
        b'{"__metadata__":{"format":"pt","wfcli":"{\\"verb\\":\\"t\\"}"},'
        b'"a":{"data_offsets":[8,10],"dtype":"U8","shape":[2]},"b":{"data_offsets":[0,8],"dtype":"F32","shape":[2]}}'
    )
    header += b" " * (-len(header) % 8)
    body = b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x03\x04"
    assert (tmp_path / "x.safetensors").read_bytes() == len(header).to_bytes(8, "little") + header + body


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_dtype_survives(tmp_path: Path, name: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(torch_dtype(name))
    assert dtype_name(tensor.dtype) == name
    save_state(tmp_path / "x.safetensors", {"x": tensor}, {})
    back = open_checkpoint(tmp_path / "x.safetensors")["x"]
    assert back.dtype == tensor.dtype
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))
    assert safetensors.torch.load_file(tmp_path / "x.safetensors")["x"].dtype == tensor.dtype


def test_memory_layout_does_not_matter(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 5, 5)
    one = save_state(tmp_path / "1.safetensors", {"w": weight}, {})
    two = save_state(tmp_path / "2.safetensors", {"w": weight.to(memory_format=torch.channels_last)}, {})
    assert one == two


def test_the_writer_refuses_what_was_not_announced(tmp_path: Path) -> None:
    specs = {"a": TensorSpec((2,), "F32")}
    good = torch.zeros(2)
    wrong: dict[str, list[tuple[str, Tensor]]] = {
        "got TensorSpec": [("a", torch.zeros(3))],
        "unexpected": [("b", good)],
        "written twice": [("a", good), ("a", good)],
        "never written: a": [],
    }
    for message, tensors in wrong.items():
        with pytest.raises(AssertionError, match=message):
            write_checkpoint(tmp_path / "x.safetensors", specs, tensors, {})
    assert leftovers(tmp_path) == set()


def test_a_failure_while_streaming_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_state(path, make_state(), {})
    before = path.read_bytes()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, {"a": TensorSpec((2,), "F32"), "b": TensorSpec((2,), "F32")}, tensors(), {})
    assert path.read_bytes() == before
    assert leftovers(tmp_path, "x.safetensors") == set()


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "x.json", {"b": 1, "a": "é"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o644
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'


def test_atomic_path_replaces_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "old"
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert leftovers(tmp_path, "log") == set()


def test_unwritable_places_are_named_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    missing = tmp_path / "no" / "x.safetensors"
    with pytest.raises(OutputError, match=r"no/x.safetensors: its folder does not exist") as caught:
        check_writable(missing)
    assert caught.value.hint == f"create it first: mkdir -p {tmp_path / 'no'}"
    with pytest.raises(OutputError, match=r"file is not a folder"):
        check_writable(tmp_path / "file" / "x.safetensors")
    with pytest.raises(OutputError, match=r"is a folder\nhint: name a file in it"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match="is not a plain file"):
        check_writable(Path(os.devnull))
    with pytest.raises(OutputError, match=r"cannot be written \(.*\)\nhint: choose a place with write permission"):
        check_writable(Path("/proc/x.safetensors") if sys.platform == "linux" else tmp_path / ("x" * 300))
    with pytest.raises(OutputError, match="its folder does not exist"):
        save_state(missing, make_state(), {})
    check_writable(tmp_path / "x.safetensors")
    assert leftovers(tmp_path, "file") == set()


@pytest.mark.parametrize(
    ("name", "got", "named"),
    [
        ("x.pt", ".pt", "x.safetensors"),
        ("student", "none", "student.safetensors"),
        ("v1.5", ".5", "v1.5.safetensors"),
    ],
)
def test_a_checkpoint_is_only_written_under_its_suffix(tmp_path: Path, name: str, got: str, named: str) -> None:
    with pytest.raises(OutputError) as caught:
        check_writable(tmp_path / name)
    assert caught.value.problems == (f"{tmp_path}/{name}: suffix: got {got}, expected .safetensors",)
    assert caught.value.hint == f"write -o {tmp_path}/{named}"
    with pytest.raises(OutputError) as caught:
        check_writable(tmp_path / "no" / name)
    assert len(caught.value.problems) == 2
    assert leftovers(tmp_path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        with Path("/dev/full").open("wb", buffering=0) as file:
            return file.write(b"x")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"x.safetensors: cannot be written \(No space left on device\)"):
        save_state(tmp_path / "x.safetensors", make_state(), {})
    assert leftovers(tmp_path) == set()


# Reading safetensors


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    save_state(tmp_path / "x.safetensors", make_state(), {})
    code = (
        "import sys; from pathlib import Path; from wfcli.core.checkpoint import open_checkpoint; "
        "c = open_checkpoint(Path(sys.argv[1])); print(len(c), c.digest()[:4], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.safetensors"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[::2] == ["6", "False"]


def test_every_read_is_fresh_memory(tmp_path: Path) -> None:
    save_state(tmp_path / "x.safetensors", make_state(), {})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    first = checkpoint["head.weight"]
    first.zero_()
    assert torch.equal(checkpoint["head.weight"], make_state()["head.weight"])


def header_file(path: Path, fields: Any, body: bytes) -> Path:
    text = json.dumps(fields).encode() if not isinstance(fields, bytes) else fields
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def tensor_field(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("fields", "body", "message"),
    [
        (
            {"a": tensor_field(0, 8, [2]), "b": tensor_field(8, 16, [2])},
            12,
            r"b: truncated: got 12 bytes of tensors, expe",
        ),
        ({"a": tensor_field(0, 8, [2]), "b": tensor_field(4, 12, [2])}, 12, r"b: overlaps the tensor before it"),
        ({"a": tensor_field(0, 8, [2]), "b": tensor_field(12, 20, [2])}, 20, r"b: a hole of 4 bytes before it"),
        ({"a": tensor_field(0, 8, [2])}, 9, r"1 bytes after the last tensor belong to none"),
        ({"a": tensor_field(0, 8, [3])}, 8, r"a: got 8 bytes, expected 12 for F32 \[3\]"),
        ({"a": tensor_field(8, 0, [2])}, 8, r"a: got -8 bytes"),
        ({"a": tensor_field(0, 8, [2], "F31")}, 8, r"a: got dtype 'F31', expected one of F64, F32"),
        ({"a": tensor_field(0, 8, [-2])}, 8, r"a: got shape \[-2\], expected a list of sizes"),
        ({"a": tensor_field(0, 4, [True])}, 4, r"a: got shape \[True\]"),
        ({"a": {"dtype": "F32"}}, 0, r"a: got no dtype, shape and data_offsets"),
        (
            {"a": {**tensor_field(0, 8, [2]), "data_offsets": [0]}},
            8,
            r"a: got data_offsets \[0\], expected \[begin, end",
        ),
        ({"a": {**tensor_field(0, 8, [2]), "dtype": ["F32"]}}, 8, r"a: got dtype \['F32'\]"),
        ({"__metadata__": {"a": 1}}, 0, r"__metadata__ is not a table of strings"),
        (b'{"a": 1, "a": 2}', 0, r"its header is not valid JSON \(a name stands there twice\)"),
        (b'{"a": ', 0, r"its header is not valid JSON"),
        (b'{"\xff": 1}', 0, r"its header is not valid JSON"),
        (b"{" + b'"a":{' * 100_000, 0, r"its header is not valid JSON"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, fields: Any, body: int, message: str) -> None:
    path = header_file(tmp_path / "bad.safetensors", fields, bytes(body))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: " + message) as caught:
        open_checkpoint(path)
    assert caught.value.hint == "fetch or write the file again: it is damaged"


def test_all_bad_tensors_come_at_once(tmp_path: Path) -> None:
    fields = {"a": tensor_field(0, 8, [3]), "b": tensor_field(0, 8, [2], "?"), "c": tensor_field(0, 8, [2])}
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(header_file(tmp_path / "bad.safetensors", fields, bytes(8)))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["a", "b"]


@pytest.mark.parametrize("length", [0, 5, 8, 40, -30])
def test_a_truncated_file_says_so(tmp_path: Path, length: int) -> None:
    save_state(tmp_path / "x.safetensors", make_state(), {})
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:length])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*truncated: got \d+ bytes") as caught:
        open_checkpoint(tmp_path / "x.safetensors")
    assert caught.value.hint == "fetch or write the file again: it is damaged"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "a Git LFS pointer, not the weights\nhint: .*git lfs pull",
        ),
        (b"PK\x03\x04........", "a file of torch.save, not safetensors\nhint: rename it to .pt"),
        ((10).to_bytes(8, "little") + b"[1, 2, 3] ", "not a safetensors file"),
    ],
)
def test_other_files_are_recognised(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


def test_missing_files_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no\.safetensors: no such file"):
        open_checkpoint(tmp_path / "no.safetensors")
    (tmp_path / "x.onnx").write_text("")
    with pytest.raises(CheckpointError, match=r"x\.onnx: unknown kind of file '\.onnx'\nhint: give \.safetensors, "):
        open_checkpoint(tmp_path / "x.onnx")


def test_a_file_that_changes_in_use_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_state(path, {"a": torch.zeros(2)}, {})
    checkpoint = open_checkpoint(path)
    save_state(path, {"a": torch.zeros(3)}, {})
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        checkpoint["a"]
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        checkpoint.digest()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_seen_through(tmp_path: Path, prefix: str) -> None:
    state = {prefix + key: value for key, value in make_state().items()}
    save_state(tmp_path / "x.safetensors", state, {})
    torch.save(state, tmp_path / "x.pt")
    for file in ("x.safetensors", "x.pt"):
        checkpoint = open_checkpoint(tmp_path / file)
        assert same(checkpoint, make_state())
        assert "head.weight" in checkpoint
        assert "absent" not in checkpoint


def test_a_prefix_that_not_all_names_have_is_a_name(tmp_path: Path) -> None:
    save_state(tmp_path / "x.safetensors", {"module.a": torch.zeros(1), "b": torch.zeros(1)}, {})
    assert set(open_checkpoint(tmp_path / "x.safetensors")) == {"module.a", "b"}


def test_provenance_of_others_is_none(tmp_path: Path) -> None:
    safetensors.torch.save_file(make_state(), tmp_path / "x.safetensors")
    assert open_checkpoint(tmp_path / "x.safetensors").provenance is None
    safetensors.torch.save_file(make_state(), tmp_path / "x.safetensors", {"wfcli": "no json"})
    assert open_checkpoint(tmp_path / "x.safetensors").provenance is None


# Shards


def write_shards(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    state = make_state()
    parts = {"m-00001-of-00002.safetensors": list(state)[:3], "m-00002-of-00002.safetensors": list(state)[3:]}
    folder.mkdir(exist_ok=True)
    for file, keys in parts.items():
        save_state(folder / file, {key: state[key] for key in keys}, {"verb": "test"})
    index = {"weight_map": weight_map or {key: file for file, keys in parts.items() for key in keys}}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))
    return folder / "m.safetensors.index.json"


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    index = write_shards(tmp_path / "big")
    for path in (index, index.parent):
        checkpoint = open_checkpoint(path)
        assert same(checkpoint, make_state())
        assert checkpoint.name == path.name
    shards = sorted(index.parent.glob("*.safetensors"))
    digests = [hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards]
    assert checkpoint.digest() == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert checkpoint.size == sum(shard.stat().st_size for shard in shards)
    assert checkpoint.provenance == {"verb": "test"}


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors", "..", ""])
def test_shards_may_not_lie_outside_the_folder(tmp_path: Path, shard: str) -> None:
    save_state(tmp_path / "secret.safetensors", make_state(), {})
    index = write_shards(tmp_path / "big", {"half": shard})
    with pytest.raises(
        CheckpointError, match=rf"m\.safetensors\.index\.json: the shard '{shard}' lies outside"
    ) as caught:
        open_checkpoint(index)
    assert caught.value.hint == "shards stand beside their index, named without folders"


def test_all_problems_of_shards_come_at_once(tmp_path: Path) -> None:
    names = {"half": "m-00002-of-00002.safetensors", "gone": "m-00003-of-00002.safetensors"}
    index = write_shards(tmp_path / "big", names)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(index)
    assert len(caught.value.problems) == 2
    assert "m-00003-of-00002.safetensors: cannot be read (No such file" in caught.value.problems[0]
    assert "half: not in m-00002-of-00002.safetensors, where the index says it is" in caught.value.problems[1]


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "no json"])
def test_an_index_without_weight_map(tmp_path: Path, content: str) -> None:
    index = write_shards(tmp_path / "big")
    index.write_text(content)
    with pytest.raises(CheckpointError, match=r"weight_map(?s:.*)hint: fetch the index again"):
        open_checkpoint(index)


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected one \*\.safetensors\.index\.json in this folder, got none"):
        open_checkpoint(tmp_path)


# torch.save


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "ema", "state_dict_ema"])
def test_pickles_and_their_wrappers(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    state: dict[str, Any] = make_state()
    inside = state if wrapper is None else {wrapper: state, "epoch": 3, "optimizer": {"lr": torch.tensor(0.1)}}
    for suffix in (".pt", ".pth", ".bin"):
        torch.save(inside, tmp_path / f"x{suffix}", _use_new_zipfile_serialization=zipped)
        checkpoint = open_checkpoint(tmp_path / f"x{suffix}")
        assert same(checkpoint, make_state())
        assert checkpoint.specs == state_specs(make_state())
        assert checkpoint.provenance is None


def test_weights_come_before_their_moving_average(tmp_path: Path) -> None:
    torch.save({"state_dict_ema": {"a": torch.ones(1)}, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "x.pt")
    assert open_checkpoint(tmp_path / "x.pt")["a"].item() == 0


def test_the_average_of_swa_utils_is_seen_through(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    torch.save(average.state_dict(), tmp_path / "x.pt")
    assert set(open_checkpoint(tmp_path / "x.pt")) == {"weight", "bias"}


def test_views_parameters_and_shared_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"t": base.t(), "part": base[1:3], "column": base[:, 1], "parameter": nn.Parameter(base), "whole": base}
    torch.save(state, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    for key, tensor in state.items():
        assert torch.equal(checkpoint[key], tensor)
        assert checkpoint[key].is_contiguous()
        assert not checkpoint[key].requires_grad
    checkpoint["whole"].zero_()
    assert torch.equal(checkpoint["part"], base[1:3])


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")
def test_a_pickle_is_not_kept_mapped(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(4_000_000), "b": torch.randn(4_000_000)}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    for key in checkpoint:
        assert len(checkpoint[key]) == 4_000_000
    assert "x.pt" not in Path("/proc/self/maps").read_text(encoding="utf-8")


class WantsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch it_ran",)


@pytest.mark.parametrize("protocol", [0, 2, 4, "zip"])
def test_a_pickle_that_wants_to_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int | str
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(protocol, int):
        Path("evil.pt").write_bytes(pickle.dumps({"a": WantsCode()}, protocol=protocol))
    else:
        torch.save({"a": WantsCode()}, "evil.pt")
    message = (
        r"evil\.pt: a (pickle that wants to run code \(\w+\.system\)|plain pickle, which may run code): not loaded"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(Path("evil.pt"))
    assert caught.value.hint is not None
    assert "in a place where you trust it" in caught.value.hint
    assert "safetensors.torch.save_file" in caught.value.hint
    assert not Path("it_ran").exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"wants to run code \(torch\.nn\.modules\.linear\.Linear\)"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"a TorchScript archive, which is code(?s:.*)hint: .*torch\.jit\.load"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pickle(tmp_path: Path, zipped: bool) -> None:
    torch.save(make_state(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pt").read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 20):
        (tmp_path / "x.pt").write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=r"x\.pt: (truncated|empty)(?s:.*)hint: fetch or write the file again"
        ):
            open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\x00" * 64, b"{}"])
def test_what_is_no_pickle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.bin: truncated, or not of torch\.save"):
        open_checkpoint(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {"a": [1.0]}, "epoch": 3}, "holds no state dict, but a dict with weights, epoch"),
        ({}, "holds no state dict, but a dict with nothing in it"),
        ([1, 2], "holds no state dict, but a list"),
    ],
)
def test_what_holds_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message + r"(?s:.*)hint: save model\.state_dict\(\)"):
        open_checkpoint(tmp_path / "x.pt")


def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(2).to_sparse(), "b": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "x.pt")
    assert "a: a sparse or quantized tensor, expected a dense one" in caught.value.problems[0]
    assert "b: got dtype torch.complex128, which safetensors cannot hold" in caught.value.problems[1]
