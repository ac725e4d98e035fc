"""Merge methods that look at images: by curvature, by what layers are fed, by gradient, or by trying.

T teachers, L tensors that are mixed, B images, C classes, F fan-in of a layer. States have timm's names; running
statistics of batch norms and integers are taken as in the soup, and are to be calibrated afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from wfcli.core.devices import training_autocast
from wfcli.core.layouts import STATISTICS
from wfcli.core.least_squares import inputs, run
from wfcli.core.methods import soup, weighted_sum
from wfcli.core.plan import LayerPlan, LayerSpec
from wfcli.core.training import BatchOrder

State = Mapping[str, Tensor]
BATCH = 128
FISHER_FLOOR = 1e-8  # of a tensor's mean curvature, for all teachers alike: where none knows anything, the soup


def fisher(model: nn.Module, states: Sequence[State], images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Weigh every number by each teacher's diagonal Fisher information on images [B, 3, H, W], which need no labels.

    Matena & Raffel 2021, 2111.09832, section 3.2: squared gradients of the log-probability of a class that is drawn
    from the teacher's own answer, image by image.
    """
    student = soup([dict(state) for state in states])
    total = {name: torch.zeros_like(tensor) for name, tensor in student.items() if _is_mixed(name, tensor)}
    share = {name: torch.zeros_like(tensor) for name, tensor in total.items()}
    for state in states:
        for name, own in information(model, state, images, seed).items():
            if name in total:
                total[name] += own * state[name].float()
                share[name] += own
    for name, tensor in total.items():
        floor = FISHER_FLOOR * share[name].mean() + 1e-30
        student[name] = (tensor + floor * student[name]) / (share[name] + floor)
    return student


def information(model: nn.Module, state: State, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Return a net's diagonal Fisher information, parameter by parameter, as the mean over images [B, 3, H, W]."""
    model.load_state_dict(dict(state), strict=False)
    model.eval()
    draw = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for image in images:
        said = model(image[None]).float().log_softmax(1)[0]
        drawn = int(torch.multinomial(said.detach().exp().cpu(), 1, generator=draw))
        slopes = torch.autograd.grad(said[drawn], list(parameters.values()), allow_unused=True)
        for name, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                found[name] += slope.detach().square() / len(images)
    return found


def regmean(
    model: nn.Module, plan: LayerPlan, states: Sequence[State], images: Tensor, diagonal: float = 0.1
) -> dict[str, Tensor]:
    """Take for every layer the weights that come nearest to each teacher's own outputs on its own inputs.

    Jin et al. 2022, 2212.09849, section 3: (sum G)^-1 sum G W, with G the inner products of a teacher's inputs on
    images [B, 3, H, W]; what is off their diagonal counts 1 - `diagonal` (section 3.3). Convolutions by their patches.
    """
    specs = {spec.name: spec for spec in plan.specs if spec.weight and spec.kind in ("conv", "linear", "head")}
    specs = {name: spec for name, spec in specs.items() if type(model.get_submodule(name)) in (nn.Conv2d, nn.Linear)}
    grams: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    for state in states:
        look = {name: partial(_gram, spec, state, diagonal, grams, sums) for name, spec in specs.items()}
        run(model, state, images, look, before=True)
    student = soup([dict(state) for state in states])
    for name, gram in grams.items():
        weight = specs[name].weight or ""
        ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        pull = ridge[:, None, None] * student[weight].double().reshape(len(gram), -1, gram.shape[2]).mT
        gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        found = torch.linalg.solve(gram, sums[name] + pull)  # [G, F, N / G]
        student[weight] = found.mT.float().reshape(student[weight].shape)
    return student


def _gram(
    spec: LayerSpec,
    state: State,
    diagonal: float,
    grams: dict[str, Tensor],
    sums: dict[str, Tensor],
    model: nn.Module,
    module: nn.Module,
    args: tuple[Tensor],
) -> None:
    """Add the inner products of a teacher's inputs to a layer, and these times its weights."""
    groups = getattr(module, "groups", 1)
    seen = inputs(module, args[0], groups)  # [G, P, F]
    gram = (seen.mT @ seen).double() / seen.shape[1]
    gram = (1 - diagonal) * gram + diagonal * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    own = gram @ state[spec.weight or ""].double().reshape(groups, -1, seen.shape[2]).mT
    grams[spec.name] = grams[spec.name] + gram if spec.name in grams else gram
    sums[spec.name] = sums[spec.name] + own if spec.name in sums else own


def learned_soup(
    model: nn.Module, states: Sequence[State], images: Tensor, labels: Tensor, steps: int, lr: float, seed: int = 0
) -> dict[str, Tensor]:
    """Fit a weight for every teacher and tensor by gradient on labelled images [B, 3, H, W]; they stay a mean.

    Wortsman et al. 2022, 2203.05482, appendix I, with weights tensor by tensor.
    """

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels[rows])

    def shares(free: Tensor) -> Tensor:
        return free.softmax(1)

    start = torch.zeros(len(_mixed(states)), len(states))
    return _by_gradient(model, states, None, images, loss, start, shares, steps, lr, seed)


