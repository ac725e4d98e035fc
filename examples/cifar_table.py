"""The comparison of examples/cifar_fine_tunes.sh: students, baselines and controls, on teachers no generator has seen.

Writes one JSON file with every number and a Markdown table beside it. Data are decoded once and teachers answer once,
so it is a script and not a hundred calls of `wfcli eval`; the steps are those of `wfcli fuse` and `wfcli finetune`.

T teachers of a subset, B images, C classes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev

import heuristics
import torch
from torch import Tensor, nn

from wfcli.core.architectures import build_model, head_keys, input_config
from wfcli.core.calibrate import calibrate_batchnorm
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import DataSpec, Images, iterate, load_images
from wfcli.core.devices import pick_device, training_autocast
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_files import load_generator
from wfcli.core.images import CROP_PADDING
from wfcli.core.methods import soup
from wfcli.core.metrics import ensemble, score
from wfcli.core.plan import plan_layers
from wfcli.core.probes import probe_images
from wfcli.core.tokens import row_products, to_tokens
from wfcli.core.training import BatchOrder, Loss, cosine_rate, make_optimiser, train_step, training_batch
from wfcli.core.zoo import Zoo, read_zoo
from wfcli.engine import lineup
from wfcli.engine.finetune import FinetuneConfig
from wfcli.engine.hooks import Silent
from wfcli.engine.polish import Nets, refit_head
from wfcli.engine.provenance import made_by

RATES = (0.003, 0.01, 0.03)
PROBES = 2000
BATCH = 256
# Knowledge of the teachers -> their zoo, which of them no generator saw, and the generators to test.
TESTS = {"split": ("cifar10-split", range(10), "universal"), "same": ("cifar10-same", range(10, 20), "specialised")}
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
    batches: list[tuple[Tensor, Tensor]]  # those of `wfcli finetune --seed 0`
    answers: Tensor  # the K teachers' probabilities on them [K, steps, B, C]


def main() -> None:
    """Make the tables of one kind of knowledge."""
    options = parse()
    started = time.perf_counter()
    zoo, held, preset = TESTS[options.knowledge]
    bench = open_bench(options, options.runs / zoo, held)
    generators = [load_generator(folder, folder.name)[0] for folder in sorted(options.runs.glob(f"{preset}-*"))]
    tables: dict[str, dict[str, list[float]]] = {}
    rates: dict[str, float] = {}
    for count in options.counts:
        title = f"{options.knowledge} data, K = {count}"
        tables[title] = table(bench, generators, count, options, rates)
        print(markdown(title, tables[title]), flush=True)
    result = {
        **made_by("cifar_table", bench.zoo.architecture, 0),
        "date": date.today().isoformat(),
        "machine": f"{machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "distillation_steps": options.steps,
        "distillation_images": options.steps * BATCH,
        "seconds": round(time.perf_counter() - started),
        "tables": tables,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    options.output.with_suffix(".md").write_text("\n".join(markdown(title, rows) for title, rows in tables.items()))


def machine() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the CIFAR-10 folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON; a .md goes beside it")
    parser.add_argument("--knowledge", choices=list(TESTS), required=True, help="what the teachers know")
    parser.add_argument("--subsets", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--steps", type=int, default=100, help="of distillation, 256 images each")
    return parser.parse_args()


def open_bench(options: argparse.Namespace, folder: Path, held: Sequence[int]) -> Bench:
    """Read the held-out teachers and all images; the teachers answer test, validation and distillation images once."""
    zoo = read_zoo(folder)
    data = DataSpec(str(options.data))
    settings = input_config(zoo.architecture)
    train, validation, test = (load_images(data, split, settings.size) for split in ("train", "validation", "test"))
    model = build_model(zoo.architecture, len(zoo.class_names)).to(memory_format=torch.channels_last)
    states = [dict(open_checkpoint(zoo.paths[number])) for number in held]
    draw = torch.Generator().manual_seed(0)
    some = load_images(data, "train", settings.size, limit=4096, seed=0)
    calibration = [x for x, _ in iterate(some, BATCH, settings, augment=True, generator=draw, shuffle=True)]
    order = BatchOrder(len(train), BATCH, 0)
    device = pick_device("cpu")
    pad = CROP_PADDING[train.flip][1]
    batches = [training_batch(train, order, s, settings, pad, device) for s in range(options.steps)]
    bench = Bench(
        zoo, model, head_keys(zoo.architecture), states, train, validation, test,
        torch.empty(0), torch.empty(0), calibration, batches, torch.empty(0),
    )  # fmt: skip
    bench.validation_log_probs = torch.stack([log_probs(bench, state, validation) for state in states])
    bench.test_log_probs = torch.stack([log_probs(bench, state, test) for state in states])
    answers = []
    for state in states:
        load(bench, state)
        with torch.inference_mode(), training_autocast(device, model):
            answers.append(torch.stack([model(x).float().softmax(1) for x, _ in batches]))
    bench.answers = torch.stack(answers).clone()
    return bench


def load(bench: Bench, state: Mapping[str, Tensor]) -> nn.Module:
    """Put a state dict into the bench's model."""
    bench.model.load_state_dict({name: state[name] for name in bench.model.state_dict()})
    return bench.model.eval()


