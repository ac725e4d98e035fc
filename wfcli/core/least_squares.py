"""Layer-wise least squares: every layer of a student answers what the aligned teachers' layers answer on average.

From the first layer to the last, each gets the weights with which it comes nearest, on some images, to the mean of the
teachers' outputs (after their batch norms), given what the student's earlier layers hand it. After RegMean (Jin et al.
2022, arXiv 2212.09849) and PLeaS (Nasery et al. 2024, arXiv 2407.02447, section 4), which take the teachers' own inputs
instead: here later layers make good what earlier ones have missed. A closed form: a few images, no gradient steps.

T nets, B images, P places (image, pixel, token), G groups, F fan-in of a group, N channels of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from wfcli.core.plan import LayerPlan, LayerSpec

State = Mapping[str, Tensor]
PLACES = 32768  # at most, in a layer
STRENGTH = 0.03  # of the pull to the average's weights, relative to the mean square of an input
AT_ONCE = 32  # images whose patches are in memory together


def least_squares(
    model: nn.Module, plan: LayerPlan, student: State, teachers: Sequence[State], images: Tensor
) -> dict[str, Tensor]:
    """Return the student (the average of its aligned teachers) with layers fitted to the teachers' on images [B, ...].

    `model` is one of the architecture, whatever its weights; `plan` has batch norms where they take a layer's output as
    it is (`with_own_norms`). Convolutions and linear layers are fitted; those that run
    in another way than once a pass, or are of a kind of their own, stay as they are, and so do norms without a layer
    before them. Where a batch norm follows it takes the statistics that the fitted layer has on these images.
    """
    specs = {spec.name: spec for spec in plan.specs if spec.weight and spec.kind in ("conv", "linear", "head")}
    specs = {name: spec for name, spec in specs.items() if type(model.get_submodule(name)) in (nn.Conv2d, nn.Linear)}
    wanted: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    for teacher in teachers:
        run(
            model, teacher, images, {name: partial(_note, spec, teacher, wanted, calls) for name, spec in specs.items()}
        )
    once = {name: spec for name, spec in specs.items() if calls.get(name) == len(teachers)}
    fitted = {name: tensor.clone() for name, tensor in student.items()}
    fits = {name: partial(_fit, spec, fitted, wanted[name] / len(teachers)) for name, spec in once.items()}
    run(model, student, images, fits, before=True)
    return fitted


@torch.no_grad()
def run(
    model: nn.Module, state: State, images: Tensor, hooks: Mapping[str, Callable[..., None]], before: bool = False
) -> None:
    """Run a net on images with something done behind, or before, each of some modules."""
    model.load_state_dict(dict(state), strict=False)  # a file may lack the counters of batch norms
    model.eval()
    handles = []
    for name, hook in hooks.items():
        module = model.get_submodule(name)
        hook = partial(hook, model)
        handles.append(module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook))
    model(images)
    for handle in handles:
        handle.remove()


def _note(
    spec: LayerSpec,
    state: State,
    wanted: dict[str, Tensor],
    calls: dict[str, int],
    model: nn.Module,
    module: nn.Module,
    _: object,
    output: Tensor,
) -> None:
    """Add a teacher's outputs at some places, after its batch norm, to those of the others."""
    calls[spec.name] = calls.get(spec.name, 0) + 1
    flat = _last(module, output)
    found = flat[places(len(flat))].float()
    if spec.running_mean is not None and spec.running_var is not None:
        found = (found - state[spec.running_mean]) * (state[spec.running_var].float() + _eps(model, spec)).rsqrt()
        found = found * state[spec.norm_weight] if spec.norm_weight else found
        found = found + state[spec.norm_bias] if spec.norm_bias else found
    wanted[spec.name] = wanted[spec.name] + found if spec.name in wanted else found


