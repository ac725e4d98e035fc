"""The comparison of examples/scratch_teachers.sh for one kind of net: nets trained from different random starts.

Every figure is kept in the JSON file as soon as it is known, as in silo_table.py. A set's teachers are aligned once by
their weights and once by weights and activations; whatever follows is made from these.

T teachers of a set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from bench import RATES, Bench, State, calibrated, distilled, fused, log_probs, top1
from silo_table import Figures, Pair, known, note, open_bench, pairs, parse, trained, write_figures
from torch import Tensor
from torch.nn import functional

from wfcli.core.architectures import build_model, input_config
from wfcli.core.data import load_images
from wfcli.core.devices import pick_device, training_autocast
from wfcli.core.generator import WeightFormer
from wfcli.core.images import CROP_PADDING, to_input
from wfcli.core.layouts import STATISTICS
from wfcli.core.least_squares import least_squares
from wfcli.core.methods import soup, weighted_sum
from wfcli.core.metrics import score
from wfcli.core.plan import LayerPlan
from wfcli.core.repair import lengthened, repair
from wfcli.core.training import BatchOrder, training_batch, usual_optimiser
from wfcli.engine.align import find_frame
from wfcli.engine.fitting import load_named
from wfcli.engine.hooks import Silent
from wfcli.engine.plans import plan_of

KINDS = ("vgg11", "vgg11_bn", "resnet18", "vit", "vgg11_bn_split")
COUNTS = (2, 4, 6)
TESTED = 6  # teachers; generators learn from the others
STEPS = (100, 300, 1000)  # of distillation
BATCH = 64
DISTILLED = 4  # teachers of the sets that are distilled
SLOW = ("resnet18", "vit")  # of these kinds some starts alone are distilled
SOME_STARTS = ("best single", "aligned by activations, repaired", "aligned by activations, least squares", "scratch")
IMAGES = 1000  # to align by, repair and fit layers with
OBSERVED = 256
MORE = "aligned by activations of 1,000 images, least squares"
LINE = torch.linspace(0, 1, 11).tolist()


def main() -> None:
    """Fill in what is missing of the figures of one kind of net."""
    options = parse(__doc__, kinds=KINDS)
    place = options.runs / options.kind
    has_generators = (place / "generators").is_dir()
    generators, digests = trained(place / "generators", lambda name: True) if has_generators else ({}, {})
    loaded = load_named("pretrained:universal")
    generators["shipped-0"], digests["shipped-0"] = loaded.generator, loaded.digest
    done = known(options.output, digests)
    bench = open_bench(place / "teachers", range(TESTED))

    def keep() -> None:
        write_figures(options.output, "scratch_table", bench.zoo.architecture, digests, done)

    for count in COUNTS:
        for pair in pairs(bench, "scratch", options.kind, count):
            distils = count == DISTILLED and pair.key.endswith("/0")
            missing = [f"{pair.key}/aligned by activations, least squares"]
            own = [name for name in generators if name.startswith("specialised")] if distils else []
            ends = [*(f"generator {name}" for name in own), "scratch"] if distils else []
            missing += [f"{pair.key}/{STEPS[-1]} steps of distillation from {start}" for start in ends]
            students = {} if all(key in done for key in missing) else aligned_students(pair, done)
            note(done, pair.key, MORE, partial(aligned_on_more, pair))
            for name, generator in generators.items():
                one_shot(pair, name, generator, done)
            keep()
            if distils and students:
                students |= {f"generator {name}": generated(pair, generators[name]) for name in own}
                distillation(pair, students, done)
                keep()
            print(f"{pair.key}: done", flush=True)
    line(bench, done)
    keep()


def aligned_students(pair: Pair, done: Figures) -> dict[str, State]:
    """Fill in the rows without any training; return the students to distil from."""
    bench, key, labels = pair.bench, pair.key, pair.bench.test.labels
    singles = [score(bench.test_log_probs[i], labels).top1 for i in pair.index]
    best = max(pair.index, key=lambda i: score(bench.validation_log_probs[i], bench.validation.labels).top1)
    note(done, key, "mean single", lambda: sum(singles) / len(singles))
    note(done, key, "best single (by validation)", lambda: score(bench.test_log_probs[best], labels).top1)
    together = torch.stack([bench.test_log_probs[i] for i in pair.index]).logsumexp(0)
    note(done, key, "ensemble", lambda: score(together, labels).top1)
    average = soup(pair.states)
    note(done, key, "average as they are", lambda: top1(bench, average, bench.test))
    note(
        done,
        key,
        "average as they are, repaired",
        lambda: top1(bench, repaired(bench, average, pair.states), bench.test),
    )
    note(done, key, "as they are, least squares", lambda: top1(bench, fitted(bench, average, pair.states), bench.test))
    students = {
        "best single": bench.states[best],
        "average as they are, repaired": repaired(bench, average, pair.states),
    }
    for how in ("weights", "activations"):
        started = time.perf_counter()
        states = in_frame(bench, pair.states, how)
        done.setdefault(f"{key}/seconds of aligning by {how}", time.perf_counter() - started)
        average = soup(states)
        students[f"aligned by {how}, repaired"] = repaired(bench, average, states)
        students[f"aligned by {how}, least squares"] = fitted(bench, average, states)
        rows = {
            f"aligned by {how}": average,
            f"aligned by {how}, mended without images": lengthened(plan(bench), average, states),
            f"aligned by {how}, repaired": students[f"aligned by {how}, repaired"],
            f"aligned by {how}, least squares": students[f"aligned by {how}, least squares"],
        }
        for row, state in rows.items():
            note(done, key, row, partial(top1, bench, state, bench.test))
    return students


def aligned_on_more(pair: Pair) -> float:
    """Return the accuracy of the fitted average where the teachers are aligned by as many images as it is fitted on."""
    states = in_frame(pair.bench, pair.states, "activations", images=IMAGES)
    return top1(pair.bench, fitted(pair.bench, soup(states), states), pair.bench.test)


def generated(pair: Pair, generator: WeightFormer) -> State:
    """Return the student of a generator, its teachers in its frame, calibrated."""
    states = in_frame(pair.bench, pair.states, "weights", generator.reference or None)
    return calibrated(pair.bench, fused(pair.bench, generator, states))


def one_shot(pair: Pair, name: str, generator: WeightFormer, done: Figures) -> None:
    """Fill in the rows of a generator, its teachers in its frame, with the control of destroyed ones."""
    bench = pair.bench
    if f"{pair.key}/control: generator {name}, destroyed teachers" in done:
        return
    states = in_frame(bench, pair.states, "weights", generator.reference or None)
    student = fused(bench, generator, states)
    note(done, pair.key, f"generator {name}, data-free", lambda: top1(bench, student, bench.test))
    note(done, pair.key, f"generator {name}, calibrated", lambda: top1(bench, calibrated(bench, student), bench.test))
    note(
        done,
        pair.key,
        f"control: generator {name}, destroyed teachers",
        lambda: top1(bench, calibrated(bench, fused(bench, generator, states, destroyed=True)), bench.test),
    )


def in_frame(
    bench: Bench, states: Sequence[State], how: str, reference: State | None = None, images: int = OBSERVED
) -> list[State]:
    """Return the nets in one frame, as `wfcli fuse --align` brings them there."""
    seen = inputs(bench, images) if how == "activations" else None
    arch, classes = bench.zoo.architecture, len(bench.zoo.class_names)
    found = find_frame(arch, classes, states, 0, Silent(), seen, reference)
    return [found.symmetry.permuted(state, one) for state, one in zip(states, found.permutations, strict=True)]


def inputs(bench: Bench, number: int) -> Tensor:
    """Return images that no teacher has seen, as a net takes them."""
    some = torch.linspace(0, len(bench.train) - 1, number).long()
    return to_input(bench.train.pixels[some], input_config(bench.zoo.architecture))


def plan(bench: Bench) -> LayerPlan:
    """Return the net's layers."""
    return plan_of(bench.zoo.architecture, len(bench.zoo.class_names))


