"""The average of aligned nets has activations that vary less than those of any of them: their scale given back.

REPAIR (Jordan et al. 2022, arXiv 2211.08403, section 4): every unit's pre-activation gets the mean and the spread that
the aligned nets have on average, folded back into weights and biases. A net with BatchNorm needs its statistics anew
instead (`calibrate`). Without images both follow from the lengths of the rows: `lengthened`.

T nets, N channels of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wfcli.core.plan import LayerPlan

State = Mapping[str, Tensor]
LEAST_SPREAD = 1e-4  # of a layer's mean one: what varies less is off, and stays so


@dataclass
class Spread:
    """Mean and standard deviation of a layer's outputs, each [N]."""

    mean: Tensor
    std: Tensor


def repair(
    model: nn.Module,
    head: str,
    student: State,
    teachers: Sequence[State],
    images: Tensor,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Return the student with the means and spreads that its aligned teachers have, by `weights`, on images [B, ...].

    `model` is one of the architecture, whatever its weights; `head`, the module of the classifier, stays as it is. The
    mean of a layer without a bias goes with its spread. Layers that compute their weights from others (standardised
    convolutions), or run in another way than once a pass, stay as they are.
    """
    names = [name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d) and name != head]
    seen = [spreads(model, state, names, images) for state in teachers]
    names = [name for name in names if all(name in one for one in seen)]
    wanted = {name: _mean([one[name] for one in seen], weights) for name in names}
    had = spreads(model, student, names, images, wanted)
    repaired = dict(student)
    for name in names:
        factor = ratio(wanted[name], had[name])
        weight, bias = f"{name}.weight", f"{name}.bias"
        repaired[weight] = student[weight] * factor.reshape(-1, *[1] * (student[weight].dim() - 1))
        if bias in student:
            repaired[bias] = (student[bias] - had[name].mean) * factor + wanted[name].mean
    return repaired


def lengthened(
    plan: LayerPlan, student: State, teachers: Sequence[State], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the student with the spreads that its aligned teachers have, as far as weights tell: without images.

    On inputs that vary alike in all directions a unit's output varies as the length of its row. The average of T rows
    is shorter than they are. A norm behind it learns that (its running variance shrinks by the square); without one the
    row gets the teachers' mean square length back, by `weights`. The head stays as it is.
    """
    mended = dict(student)
    shares = _shares(teachers, weights)
    for spec in plan.specs:
        if spec.weight is None or spec.kind in ("head", "free"):
            continue
        own = _square(student[spec.weight])
        wanted = shares @ torch.stack([_square(teacher[spec.weight]) for teacher in teachers])
        ratio = torch.where(own > LEAST_SPREAD**2 * wanted, wanted / own.clamp_min(1e-30), 1.0)
        if spec.running_var is not None:
            mended[spec.running_var] = student[spec.running_var] / ratio
        elif spec.norm_weight is None:
            factor = ratio.sqrt().reshape(-1, *[1] * (student[spec.weight].dim() - 1))
            mended[spec.weight] = student[spec.weight] * factor
    return mended


def _square(weight: Tensor) -> Tensor:
    return weight.float().flatten(1).square().sum(1)


def _shares(nets: Sequence[object], weights: Sequence[float] | None) -> Tensor:
    return torch.full((len(nets),), 1 / len(nets)) if weights is None else torch.tensor(weights, dtype=torch.float32)


def _mean(spreads: Sequence[Spread], weights: Sequence[float] | None) -> Spread:
    shares = _shares(spreads, weights)
    return Spread(*(shares @ torch.stack(one) for one in ([s.mean for s in spreads], [s.std for s in spreads])))


def ratio(wanted: Spread, had: Spread) -> Tensor:
    """Return what each channel has to be multiplied by, [N]."""
    least = LEAST_SPREAD * had.std.mean() + 1e-12
    return torch.where(had.std > least, wanted.std / had.std.clamp_min(1e-12), 1.0)


@torch.no_grad()
def spreads(
    model: nn.Module,
    state: State,
    names: Iterable[str],
    images: Tensor,
    wanted: Mapping[str, Spread] | None = None,
) -> dict[str, Spread]:
    """Measure the outputs of layers that run once a pass; with `wanted` each is mended before the next one sees it."""
    model.load_state_dict(dict(state), strict=False)  # a file may lack the counters of batch norms
    model.eval()
    found: dict[str, list[Spread]] = {}

    def hook(name: str) -> Callable[..., Tensor | None]:
        def look(module: nn.Module, _: object, output: Tensor) -> Tensor | None:
            channels = 1 if isinstance(module, nn.Conv2d) else output.dim() - 1
            flat = output.movedim(channels, 0).flatten(1).double()
            own = Spread(flat.mean(1).float(), flat.std(1, correction=0).float())
            found.setdefault(name, []).append(own)
            if wanted is None:
                return None
            shape = [-1 if i == channels else 1 for i in range(output.dim())]
            factor = ratio(wanted[name], own)
            shift = wanted[name].mean if module.bias is not None else own.mean * factor
            return ((output - own.mean.reshape(shape)) * factor.reshape(shape) + shift.reshape(shape)).to(output.dtype)

        return look

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    model(images)
    for handle in handles:
        handle.remove()
    return {name: each[0] for name, each in found.items() if len(each) == 1}
