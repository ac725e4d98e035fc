"""WeightFormer: teachers' weights in, one student's weights out, layer after layer, in one forward pass.

After "Meta-Ensemble Parameter Learning", 2210.01973, sections 3.2 to 3.4 (weight embedder, Transformer over the
teachers' weights, cross-layer information flow), with a mixing head instead of a free decoder, so that an untrained
generator gives the soup.

T teachers, N channels of a layer, F token width, S statistics, D model width, M cross tokens,
I columns (input channels).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional

from wfcli.core.blocks import Block
from wfcli.core.generator_config import WeightFormerConfig, config_from_dict
from wfcli.core.methods import soup_tensor
from wfcli.core.pieces import row_ranges
from wfcli.core.plan import LayerPlan, LayerSpec
from wfcli.core.read_ahead import layers_for
from wfcli.core.tokens import (
    NUM_STATISTICS,
    LayerTokens,
    RowProducts,
    from_tokens,
    layer_deviation,
    row_products,
    statistics,
)

LOG_SCALE = 0.9  # a channel is scaled by 0.4 to 2.5 at most
SAFE = 1e-18  # products of two relative weights down to this lose nothing in float32
GATE = 0.05  # relative deviation of a channel at which half of the scale is let through
SAMPLES = 32  # weights of each anchor tensor in a base's fingerprint


@dataclass
class CrossState:
    """What travels from layer to layer."""

    tokens: Tensor  # [T, M, D]
    columns: dict[str, Tensor] = field(default_factory=dict)  # spec name -> column logits of its channels [T, N]
    given: dict[str, Tensor] = field(default_factory=dict)  # spec name -> sum of its channels' weights [T]

    def weights(self) -> list[float]:
        """Return the mean weight of each teacher over all channels so far; they sum to 1.

        Of the rows alone: what column logits, scales, a residual or a prior add to that is not counted.
        """
        total = torch.stack(list(self.given.values())).sum(0)
        return [float(part) for part in total / total.sum()]

    def layers(self) -> dict[str, list[float]]:
        """Return the same for every layer so far: the mean weight of each teacher over its channels."""
        return {name: [float(part) for part in total / total.sum()] for name, total in self.given.items()}


class WeightFormer(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="wfcli",
    tags=["weightformer", "model-merging"],
):
    """The generator. Freshly built it gives the uniform soup, to the last bit of float32 rounding."""

    def __init__(self, config: WeightFormerConfig | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, WeightFormerConfig):  # as the mixin's `from_pretrained` reads it from config.json
            config = config_from_dict(config)
        self.config = self._hub_mixin_config = config
        width = config.width
        self.embed = nn.Sequential(nn.Linear(NUM_STATISTICS, width), nn.GELU(), nn.Linear(width, width))
        self.cross = nn.Parameter(torch.randn(config.cross_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.attention, config.mask) for _ in range(config.blocks)
        )
        self.final_norm = nn.LayerNorm(width)
        # Per token: row logit of the weight, of the affines; column logit for the next layer.
        # Zero: all teachers weigh alike.
        self.logits = _zero(nn.Linear(width, 3))
        self.scales = _zero(nn.Linear(width, 3))  # per channel: of the weight, the affines, the running variance
        self.centres = _zero(
            nn.Linear(width, 2)
        )  # head: how much of its teacher's mean row, and bias, a class gives up
        # The paper's weight embedder dict: one linear map per token width, and a decoder back for the residual.
        self.embed_rows = nn.ModuleDict({str(f): nn.Linear(f, width) for f in config.raw_widths})
        self.decode_rows = nn.ModuleDict({str(f): _zero(nn.Linear(width, f)) for f in config.raw_widths})
        shapes = config.frame.shapes if config.frame else {}
        self.prior = nn.ParameterDict({_prior_key(n): nn.Parameter(torch.zeros(s)) for n, s in shapes.items()})
        anchors = config.frame.anchors if config.frame else ()
        self.fingerprint: Tensor
        self.register_buffer("fingerprint", torch.zeros(len(anchors), SAMPLES))
        # The net into whose frame independent teachers are brought, where a prior belongs to it.
        self.frames = tuple(shapes) if "independent" in config.relations else ()
        for name in self.frames:
            self.register_buffer(_reference_key(name), torch.zeros(shapes[name], dtype=torch.bfloat16))

    @property
    def reference(self) -> dict[str, Tensor]:
        """The net into whose frame teachers have to come, float32; empty where there is none."""
        return {name: getattr(self, _reference_key(name)).float() for name in self.frames}

    def refer_to(self, state: Mapping[str, Tensor]) -> None:
        """Take a net as the reference of the frame."""
        for name in self.frames:
            getattr(self, _reference_key(name)).copy_(state[name])

    def start(self, teachers: int) -> CrossState:
        """Return the state before the first layer."""
        return CrossState(self.cross.expand(teachers, -1, -1))

    def generate_layer(
        self, spec: LayerSpec, tokens: LayerTokens, products: RowProducts, state: CrossState
    ) -> dict[str, Tensor]:
        """Generate one layer of the student, float32, and move `state` on to the next layer.

        Args:
            tokens: the layer of T teachers.
            products: their inner products, relative to the mean of the same T teachers.
        """
        x = self.embed(statistics(products, spec))  # [T, N, D]
        rows = _raw_rows(tokens)
        raw = str(rows.shape[2]) if rows is not None and str(rows.shape[2]) in self.embed_rows else None
        if raw is not None and rows is not None:
            row_scale = rows.square().mean().sqrt() + 1e-12
            x = x + self.embed_rows[raw](rows / row_scale)
        if not self.config.flow:
            state.tokens, state.columns = self.start(len(state.tokens)).tokens, {}
        for block in self.blocks:
            x, state.tokens = block(x, state.tokens)
        x = self.final_norm(x)
        row, affine, column = self.logits(x).unbind(-1)  # [T, N] each
        state.columns[spec.name] = column
        state.given[spec.name] = (affine if tokens.weight is None else row).detach().softmax(0).sum(1)
        # The scales move only where the teachers differ: T copies of one teacher give that teacher back.
        deviation = layer_deviation(products)
        gate = deviation / (deviation + GATE)
        scale = (LOG_SCALE * torch.tanh(self.scales(x).mean(0)) * gate[:, None]).exp()  # [N, 3]
        stack, affines = tokens.weight, tokens.affines
        if spec.kind == "head" and stack is not None:
            stack, affines = _centre(stack, affines, torch.tanh(self.centres(x)) * gate[:, None])
        weight = None
        if stack is not None:
            weight = _mix(stack, row, state.columns.get(spec.columns or ""), scale[:, 0])
            if raw is not None:
                residual = self.decode_rows[raw](x.mean(0)) * (row_scale * gate[:, None])
                weight = weight + residual.reshape(weight.shape)
        mixing = affine.softmax(0)
        affines = (mixing * affines).sum(1) * scale[:, 1]
        running = None
        if tokens.running is not None:
            # The statistics are those of the row's output: the mean moves with its scale, the variance with the square.
            mean, variance = (mixing * tokens.running).sum(1)
            running = torch.stack([mean * scale[:, 0], variance * scale[:, 0].square() * scale[:, 2]])
        if weight is not None and spec.kind == "free":
            weight = weight.reshape(-1)
        student = from_tokens(spec, weight, affines, running)
        return {name: self._shift(name, tensor) for name, tensor in student.items()}

    def generate(
        self,
        plan: LayerPlan,
        teachers: Sequence[Mapping[str, Tensor]],
        device: torch.device | None = None,
        state: CrossState | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the student's tensors layer by layer (float32; integer tensors as in the soup).

        Memory: one layer of each teacher and the cross state; for a GPU two layers. `teachers` may be lazy mappings. A
        fresh `state`, of `start`, tells afterwards what weight the teachers got. The layers are taken one after the
        other, not those of one shape together: what a layer says to the next is part of the method (section 3.4).
        """
        if len(teachers) < 2:
            raise ValueError("a generator needs at least two teachers")
        state = state or self.start(len(teachers))
        integers = {
            spec.weight
            for spec in plan.specs
            if spec.kind == "free" and spec.weight and not teachers[0][spec.weight].is_floating_point()
        }
        layers = layers_for(device, [spec for spec in plan.specs if spec.weight not in integers], teachers)
        for spec in plan.specs:
            if spec.weight in integers:
                yield spec.weight, soup_tensor(teacher[spec.weight] for teacher in teachers)
                continue
            for name in spec.counters:
                if name in teachers[0]:  # files older than PyTorch 0.4.1 have none
                    yield name, soup_tensor(teacher[name] for teacher in teachers)
            yield from self._read_and_generate(spec, teachers, layers, state).items()

    def _read_and_generate(
        self,
        spec: LayerSpec,
        teachers: Sequence[Mapping[str, Tensor]],
        layers: Iterator[LayerTokens],
        state: CrossState,
    ) -> dict[str, Tensor]:
        """Generate the next layer of teachers' files; what was read is let go."""
        tokens = next(layers)
        layer = self.generate_layer(spec, tokens, row_products(tokens), state)
        if spec.kind == "free":
            return {name: tensor.reshape(teachers[0][name].shape) for name, tensor in layer.items()}
        return layer

    def _shift(self, name: str, tensor: Tensor) -> Tensor:
        key = _prior_key(name)
        if key not in self.prior:
            return tensor
        shift: Tensor = self.prior[key]
        tensor = tensor.reshape(shift.shape)  # of no channels: position embeddings come as one row
        return tensor * shift.exp() if name.endswith("running_var") else tensor + shift  # a variance stays positive


