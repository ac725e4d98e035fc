"""examples/benchmarks/full_table.py: corruptions are what they say, the page shows what was measured, it runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), str(BENCHMARKS.parent), *sys.path])


@pytest.mark.parametrize("script", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_the_scripts_import_what_there_is(script: str) -> None:
    assert importlib.import_module(script).__doc__


def test_corruptions_grow_with_their_strength_and_repeat() -> None:
    from corruptions import CORRUPTIONS, STRENGTHS

    draw = torch.Generator().manual_seed(0)
    pixels = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8, generator=draw) * 200, scale_factor=4).byte()
    for name, corrupt in CORRUPTIONS.items():
        seen = [corrupt(pixels, strength) for strength in STRENGTHS]
        assert all(one.shape == pixels.shape and one.dtype == torch.uint8 for one in seen), name
        apart = [float((one.float() - pixels.float()).abs().mean()) for one in seen]
        assert 0 < apart[0] < apart[1] < apart[2], name
        assert torch.equal(corrupt(pixels, 1), seen[1]), name


def test_corruptions_by_hand() -> None:
    from corruptions import blur, brightness, contrast

    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    assert torch.equal(blur(grey, 2), grey)
    assert torch.equal(contrast(grey, 2), grey)
    assert int(brightness(grey, 1).unique()) == 176  # 100 + 255 * 0.3, half to even
    half = grey.clone()
    half[:, :, :16] = 200  # mean 150
    assert sorted(contrast(half, 1).unique().tolist()) == [130, 170]


def test_the_page_shows_means_over_sets() -> None:
    from write_full_results import claims, page, rows_of

    figures = {
        "base/same/4/0/single 0/top1": 0.5, "base/same/4/0/single 1/top1": 0.7, "base/same/4/1/single 0/top1": 0.8,
        "base/same/4/0/single 0/nll": 1.0, "base/same/4/0/ensemble/nll": 1.0,
        "base/same/4/0/ensemble/top1": 0.7, "base/same/4/1/ensemble/top1": 0.9,
        "base/same/4/0/generator specialised/top1": 0.695, "base/same/4/1/generator specialised/top1": 0.895,
        "base/same/4/0/9 steps of distillation from scratch/top1": 0.2,
        "base/same/4/0/9 steps of distillation from scratch/images": 2304,
        "base/same/4/rate/soup": 0.01,
    }  # fmt: skip
    result = {
        "scale": "cpu", "arch": "vgg11", "dataset": "cifar10", "date": "2026-01-01", "machine": "m", "wfcli": "1",
        "torch": "2", "timm": "1", "complete": False,
        "architecture": {"name": "vgg11_bn_cifar", "args": {"width": 0.5}},
        "costs": {"base": {"seconds": 3.2, "images": 4000}}, "figures": figures,
    }  # fmt: skip
    assert rows_of(result, "base/same", 4, "top1")["mean single"] == {"0": pytest.approx(0.6), "1": 0.8}
    (line,) = [line for line in claims([result]).splitlines() if line.startswith("| VGG-11, reduced")]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells[0].startswith("70.0 ± ")
    assert cells[3].startswith("+9.5 ")  # above the single
    assert cells[3].endswith("✓")
    assert cells[4] == "+49.5 ✓"  # above distillation, the one set that has it
    assert cells[5] == "-0.5 ± 0.0 ✓"  # within a point of the ensemble
    assert cells[6] == ""
    text = page([result])
    assert "not complete" in text
    assert "| base | 3 | 4,000 |" in text


def as_imagenet_lies(folder: Path) -> str:
    """Write the digits as ImageNet comes: train/ and val/ with a folder a class, JPEG files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / ("val" if number % 12 == 0 else "train") / f"n{label:08d}"
        place.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image.reshape(8, 8) * 15.9).astype("uint8"))
        grey.convert("RGB").resize((36, 40)).save(place / f"ILSVRC2012_{number:08d}.JPEG")
    return str(folder)


@pytest.mark.slow
def test_a_piece_runs_from_base_to_table_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    images = as_imagenet_lies(tmp_path / "imagenet")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads wait for whatever else runs
    made = subprocess.run(
        [sys.executable, "-m", "wfcli", "train-teachers", "--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.25",
         "--data", images, "--count", "1", "--epochs", "1", "-o", str(tmp_path / "base")],
        check=False, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    base = str(tmp_path / "base" / "teacher-00.safetensors")
    command = [sys.executable, str(BENCHMARKS / "full_table.py"), "--scale", "cpu", "--arch", "vgg11", "--base", base,
               "--dataset", images, "--work", str(tmp_path / "work"), "--results", str(tmp_path),
               "--counts", "4", "--draws", "1"]  # fmt: skip
    counts = []
    for minutes in ("0.1", "30"):  # the first has no time to measure all
        ran = subprocess.run(
            [*command, "--minutes", minutes], check=False, capture_output=True, text=True, env=environment
        )
        assert ran.returncode == 0, ran.stderr
        result = json.loads((tmp_path / "full_cpu_vgg11_imagenet.json").read_text())
        counts.append((result["complete"], len(result["figures"])))
    assert counts[0][0] is False
    assert counts[1][0] is True
    assert counts[0][1] < counts[1][1]
    assert {key.rpartition("/")[2] for key in result["figures"]} >= {"top1", "nll", "ece", "noise", "JPEG", "seconds"}
    assert {key.split("/")[0] for key in result["figures"]} == {"base", "scratch"}
