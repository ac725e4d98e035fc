"""What the tables of the examples are made with: teachers in memory, and what `wfcli fuse` and `finetune` do with them.

Data are decoded once and teachers answer once, which is why they are scripts and not a thousand calls of `wfcli`.

T teachers of a subset, B images, C classes.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from wfcli.core.architectures import input_config
from wfcli.core.calibrate import calibrate_batchnorm
from wfcli.core.data import Images, iterate
from wfcli.core.devices import training_autocast
from wfcli.core.generator import WeightFormer
from wfcli.core.methods import soup
from wfcli.core.metrics import score
from wfcli.core.probes import probe_images
from wfcli.core.tokens import row_products, to_tokens
from wfcli.core.training import Loss, cosine_rate, make_optimiser, train_step, usual_optimiser
from wfcli.core.zoo import Zoo
from wfcli.engine import lineup
from wfcli.engine.finetune import FinetuneConfig, settled
from wfcli.engine.hooks import Silent
from wfcli.engine.plans import plan_of
from wfcli.engine.polish import Nets, refit_head

RATES = {"sgd": (0.003, 0.01, 0.03), "adamw": (1e-4, 3e-4, 1e-3)}
PROBES = 2000
BATCH = 256
State = dict[str, Tensor]


@dataclass
class Bench:
    """One zoo of test teachers with the images of all roles, in memory."""

    zoo: Zoo
    model: nn.Module
    head: tuple[str, str]
    states: list[State]
    train: Images
    validation: Images
    test: Images
    validation_log_probs: Tensor  # [K, B, C]
    test_log_probs: Tensor
    calibration: list[Tensor]
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # those of `wfcli finetune --seed 0`
    answers: Tensor = field(default_factory=lambda: torch.empty(0))  # teachers' probabilities on them [K, steps, B, C]
    device: torch.device = field(
        default_factory=lambda: torch.device("cpu")
    )  # of model, states, calibration and batches


def machine() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def load(bench: Bench, state: Mapping[str, Tensor]) -> nn.Module:
    """Put a state dict into the bench's model."""
    bench.model.load_state_dict({name: state[name] for name in bench.model.state_dict()})
    return bench.model.eval()


def log_probs(bench: Bench, state: Mapping[str, Tensor], images: Images) -> Tensor:
    """Return the log-probabilities of a network on images, [B, C], on the CPU."""
    model, settings = load(bench, state), input_config(bench.zoo.architecture)
    with torch.inference_mode():
        batches = iterate(images, 500, settings, device=bench.device)
        return torch.cat([model(x).log_softmax(1).cpu() for x, _ in batches])


def calibrated(bench: Bench, state: Mapping[str, Tensor]) -> State:
    """Return the state with BatchNorm statistics from the bench's augmented images."""
    model = load(bench, state)
    calibrate_batchnorm(model, iter(bench.calibration))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fused(bench: Bench, generator: WeightFormer, states: Sequence[State], destroyed: bool = False) -> State:
    """Return the generator's student.

    With `destroyed` it sees the teachers with the rows of every layer shuffled, each teacher's on its own, while it
    mixes the true ones: what is left is what it would do without looking.
    """
    plan = plan_of(bench.zoo.architecture, len(bench.zoo.class_names))
    with torch.no_grad():
        if not destroyed:
            return dict(generator.generate(plan, states))
        state, student = generator.start(len(states)), soup(list(states))
        draw = torch.Generator().manual_seed(0)
        for spec in plan.specs:
            tokens = to_tokens(spec, states)
            seen = copy.deepcopy(tokens)
            for t in range(len(states)):
                order = torch.randperm(spec.channels, generator=draw)
                if seen.weight is not None:
                    seen.weight[t] = seen.weight[t][order]
                seen.affines[:, t] = seen.affines[:, t][:, order]
                if seen.running is not None:
                    seen.running[:, t] = seen.running[:, t][:, order]
            layer = generator.generate_layer(spec, tokens, row_products(seen), state)
            student.update({name: tensor.reshape(states[0][name].shape) for name, tensor in layer.items()})
    return student


def refitted(bench: Bench, student: State, states: Sequence[State]) -> State:
    """Return the student with its head fitted to the ensemble on made-up images, as `wfcli fuse --probes` does."""
    settings = input_config(bench.zoo.architecture)
    place = lineup.Bench(settings, bench.device, 500, Silent())
    nets = Nets(place, bench.model, bench.head[0].removesuffix(".weight"), states)
    return {**student, **refit_head(nets, student, made_up(settings.size), real=False)}


@lru_cache(maxsize=1)
def made_up(side: int) -> Tensor:
    """Return the images that heads are fitted on."""
    return probe_images(PROBES, side, seed=1)


def prior_alone(generator: WeightFormer) -> WeightFormer:
    """Return a copy whose mixing is the soup's: only its prior is left."""
    alone = copy.deepcopy(generator)
    for layer in (alone.logits, alone.scales, alone.centres):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return alone


def distilled(bench: Bench, start: Mapping[str, Tensor], index: Sequence[int], rate: float) -> State:
    """Take the steps of `wfcli finetune` from `start`, distilling the teachers in `index`; return where they end."""
    options = settled(FinetuneConfig("", (), bench.zoo.architecture, bench.zoo.data, len(bench.batches), Path()))
    assert options.weight_decay is not None
    model = load(bench, start)
    optimiser = make_optimiser(model, options.weight_decay, usual_optimiser(model))
    objective = Loss(options.ce_weight, options.distill_weight, options.temperature)
    wanted = bench.answers[list(index)].mean(0)
    autocast = training_autocast(bench.device, model)
    model.train()
    for step, (x, labels) in enumerate(bench.batches):
        now = cosine_rate(step, len(bench.batches), rate, options.warmup)
        train_step(model, optimiser, x, labels, rate=now, loss=objective, wanted=wanted[step], autocast=autocast)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def best_rate(bench: Bench, start: Mapping[str, Tensor], index: Sequence[int]) -> float:
    """Choose the distillation rate on the validation split."""
    found = {
        rate: top1(bench, distilled(bench, start, index, rate), bench.validation)
        for rate in RATES[usual_optimiser(bench.model)]
    }
    return max(found, key=lambda rate: found[rate])


def top1(bench: Bench, state: Mapping[str, Tensor], images: Images) -> float:
    """Return the top-1 accuracy, 0..1."""
    return score(log_probs(bench, state, images), images.labels).top1


def greedy_soup(bench: Bench, index: Sequence[int], framed: Mapping[int, State] | None = None) -> State:
    """Add teachers, in one frame if `framed`, from the best down while validation (calibrated) does not fall.

    Wortsman et al. 2022 (arXiv 2203.05482), recipe 1.
    """
    labels = bench.validation.labels
    order = sorted(index, key=lambda i: -score(bench.validation_log_probs[i], labels).top1)
    kept = [order[0]]
    best = score(bench.validation_log_probs[order[0]], labels).top1
    student = bench.states[order[0]]
    states = framed or dict(enumerate(bench.states))
    for candidate in order[1:]:
        trial = calibrated(bench, soup([states[i] for i in [*kept, candidate]]))
        found = top1(bench, trial, bench.validation)
        if found >= best:
            best, student, kept = found, trial, [*kept, candidate]
    return student