def _fit(
    spec: LayerSpec, fitted: dict[str, Tensor], wanted: Tensor, model: nn.Module, module: nn.Module, args: tuple[Tensor]
) -> None:
    """Fit a layer to the outputs wanted [P, N], in `fitted` and in the model itself, just before it runs."""
    assert spec.weight is not None
    weight = fitted[spec.weight]
    groups = getattr(module, "groups", 1)
    norm = spec.norm_weight is not None and spec.norm_bias is not None and spec.running_mean is not None
    seen = inputs(module, args[0], groups)  # [G, P, F]
    start = weight.float().reshape(groups, -1, seen.shape[2])  # [G, N / G, F]
    centred = norm or spec.bias is not None
    mean_in = seen.mean(1, keepdim=True) if centred else torch.zeros_like(seen[:, :1])
    mean_out = wanted.mean(0) if centred else torch.zeros_like(wanted[0])
    aim = (wanted - mean_out).reshape(len(wanted), groups, -1).movedim(1, 0)  # [G, P, N / G]
    solved = solve(seen - mean_in, aim, start)
    own_mean = (mean_in @ solved.mT).flatten()
    new = {spec.weight: solved.reshape(weight.shape)}
    if norm:
        variance = ((seen - mean_in) @ solved.mT).square().mean(1).flatten()
        bias = fitted[spec.bias].float() if spec.bias else 0.0
        length = (variance + _eps(model, spec)).sqrt()
        named = (spec.running_mean, spec.running_var, spec.norm_weight, spec.norm_bias)
        of_norm = (own_mean + bias, variance, length, mean_out)  # which hands on what the layer itself should answer
        new.update({name: tensor for name, tensor in zip(named, of_norm, strict=True) if name is not None})
    elif spec.bias is not None:
        new[spec.bias] = mean_out - own_mean
    current = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in new.items():
        fitted[name] = tensor.to(fitted[name].dtype)
        current[name].copy_(tensor)


def solve(seen: Tensor, aim: Tensor, start: Tensor) -> Tensor:
    """Return weights [G, M, F] with which inputs [G, P, F] come nearest to aims [G, P, M].

    Minimises |seen W^T - aim|^2 + STRENGTH |seen|^2 / F |W - s start|^2: what the places do not tell stays that of
    `start`, every row at the length s that fits best.
    """
    said = seen @ start.mT
    scale = ((said * aim).sum(1) / said.square().sum(1).clamp_min(1e-12)).clamp_min(0)  # [G, M]
    start = start * scale[..., None]
    gram = (seen.mT @ seen).double()
    pull = STRENGTH * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(pull[:, None])
    change: Tensor = torch.linalg.solve(gram, (seen.mT @ (aim - seen @ start.mT)).double())  # [G, F, M]
    return start + change.mT.float()


def places(number: int) -> Tensor:
    """Return the places of a layer that are looked at, the same in all nets, in rising order."""
    draw = torch.Generator().manual_seed(number)
    return torch.randperm(number, generator=draw)[:PLACES].sort().values


def inputs(module: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Return what a layer's output at its places is made from: [G, P, F]."""
    if not isinstance(module, nn.Conv2d):
        flat = x.flatten(0, -2)
        return flat[places(len(flat))].float()[None]
    around = _padding(module)
    if any(around):
        x = pad(x, around, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    size = [
        (x.shape[2 + i] - module.dilation[i] * (module.kernel_size[i] - 1) - 1) // module.stride[i] + 1 for i in (0, 1)
    ]
    each = size[0] * size[1]
    chosen = places(len(x) * each)
    found = []
    for begin in range(0, len(x), AT_ONCE):
        part = x[begin : begin + AT_ONCE]
        here = chosen[(chosen >= begin * each) & (chosen < (begin + len(part)) * each)] - begin * each
        patches = unfold(part.float(), module.kernel_size, module.dilation, 0, module.stride)
        found.append(patches.movedim(1, 2).flatten(0, 1)[here])  # [places of the part, G * F]
    rows = torch.cat(found)
    return rows.reshape(len(rows), groups, -1).movedim(1, 0)


def _padding(module: nn.Conv2d) -> list[int]:
    """Return what a convolution puts around its input: left, right, above, below."""
    around = []
    for axis in (1, 0):
        whole = module.dilation[axis] * (module.kernel_size[axis] - 1)
        if module.padding == "same":
            around += [whole // 2, whole - whole // 2]
        else:
            around += [0, 0] if isinstance(module.padding, str) else [module.padding[axis]] * 2
    return around


def _last(module: nn.Module, output: Tensor) -> Tensor:
    """Return a layer's outputs with their channels last: [all places, N]."""
    return (output.movedim(1, -1) if isinstance(module, nn.Conv2d) else output).flatten(0, -2)


def _eps(model: nn.Module, spec: LayerSpec) -> float:
    """Return the small number that a layer's batch norm adds to the variance."""
    assert spec.running_var is not None
    norm = model.get_submodule(spec.running_var.rpartition(".")[0])
    return float(norm.eps)  # type: ignore[arg-type]