def _mix(weight: Tensor, row: Tensor, column: Tensor | None, scale: Tensor) -> Tensor:
    """Mix [T, N, I, ...] over T with the softmax of row logits [T, N] plus column logits [T, I]; scale [N] the result.

    Some channels at a time, which need no memory of the layer's size; with gradients all at once.
    """
    if column is not None and (weight.dim() < 3 or column.shape[1] != weight.shape[2]):
        column = None
    if row.requires_grad:
        return _mix_rows(weight, row, column, scale)
    student = torch.empty_like(weight[0])
    # exp(row + column) = exp(row) exp(column): a few exponentials instead of one for each weight of each teacher.
    rows, columns = _relative_exp(row), None if column is None else _relative_exp(column)
    apart = columns is not None and bool((rows.amin() * columns.amin()) > SAFE)
    for begin, end in row_ranges(len(student), weight[:, 0].numel()):
        some, factor = weight[:, begin:end], scale[begin:end]
        if columns is not None and apart:
            student[begin:end] = _mix_by_factors(some, rows[:, begin:end], columns, factor)
        else:
            student[begin:end] = _mix_rows(some, row[:, begin:end], column, factor)
    return student


def _relative_exp(logits: Tensor) -> Tensor:
    """Return exp(logits - the largest of the T), [T, ...]."""
    return (logits - logits.amax(0)).exp()


