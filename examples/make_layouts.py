"""Write wfcli/core/layouts.json: the tensors of the architectures that wfcli knows without importing timm.

    python examples/make_layouts.py [--unverified]

Every torchvision name of the table is verified: the timm net with torchvision's random weights, renamed by the table,
must give torchvision's logits. That takes 6 minutes on 2 cores; --unverified leaves it out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from wfcli.core import small_models
from wfcli.core.layouts import BATCH_NORM, COUNTER, scaled

TABLE = Path(__file__).parents[1] / "wfcli" / "core" / "layouts.json"

# timm names that stand in the table for themselves.
TIMM = [
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
    *(f"vit_{size}_patch32_224" for size in ("small", "base", "large")),
    "vit_huge_patch14_224",
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
    *(f"efficientnet_b{number}" for number in range(5)),
    *("mobilenetv2_100", "mnasnet_050", "mnasnet_075", "mnasnet_100"),
    *("regnetx_004_tv", *(f"regnetx_{flops}" for flops in ("008", "016", "032", "080", "160", "320"))),
    *("regnety_004", "regnety_008_tv", "regnety_016", "regnety_032", "regnety_080_tv", "regnety_160", "regnety_320"),
]
SMALL = {
    **dict.fromkeys(("vgg11_cifar", "vgg11_bn_cifar", "resnet18_cifar", "resnet50_cifar"), small_models.CHANNEL_STEP),
    **dict.fromkeys(("vit_tiny_cifar", "vit_base_cifar"), small_models.HEAD_DIM),
}
# torchvision name -> timm name. With the same names of tensors in both there is nothing to rename, only to verify.
FLOPS = {"004": "400mf", "008": "800mf", "016": "1_6gf", "032": "3_2gf", "080": "8gf", "160": "16gf", "320": "32gf"}
TORCHVISION = {
    **{name: name for name in TIMM if name.startswith(("resn", "wide_resnet", "vgg", "convnext", "efficientnet"))},
    **{f"densenet{depth}": f"densenet{depth}" for depth in (121, 161, 169, 201)},
    **{f"vit_{size[0]}_{patch}": f"vit_{size}_patch{patch}_224" for size in ("base", "large") for patch in (16, 32)},
    "vit_h_14": "vit_huge_patch14_224",
    "mobilenet_v2": "mobilenetv2_100",
    **{f"mnasnet{number[0]}_{number[1:].rstrip('0') or 0}": f"mnasnet_{number}" for number in ("050", "075", "100")},
    **{f"regnet_{n[6]}_{FLOPS[n[8:11]]}": n for n in TIMM if n.startswith("regnet")},
}
NORMS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": (small_models.CIFAR10_MEAN, small_models.CIFAR10_STD),
}
SAME = 0  # a leaf of torchvision's tree whose shape is timm's
Dims = tuple[Any, ...]  # numbers, "C" for classes, "4*64w" for scaled channels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unverified", action="store_true", help="leave out the comparison of logits")
    unverified = parser.parse_args().unverified
    entries = {name: timm_entry(name) for name in TIMM}
    entries.update({name: small_entry(name, step) for name, step in SMALL.items()})
    aliases = {}
    for name, timm_name in TORCHVISION.items():
        theirs, ours = in_timm_order(torchvision_shapes(name)), timm_shapes(timm_name)
        if not unverified:
            verify(name, timm_name, list(zip(theirs, ours, strict=True)))
        if list(theirs) != list(ours):
            entries[timm_name]["torchvision"] = tree_of(without_repeats(theirs, ours))
        if name != timm_name:
            aliases[name] = [timm_name, torchvision_size(name), "imagenet"]
    text = render({"norms": NORMS, "aliases": aliases, "architectures": entries})
    TABLE.write_text(text, encoding="utf-8")
    print(f"{TABLE.name}: {len(text) / 1000:.0f} kB")


def without_repeats(theirs: Mapping[str, Dims], ours: Mapping[str, Dims]) -> dict[str, Dims | None]:
    pairs = zip(theirs.items(), ours.values(), strict=True)
    return {key: None if shape == own else shape for (key, shape), own in pairs}


def timm_entry(name: str) -> dict[str, Any]:
    shapes = timm_shapes(name)
    return {**facts(name), "tensors": tree_of(shapes)}


def small_entry(name: str, step: int) -> dict[str, Any]:
    """Find out which dimensions scale with the width, by building the net at several widths."""
    widths = (0.25, 0.4, 1.7)
    shapes = timm_shapes(name)
    probes = {width: timm_shapes(name, width=width) for width in widths}
    bases = sorted({d for shape in shapes.values() for d in shape if isinstance(d, int) and d % step == 0})
    for key, shape in shapes.items():
        dims = [(d, {w: probes[w][key][axis] for w in widths}) for axis, d in enumerate(shape)]
        shapes[key] = tuple(scaled_dimension(d, seen, bases, step) for d, seen in dims)
    return {**facts(name), "step": step, "tensors": tree_of(shapes)}


def scaled_dimension(at_one: Any, seen: Mapping[float, Any], bases: Sequence[int], step: int) -> Any:
    if all(d == at_one for d in seen.values()):
        return at_one
    for factor in (1, 2, 3, 4):
        base = at_one // factor
        if base in bases and all(factor * scaled(base, width, step) == d for width, d in seen.items()):
            return f"{factor}*{base}w" if factor > 1 else f"{base}w"
    raise AssertionError(f"no rule for {at_one}: {seen}")


def facts(name: str) -> dict[str, Any]:
    cfg = timm.get_pretrained_cfg(name)
    norm = next(n for n, (mean, std) in NORMS.items() if (tuple(cfg.mean), tuple(cfg.std)) == (mean, std))
    return {"head": cfg.classifier, "size": cfg.input_size[-1], "norm": norm}


def timm_shapes(name: str, **args: Any) -> dict[str, Dims]:
    return open_classes(lambda classes: timm.create_model(name, num_classes=classes, **args))


def open_classes(build: Callable[[int], nn.Module]) -> dict[str, Dims]:
    """Return the shapes of all tensors, with "C" where they follow the number of classes."""
    with torch.device("meta"):
        few, many = build(7).state_dict(), build(11).state_dict()
    check_types(few)
    return {
        key: tuple("C" if a != b else a for a, b in zip(few[key].shape, many[key].shape, strict=True)) for key in few
    }


def check_types(state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        assert tensor.dtype == (torch.int64 if key.endswith(COUNTER) else torch.float32), key


def tree_of(shapes: Mapping[str, Dims | None]) -> dict[str, Any]:
    """Fold dotted names into a tree, keeping their order; equal numbered neighbours become one entry."""
    groups = [(part, dict(items)) for part, items in groupby(shapes.items(), key=lambda item: item[0].split(".")[0])]
    tree: dict[str, Any] = {}
    for index, (part, items) in enumerate(groups):
        later = any(part == other for other, _ in groups[index + 1 :])
        if part in items or later:  # a leaf; or a name that comes back further down, whose dots stay in the key
            tree.update({key: SAME if shape is None else list(shape) for key, shape in items.items()})
        else:
            norm = batch_norm(items, part)
            tree[part] = tree_of({k[len(part) + 1 :]: v for k, v in items.items()}) if norm is None else norm
    return merge_runs(tree)


def batch_norm(items: Mapping[str, Dims | None], part: str) -> str | None:
    if list(items) != [f"{part}.{leaf}" for leaf in (*BATCH_NORM, COUNTER)]:
        return None
    channels = items[f"{part}.weight"]
    assert all(items[f"{part}.{leaf}"] == channels for leaf in BATCH_NORM)
    return "" if channels is None else str(channels[0])


def merge_runs(tree: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    run: list[tuple[str, int]] = []
    for key, value in (*tree.items(), ("", None)):
        found = re.fullmatch(r"(.*?)(\d+)", key)
        if run and found and merged["run"] == value and (found[1], int(found[2])) == (run[-1][0], run[-1][1] + 1):
            run.append((found[1], int(found[2])))
            continue
        if run:
            (stem, first), (_, last) = run[0], run[-1]
            merged[f"{stem}{first}" if first == last else f"{stem}{{{first}..{last}}}"] = merged.pop("run")
        run = [(found[1], int(found[2]))] if found else []
        if found:
            merged["run"] = value
        elif key:
            merged[key] = value
    return merged


def torchvision_shapes(name: str) -> dict[str, Dims]:
    return open_classes(lambda classes: torchvision_model(name, classes))


def torchvision_model(name: str, classes: int) -> nn.Module:
    # RegNet computes its widths with tensors while it is built, which an empty device cannot do.
    with torch.device("cpu") if name.startswith("regnet") else nullcontext():
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return model


def in_timm_order(shapes: dict[str, Dims]) -> dict[str, Dims]:
    """Reorder torchvision's tensors where timm defines the same modules in another order."""
    # Transformers: timm has both in front of the patch embedding. RegNet: it has the shortcut at the end of a block.
    first = {"class_token": 0, "encoder.pos_embedding": 1}
    ordered: list[str] = []
    keys = sorted(shapes, key=lambda key: first.get(key, 2))
    for _, block in groupby(keys, key=lambda key: re.split(r"\.f\.|\.proj\.", key)[0]):
        ordered += sorted(block, key=lambda key: ".proj." in key)
    return {key: shapes[key] for key in ordered}


