"""The valid files that the hostile ones are made from: as small as they come, and made once a process."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ARCH = {"name": "vgg11_bn_cifar", "args": {"width": 0.01}}
CLASSES = ["ant", "bee", "cat"]
DIGEST = "0123456789abcdef" * 4

PROVENANCE: dict[str, Any] = {
    "wfcli": "0.1.0",
    "torch": "2.15.0",
    "timm": "1.0.31",
    "verb": "fuse",
    "architecture": ARCH,
    "seed": 0,
    "method": "weightformer",
    "classes": CLASSES,
    "sources": [
        {"name": "a.safetensors", "sha256": DIGEST},
        {"name": "owner/name:b.safetensors", "sha256": DIGEST, "revision": "c0ffee"},
    ],
    "base": {"name": "owner/base", "sha256": DIGEST, "revision": "beef"},
    "generator": {"name": "universal", "sha256": DIGEST},
    "data": {"source": "owner/data", "label_column": None, "classes": None},
    "recipe": {
        "method": "weightformer",
        "base": "owner/base",
        "param": ["density=0.2"],
        "seed": 3,
        "weights": [1.0, 2.0],
    },
}
ZOO_RECIPE = """arch = "vgg11_bn_cifar"
arch_args = { width = 0.25 }
data = "digits"
label_column = "label"

[roles]
base = "0-4"
training = "5-9"

[base]
role = "base"
epochs = 3
lr = 0.1

[[zoo]]
name = "task"
repeat = 3
count = 4
role = "training"
classes = 3
shares = "dirichlet"
concentration = [0.3, 1.0]
seed = 100

[[zoo]]
name = "same"
count = 2
images_per_teacher = "200-700"
faults = "none,labels"
same_recipe = true
"""
RECIPE = """arch = "vgg11_bn_cifar"
arch-arg = ["width=0.01"]
method = "ties"
weights = [1, 2]
param = ["density=0.3"]
seed = 3
calibration-images = 100
guard = false
dtype = "keep"
teachers = [
  "a.safetensors",  # sha256 0123
  "b.safetensors",
]

[set."head.*"]
method = "copy:0"
"""
TIMM_CONFIG: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 10,
    "num_features": 192,
    "global_pool": "token",
    "model_args": {"img_size": 64, "num_classes": 10, "global_pool": "token", "in_chans": 3, "drop_rate": 0.1},
    "pretrained_cfg": {
        "tag": "augreg_in21k",
        "input_size": [3, 64, 64],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.9,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}
METRICS: dict[str, Any] = {
    "architecture": "vgg11_bn_cifar",
    "data": "owner/data (classes 0-2)",
    "split": "test",
    "images": 10,
    "rows": [
        {"kind": "teacher", "name": "a.safetensors", "top1": 0.5, "nll": 1.0, "ece": 0.1},
        {"kind": "checkpoint", "name": "x.safetensors", "top1": 0.5, "nll": 1.0, "ece": 0.1},
    ],
}


@cache
def state() -> dict[str, Any]:
    """Return a few tensors of several types."""
    import torch

    return {
        "conv.weight": torch.arange(12.0).reshape(2, 2, 3),
        "bn.running_var": torch.ones(2),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
        "head.weight": torch.zeros(3, 2),
    }


@cache
def net() -> dict[str, Any]:
    """Return the weights of the smallest net there is, of three classes."""
    import torch

    from wfcli.core.architectures import build_model, find_architecture

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build_model(find_architecture(ARCH["name"], ARCH["args"]), 3).state_dict())


@cache
def safetensors(which: str) -> tuple[dict[str, Any], bytes]:
    """Return the header's fields and the body of a file: of `state`, or of the `net` with its provenance."""
    from wfcli.core.checkpoint import save_state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_state(path, state() if which == "state" else net(), PROVENANCE)
        data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def packed(header: bytes, body: bytes, length: int | None = None) -> bytes:
    """Put a safetensors file together."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


@cache
def pickled(kind: str) -> bytes:
    """Return a file of torch.save: zip or legacy, plain, wrapped, with entries beside the tensors."""
    import torch

    out = io.BytesIO()
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state().items()}, "optimizer": {"lr": [0.1]}}
    content = {"zip": state(), "legacy": state(), "wrapped": wrapped, "parameters": _parameters()}[kind]
    torch.save(content, out, _use_new_zipfile_serialization=kind != "legacy")
    return out.getvalue()


def _parameters() -> dict[str, Any]:
    import torch

    base = torch.arange(6.0)
    return {
        "p": torch.nn.Parameter(base.clone()),
        "part": base[1:3],
        "whole": base,
        "spread": torch.ones(1, 1).expand(3, 4),
    }


@cache
def generator() -> tuple[dict[str, Any], bytes, bytes]:
    """Return a generator's config, its weights and its card; it has a prior and raw rows, so that all is in there."""
    from wfcli.core.generator import WeightFormer
    from wfcli.core.generator_config import Frame, WeightFormerConfig
    from wfcli.core.generator_files import save_generator

    shapes = {"head.weight": (3, 2), "head.bias": (3,)}
    config = WeightFormerConfig(
        width=8, blocks=1, heads=2, raw_widths=(4,), norms=("batch",), relations=("base", "independent"),
        frame=Frame("vgg11_bn_cifar", tuple(CLASSES), shapes, ("head.weight",), "base"), trained_on=("vgg11_bn_cifar",),
        knowledge=("split",),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save_generator(Path(folder), WeightFormer(config), "---\ntags:\n- a\n---\n# A generator\n")
        read = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return json.loads(read["config.json"]), read["model.safetensors"], read["README.md"]


@cache
def zoo() -> tuple[dict[str, Any], bytes]:
    """Return a zoo.json of two teachers and the bytes that both of them have."""
    import hashlib

    fields, body = safetensors("net")
    data = packed(json.dumps(fields).encode(), body)
    digest = hashlib.sha256(data).hexdigest()
    teachers = [
        {
            "file": f"teacher-{number:02d}.safetensors",
            "sha256": digest,
            "images": images,
            "class_counts": [2, 1, 0],
            "recipe": {"lr": 0.1, "epochs": 3.0},
            "top1": 0.5,
            "seed": number,
        }
        for number, images in enumerate(("all", [0, 2, 5]))
    ]
    return {
        "format": 1,
        "architecture": ARCH,
        "data": {"source": "./data", "label_column": "label", "classes": "0-2"},
        "class_names": CLASSES,
        "base": {"name": "base.safetensors", "sha256": digest},
        "shares": {"kind": "dirichlet", "concentration": 0.3},
        "teachers": teachers,
    }, data


@cache
def image(kind: str = "PNG", size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """Return one encoded image."""
    from PIL import Image

    out = io.BytesIO()
    picture = Image.effect_noise(size, 40).convert(mode) if mode != "P" else Image.new("P", size)
    picture.save(out, kind)
    return out.getvalue()


@cache
def parquet(kind: str = "hub") -> bytes:
    """Return a parquet file of six images in three classes: with the Hub's description of the columns, or plain."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": image(), "path": None} for _ in range(6)]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"img": pa.array(rows, struct), "label": pa.array([0, 1, 2, 0, 1, 2], pa.int64())})
    if kind == "hub":
        table = table.replace_schema_metadata({"huggingface": json.dumps(features())})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def features() -> dict[str, Any]:
    """Return the Hub's description of the columns of `parquet`."""
    return {"info": {"features": {"img": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}}}
