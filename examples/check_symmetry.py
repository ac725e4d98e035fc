"""Permute everything that may be permuted in many timm architectures, at random, and look whether the function stays.

For each architecture: how many spaces are found, what share of the parameters lies in a tensor with one, operations
that were not understood, and max |f(x) - f(permuted x)| / max |f(x)| in float64. Writes examples/results/symmetry.json
and symmetry.md; goes on where it was interrupted. About fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from wfcli.core.outputs import write_json
from wfcli.core.symmetry import find_symmetry
from wfcli.engine.align import MOST_CHANGE, free_share

RESULTS = Path(__file__).parent / "results"
# Family -> architectures, most of them the smallest of theirs.
FAMILIES = {
    "VGG": "vgg11 vgg11_bn",
    "ResNet": "resnet50 resnext50_32x4d resnetv2_50 nf_resnet26 resnest14d eca_resnet33ts cspresnet50",
    "SENet, SKNet": "seresnet18 skresnet18",
    "RegNet": "regnetx_002 regnety_002",
    "DenseNet": "densenet121",
    "MobileNet": "mobilenetv2_050 mobilenetv3_small_050 mnasnet_050 lcnet_050 fbnetc_100 hardcorenas_a rexnet_100",
    "EfficientNet": "efficientnet_lite0 efficientnet_b0 tinynet_e",
    "GhostNet": "ghostnet_050",
    "Inception, Xception, NASNet": "inception_v3 xception41 pnasnet5large",
    "DLA, HRNet, DarkNet, VoVNet": "dla34 hrnet_w18_small darknet53 vovnet39a selecsls42 res2net50_14w_8s dpn48b",
    "NFNet": "nfnet_f0",
    "RepVGG, RepViT, FastViT": "repvgg_a0 repvit_m0_9 fastvit_t8",
    "ConvNeXt": "convnextv2_atto inception_next_atto convmixer_768_32 focalnet_tiny_srf starnet_s1 mambaout_femto",
    "ViT": "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 vit_relpos_small_patch16_224 eva02_tiny_patch14_224",
    "BEiT, CaiT, XCiT, VOLO": "beit_base_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 volo_d1_224",
    "Swin, hierarchical": "swinv2_tiny_window8_256 hiera_tiny_224 davit_tiny twins_pcpvt_small pvt_v2_b0",
    "PiT, TNT, CrossViT, CoaT": "pit_ti_224 tnt_s_legacy_patch16_224 crossvit_tiny_240 coat_tiny",
    "LeViT, Visformer": "levit_128s visformer_tiny",
    "MLP-Mixer": "mixer_s32_224 resmlp_12_224 gmlp_ti16_224",
    "MetaFormer": "poolformer_s12 poolformerv2_s12",
    "EdgeNeXt, MobileViT": "edgenext_xx_small mobilevit_xxs mobilevitv2_050",
    "MaxViT, CoAtNet": "maxvit_tiny_rw_224 coatnet_nano_rw_224",
    "EfficientFormer, EfficientViT, TinyViT": "efficientformer_l1 efficientvit_b0 tiny_vit_5m_224 nextvit_small",
    "Sequencer": "sequencer2d_s",
}


def main() -> None:
    """Check those that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures to check (again); all that are missing unless given")
    names = parser.parse_args().names
    path = RESULTS / "symmetry.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    done = result.get("architectures", {})
    for family, members in FAMILIES.items():
        for name in members.split():
            if (name in names) if names else (name not in done):
                done[name] = {"family": family, **check(name)}
                print(line(name, done[name]), flush=True)
                made = {package: version(package) for package in ("wfcli", "torch", "timm")}
                write_json(path, {**made, "architectures": done})
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


def check(name: str) -> dict[str, Any]:
    """Permute one architecture, with random weights and statistics, and measure."""
    torch.manual_seed(0)
    started = time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, num_classes=7).eval().double()
        for key, tensor in model.state_dict(keep_vars=True).items():  # zeros and ones would hide a wrong order
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or key.endswith("running_mean")):
                tensor.add_(0.02 * torch.randn_like(tensor))
        x = torch.randn(2, *model.default_cfg["input_size"], dtype=torch.float64)
        symmetry = find_symmetry(model, x)
        seconds = time.perf_counter() - started
        before = model(x)
        moved = symmetry.permuted(model.state_dict(), symmetry.random(torch.Generator().manual_seed(1)))
        model.load_state_dict(moved)
        model.train().eval()  # some keep what they computed from weights until then
        change = float((model(x) - before).abs().max() / before.abs().max())
    return {
        "spaces": len(symmetry.spaces()),
        "heads": sum(space.within is not None for space in symmetry.spaces()),
        "share": free_share(model, symmetry),
        "unknown": sorted(set(symmetry.unknown)),
        "change": change,
        "seconds": round(seconds, 1),
    }


def line(name: str, found: Mapping[str, Any]) -> str:
    """Write one row."""
    passed = "exact" if found["change"] <= MOST_CHANGE else "**WRONG**"
    within = f" ({found['heads']} within heads)" if found["heads"] else ""
    unknown = ", ".join(sorted({name.partition(" in ")[0] for name in found["unknown"]}))
    return (
        f"| {found['family']} | {name} | {found['spaces']}{within} | {100 * found['share']:.1f} | "
        f"{found['change']:.0e} | {passed} | {unknown} |"
    )


def page(result: Mapping[str, Any]) -> str:
    """Write the table."""
    every = result["architectures"]
    order = [name for members in FAMILIES.values() for name in members.split() if name in every]
    exact = sum(every[name]["change"] <= MOST_CHANGE for name in order)
    head = (
        "# examples/check_symmetry.py: what may be permuted, found from the graph\n\n"
        f"{exact} of {len(order)} architectures of {len(FAMILIES)} families keep their function under a random "
        f"permutation of every space (relative change in float64 at most {MOST_CHANGE:.0e}). Spaces: sets of units "
        "that are permuted together; share: of the parameters in a tensor with such a space. "
        f"wfcli {result['wfcli']}, torch {result['torch']}, timm {result['timm']}.\n\n"
        "| family | architecture | spaces | share, % | change | | not understood |\n|---|---|---:|---:|---:|---|---|\n"
    )
    return head + "\n".join(line(name, every[name]) for name in order) + "\n"


if __name__ == "__main__":
    main()
