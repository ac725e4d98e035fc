"""The comparison of examples/silo_teachers.sh for one kind of net: students, baselines, controls, unlabelled images.

Every figure is kept in the JSON file as soon as it is known, so the script goes on where it was interrupted and adds
what a generator that is new brings. The steps are those of `wfcli fuse`; data are decoded once and teachers answer
once, so it is a script and not a thousand calls of it.

T teachers of a subset, B images, C classes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import fmean

import heuristics
import torch
from bench import BATCH, Bench, State, calibrated, fused, greedy_soup, log_probs, machine, refitted, top1
from torch import Tensor

from wfcli.core.architectures import Architecture, build_model, head_keys, input_config
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import Images, iterate, load_images
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_files import load_generator
from wfcli.core.layouts import STATISTICS
from wfcli.core.methods import soup
from wfcli.core.metrics import ensemble, score
from wfcli.core.outputs import write_json
from wfcli.core.votes import presence, weighted_votes
from wfcli.core.zoo import Zoo, read_zoo
from wfcli.engine import lineup
from wfcli.engine.hooks import Silent
from wfcli.engine.polish import Nets, distill, refit_head
from wfcli.engine.provenance import made_by

TESTS = ("test-00", "test-01", "test-02", "cifar10")
# Other shares than Dirichlet 0.3, for the kind of net that has them; disjoint classes are fused all together.
SHARES = {
    "dirichlet 0.1": ("uneven-00", "uneven-01", "uneven-02"),
    "dirichlet 1.0": ("even-00", "even-01", "even-02"),
    "disjoint classes": tuple(f"disjoint-{count}-{number:02d}" for count in (3, 6) for number in range(5)),
}
COUNTS = {"vgg": (3, 6, 10), "resnet": (3, 6), "vit": (3, 6)}
KINDS = ("vgg", "resnet", "vit")
SUBSETS = 5
TEST_IMAGES = 2000  # at most: of CIFAR-10; the other tasks have a thousand
CALIBRATION_IMAGES = 1000
UNLABELLED = (100, 300, 1000)
UNLABELLED_SUBSETS = 3
STEPS = 100  # of distillation on them
LAST_RULE = "head rows centred on the classes seen"  # of the heuristics: with it, all are there
Figures = dict[str, float]  # "group/zoo/K/subset/row" -> top-1, 0..1


@dataclass(frozen=True)
class Pair:
    """Some teachers of a test zoo, and where their figures go."""

    bench: Bench
    index: tuple[int, ...]
    key: str  # "group/zoo/K/subset"

    @property
    def states(self) -> list[State]:
        """The teachers' weights."""
        return [self.bench.states[i] for i in self.index]


def main() -> None:
    """Fill in what is missing of the figures of one kind of net."""
    options = parse(__doc__)
    zoos = options.runs / options.kind
    generators, digests = trained(options.runs / "generators", lambda name: concerns(name, options.kind))
    done = known(options.output, digests)
    arch = read_zoo(zoos / TESTS[0]).architecture

    def keep() -> None:
        write_figures(options.output, "silo_table", arch, digests, done)

    kinds = (options.kind, "all", "both", f"no-{options.kind}")
    usual = {name: generator for name, generator in generators.items() if own_kind(name) in kinds}
    for name in TESTS:
        bench = open_bench(zoos / name)
        for count in COUNTS[options.kind]:
            for pair in pairs(bench, "dirichlet 0.3", name, count):
                one_shot(pair, usual, done, first=leading(usual))
                if name.startswith("test") and count in (3, 6):
                    mechanisms(pair, {n: g for n, g in generators.items() if n not in usual}, done)
            keep()
            print(f"{name}, K = {count}: done", flush=True)
    some = {name: generator for name, generator in usual.items() if not name.startswith("no-")}
    for group, names in SHARES.items():
        for name in (name for name in names if (zoos / name / "zoo.json").exists()):
            bench = open_bench(zoos / name)
            for count in (len(bench.states),) if group == "disjoint classes" else (3, 6):
                for pair in list(pairs(bench, group, name, count))[:3]:
                    one_shot(pair, some, done, first=leading(some))
            keep()
            print(f"{name}: done", flush=True)
    first = generators.get(f"{options.kind}-0")
    for name in TESTS:
        bench = open_bench(zoos / name)
        joint = zoos / f"joint-{name}" / "teacher-00.safetensors"
        if joint.exists():
            note(
                done,
                f"dirichlet 0.3/{name}",
                "one net trained on the images of all teachers",
                lambda b=bench, j=joint: of_file(b, j),
            )
        for count in (3, 6):
            for pair in list(pairs(bench, "unlabelled", name, count))[:UNLABELLED_SUBSETS]:
                unlabelled(pair, first, done)
                keep()
        print(f"{name}, unlabelled images: done", flush=True)


