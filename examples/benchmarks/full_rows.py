"""The rows of full_table.py: every student of a set of teachers, and what is measured of each.

A set is K teachers of one origin (a shared base, or from scratch) and knowledge (the same images, or split shares).
Every figure is kept as soon as it is known: "origin/knowledge/K/draw/row/metric".
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules of the other examples

import heuristics
import torch
from bench import (
    BATCH,
    Bench,
    State,
    best_rate,
    calibrated,
    distilled,
    fused,
    greedy_soup,
    load,
    log_probs,
    prior_alone,
)
from corruptions import CORRUPTIONS, STRENGTHS
from torch import Tensor

from wfcli.core.architectures import build_model, head_keys, input_config
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import DataSpec, Images, available_splits, iterate, load_images
from wfcli.core.devices import training_autocast
from wfcli.core.generator import WeightFormer
from wfcli.core.images import CROP_PADDING
from wfcli.core.methods import soup
from wfcli.core.metrics import ensemble, score
from wfcli.core.training import BatchOrder, training_batch
from wfcli.core.zoo import read_zoo
from wfcli.engine.align import find_frame
from wfcli.engine.hooks import Silent

TESTED = 8  # teachers of a zoo; generators have learned from the others
COUNTS = (2, 4, 8)
DRAWS = 3
CALIBRATION = 1000  # images
CORRUPTED = 1000  # test images, of the sets of four
DISTILLED = 4  # teachers of the sets that are distilled, and looked at under corruption
Figures = dict[str, float]


@dataclass(frozen=True)
class Set:
    """K teachers of a zoo, as they are, and in one frame."""

    bench: Bench
    index: tuple[int, ...]
    key: str
    states: list[State]
    aligned: bool


def open_zoo(folder: Path, device: torch.device, images: int) -> Bench:
    """Read the tested teachers of a zoo and its images; the teachers answer validation and test images once."""
    zoo = read_zoo(folder)
    zoo = replace(zoo, teachers=zoo.teachers[:TESTED])
    settings = input_config(zoo.architecture)
    validation, test = judged_on(zoo.data, settings.size, images)
    train = load_images(zoo.data, "generator", settings.size, limit=CALIBRATION)
    model = build_model(zoo.architecture, len(zoo.class_names)).to(device, memory_format=torch.channels_last)
    states = [{k: v.to(device) for k, v in open_checkpoint(path).items()} for path in zoo.paths]
    draw, later = torch.Generator().manual_seed(0), torch.empty(0)
    views = iterate(train, BATCH, settings, augment=True, generator=draw, shuffle=True, device=device)
    bench = Bench(
        zoo, model, head_keys(zoo.architecture), states, train, validation, test, later, later, [x for x, _ in views],
        device=device,
    )  # fmt: skip
    bench.validation_log_probs = torch.stack([log_probs(bench, state, validation) for state in states])
    bench.test_log_probs = torch.stack([log_probs(bench, state, test) for state in states])
    return bench


def judged_on(data: DataSpec, side: int, images: int) -> tuple[Images, Images]:
    """Load the images to choose on and those to test on; a dataset without a test split (ImageNet) gives up a half."""
    if "test" in available_splits(data):
        return load_images(data, "validation", side, limit=images), load_images(data, "test", side, limit=images)
    both = load_images(data, "validation", side, limit=2 * images)
    rows = torch.arange(len(both))  # may be sorted by class: every other one
    return both.subset(rows[::2]), both.subset(rows[1::2])


def sets(bench: Bench, key: str, aligned: bool, counts: Sequence[int], draws: int) -> Iterator[Set]:
    """Draw sets of each number of teachers; of teachers from scratch, brought into one frame by their weights."""
    for count in counts:
        draw = random.Random(count)
        for number in range(draws if count < len(bench.states) else 1):
            index = tuple(sorted(draw.sample(range(len(bench.states)), count)))
            states = [bench.states[i] for i in index]
            framed = in_frame(bench, states) if aligned else states
            yield Set(bench, index, f"{key}/{count}/{number}", framed, aligned)


def in_frame(bench: Bench, states: Sequence[State], reference: State | None = None) -> list[State]:
    """Bring nets into one frame, as `wfcli fuse --align weights` does."""
    arch, classes = bench.zoo.architecture, len(bench.zoo.class_names)
    here = [{name: tensor.cpu() for name, tensor in state.items()} for state in states]
    found = find_frame(arch, classes, here, 0, Silent(), None, reference)
    moved = [found.symmetry.permuted(state, one) for state, one in zip(here, found.permutations, strict=True)]
    return [{name: tensor.to(bench.device) for name, tensor in state.items()} for state in moved]


def measure(one: Set, generators: Mapping[str, WeightFormer], done: Figures) -> None:
    """Fill in the rows that take no training on this set's teachers."""
    bench, labels = one.bench, one.bench.test.labels
    picked = list(one.index)
    for place, said in enumerate(bench.test_log_probs[picked]):
        note(done, one.key, f"single {place}", lambda s=said: scores(s, labels))
    for name, index in {"best single (by validation)": [best_of(one)], "ensemble": picked}.items():
        of = [bench.states[i] for i in index]
        said = ensemble(bench.test_log_probs[index])
        note(done, one.key, name, lambda s=said, o=of: scores(s, labels) | robustness(one, o))
    for name, make in students(one, generators).items():
        row(one, name, make, done)
    for name, generator in generators.items():
        if one.key.split("/")[2] == str(DISTILLED):
            states = framed(one, generator)
            row(one, f"control: {name}, destroyed teachers", lambda g=generator, s=states: fit(bench, g, s, True), done)
            if generator.config.frame is not None:
                alone = prior_alone(generator)
                row(one, f"control: {name}, prior alone", lambda g=alone, s=states: fit(bench, g, s), done)


