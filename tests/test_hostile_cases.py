"""What readers with fresh eyes found: each file is refused, or read as it should be."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import Ran, TinyTeachers
from tests.hostile.pickles import archive, call, number, program, text, tuples, zipped
from wfcli.core import outputs
from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state, state_specs
from wfcli.core.image_sizes import claimed_size
from wfcli.core.pickle_scan import scan_pickle
from wfcli.core.runs import RunLog, load_run, refuse_forgotten, save_run
from wfcli.core.shards import write_shards
from wfcli.engine.provenance import source_name
from wfcli.engine.teachers import open_teachers
from wfcli.errors import CheckpointError, OutputError

Cli = Callable[..., Ran]
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["DATA.PKL", "Data.pkl", "other.pkl"])
def test_a_record_that_torch_finds_under_another_name(tmp_path: Path, name: str) -> None:
    top, records = archive()
    records = {**records, f"{top}/{name}": program(call("builtins bytearray", number(3 * 10**8)))}
    del records[f"{top}/data.pkl"]
    (tmp_path / "x.pt").write_bytes(zipped(records))
    with pytest.raises(CheckpointError, match=r"expected one data\.pkl in the archive"):
        open_checkpoint(tmp_path / "x.pt")


DEEP = tuples(20)  # a million leaves
SAVED = b"r" + struct.pack("<I", 900)
FETCHED = b"j" + struct.pack("<I", 900)
TENSOR = call("torch FloatTensor", number(5 * 10**7))


@pytest.mark.parametrize(
    "operations",
    [
        DEEP + SAVED + b"".join(call("collections OrderedDict") + FETCHED + b"b" for _ in range(40)),
        b"]" + SAVED + b"\x85" + FETCHED + b"(" + number(1) * 9 + b"e",  # a list grows in its tuple
        text("x" * 10**6) + SAVED + call("_codecs encode", FETCHED, text("latin1")) * 400,
        call("_codecs encode", text("\xfc" * 9), text("punycode"), text("latin1")),
        TENSOR,
        call("torch.storage UntypedStorage", number(10**9)),
        call("torch._utils _rebuild_device_tensor_from_cpu_tensor", TENSOR),
    ],
)
def test_pickles_that_swell_or_do_not_end(operations: bytes) -> None:
    with pytest.raises(ValueError, match=r"without end|grow within|may take any memory|encode to"):
        scan_pickle(program(operations))


def test_training_losses_beside_the_weights_are_no_bomb(tmp_path: Path) -> None:
    state = {"weight": torch.ones(2, 2)}
    torch.save({"state_dict": state, "losses": [float(n) for n in range(1_200_000)]}, tmp_path / "x.pt")
    assert torch.equal(open_checkpoint(tmp_path / "x.pt")["weight"], state["weight"])


def jpeg(side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(out, "JPEG")
    return out.getvalue()


def test_a_jpeg_claims_what_it_is_decoded_to() -> None:
    plain = jpeg()
    assert claimed_size(plain) == (64, 64)
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 8, 8, 8, 8, 0)
    hidden = plain[:2] + b"\xff\x01" + b"\xff\xe0" + struct.pack(">H", 2 + len(frame)) + frame + plain[2:]
    assert claimed_size(hidden) is None  # whoever decodes it tells its size


def test_what_lies_behind_a_jpeg_is_not_decoded() -> None:
    assert claimed_size(jpeg() + b"\xff\xda" * 200) == (64, 64)
    with pytest.raises(ValueError, match="more than 100 scans"):
        claimed_size(jpeg()[:-2] + b"\xff\xda\x00\x02" * 200 + b"\xff\xd9")


def in_shards(folder: Path) -> Path:
    folder.mkdir()
    state = {"a": torch.ones(100), "b": torch.zeros(100)}
    return write_shards(folder / "x.safetensors", state_specs(state), iter(state.items()), {}, 400)[0]


def test_a_shard_may_not_be_a_link_out_of_its_folder(tmp_path: Path) -> None:
    index = in_shards(tmp_path / "one")
    shard = sorted(set(json.loads(index.read_text())["weight_map"].values()))[0]
    (tmp_path / "elsewhere").mkdir()
    (index.parent / shard).rename(tmp_path / "elsewhere" / shard)
    (index.parent / shard).symlink_to(tmp_path / "elsewhere" / shard)
    with pytest.raises(CheckpointError, match="a link out of its folder"):
        open_checkpoint(index)


def test_shards_of_the_hub_are_compared_with_its_digests(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    state = load_file(tiny_teachers.paths[0])
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    made = tmp_path / "made"
    made.mkdir()
    index, _ = write_shards(made / "x.safetensors", state_specs(state), iter(state.items()), {}, 100_000)
    for place, file in enumerate(sorted(made.iterdir())):
        blob = blobs / (f"{place:064x}" if file.suffix == ".safetensors" else "0" * 40)  # not what they hold
        file.rename(blob)
        (snapshot / file.name).symlink_to(blob)
    with pytest.raises(CheckpointError, match="as the Hub says"):
        open_teachers(
            (str(snapshot / index.name), str(tiny_teachers.paths[1])),
            find_architecture(tiny_teachers.arch[1], {"width": 0.125}),
        )


def test_an_interrupt_when_the_index_has_its_name_leaves_the_new_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path) -> None:
        if path.is_dir():
            raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "sync", stop)
    with pytest.raises(KeyboardInterrupt):
        in_shards(tmp_path / "one")
    assert open_checkpoint(tmp_path / "one")["a"].sum() == 100


def test_a_student_of_one_file_after_one_in_shards(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    fuse = ("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", tmp_path / "s.safetensors")
    assert wfcli(*fuse, "--method", "distance", "--max-shard-size", "100KB").code == 0
    assert (tmp_path / "s.safetensors.index.json").exists()
    printed = wfcli("inspect", "--recipe", tmp_path / "s.safetensors.index.json")
    assert 'max-shard-size = "100000"' in printed.stdout
    assert wfcli(*fuse, "--method", "soup").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]
    # But never where they are what it is made from.
    assert wfcli(*fuse, "--method", "distance", "--max-shard-size", "100KB").code == 0
    again = ("fuse", tmp_path / "s.safetensors.index.json", tiny_teachers.paths[0], *tiny_teachers.arch)
    ran = wfcli(*again, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert "choose another -o" in ran.stderr


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_a_state_that_cannot_be_read_now_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save_run(tmp_path / "x.resume", {"seed": 1}, {"step": 3})

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    for look in (load_run, refuse_forgotten):
        with pytest.raises((MemoryError, CheckpointError)) as caught:
            look(tmp_path / "x.resume", {"seed": 1})
        assert "damaged" not in str(caught.value)


def test_half_a_letter_at_the_end_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"step": 1}\n{"step": 2, "name": "\xc3')
    with RunLog(tmp_path / "log", keep_until=5):
        pass
    assert (tmp_path / "log").read_text() == '{"step": 1}\n'


def test_names_that_are_too_long_are_one_error(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300 + ".safetensors")
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", long)
    assert ran.code == 1
    assert "File name too long" in ran.stderr
    with pytest.raises(CheckpointError):
        open_checkpoint(long)
    for check in (outputs.check_folder, outputs.check_page):
        with pytest.raises(OutputError):
            check(long / "x.html")
    assert wfcli("push", long, "hf:me/net").code == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_teacher_whose_name_is_no_text(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/c\xff.safetensors"
    Path(os.fsdecode(odd)).write_bytes(tiny_teachers.paths[1].read_bytes())
    out = tmp_path / "s.safetensors"
    command = [sys.executable, "-m", "wfcli", "fuse", str(tiny_teachers.paths[0]), "-", *tiny_teachers.arch]
    ran = subprocess.run(
        [*command, "--method", "soup", "-o", str(out)], input=odd, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert open_checkpoint(out).provenance is not None


def test_a_home_folder_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_state(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
    assert source_name("~/a.safetensors") == "a.safetensors"