def repaired(bench: Bench, average: State, states: Sequence[State], weights: Sequence[float] | None = None) -> State:
    """Return the average with statistics from images: BatchNorm's, or for a net without it those of REPAIR."""
    if any(name.endswith(STATISTICS) for name in average):
        return calibrated(bench, average)
    head = bench.head[0].removesuffix(".weight")
    return repair(bench.model, head, average, states, inputs(bench, IMAGES), weights)


def fitted(bench: Bench, average: State, states: Sequence[State]) -> State:
    """Return the average with every layer fitted to the nets' layers, calibrated where it has BatchNorm."""
    return calibrated(bench, least_squares(bench.model, plan(bench), average, states, inputs(bench, IMAGES)))


def distillation(pair: Pair, students: Mapping[str, State], done: Figures) -> None:
    """Fill in what steps of distillation reach from each start, at its best rate of 100 steps by validation."""
    bench, index = pair.bench, pair.index
    torch.manual_seed(0)
    scratch = build_model(bench.zoo.architecture, len(bench.zoo.class_names)).state_dict()
    open_batches(bench)
    starts = {**students, "scratch": {k: v.clone() for k, v in scratch.items()}}
    for name in SOME_STARTS if pair.key.split("/")[1] in SLOW else starts:
        start = starts[name]
        for steps in STEPS:
            row = f"{steps} steps of distillation from {name}"
            if f"{pair.key}/{row}" in done:
                continue
            short = replace(bench, batches=bench.batches[:100], answers=bench.answers[:, :100])

            def reached(rate: float, start: State = start, short: Bench = short) -> float:
                return top1(bench, distilled(short, start, index, rate), bench.validation)

            if f"rate/{name}" not in done:
                done[f"rate/{name}"] = max(RATES[usual_optimiser(bench.model)], key=reached)
            some = replace(bench, batches=bench.batches[:steps], answers=bench.answers[:, :steps])
            done[f"{pair.key}/{row}"] = top1(bench, distilled(some, start, index, done[f"rate/{name}"]), bench.test)