def students(one: Set, generators: Mapping[str, WeightFormer]) -> dict[str, Callable[[], State]]:
    """Return how each student is made."""
    bench, states = one.bench, one.states
    as_they_are = [bench.states[i] for i in one.index]
    found: dict[str, Callable[[], State]] = {
        **({"soup, not aligned": lambda: soup(as_they_are)} if one.aligned else {}),
        "soup": lambda: soup(states),
        "soup, calibrated": lambda: calibrated(bench, soup(states)),
        "greedy soup": lambda: greedy_soup(bench, one.index, dict(zip(one.index, states, strict=True))),
        "best simple heuristic (by validation)": lambda: best_heuristic(one),
    }
    for name, generator in generators.items():
        found[f"generator {name}"] = lambda g=generator: fit(bench, g, framed(one, g))
    return found


def framed(one: Set, generator: WeightFormer) -> list[State]:
    """Return the teachers in the frame of a generator that keeps a net to refer to."""
    if not generator.reference:
        return one.states
    return in_frame(one.bench, one.states, {name: tensor.cpu() for name, tensor in generator.reference.items()})


def fit(bench: Bench, generator: WeightFormer, states: Sequence[State], destroyed: bool = False) -> State:
    """Return the generator's student, calibrated."""
    return calibrated(bench, fused(bench, generator, states, destroyed))


def best_heuristic(one: Set) -> State:
    """Return the student of the simple rule on the weights that does best on validation images, calibrated."""
    bench = one.bench
    images = [sum(bench.zoo.teachers[i].class_counts) for i in one.index]
    rules = heuristics.all_heuristics(one.states, bench.head, images)
    found = {name: calibrated(bench, {k: v.to(bench.device) for k, v in s.items()}) for name, s in rules.items()}
    return max(found.values(), key=lambda s: top1_of(bench, s, bench.validation))


def best_of(one: Set) -> int:
    """Return the number of the teacher that does best on validation images."""
    bench = one.bench
    return max(one.index, key=lambda i: score(bench.validation_log_probs[i], bench.validation.labels).top1)