def _mix_by_factors(weight: Tensor, rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Mix [T, N, I, ...] with weights rows [T, N] * columns [T, I], made to sum to 1; scale [N] the result."""
    behind = [1] * (weight.dim() - 3)
    mixed = torch.zeros_like(weight[0])
    for one, row, column in zip(weight, rows, columns, strict=True):
        mixed.addcmul_(one * column.reshape(-1, *behind), row.reshape(-1, 1, *behind))
    factor = scale[:, None] / (rows.T @ columns)
    return mixed.mul_(factor.reshape(*factor.shape, *behind))


def _mix_rows(weight: Tensor, row: Tensor, column: Tensor | None, scale: Tensor) -> Tensor:
    logits = row if column is None else row[:, :, None] + column[:, None, :]  # [T, N] or [T, N, I]
    mixing = logits.softmax(0).reshape(*logits.shape, *[1] * (weight.dim() - logits.dim()))
    mixed = (mixing * weight).sum(0)
    return mixed * scale.reshape(-1, *[1] * (mixed.dim() - 1))


def _centre(weight: Tensor, affines: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Take shares [T, C, 2] of its teacher's mean row and mean bias off each class of a head [T, C, ...], [3, T, C].

    A shift common to all classes changes nothing within one teacher, for softmax does not see it; between teachers it
    does.
    """
    of_row = share[:, :, 0].reshape(*share.shape[:2], *[1] * (weight.dim() - 2))
    return weight - of_row * weight.mean(1, keepdim=True), affines - share[:, :, 1] * affines.mean(2, keepdim=True)


def _raw_rows(tokens: LayerTokens) -> Tensor | None:
    return None if tokens.weight is None else tokens.weight.flatten(2)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _prior_key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict key may hold no dot


def _reference_key(name: str) -> str:
    return "reference/" + name.replace(".", "/")


def fingerprint(state: Mapping[str, Tensor], anchors: Sequence[str]) -> Tensor:
    """Sample a base: evenly spaced weights of each anchor tensor at unit length, [len(anchors), SAMPLES]."""
    rows = []
    for name in anchors:
        flat = state[name].flatten()
        index = torch.linspace(0, len(flat) - 1, SAMPLES).long()
        rows.append(functional.normalize(flat[index.to(flat.device)].float(), dim=0).cpu())
    return torch.stack(rows)
