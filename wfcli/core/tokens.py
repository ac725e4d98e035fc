"""Teachers' weights to tokens and back, and the scale-free statistics a generator may look at.

T teachers, N channels of a layer, F token width (fan-in row, then bias, norm weight, norm bias), S statistics.

Everything the statistics need of the weights are inner products between the teachers' rows of one channel. They are
taken once per layer (`RowProducts`), relative to the mean so that near-equal teachers do not drown in rounding; the
statistics of any subset of the teachers follow from them without reading the weights again, which is what makes
training on random subsets cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wfcli.core.pieces import in_pieces, row_ranges
from wfcli.core.plan import KINDS, LayerSpec

EPS = 1e-12


@dataclass
class LayerTokens:
    """One layer of T teachers in float32."""

    weight: Tensor | None  # [T, N, ...] as in the state dict, stacked
    affines: Tensor  # [3, T, N]: bias, norm weight, norm bias; zeros where the layer has none
    running: Tensor | None  # [2, T, N]: running mean and variance

    def subset(self, index: Tensor) -> LayerTokens:
        """Return the tokens of the teachers in `index` [T']."""
        weight = None if self.weight is None else self.weight[index]
        return LayerTokens(weight, self.affines[:, index], None if self.running is None else self.running[:, index])

    def to(self, device: torch.device | None) -> LayerTokens:
        """Copy to a device; from pinned memory without waiting for it."""
        running = None if self.running is None else self.running.to(device, non_blocking=True)
        weight = None if self.weight is None else self.weight.to(device, non_blocking=True)
        return LayerTokens(weight, self.affines.to(device, non_blocking=True), running)

    def rows(self, index: Tensor) -> LayerTokens:
        """Return the tokens of the channels in `index` [N']; of a head these are classes."""
        weight = None if self.weight is None else self.weight[:, index]
        return LayerTokens(weight, self.affines[..., index], None if self.running is None else self.running[..., index])


@dataclass
class RowProducts:
    """Inner products of T teachers' rows, channel by channel; the last index of `own` and `centred` is their mean."""

    own: Tensor  # [N, T + 1, T + 1]: deviations from the mean row d_1 .. d_T, then the mean row m itself
    centred: (
        Tensor  # the same of rows less the mean over the layer's channels (head: what tells a class from the others)
    )
    affines: Tensor  # [3, T, N]
    log_var: Tensor | None  # [T, N]: log of the running variances

    def subset(self, index: Tensor) -> RowProducts:
        """Return the products of the teachers in `index` [T'], relative to *their* mean."""
        return RowProducts(
            _recentre(self.own, index),
            _recentre(self.centred, index),
            self.affines[:, index],
            None if self.log_var is None else self.log_var[index],
        )


def to_tokens(spec: LayerSpec, teachers: Sequence[Mapping[str, Tensor]], pinned: bool = False) -> LayerTokens:
    """Read one layer of T teachers: every tensor once, as float32; `pinned`: where a GPU can fetch it by itself."""

    def stack(name: str) -> Tensor:
        first = teachers[0][name].float()
        stacked = torch.empty(len(teachers), *first.shape, device=first.device, pin_memory=pinned)
        stacked[0] = first
        for flat, teacher in zip(stacked.view(len(teachers), -1)[1:], teachers[1:], strict=True):  # also of a scalar
            begin = 0
            for piece in in_pieces(teacher, name):
                flat[begin : begin + piece.numel()] = piece.flatten()
                begin += piece.numel()
        return stacked

    weight = None if spec.weight is None else stack(spec.weight)
    if weight is not None and spec.kind == "free":
        weight = weight.reshape(len(teachers), 1, -1)
    vectors = [None if name is None else stack(name) for name in spec.affines]
    like = next(tensor for tensor in (weight, *vectors) if tensor is not None)
    zeros = torch.zeros(len(teachers), spec.channels, device=like.device)
    affines = torch.stack([zeros if vector is None else vector for vector in vectors])
    running = None
    if spec.running_mean is not None and spec.running_var is not None:
        running = torch.stack([stack(spec.running_mean), stack(spec.running_var)])
    if pinned:
        affines, running = affines.pin_memory(), None if running is None else running.pin_memory()
    return LayerTokens(weight, affines, running)


def from_tokens(spec: LayerSpec, weight: Tensor | None, affines: Tensor, running: Tensor | None) -> dict[str, Tensor]:
    """Name the tensors of one student layer: weight [N, ...], affines [3, N], running [2, N]; `to_tokens` undone."""
    named: dict[str, Tensor] = {}
    if spec.weight is not None and weight is not None:
        named[spec.weight] = weight
    named.update({name: vector for name, vector in zip(spec.affines, affines, strict=True) if name is not None})
    if running is not None and spec.running_mean is not None and spec.running_var is not None:
        named[spec.running_mean], named[spec.running_var] = running
    return named


def row_products(tokens: LayerTokens) -> RowProducts:
    """Take the inner products the statistics are made of. Cost: T * T * N * F."""
    # A norm of its own has no weight: its affine vectors are the rows, [T, N, 3] instead of [T, N, F].
    rows = tokens.affines.permute(1, 2, 0) if tokens.weight is None else tokens.weight.flatten(2)
    teachers, channels, width = rows.shape
    own, centred = rows.new_empty(2, channels, teachers + 1, teachers + 1)
    drift = rows.new_zeros(teachers + 1, width)  # what all channels of a teacher moved alike
    # Some channels at a time, twice, in the same memory: their deviations take none of the layer's size.
    ranges = list(row_ranges(channels, (teachers + 1) * width))
    memory = rows.new_empty(ranges[0][1], teachers + 1, width)
    for begin, end in ranges:
        relative = _relative(rows[:, begin:end], memory[: end - begin])
        torch.bmm(relative, relative.transpose(1, 2), out=own[begin:end])
        drift += relative.sum(0) / channels
    for begin, end in ranges:
        relative = _relative(rows[:, begin:end], memory[: end - begin]).sub_(drift)
        torch.bmm(relative, relative.transpose(1, 2), out=centred[begin:end])
    log_var = None if tokens.running is None else tokens.running[1].clamp_min(EPS).log()
    return RowProducts(own, centred, tokens.affines, log_var)


def statistics(products: RowProducts, spec: LayerSpec) -> Tensor:
    """Return the scale-free statistics of every token, [T, N, S]: no weight can be read back from them.

    Rows of equal teachers give finite numbers; multiplying all teachers of a layer by one factor changes nothing, nor
    does the order of the teachers (but that the rows follow it).
    """
    own, centred = _row_features(products.own), _row_features(products.centred)
    teachers, channels = own.shape[:2]
    affines = torch.cat([_affine_features(vector) for vector in products.affines], dim=2)
    variance = torch.zeros(teachers, channels, 2, device=own.device)
    if products.log_var is not None:
        spread = products.log_var - products.log_var.mean(0)
        variance = torch.stack([spread, _variance_shrink(products).expand(teachers, -1)], dim=2)
    facts = [
        1 / teachers,
        spec.depth,
        float(products.log_var is not None),
        *(float(spec.kind == kind) for kind in KINDS),
    ]
    constant = own.new_tensor(facts).expand(teachers, channels, -1)
    return torch.cat([own, centred, _common_drift(products)[:, :, None], affines, variance, constant], dim=2).clamp(
        -6, 6
    )


NUM_STATISTICS = 2 * 13 + 1 + 3 * 3 + 2 + 3 + len(KINDS)


def layer_deviation(products: RowProducts) -> Tensor:
    """Return the relative deviation of each channel from the teachers' mean, [N]: rms_t |d_t| / |m|.

    It is 0 where all teachers agree; rounding is cut off: below 1e-6 it is exactly 0.
    """
    deviation = torch.diagonal(products.own, dim1=1, dim2=2)[:, :-1].mean(1).clamp_min(0).sqrt()
    mean = products.own[:, -1, -1].clamp_min(0).sqrt()
    ratio = deviation / (mean + deviation + EPS)
    vectors = products.affines  # [3, T, N]
    spread = vectors.std(1, correction=0).amax(0) / (vectors.abs().amax((1, 2), keepdim=True).amax(0)[0] + EPS)
    return (torch.maximum(ratio, spread) - 1e-6).clamp_min(0)


def _relative(rows: Tensor, out: Tensor) -> Tensor:
    """Write to `out` [N, T + 1, F] the deviations of rows [T, N, F] from their mean over the T, then that mean."""
    torch.mean(rows, 0, out=out[:, -1])
    torch.sub(rows.transpose(0, 1), out[:, -1:], out=out[:, :-1])
    return out


def _recentre(gram: Tensor, index: Tensor) -> Tensor:
    """Move the origin of a Gram matrix from the mean of all teachers to the mean of those in `index`."""
    teachers, chosen = gram.shape[1] - 1, len(index)
    change = torch.zeros(chosen + 1, teachers + 1, device=gram.device, dtype=gram.dtype)
    change[:, index] = -1 / chosen  # d'_t = d_t - mean of the chosen d
    change[torch.arange(chosen, device=gram.device), index] += 1
    change[chosen, index] = 1 / chosen  # m' = m + mean of the chosen d
    change[chosen, teachers] = 1
    return change @ gram @ change.T


def _row_features(gram: Tensor) -> Tensor:
    """Turn inner products [N, T + 1, T + 1] into 13 features a row, [T, N, 13]."""
    teachers = gram.shape[1] - 1
    between, mean_square = gram[:, :-1, :-1], gram[:, -1, -1].clamp_min(0)  # [N, T, T], [N]
    square = torch.diagonal(between, dim1=1, dim2=2).clamp_min(0)  # |d_t|^2, [N, T]
    along = gram[:, :-1, -1]  # d_t . m, [N, T]
    row_square = (square + 2 * along + mean_square[:, None]).clamp_min(0)  # |m + d_t|^2
    layer_mean = mean_square.mean() + EPS
    layer_square = square.mean(0) + EPS * layer_mean  # [T]
    channel_square = square.mean(1, keepdim=True)
    cosines = _cosine(between, square[:, :, None], square[:, None, :])
    others = ~torch.eye(teachers, dtype=torch.bool, device=gram.device)
    to_others = cosines[:, others].reshape(-1, teachers, teachers - 1)
    layer_cosine = _cosine(between.sum(0), square.sum(0)[:, None], square.sum(0)[None, :])  # [T, T]
    layer_to_others = (layer_cosine.sum(1) - layer_cosine.diagonal()) / (teachers - 1)
    features = [
        _log_ratio(square, mean_square[:, None] + 1e-2 * layer_mean),  # relative deviation of the row
        _log_ratio(square, channel_square + 1e-4 * square.mean()),  # against the other teachers
        _log_ratio(square, layer_square[None]),  # against the teacher's own other rows
        _log_ratio(row_square, mean_square[:, None] + 1e-2 * layer_mean),  # norm ratio
        _log_ratio(row_square, row_square.mean(0, keepdim=True)),  # norm against the teacher's other rows
        _cosine(along, square, mean_square[:, None]),  # moved along or against the mean
        _cosine(along + mean_square[:, None], row_square, mean_square[:, None]),
        to_others.mean(2),
        to_others.amax(2),
        _log_ratio(layer_square, layer_mean).expand_as(square),  # the same at layer level
        _log_ratio(layer_square, layer_square.mean()).expand_as(square),
        layer_to_others.expand_as(square),
        _cosine(along.sum(0), square.sum(0), mean_square.sum()).expand_as(square),
    ]
    return torch.stack(features, dim=2).transpose(0, 1)


def _common_drift(products: RowProducts) -> Tensor:
    """Return the cosine of each row's deviation to what all rows of that teacher moved alike, [T, N].

    |d|^2 - |d - drift|^2 = 2 d . drift - |drift|^2, and its mean over the rows is |drift|^2: no need to read the rows
    again.
    """
    square = torch.diagonal(products.own, dim1=1, dim2=2)[:, :-1].clamp_min(0)  # [N, T]
    gap = square - torch.diagonal(products.centred, dim1=1, dim2=2)[:, :-1]
    drift_square = gap.mean(0).clamp_min(0)
    return _cosine((gap + drift_square) / 2, square, drift_square).T


def _affine_features(vector: Tensor) -> Tensor:
    """Return 3 features of one affine vector of T teachers [T, N] -> [T, N, 3]: deviation, place in its layer, size."""
    deviation = vector - vector.mean(0)
    scale = vector.square().mean().sqrt() + EPS
    return torch.stack(
        [
            deviation / (deviation.square().mean().sqrt() + 1e-6 * scale),
            (vector - vector.mean(1, keepdim=True)) / (vector.std(1, correction=0, keepdim=True) + 1e-6 * scale),
            deviation / scale,
        ],
        dim=2,
    )


def _variance_shrink(products: RowProducts) -> Tensor:
    """Estimate how far the variance of the mean row's output falls below the mean variance, as a log, [N].

    Outputs of rows s and t on the same inputs are taken to correlate as the rows themselves do:
    var(mean of outputs) ~ mean_st cos(w_s, w_t) sigma_s sigma_t.
    """
    assert products.log_var is not None
    gram = products.own
    along = gram[:, :-1, -1]
    rows = gram[:, :-1, :-1] + along[:, :, None] + along[:, None, :] + gram[:, -1:, -1:]  # w_s . w_t
    square = torch.diagonal(rows, dim1=1, dim2=2).clamp_min(0)
    sigma = (products.log_var / 2).exp().T  # [N, T]
    cosine = _cosine(rows, square[:, :, None], square[:, None, :])
    mixed = (cosine * sigma[:, :, None] * sigma[:, None, :]).mean((1, 2)).clamp_min(EPS)
    return (mixed / sigma.square().mean(1).clamp_min(EPS)).log().clamp(-4, 0)


def _cosine(product: Tensor, square_a: Tensor, square_b: Tensor) -> Tensor:
    return (product / (square_a * square_b + EPS * EPS).sqrt()).clamp(-1, 1)


def _log_ratio(square: Tensor, reference: Tensor) -> Tensor:
    """Return half the log of a ratio of squares, bounded below where the square vanishes."""
    return 0.5 * (square / (reference + EPS) + 1e-6).log()
