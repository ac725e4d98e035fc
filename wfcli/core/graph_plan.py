"""The layer plan as a net's graph has it: which norm takes whose output, and whose channels a layer is fed.

`plan_layers` goes by the order of definition. That is right for most nets, but a batch norm may take another output
than that of the layer before it (a residual sum, a pool or an activation between them: pre-activation ResNets,
DenseNet, ConvMixer), and the nearest layer with as many channels need not be the one whose channels are fed (the
projection of an attention, a branch of a block).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wfcli.core.plan import LayerPlan, LayerSpec
from wfcli.core.spaces import Space
from wfcli.core.symmetry import Symmetry


def with_own_norms(model: nn.Module, plan: LayerPlan, x: Tensor) -> LayerPlan:
    """Return the plan with batch norms only at layers whose output, on input `x` [B, ...], they alone take.

    The others are layers of their own. It runs the net once, on the meta device too.
    """
    layers = [spec.name for spec in plan.specs if spec.weight is not None and spec.kind != "free"]
    norms = {_module(spec.norm_weight) for spec in plan.specs if spec.norm_weight and spec.running_mean}
    outputs: dict[str, tuple[Tensor, int]] = {}
    taken: dict[str, str] = {}  # layer -> norm

    def hand_on(name: str, output: Tensor) -> None:
        outputs[name] = output, output._version  # noqa: SLF001 - there is no other way to see a change in place

    def take(norm: str, given: Tensor) -> None:
        for name, (output, version) in outputs.items():
            if given is output and given._version == version:  # noqa: SLF001 - nothing was done to it meanwhile
                taken[name] = norm

    handles = [
        *(
            model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: hand_on(name, output))
            for name in layers
        ),
        *(
            model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: take(name, args[0]))
            for name in norms
        ),
    ]
    model.eval()
    uses = Uses(outputs)
    try:
        with torch.inference_mode(False), torch.no_grad(), uses:
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    own = {name: norm for name, norm in taken.items() if uses.count.get(name) == 1}
    specs: list[LayerSpec] = []
    for spec in plan.specs:
        if spec.weight is None or spec.norm_weight is None or own.get(spec.name) == _module(spec.norm_weight):
            specs.append(spec)
        else:
            no_norm = replace(spec, norm_weight=None, norm_bias=None, running_mean=None, running_var=None, counters=())
            norm = replace(spec, name=_module(spec.norm_weight), kind="norm", weight=None, bias=None, columns=None)
            specs += [no_norm, norm]
    return replace(plan, specs=tuple(specs))


def linked(plan: LayerPlan, symmetry: Symmetry) -> LayerPlan:
    """Return the plan with every layer tied to the nearest earlier one whose channels it is fed, or to none."""
    roots: dict[str, Space] = {}  # layer -> space of its channels
    specs = []
    for spec in plan.specs:
        own = symmetry.axes.get(spec.weight or spec.norm_weight or "")
        columns = None
        if spec.weight is not None and spec.kind != "free" and own is not None and len(own) > 1:
            fed = own[1].find()
            if spec.columns is not None and roots.get(spec.columns) is fed:
                columns = spec.columns
            else:
                columns = next((name for name in reversed(roots) if roots[name] is fed), None)
        specs.append(replace(spec, columns=columns))
        if own is not None and spec.kind != "free":
            roots[spec.name] = own[0].find()
    return replace(plan, specs=tuple(specs))


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


class Uses(TorchFunctionMode):
    """Counts from how many operations on some tensors another tensor comes."""

    def __init__(self, outputs: Mapping[str, tuple[Tensor, int]]) -> None:
        super().__init__()
        self.outputs = outputs
        self.count: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (list, tuple)) else (result,)
        if any(isinstance(part, Tensor) for part in made):  # not a shape
            words = (*args, *(kwargs or {}).values())
            given = [part for word in words for part in (word if isinstance(word, (list, tuple)) else (word,))]
            for name, (output, _) in self.outputs.items():
                self.count[name] = self.count.get(name, 0) + any(part is output for part in given)
        return result
