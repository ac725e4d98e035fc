"""The comparison of examples/seen_dataset.sh for one net and dataset, on ten teachers that no generator has seen.

Every figure is kept in the JSON file as soon as it is known, as in silo_table.py, whose rows these are. Distillation
takes as many steps as the training of a generator costs for each of the ten sets of teachers it is tested on, and from
the generator's student it is the fine-tuning of the paper: less than an epoch.

T teachers of a set, B images, C classes, L tensors of the net.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import heuristics
import torch
from bench import BATCH, Bench, State, best_rate, calibrated, distilled, fused, prior_alone, top1
from silo_table import Figures, Pair, known, note, one_shot, open_bench, pairs, trained, write_figures
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from wfcli.core.architectures import build_model, input_config
from wfcli.core.data import load_images
from wfcli.core.devices import pick_device, training_autocast
from wfcli.core.generator import WeightFormer
from wfcli.core.images import CROP_PADDING
from wfcli.core.layouts import STATISTICS
from wfcli.core.methods import soup
from wfcli.core.metrics import score
from wfcli.core.training import BatchOrder, training_batch

HELD_OUT = range(12, 22)
COUNTS = (3, 6)
TEST_IMAGES = 5000
STEPS = 100  # of 256 images
DISTILLED = "specialised-0"  # the generator whose students are distilled
STARTS = ("soup", "best single", "scratch", f"generator {DISTILLED}")
LEARNED = "learned soup: a weight a teacher and tensor, fitted on labelled images"
MIXING_RATES = (0.03, 0.1, 0.3)
SHARPNESS = (1.0, 4.0, 16.0, 64.0)


def main() -> None:
    """Fill in what is missing of the figures of one net and dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", type=Path, required=True, help="folder of the teachers and generators")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="teachers of a set")
    parser.add_argument("--starts", nargs="+", default=STARTS, help="what is distilled")
    parser.add_argument("--join", type=Path, nargs="*", default=(), help="JSON of parts that are done")
    options = parser.parse_args()
    generators, digests = trained(options.place / "generators", lambda name: True)
    done = known(options.output, digests)
    for part in options.join:
        done |= known(part, digests)
    bench = open_bench(options.place / "teachers", HELD_OUT, TEST_IMAGES)

    def keep(pair: Pair) -> None:
        write_figures(options.output, "seen_table", bench.zoo.architecture, digests, done)
        print(f"{pair.key}: done", flush=True)

    chosen = [pair for count in options.counts for pair in pairs(bench, "seen", options.place.name, count)]
    for pair in chosen:  # what takes no training comes first
        one_shot(pair, generators, done, [name for name in generators if name == DISTILLED], probes=False)
        if DISTILLED in generators:
            alone = prior_alone(generators[DISTILLED])
            note(
                done,
                pair.key,
                f"control: prior alone of generator {DISTILLED}",
                lambda p=pair, g=alone: top1(p.bench, calibrated(p.bench, fused(p.bench, g, p.states)), p.bench.test),
            )
        keep(pair)
    rows = [LEARNED, *(f"{STEPS} steps of distillation from {start}" for start in options.starts)]
    left = [pair for pair in chosen if any(f"{pair.key}/{row}" not in done for row in rows)]
    if left:
        open_batches(bench)
    for pair in left:
        mixing(pair, done)
        distillation(pair, generators.get(DISTILLED), options.starts, done)
        keep(pair)


def open_batches(bench: Bench) -> None:
    """Read the images of distillation, those of teachers and generators together; the teachers answer them once."""
    settings, device = input_config(bench.zoo.architecture), pick_device("cpu")
    images = load_images(bench.zoo.data, "train", settings.size)
    order = BatchOrder(len(images), BATCH, 0)
    pad = CROP_PADDING[images.flip][1]
    bench.batches = [training_batch(images, order, step, settings, pad, device) for step in range(STEPS)]
    answers = []
    for state in bench.states:
        model = build_model(bench.zoo.architecture, len(bench.zoo.class_names)).to(memory_format=torch.channels_last)
        model.load_state_dict(state)
        model.eval()
        with torch.inference_mode(), training_autocast(device, model):
            answers.append(torch.stack([model(x).float().softmax(1) for x, _ in bench.batches]))
    bench.answers = torch.stack(answers).clone()