def open_batches(bench: Bench) -> None:
    """Read the images of distillation; the teachers answer them once."""
    if bench.batches:
        return
    settings, device = input_config(bench.zoo.architecture), pick_device("cpu")
    images = load_images(bench.zoo.data, "train", settings.size)
    order = BatchOrder(len(images) // BATCH * BATCH, BATCH, 0)  # batches of one size
    pad = CROP_PADDING[images.flip][1]
    bench.batches = [training_batch(images, order, step, settings, pad, device) for step in range(max(STEPS))]
    model = build_model(bench.zoo.architecture, len(bench.zoo.class_names)).to(memory_format=torch.channels_last)
    answers = []
    for state in bench.states:
        model.load_state_dict(state)
        model.eval()
        with torch.inference_mode(), training_autocast(device, model):
            answers.append(torch.stack([model(x).float().softmax(1) for x, _ in bench.batches]))
    bench.answers = torch.stack(answers).clone()


def line(bench: Bench, done: Figures) -> None:
    """Fill in the loss along the straight line between two teachers, before and after alignment."""
    ends = bench.states[:2]
    ways = {"as they are": ends, "aligned": in_frame(bench, ends, "activations")}
    for way, states in ways.items():
        for share in LINE:
            for row, state in points(bench, states, share):
                key = f"line/{way}{row}/{share:.1f}"
                if key not in done:
                    said = log_probs(bench, state, bench.test)
                    done[key] = float(functional.nll_loss(said, bench.test.labels))


def points(bench: Bench, states: Sequence[State], share: float) -> Iterator[tuple[str, State]]:
    """Yield a net on the line, as it is and repaired."""
    mixed = {
        name: weighted_sum([state[name] for state in states], [1 - share, share])
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
    yield "", mixed
    yield ", repaired", repaired(bench, mixed, states, [1 - share, share])


if __name__ == "__main__":
    main()
