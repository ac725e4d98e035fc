"""The layer plan of an architecture, as its graph has it."""

from __future__ import annotations

from functools import lru_cache

import torch

from wfcli.core.architectures import Architecture, build_model, head_keys, input_config
from wfcli.core.graph_plan import linked, with_own_norms
from wfcli.core.plan import LayerPlan, plan_layers
from wfcli.core.symmetry import find_symmetry


@lru_cache(maxsize=8)
def plan_of(arch: Architecture, num_classes: int) -> LayerPlan:
    """Return the plan of an architecture with C classes, its norms and links as the graph has them.

    The net is followed on the meta device, and only where that does not do (tables of positions that are read) with
    numbers. One that cannot be followed has its layers in the order of definition, tied to none: nothing is guessed.
    """
    return _followed(arch, num_classes, "meta") or _followed(arch, num_classes, "cpu") or _by_order(arch, num_classes)


def _by_order(arch: Architecture, num_classes: int) -> LayerPlan:
    return plan_layers(build_model(arch, num_classes, device="meta"), _head(arch)).unlinked()


def _followed(arch: Architecture, num_classes: int, device: str) -> LayerPlan | None:
    side, channels = input_config(arch).size, int(dict(arch.args).get("in_chans", 3))
    try:
        with torch.inference_mode(False), torch.no_grad():
            model = build_model(arch, num_classes, device=device).eval()
            example = torch.zeros(2, channels, side, side, device=device)
            plan = with_own_norms(model, plan_layers(model, _head(arch)), example)
            return linked(plan, find_symmetry(model, example))
    except Exception:  # torch.export raises what it likes
        return None


def _head(arch: Architecture) -> str:
    return head_keys(arch)[0].removesuffix(".weight")