def distillation(one: Set, generators: Mapping[str, WeightFormer], steps: int, done: Figures) -> None:
    """Fill in what the same steps of distillation reach from each start, each at its best rate by validation."""
    bench = one.bench
    torch.manual_seed(0)
    scratch = build_model(bench.zoo.architecture, len(bench.zoo.class_names)).state_dict()
    starts: dict[str, Callable[[], State]] = {
        "scratch": lambda: {name: tensor.to(bench.device) for name, tensor in scratch.items()},
        "soup, calibrated": lambda: calibrated(bench, soup(one.states)),
        "best single": lambda: bench.states[best_of(one)],
        **{f"generator {name}": lambda g=g: fit(bench, g, framed(one, g)) for name, g in generators.items()},
    }
    for name, make in starts.items():
        label = f"{steps} steps of distillation from {name}"
        if f"{one.key}/{label}/top1" in done:
            continue
        open_batches(bench, steps)
        rate = f"{one.key.rpartition('/')[0]}/rate/{name}"  # chosen on the first set, for all
        if rate not in done:
            done[rate] = best_rate(bench, make(), one.index)
        row(one, label, lambda m=make, r=rate: distilled(bench, m(), one.index, done[r]), done, steps * BATCH)


def open_batches(bench: Bench, steps: int) -> None:
    """Read the images of distillation; the teachers answer them once."""
    if bench.batches:
        return
    settings, device = input_config(bench.zoo.architecture), bench.device
    images = load_images(bench.zoo.data, "train", settings.size)
    order = BatchOrder(len(images) // BATCH * BATCH, BATCH, 0)  # batches of one size
    pad = CROP_PADDING[images.flip][1]
    bench.batches = [training_batch(images, order, step, settings, pad, device) for step in range(steps)]
    answers = []
    for state in bench.states:
        model = load(bench, state)
        with torch.inference_mode(), training_autocast(device, model):
            answers.append(torch.stack([model(x).float().softmax(1) for x, _ in bench.batches]))
    bench.answers = torch.stack(answers).clone()


def row(one: Set, name: str, make: Callable[[], State], done: Figures, images: int = 0) -> None:
    """Make a student and measure it; `images`: how many it was trained on for this set."""
    if f"{one.key}/{name}/top1" in done:
        return
    began = time.perf_counter()
    student = make()
    seconds = time.perf_counter() - began
    bench = one.bench
    figures = scores(log_probs(bench, student, bench.test), bench.test.labels) | robustness(one, [student])
    note(done, one.key, name, lambda: {**figures, "seconds": seconds, "images": images})


def note(done: Figures, key: str, name: str, figures: Callable[[], Mapping[str, float]]) -> None:
    """Keep the figures of a row, unless they are known."""
    if f"{key}/{name}/top1" not in done:
        done.update({f"{key}/{name}/{metric}": value for metric, value in figures().items()})


def scores(said: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top-1 and ECE (0..1) and NLL (nats)."""
    found = score(said, labels)
    return {"top1": found.top1, "nll": found.nll, "ece": found.ece}


def robustness(one: Set, states: Sequence[State]) -> dict[str, float]:
    """Return the mean top-1 over three strengths of each corruption, of a net or an ensemble: of one set."""
    if one.key.split("/")[2:] != [str(DISTILLED), "0"]:
        return {}
    bench, found = one.bench, {}
    some = bench.test.subset(torch.arange(min(CORRUPTED, len(bench.test))))
    for name, corrupt in CORRUPTIONS.items():
        seen = [replace(some, pixels=corrupt(whole(some), strength)) for strength in STRENGTHS]
        said = [ensemble(torch.stack([log_probs(bench, state, images) for state in states])) for images in seen]
        found[name] = sum(score(each, some.labels).top1 for each in said) / len(said)
    return found


def whole(images: Images) -> Tensor:
    """Return the pixels in memory."""
    return images.pixels[torch.arange(len(images))]


def top1_of(bench: Bench, state: State, images: Images) -> float:
    """Return the top-1 accuracy, 0..1."""
    return score(log_probs(bench, state, images), images.labels).top1