def adamerging(
    model: nn.Module, states: Sequence[State], base: State | None, images: Tensor, start: float, steps: int, lr: float,
    seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Fit how much of what each teacher has learned counts, tensor by tensor, so that the student is sure of images.

    Yang et al. 2023, 2310.02575, section 3.2: the mean entropy of its answers falls; there are no labels. Without a
    base, or for a tensor that it lacks, what was learned is measured from the mean; without one the soup is the start.
    """

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        said = logits.log_softmax(1)
        return -(said.exp() * said).sum(1).mean()

    names = _mixed(states)
    origin = {**soup([dict(state) for state in states]), **(base or {})}
    begin = torch.full((len(names), len(states)), start if base is not None else 1 / len(states))
    return _by_gradient(model, states, origin, images, loss, begin, lambda free: free, steps, lr, seed)


def _by_gradient(
    model: nn.Module,
    states: Sequence[State],
    origin: State | None,
    images: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    shares: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
    seed: int,
) -> dict[str, Tensor]:
    """Fit weights [L, T] of what the teachers are beyond `origin` (None: zero) by Adam on batches of the images.

    Batch norms take the statistics of a batch meanwhile.
    """
    names = _mixed(states)
    begin = {name: 0.0 if origin is None else origin[name].float() for name in names}
    apart = {name: torch.stack([state[name].float() - begin[name] for state in states]) for name in names}
    free = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=lr)
    order = BatchOrder(len(images), min(BATCH, len(images)), seed)

    def student() -> dict[str, Tensor]:
        weights = shares(free)
        return {
            name: begin[name] + (weights[row].reshape(-1, *[1] * (apart[name].dim() - 1)) * apart[name]).sum(0)
            for row, name in enumerate(names)
        }

    model.eval()  # no dropout
    for module in model.modules():
        module.training = isinstance(module, _BatchNorm)
    for step in range(steps):
        rows = order.indices(step)
        with training_autocast(images.device, model):
            logits = functional_call(model, student(), (images[rows],))
        optimiser.zero_grad()
        value = loss(logits.float(), rows)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.eval()
    return {**soup([dict(state) for state in states]), **{name: tensor.detach() for name, tensor in student().items()}}


def greedy(states: Sequence[State], judge: Callable[[State], float]) -> tuple[dict[str, Tensor], list[int]]:
    """Add teachers to the soup from the best down while that does no harm; return it, and who is in it.

    Wortsman et al. 2022, 2203.05482, recipe 1. `judge` gives what is to be high on labelled validation images.
    """
    alone = [judge(state) for state in states]
    order = sorted(range(len(states)), key=lambda number: -alone[number])
    kept, best, student = order[:1], alone[order[0]], dict(states[order[0]])
    for number in order[1:]:
        trial = {
            name: weighted_sum([states[i][name] for i in (*kept, number)], [1 / (len(kept) + 1)] * (len(kept) + 1))
            if tensor.is_floating_point()
            else tensor
            for name, tensor in student.items()
        }
        found = judge(trial)
        if found >= best:
            kept, best, student = [*kept, number], found, trial
    return student, sorted(kept)


def _mixed(states: Sequence[State]) -> list[str]:
    return [name for name, tensor in states[0].items() if _is_mixed(name, tensor)]


def _is_mixed(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not name.endswith(STATISTICS)