def parse(description: str | None, kinds: Sequence[str] = KINDS) -> argparse.Namespace:
    """Read the options of a table's script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=Path, required=True, help="the work folder of the script that trained all nets")
    parser.add_argument("--kind", choices=kinds, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    return parser.parse_args()


def trained(place: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, WeightFormer], dict[str, str]]:
    """Load the finished generators in a folder whose names are wanted: by name, and their digests."""
    if not place.is_dir():
        raise SystemExit(f"{place}: no generators there; train them first")
    loaded = {
        folder.name: load_generator(folder, folder.name)
        for folder in sorted(place.iterdir())
        if (folder / "model.safetensors").exists() and wanted(folder.name)
    }
    return {name: one for name, (one, _) in loaded.items()}, {name: digest for name, (_, digest) in loaded.items()}


def write_figures(output: Path, made: str, arch: Architecture, digests: Mapping[str, str], done: Figures) -> None:
    """Write all that is known so far, with what it was made by and on."""
    result = {
        **made_by(made, arch, 0),
        "date": date.today().isoformat(),
        "machine": f"{machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "generators": digests,
        "figures": done,
    }
    write_json(output, result)


def known(output: Path, digests: Mapping[str, str]) -> Figures:
    """Return the figures of an earlier run, without those of generators that have changed since."""
    if not output.exists():
        return {}
    earlier = json.loads(output.read_text())
    changed = [name for name, digest in earlier["generators"].items() if digests.get(name, digest) != digest]
    return {
        key: value
        for key, value in earlier["figures"].items()
        if not any(re.search(rf"generator {name}(?![\w-])", key) or "/unlabelled" in f"/{key}" for name in changed)
    }


def concerns(generator: str, kind: str) -> bool:
    """Tell whether a generator is in the tables of a kind: made for it, for all kinds, or for all but it."""
    return generator.startswith((f"{kind}-", "all-", f"no-{kind}-")) or own_kind(generator) == "both"


def open_bench(folder: Path, teachers: range | None = None, images: int = TEST_IMAGES) -> Bench:
    """Read a test zoo, or some of its teachers, and its images; the teachers answer validation and test images once."""
    zoo = read_zoo(folder)
    if teachers is not None:
        zoo = replace(zoo, teachers=tuple(zoo.teachers[number] for number in teachers))
    settings = input_config(zoo.architecture)
    validation = load_images(zoo.data, "validation", settings.size, limit=TEST_IMAGES)
    test = load_images(zoo.data, "test", settings.size, limit=images)
    train = load_images(zoo.data, "generator", settings.size, limit=max(UNLABELLED))  # no teacher has seen them
    model = build_model(zoo.architecture, len(zoo.class_names)).to(memory_format=torch.channels_last)
    states = [dict(open_checkpoint(path)) for path in zoo.paths]
    head, later = head_keys(zoo.architecture), torch.empty(0)
    bench = Bench(zoo, model, head, states, train, validation, test, later, later, views(train, zoo))
    bench.validation_log_probs = torch.stack([log_probs(bench, state, validation) for state in states])
    bench.test_log_probs = torch.stack([log_probs(bench, state, test) for state in states])
    return bench


def views(images: Images, zoo: Zoo) -> list[Tensor]:
    """Return augmented images to calibrate with."""
    draw = torch.Generator().manual_seed(0)
    some = images.subset(torch.arange(len(images))[:CALIBRATION_IMAGES])
    settings = input_config(zoo.architecture)
    return [x for x, _ in iterate(some, BATCH, settings, augment=True, generator=draw, shuffle=True)]


def pairs(bench: Bench, group: str, name: str, count: int) -> Iterator[Pair]:
    """Draw subsets of the teachers; where all of them are wanted there is one."""
    draw = random.Random(count)
    every = range(len(bench.states))
    if count > len(every):
        return
    for number in range(SUBSETS if count < len(every) else 1):
        yield Pair(bench, tuple(sorted(draw.sample(every, count))), f"{group}/{name}/{count}/{number}")


def note(done: Figures, key: str, row: str, figure: Callable[[], float]) -> None:
    """Find a figure, unless it is known."""
    if f"{key}/{row}" not in done:
        done[f"{key}/{row}"] = figure()


def of_file(bench: Bench, path: Path) -> float:
    """Return the top-1 accuracy of a checkpoint."""
    return top1(bench, dict(open_checkpoint(path)), bench.test)


def one_shot(
    pair: Pair, generators: dict[str, WeightFormer], done: Figures, first: Container[str], probes: bool = True
) -> None:
    """Fill in the rows without any training on images of the task; controls of the `first` generators alone."""
    bench, states = pair.bench, pair.states
    statistics = any(name.endswith(STATISTICS) for name in states[0])
    labels, test = bench.test.labels, bench.test_log_probs[list(pair.index)]

    def row(name: str, figure: Callable[[], float]) -> None:
        note(done, pair.key, name, figure)

    def both(name: str, make: Callable[[], State]) -> None:
        """A student without data and, where that is something else, calibrated."""
        if f"{pair.key}/{name}, calibrated" in done:
            return
        student = make()
        row(f"{name}, data-free", lambda: top1(bench, student, bench.test))
        free = done[f"{pair.key}/{name}, data-free"]
        row(f"{name}, calibrated", lambda: top1(bench, calibrated(bench, student), bench.test) if statistics else free)

    def chosen() -> int:
        right = bench.validation.labels
        return max(pair.index, key=lambda i: score(bench.validation_log_probs[i], right).top1)

    row("mean single", lambda: fmean(score(said, labels).top1 for said in test))
    row("best single (by validation)", lambda: score(bench.test_log_probs[chosen()], labels).top1)
    row("ensemble", lambda: score(ensemble(test), labels).top1)
    present = presence(bench.validation_log_probs[list(pair.index)])
    row("ensemble, votes weighted", lambda: score(weighted_votes(test, present), labels).top1)
    both("soup", lambda: soup(states))
    row("greedy soup, calibrated", lambda: top1(bench, greedy_soup(bench, pair.index), bench.test))
    images = [sum(bench.zoo.teachers[i].class_counts) for i in pair.index]
    if f"{pair.key}/{LAST_RULE}, calibrated" not in done:
        for name, state in heuristics.all_heuristics(states, bench.head, images).items():
            row(f"{name}, calibrated", lambda state=state: top1(bench, calibrated(bench, state), bench.test))
    if probes:
        row("soup, head fitted on probes", lambda: top1(bench, refitted(bench, soup(states), states), bench.test))
    for name, generator in generators.items():
        both(f"generator {name}", lambda generator=generator: fused(bench, generator, states))
        if name in first and probes:
            row(
                f"generator {name}, head fitted on probes",
                lambda g=generator: top1(bench, refitted(bench, fused(bench, g, states), states), bench.test),
            )
        if name in first:
            row(
                f"control: generator {name}, destroyed teachers",
                lambda g=generator: top1(bench, fused(bench, g, states, True), bench.test),
            )


def mechanisms(pair: Pair, generators: dict[str, WeightFormer], done: Figures) -> None:
    """Fill in the rows of the generators with and without one of the paper's mechanisms."""
    bench = pair.bench
    for name, generator in generators.items():
        row = f"generator {name}, data-free"
        note(done, pair.key, row, lambda g=generator: top1(bench, fused(bench, g, pair.states), bench.test))


