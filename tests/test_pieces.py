"""Tensors in pieces of rows: the same from a dict and from every kind of file, and few of them in memory."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wfcli.core import checkpoint as checkpoints
from wfcli.core.architectures import find_architecture, match_layout
from wfcli.core.checkpoint import open_checkpoint, save_state, state_specs, write_checkpoint
from wfcli.core.methods import soup_pieces, soup_tensor
from wfcli.core.pieces import PIECE, in_pieces, row_ranges
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.errors import CheckpointError

WIDE = PIECE // 2 - 3  # two rows make a piece


def make_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "large": torch.randn(5, 7, WIDE // 7, generator=generator),
        "one row": torch.randn(1, 2 * PIECE, generator=generator),
        "half": torch.randn(3, PIECE, generator=generator).bfloat16(),
        "small": torch.randn(4, 3, generator=generator),
        "none": torch.zeros(0, 5),
        "count": torch.tensor(seed),
    }


def same_pieces(one: Iterator[Tensor], other: Iterator[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 3), (7, 100), (10, 10), (3, 0), (0, 4)])
def test_ranges_cover_all_rows_in_order(rows: int, width: int) -> None:
    ranges = list(row_ranges(rows, width, 20))
    assert [row for begin, end in ranges for row in range(begin, end)] == list(range(rows))
    assert all((end - begin) * width <= 20 or end - begin == 1 for begin, end in ranges)


def test_pieces_are_whole_rows_and_make_up_the_tensor() -> None:
    state = make_state()
    sizes = {name: [len(piece) for piece in in_pieces(state, name)] for name in ("large", "one row", "half", "small")}
    assert sizes == {"large": [2, 2, 1], "one row": [1], "half": [1, 1, 1], "small": [4]}
    assert [piece.shape for piece in in_pieces(state, "count")] == [()]
    assert [piece.shape for piece in in_pieces(state, "none")] == [(0, 5)]
    for name, tensor in state.items():
        pieces = list(in_pieces(state, name))
        assert torch.equal(torch.cat(pieces) if len(pieces) > 1 else pieces[0], tensor)


def test_every_kind_of_file_gives_the_same_pieces(tmp_path: Path) -> None:
    state = make_state()
    save_state(tmp_path / "x.safetensors", state, {})
    torch.save(state, tmp_path / "x.pt")
    (tmp_path / "shards").mkdir()
    for name, tensor in state.items():
        save_state(tmp_path / f"shards/{name}.safetensors", {name: tensor}, {})
    index = {"weight_map": {name: f"{name}.safetensors" for name in state}}
    (tmp_path / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    turned = {**state, "large": state["large"].transpose(1, 2).contiguous().transpose(1, 2)}
    torch.save(turned, tmp_path / "turned.pt")  # not plainly in the file
    for path in ("x.safetensors", "x.pt", "shards", "turned.pt"):
        opened = open_checkpoint(tmp_path / path)
        for name in state:
            assert same_pieces(in_pieces(opened, name), in_pieces(state, name)), (path, name)
            assert same_pieces(in_pieces(Finite(opened), name), in_pieces(state, name)), (path, name)


def test_other_names_and_shapes_are_seen_in_pieces(tmp_path: Path) -> None:
    arch = find_architecture("vgg11")
    large, classes = (4096, 25088), 10
    shapes = dict(match_layout(arch, _specs(arch, classes), "x").files)
    shapes["classifier.0.weight"] = large
    layout = match_layout(arch, _specs(arch, classes), "x")
    rows = torch.randn(30, 25088)
    view = layout.timm_view({"classifier.0.weight": rows})  # fewer rows than the net has: they tell the pieces apart
    pieces = list(in_pieces(view, "pre_logits.fc1.weight"))
    assert len(pieces) > 1
    assert {tuple(piece.shape[1:]) for piece in pieces} == {(512, 7, 7)}
    assert torch.equal(torch.cat(pieces).flatten(1), rows)


def _specs(arch: Any, classes: int) -> dict[str, Any]:
    from wfcli.core.architectures import key_layout
    from wfcli.core.checkpoint import TensorSpec

    own = key_layout(arch, classes)
    foreign = arch.entry.torchvision
    return {
        key: TensorSpec(tuple(classes if d == "C" else d for d in shape) if shape else own[name].shape, own[name].dtype)
        for key, (name, shape) in foreign.items()
    }


def test_the_soup_in_pieces_is_the_soup(tmp_path: Path) -> None:
    states = [make_state(seed) for seed in range(3)]
    for number, state in enumerate(states):
        save_state(tmp_path / f"{number}.safetensors", state, {})
    opened = [Finite(open_checkpoint(tmp_path / f"{number}.safetensors")) for number in range(3)]
    for name in states[0]:
        pieces = list(soup_pieces(opened, name))
        expected = soup_tensor(state[name] for state in states)
        assert torch.equal(torch.cat(pieces) if len(pieces) > 1 else pieces[0], expected)


def test_the_number_of_teachers_does_not_change_what_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def read(*args: Any) -> Tensor:
        nonlocal most
        tensor = read_tensor(*args)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    read_tensor = checkpoints.read_tensor
    monkeypatch.setattr(checkpoints, "read_tensor", read)
    found = []
    for count in (3, 9):
        teachers = []
        for number in range(count):
            save_state(tmp_path / f"{number}.safetensors", {"large": make_state(number)["large"]}, {})
            teachers.append(Finite(open_checkpoint(tmp_path / f"{number}.safetensors")))
        alive, most = [], 0
        assert sum(len(piece) for piece in soup_pieces(teachers, "large")) == 5
        found.append(most)
    assert found[0] == found[1] <= 4


def test_numbers_that_are_not_finite_are_counted_in_the_whole_tensor(tmp_path: Path) -> None:
    state = make_state()
    state["large"][0, 0, :2] = math.nan
    state["large"][4, 0, 0] = math.inf
    state["half"][:] = 3e38  # finite, but their sum is not
    save_state(tmp_path / "x.safetensors", state, {})
    teacher = Finite(open_checkpoint(tmp_path / "x.safetensors", "x"))
    for name in state:
        assert same_pieces(in_pieces(teacher, name), in_pieces(state, name)) or name == "large"
    expected = f"x: large: got 3 of {5 * 7 * (WIDE // 7)} numbers NaN or Inf"
    with pytest.raises(CheckpointError) as caught:
        raise_nonfinite([teacher])
    assert caught.value.problems == (expected,)
    assert Finite(open_checkpoint(tmp_path / "x.safetensors"))["half"].isfinite().all()


@pytest.mark.parametrize("order", ["of the file", "another"])
def test_a_file_is_written_in_pieces(tmp_path: Path, order: str) -> None:
    state = make_state()
    names = sorted(state) if order == "another" else list(state)[::-1]
    pieces = ((name, piece) for name in names for piece in in_pieces(state, name))
    digest = write_checkpoint(tmp_path / "pieces.safetensors", state_specs(state), pieces, {})
    assert digest == save_state(tmp_path / "whole.safetensors", state, {})
    assert (tmp_path / "pieces.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert open_checkpoint(tmp_path / "pieces.safetensors").digest() == digest


def test_the_digest_needs_no_second_reading_in_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfcli.core import safetensors_writer as writer

    state = make_state()
    expected = save_state(tmp_path / "x.safetensors", dict(sorted(state.items())), {})
    monkeypatch.delattr(writer, "file_digest")
    ordered = {name: state[name] for name in writer.file_order(state_specs(state))}
    assert save_state(tmp_path / "x.safetensors", ordered, {}) == expected


@pytest.mark.parametrize(
    "wrong",
    [[torch.zeros(2, 3), torch.zeros(3, 3)], [torch.zeros(2, 2)], [torch.zeros(2, 3, 1)], [torch.zeros(1, 3).double()]],
    ids=["rows", "width", "dimensions", "dtype"],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, wrong: list[Tensor]) -> None:
    specs = state_specs({"x": torch.zeros(4, 3)})
    with pytest.raises(AssertionError, match="x: got TensorSpec"):
        write_checkpoint(tmp_path / "x.safetensors", specs, (("x", piece) for piece in wrong), {})
    with pytest.raises(AssertionError, match="never written: x"):
        write_checkpoint(tmp_path / "x.safetensors", specs, [("x", torch.zeros(3, 3))], {})
    assert list(tmp_path.iterdir()) == []