def log_probs(bench: Bench, state: Mapping[str, Tensor], images: Images) -> Tensor:
    """Return the log-probabilities of a network on images, [B, C]."""
    model = load(bench, state)
    with torch.inference_mode():
        return torch.cat(
            [model(x).log_softmax(1) for x, _ in iterate(images, 500, input_config(bench.zoo.architecture))]
        )


def calibrated(bench: Bench, state: Mapping[str, Tensor]) -> State:
    """Return the state with BatchNorm statistics from 4,096 augmented training images."""
    model = load(bench, state)
    calibrate_batchnorm(model, iter(bench.calibration))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fused(bench: Bench, generator: WeightFormer, states: Sequence[State], destroyed: bool = False) -> State:
    """Return the generator's student.

    With `destroyed` it sees the teachers with the rows of every layer shuffled, each teacher's on its own, while it
    mixes the true ones: what is left is what it would do without looking.
    """
    plan = plan_layers(bench.model, bench.head[0].removesuffix(".weight"))
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
    place = lineup.Bench(settings, torch.device("cpu"), 500, Silent())
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
    options = FinetuneConfig("", (), bench.zoo.architecture, bench.zoo.data, len(bench.batches), Path())
    model = load(bench, start)
    optimiser = make_optimiser(model, options.weight_decay)
    objective = Loss(options.ce_weight, options.distill_weight, options.temperature)
    wanted = bench.answers[list(index)].mean(0)
    autocast = training_autocast(torch.device("cpu"), model)
    model.train()
    for step, (x, labels) in enumerate(bench.batches):
        now = cosine_rate(step, len(bench.batches), rate, options.warmup)
        train_step(model, optimiser, x, labels, rate=now, loss=objective, wanted=wanted[step], autocast=autocast)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def best_rate(bench: Bench, start: Mapping[str, Tensor], index: Sequence[int]) -> float:
    """Choose the distillation rate on the validation split."""
    found = {rate: top1(bench, distilled(bench, start, index, rate), bench.validation) for rate in RATES}
    return max(found, key=lambda rate: found[rate])


def top1(bench: Bench, state: Mapping[str, Tensor], images: Images) -> float:
    """Return the top-1 accuracy, 0..1."""
    return score(log_probs(bench, state, images), images.labels).top1