def distillation(pair: Pair, generator: WeightFormer | None, chosen: Sequence[str], done: Figures) -> None:
    """Fill in what the same steps of distillation reach from each start, each with its best rate by validation."""
    bench, index = pair.bench, pair.index
    best = max(index, key=lambda i: score(bench.validation_log_probs[i], bench.validation.labels).top1)
    torch.manual_seed(0)
    scratch = build_model(bench.zoo.architecture, len(bench.zoo.class_names)).state_dict()
    starts = {
        "soup": lambda: calibrated(bench, soup(pair.states)),
        "best single": lambda: bench.states[best],
        "scratch": lambda: {name: tensor.clone() for name, tensor in scratch.items()},
    }
    if generator is not None:
        starts[f"generator {DISTILLED}"] = lambda: calibrated(bench, fused(bench, generator, pair.states))
    for name, make in starts.items():
        row = f"{STEPS} steps of distillation from {name}"
        if name not in chosen or f"{pair.key}/{row}" in done:
            continue
        start = make()
        note(done, "rate", name, lambda s=start: best_rate(bench, s, index))  # on the first set, for all
        note(
            done,
            pair.key,
            row,
            lambda n=name, s=start: top1(bench, distilled(bench, s, index, done[f"rate/{n}"]), bench.test),
        )


def mixing(pair: Pair, done: Figures) -> None:
    """Fill in what mixing could reach at most, looking at labelled images: how much is there for a generator to add?"""
    bench, states = pair.bench, pair.states

    def best() -> float:
        return max(MIXING_RATES, key=lambda rate: top1(bench, learned_soup(bench, states, rate), bench.validation))

    note(done, "rate", "learned soup", best)
    note(
        done, pair.key, LEARNED, lambda: top1(bench, learned_soup(bench, states, done["rate/learned soup"]), bench.test)
    )
    right = bench.validation.labels
    fit = -torch.stack([functional.nll_loss(bench.validation_log_probs[i], right) for i in pair.index])
    for sharpness in SHARPNESS:
        weights = (sharpness * fit).softmax(0)
        note(
            done,
            pair.key,
            f"function space: soup weighted by likelihood ^{sharpness:.0f}, calibrated",
            lambda w=weights: top1(bench, calibrated(bench, heuristics.weighted(states, lambda _: w)), bench.test),
        )


def learned_soup(bench: Bench, states: Sequence[State], rate: float) -> State:
    """Fit a softmax of weights [L, T] by gradient on the labels of the batches of distillation.

    Wortsman et al. 2022 (arXiv 2203.05482, appendix I), tensor by tensor.
    """
    names = [name for name, tensor in states[0].items() if tensor.is_floating_point() and not name.endswith(STATISTICS)]
    stacked = {name: torch.stack([state[name].float() for state in states]) for name in names}
    logits = torch.zeros(len(names), len(states), requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=rate)
    model = (
        build_model(bench.zoo.architecture, len(bench.zoo.class_names)).to(memory_format=torch.channels_last).train()
    )

    def student() -> Mapping[str, Tensor]:
        return {
            name: (share.reshape(-1, *[1] * (stacked[name].dim() - 1)) * stacked[name]).sum(0)
            for name, share in zip(names, logits.softmax(1), strict=True)
        }

    for x, labels in bench.batches:
        with training_autocast(pick_device("cpu"), model):
            loss = functional.cross_entropy(functional_call(model, dict(student()), (x,)).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = {name: tensor.detach() for name, tensor in student().items()}
    return calibrated(bench, {**soup(list(states)), **found})


if __name__ == "__main__":
    main()
