"""A checkpoint is described from its header, by torch or without, and its weights on request."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wfcli.core.architectures import build_model, find_architecture, key_layout
from wfcli.core.checkpoint import save_state
from wfcli.engine.inspect import InspectConfig, InspectResult, NonFinite, inspect
from wfcli.errors import SourceError, WfError

VGG_BN = find_architecture("vgg11_bn_cifar", {"width": 0.125})
PROVENANCE = {
    "wfcli": "0",
    "verb": "train-teachers",
    "architecture": {"name": "vgg11_bn_cifar", "args": {"width": 0.125}},
}


def make_state(seed: int, classes: int = 10, base: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, spec in key_layout(VGG_BN, classes).items():
        noise = torch.randn(spec.shape, generator=generator)
        state[key] = torch.tensor(3) if spec.dtype == "I64" else noise if base is None else base[key] + 0.1 * noise
    return state


def write(path: Path, state: dict[str, Tensor], provenance: dict[str, Any] | None = None) -> str:
    save_state(path, state, provenance or PROVENANCE)
    return str(path)


def look(*texts: str | Path, weights: bool = False) -> InspectResult:
    return inspect(InspectConfig(tuple(map(str, texts)), weights))


def test_the_header_says_it_all(tmp_path: Path) -> None:
    text = write(tmp_path / "a.safetensors", make_state(0))
    (entry,) = look(text).entries
    model = build_model(VGG_BN, 10)
    assert (entry.name, entry.file) == ("a.safetensors", "a.safetensors")
    assert (entry.architecture, entry.layout, entry.classes) == ("vgg11_bn_cifar(width=0.125)", "timm", 10)
    assert entry.tensors == len(model.state_dict())
    assert entry.parameters == sum(p.numel() for p in model.parameters())
    assert entry.dtypes == {"F32": entry.tensors - 8, "I64": 8}
    assert entry.size == Path(text).stat().st_size
    assert entry.provenance == PROVENANCE
    assert look(text).weights is None


def test_without_torch(tmp_path: Path) -> None:
    text = write(tmp_path / "a.safetensors", make_state(0))
    code = (
        "import sys; from wfcli.engine.inspect import *; e = inspect(InspectConfig((sys.argv[1],))).entries[0]; "
        "print(e.architecture, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "vgg11_bn_cifar(width=0.125) False"


def test_torchvision_files_and_pickles(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    model = resnet18(num_classes=3)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "r.pth"
    )
    (entry,) = look(tmp_path / "r.pth").entries
    assert (entry.architecture, entry.classes, entry.provenance) == ("resnet18", 3, None)
    assert entry.parameters == sum(p.numel() for p in model.parameters())


def test_an_unknown_net_is_described_all_the_same(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    (entry,) = look(tmp_path / "x.safetensors").entries
    assert (entry.architecture, entry.layout, entry.classes, entry.tensors, entry.parameters) == (
        None,
        None,
        None,
        2,
        6,
    )
    assert entry.dtypes == {"F32": 1, "U8": 1}


def test_provenance_is_believed_where_the_tensors_fit(tmp_path: Path) -> None:
    # A net of timm that no table lists: only the provenance says what it is.
    arch = find_architecture("convnext_atto")
    state = build_model(arch, 5).state_dict()
    named = {"architecture": {"name": "convnext_atto", "args": {}}}
    (entry,) = look(write(tmp_path / "a.safetensors", state, named)).entries
    assert (entry.architecture, entry.classes) == ("convnext_atto", 5)
    for wrong in ({"name": "resnet34", "args": {}}, {"name": "no_such_net"}, {"name": 3}, "convnext_atto"):
        (entry,) = look(write(tmp_path / "a.safetensors", state, {"architecture": wrong})).entries
        assert (entry.architecture, entry.classes) == (None, None)


def test_fine_tunes_share_a_base(tmp_path: Path) -> None:
    base = make_state(99)
    texts = [write(tmp_path / f"{seed}.safetensors", make_state(seed, base=base)) for seed in range(3)]
    report = look(*texts, weights=True).weights
    assert report is not None
    assert report.shared_base is True
    assert report.cosines is not None
    assert min(report.cosines) > 0.98
    assert report.distances == pytest.approx([0.1 * math.sqrt(2 / 3)] * 3, rel=0.05)
    assert report.sentence.startswith("the teachers share a base (cosine to their mean 1.00 to 1.00, 0.58 if")
    assert report.non_finite == ()


def test_independent_nets_do_not(tmp_path: Path) -> None:
    texts = [write(tmp_path / f"{seed}.safetensors", make_state(seed)) for seed in range(4)]
    report = look(*texts, weights=True).weights
    assert report is not None
    assert report.shared_base is False
    assert report.cosines == pytest.approx([0.5] * 4, abs=0.06)
    assert "0.50 if independent" in report.sentence


def test_numbers_that_are_none_are_all_listed(tmp_path: Path) -> None:
    states = [make_state(0), make_state(1)]
    states[0]["features.0.weight"][0, 0, 0, :2] = math.nan
    states[0]["head.bias"][3] = -math.inf
    states[1]["head.bias"][:2] = torch.tensor([math.inf, math.nan])
    texts = [write(tmp_path / f"{name}.safetensors", state) for name, state in zip("ab", states, strict=True)]
    report = look(*texts, weights=True).weights
    assert report is not None
    assert report.non_finite == (
        NonFinite("a.safetensors", "features.0.weight", 2, 0),
        NonFinite("a.safetensors", "head.bias", 0, 1),
        NonFinite("b.safetensors", "head.bias", 1, 1),
    )
    assert (report.shared_base, report.cosines) == (None, None)
    assert report.sentence == "there are numbers that are not finite: not compared"


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_floating_dtype_is_read(tmp_path: Path, name: str) -> None:
    values = torch.tensor([1.0, math.nan, 2.0]).to(getattr(torch, name))
    save_file({"a": values}, tmp_path / "x.safetensors")
    report = look(tmp_path / "x.safetensors", weights=True).weights
    assert report is not None
    assert report.non_finite == (NonFinite("x.safetensors", "a", 1, 0),)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", make_state(0))
    b = write(tmp_path / "b.safetensors", make_state(1, classes=7))
    save_file({"a": torch.zeros(3)}, tmp_path / "1.safetensors")
    save_file({"a": torch.ones(3)}, tmp_path / "2.safetensors")
    for texts, sentence in (
        ([a], "one checkpoint: nothing to compare it with"),
        ([a, b], "the checkpoints hold different tensors: not compared"),
        (
            [tmp_path / "1.safetensors", tmp_path / "2.safetensors"],
            "no weights of two or more dimensions: not compared",
        ),
    ):
        report = look(*texts, weights=True).weights
        assert report is not None
        assert (report.shared_base, report.sentence) == (None, sentence)


def test_progress_is_told(tmp_path: Path) -> None:
    class Heard:
        def __init__(self) -> None:
            self.steps: list[tuple[str, int, int]] = []

        def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
            self.steps.append((stage, done, total))

        def warn(self, message: str) -> None:
            raise AssertionError(message)

    heard = Heard()
    inspect(InspectConfig((write(tmp_path / "a.safetensors", make_state(0)),), weights=True), heard)
    assert heard.steps == [("reading weights", 0, 1), ("reading weights", 1, 1)]


def test_all_that_cannot_be_read_comes_at_once(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(WfError) as caught:
        look(
            tmp_path / "no.safetensors", tmp_path / "cut.safetensors", write(tmp_path / "a.safetensors", make_state(0))
        )
    assert [problem.split(": ")[1][:9] for problem in caught.value.problems] == ["no such c", "truncated"]
    with pytest.raises(SourceError, match="no such checkpoint file"):
        look(tmp_path / "no.safetensors")


def test_the_result_is_plain_data(tmp_path: Path) -> None:
    from dataclasses import asdict

    texts = [write(tmp_path / f"{seed}.safetensors", make_state(seed)) for seed in range(2)]
    written = json.loads(json.dumps(asdict(look(*texts, weights=True))))
    assert set(written["entries"][0]) == {
        "name", "file", "architecture", "layout", "tensors", "parameters", "dtypes", "classes", "size", "provenance",
    }  # fmt: skip
    assert set(written["weights"]) == {"shared_base", "cosines", "distances", "sentence", "non_finite"}
