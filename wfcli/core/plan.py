"""The layer plan: which tensors of an architecture are generated together, and in which order.

N channels of a layer, F token width. One table serves the tokens now and the permutations of an alignment later.

A layer spec owns one weight whose first axis are its N output channels, and everything that lives on the same channels:
its bias and the affine and running statistics of the batch norm behind it. What has no channel structure (position
embeddings, class tokens, layer scale) is a spec of one channel: all of it is one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

Kind = Literal["conv", "linear", "head", "norm", "free"]
KINDS: tuple[Kind, ...] = ("conv", "linear", "head", "norm", "free")


@dataclass(frozen=True)
class LayerSpec:
    """Tensors generated together, named as in the state dict."""

    name: str
    kind: Kind
    channels: int
    weight: str | None  # [N, ...]; free: any shape; None for a norm of its own, which has affines alone
    bias: str | None = None  # [N]
    norm_weight: str | None = None  # [N]
    norm_bias: str | None = None  # [N]
    running_mean: str | None = None  # [N]
    running_var: str | None = None  # [N]
    counters: tuple[str, ...] = ()  # integer buffers: no part of a token
    columns: str | None = None  # name of the spec whose channels are this weight's second axis
    depth: float = 0.0  # 0 first layer .. 1 last

    @property
    def affines(self) -> tuple[str | None, str | None, str | None]:
        """The three vectors beside the weight, in token order; None where the layer has none."""
        return self.bias, self.norm_weight, self.norm_bias

    def tensors(self) -> Iterator[str]:
        """Yield the name of every tensor of this layer."""
        named = (self.weight, *self.affines, self.running_mean, self.running_var)
        yield from (name for name in named if name is not None)
        yield from self.counters


@dataclass(frozen=True)
class LayerPlan:
    """The layer specs of one architecture, in forward order; together they own every tensor of the state dict once."""

    specs: tuple[LayerSpec, ...]
    norms: frozenset[str]  # class of normalisation in the net: "batch", "layer", "other"; empty for none

    def unlinked(self) -> LayerPlan:
        """Return the plan with no layer tied to another."""
        return replace(self, specs=tuple(replace(spec, columns=None) for spec in self.specs))


def plan_layers(model: nn.Module, head: str) -> LayerPlan:
    """Derive the layer plan from a model (an empty one on the meta device will do), by the order of definition.

    `graph_plan` corrects it by the graph.

    `head` is the module name of the classifier. Modules are taken in the order of definition, which is the forward
    order in timm. A batch norm belongs to the convolution or linear layer before it; a layer norm, which in a
    Transformer stands before its layer on the residual stream, is a spec of its own. The second axis of a weight is
    tied to the nearest earlier spec with that many channels; without one, it is tied to none.
    """
    drafts: list[dict[str, object]] = []
    norms: set[str] = set()
    persistent = set(model.state_dict())
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own = {key: prefix + key for key, _ in module.named_parameters(recurse=False)}
        shapes = {key: tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
        buffers = {key: prefix + key for key, _ in module.named_buffers(recurse=False) if prefix + key in persistent}
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Conv1d | nn.Conv3d) and "weight" in own:
            kind: Kind = "head" if name == head else "linear" if isinstance(module, nn.Linear) else "conv"
            fan_in = shapes["weight"][1] if getattr(module, "groups", 1) == 1 else 0
            columns = next(
                (d["name"] for d in reversed(drafts) if d["channels"] == fan_in and d["kind"] != "free"), None
            )
            drafts.append(
                {
                    "name": name,
                    "kind": kind,
                    "channels": shapes["weight"][0],
                    "columns": columns,
                    "weight": own.pop("weight"),
                    "bias": own.pop("bias", None),
                }
            )
        elif shapes.get("weight") and len(shapes["weight"]) == 1 and set(own) <= {"weight", "bias"}:
            batch = "running_mean" in buffers
            norms.add("batch" if batch else "layer" if isinstance(module, nn.LayerNorm) else "other")
            channels = shapes["weight"][0]
            last = drafts[-1] if drafts else {}
            attach = batch and last.get("channels") == channels and "norm_weight" not in last and last["kind"] != "free"
            if not attach:
                last = {"name": name, "kind": "norm", "channels": channels, "weight": None}
                drafts.append(last)
            last["norm_weight"] = own.pop("weight")
            last["norm_bias"] = own.pop("bias", None)
            if batch:
                last["running_mean"], last["running_var"] = buffers.pop("running_mean"), buffers.pop("running_var")
                last["counters"] = tuple(buffers.values())
                buffers.clear()
        # Whatever is left has no channel structure we know of: one row a tensor. A floating-point buffer is one too.
        loose = (*own.values(), *buffers.values())
        drafts.extend({"name": full, "kind": "free", "channels": 1, "weight": full} for full in loose)
    last_index = max(len(drafts) - 1, 1)
    specs = tuple(LayerSpec(**draft, depth=index / last_index) for index, draft in enumerate(drafts))  # type: ignore[arg-type]
    return LayerPlan(specs, frozenset(norms))