def greedy_soup(bench: Bench, index: Sequence[int]) -> State:
    """Add teachers from the best down while validation (calibrated) does not fall.

    Wortsman et al. 2022 (arXiv 2203.05482), recipe 1.
    """
    labels = bench.validation.labels
    order = sorted(index, key=lambda i: -score(bench.validation_log_probs[i], labels).top1)
    kept = [order[0]]
    best = score(bench.validation_log_probs[order[0]], labels).top1
    student = bench.states[order[0]]
    for candidate in order[1:]:
        trial = calibrated(bench, soup([bench.states[i] for i in [*kept, candidate]]))
        found = top1(bench, trial, bench.validation)
        if found >= best:
            best, student, kept = found, trial, [*kept, candidate]
    return student


def table(
    bench: Bench, generators: Sequence[WeightFormer], count: int, options: argparse.Namespace, rates: dict[str, float]
) -> dict[str, list[float]]:
    """Return top-1 (0..1) of every row, one number a subset (and generator seed).

    `rates` holds the rate of distillation for each start; those that are missing are chosen on the first subset.
    """
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    draw = random.Random(count)
    labels = bench.test.labels
    torch.manual_seed(0)
    scratch = {
        n: t.clone() for n, t in build_model(bench.zoo.architecture, len(bench.zoo.class_names)).state_dict().items()
    }
    for number in range(options.subsets):
        index = sorted(draw.sample(range(len(bench.states)), count))
        states = [bench.states[i] for i in index]
        singles = [score(bench.test_log_probs[i], labels).top1 for i in index]
        chosen = max(index, key=lambda i: score(bench.validation_log_probs[i], bench.validation.labels).top1)
        note("mean single", fmean(singles))
        note("best single (by validation)", singles[index.index(chosen)])
        note("copy of the first teacher", singles[0])
        note("ensemble", score(ensemble(bench.test_log_probs[index]), labels).top1)
        average = soup(states)
        mixed = calibrated(bench, average)
        note("soup, data-free", top1(bench, average, bench.test))
        note("soup, calibrated", top1(bench, mixed, bench.test))
        note("greedy soup, calibrated", top1(bench, greedy_soup(bench, index), bench.test))
        images = [sum(bench.zoo.teachers[i].class_counts) for i in index]
        for name, state in heuristics.all_heuristics(states, bench.head, images).items():
            note(f"{name}, calibrated", top1(bench, calibrated(bench, state), bench.test))
        note("soup, head fitted on probes, data-free", top1(bench, refitted(bench, average, states), bench.test))
        for generator in generators:
            student = fused(bench, generator, states)
            note("generator, data-free", top1(bench, student, bench.test))
            note("generator, calibrated", top1(bench, calibrated(bench, student), bench.test))
            note(
                "generator, head fitted on probes, data-free", top1(bench, refitted(bench, student, states), bench.test)
            )
        first = generators[0]
        note(
            "control: generator, destroyed teachers",
            top1(bench, calibrated(bench, fused(bench, first, states, True)), bench.test),
        )
        if first.config.frame is not None:
            alone = calibrated(bench, fused(bench, prior_alone(first), states))
            note("control: prior alone, calibrated", top1(bench, alone, bench.test))
        starts = {
            "generator": calibrated(bench, fused(bench, first, states)),
            "soup": mixed,
            "best single": bench.states[chosen],
            **({"scratch": scratch} if number == 0 else {}),
        }
        for name, start in starts.items():
            if name not in rates:
                rates[name] = best_rate(bench, start, index)
            label = f"{options.steps} steps of distillation from the {name}"
            note(label, top1(bench, distilled(bench, start, index, rates[name]), bench.test))
    rows["rates of distillation: generator, soup, best single, scratch"] = list(rates.values())
    return rows


def markdown(title: str, rows: Mapping[str, Sequence[float]]) -> str:
    """Write one table: mean, spread over subsets (and seeds), n."""
    lines = [f"### {title}", "", "| | top-1 (%) | spread | n |", "|---|---:|---:|---:|"]
    for name, values in rows.items():
        if name.startswith("rates"):
            lines.append(f"\n{name}: {', '.join(map(str, values))}")
            continue
        spread = f"{100 * stdev(values):.2f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {100 * fmean(values):.2f} | {spread} | {len(values)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