def verify(name: str, timm_name: str, pairs: Sequence[tuple[str, str]]) -> None:
    torch.manual_seed(0)
    theirs = torchvision_model(name, 7).eval()
    images = torch.randn(2, 3, torchvision_size(name), torchvision_size(name))
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():  # the head of a fresh Transformer is zero
                nn.init.normal_(module.weight, std=0.02)
        settle_batchnorm(theirs, images)
        expected = theirs(images)
    state = theirs.state_dict()
    ours = timm.create_model(timm_name, num_classes=7).eval()
    assert epsilons(ours) == epsilons(theirs), name
    own = ours.state_dict()
    ours.load_state_dict({timm_key: state[key].reshape(own[timm_key].shape) for key, timm_key in pairs})
    with torch.no_grad():
        error = float((ours(images) - expected).abs().max() / expected.std())
    print(f"{name:20} {timm_name:24} largest difference of the logits {error:.1e} of their spread", flush=True)
    assert error < 1e-4, name


def epsilons(model: nn.Module) -> set[Any]:
    return {module.eps for module in model.modules() if hasattr(module, "eps")}


def settle_batchnorm(model: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm statistics of its own input, so that the logits stay finite and differ with the images.

    The affines are uneven: a norm in the wrong place then shows in the logits.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = None
        norm.train()
    if norms:
        model(images)
    model.eval()


def torchvision_size(name: str) -> int:
    """Return the image size of torchvision's own weights, the smallest where there are several."""
    return min(int(weights.transforms().crop_size[0]) for weights in torchvision.models.get_model_weights(name))


def render(table: Mapping[str, Any]) -> str:
    """One line an entry, so that a change of one architecture is a change of one line."""
    lines = []
    for section, entries in table.items():
        rows = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in entries.items()]
        lines.append(f"{json.dumps(section)}: {{\n" + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