def leading(generators: Iterable[str]) -> set[str]:
    """Return the generators that get the controls: of the first seed, but not those that never saw the kind of net."""
    return {name for name in generators if name.endswith("-0") and not name.startswith("no-")}


def own_kind(name: str) -> str:
    """Return what a generator's name says of its zoos: ``vgg-0`` is of ``vgg``."""
    return name.rpartition("-")[0]


def unlabelled(pair: Pair, generator: WeightFormer | None, done: Figures) -> None:
    """Fill in the rows with unlabelled images: `wfcli fuse --unlabelled`, from the generator's student and the soup."""
    bench, states = pair.bench, pair.states
    test = bench.test_log_probs[list(pair.index)]
    note(done, pair.key, "ensemble", lambda: score(ensemble(test), bench.test.labels).top1)
    votes = weighted_votes(test, presence(bench.validation_log_probs[list(pair.index)]))
    note(done, pair.key, "ensemble, votes weighted", lambda: score(votes, bench.test.labels).top1)
    place = lineup.Bench(input_config(bench.zoo.architecture), torch.device("cpu"), 500, Silent())
    nets = Nets(place, bench.model, bench.head[0].removesuffix(".weight"), states)
    best = max(pair.index, key=lambda i: score(bench.validation_log_probs[i], bench.validation.labels).top1)
    starts = {"soup": lambda: soup(states), "best single": lambda: bench.states[best]}
    if generator is not None:
        starts["generator"] = lambda: fused(bench, generator, states)
    for start, make in starts.items():
        for number in UNLABELLED if start == "generator" and len(states) == 3 else UNLABELLED[-1:]:
            if f"{pair.key}/{start}, {number} images, {STEPS} steps" in done:
                continue
            images = bench.train.subset(torch.arange(len(bench.train))[:number])
            some = replace(bench, calibration=views(images, bench.zoo))
            student = calibrated(some, make())
            note(done, pair.key, f"{start}, {number} images, calibrated", lambda s=student: top1(bench, s, bench.test))
            student |= refit_head(nets, student, images.pixels, real=True)
            note(done, pair.key, f"{start}, {number} images, head fitted", lambda s=student: top1(bench, s, bench.test))
            moved = calibrated(some, {**student, **distill(nets, student, images, STEPS, 0)})
            note(done, pair.key, f"{start}, {number} images, {STEPS} steps", lambda s=moved: top1(bench, s, bench.test))


if __name__ == "__main__":
    main()
