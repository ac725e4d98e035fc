"""The comparison of examples/same_teachers.sh for one kind of net: teachers of the same images, some of them bad.

The test zoos hold eight sound teachers and eight spoilt on purpose (`wfcli train-teachers --faults`). Sets are drawn
from the sound ones, from all sixteen, with a given number of bad ones among eight, and with one bad one of each kind
among four. Every figure is kept in the JSON file as soon as it is known, as in silo_table.py, whose rows these are.

T teachers of a set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import heuristics
from bench import calibrated, top1
from look_inside import look
from silo_table import (
    Figures,
    Pair,
    known,
    leading,
    mechanisms,
    note,
    one_shot,
    open_bench,
    parse,
    trained,
    write_figures,
)

from wfcli.core.generator import WeightFormer
from wfcli.core.zoo import Zoo

TESTS = ("same-test-00", "same-test-01", "same-test-02", "same-cifar10")
COUNTS = (2, 4, 8)
SUBSETS = {"any": 5, "sound": 2}
BAD = (1, 2, 4, 6)  # of eight
ONE_BAD = ("vgg",)  # the kinds of nets with sets of one bad teacher of each kind among four


def main() -> None:
    """Fill in what is missing of the figures of one kind of net."""
    options = parse(__doc__)
    zoos = options.runs / options.kind
    generators, digests = trained(options.runs / "generators", lambda name: concerns(name, options.kind))
    done = known(options.output, digests)
    usual = {name: one for name, one in generators.items() if not is_paper(name, options.kind)}
    paper = {name: one for name, one in generators.items() if is_paper(name, options.kind)}
    for name in TESTS:
        bench = open_bench(zoos / name)
        for group, index in sets(bench.zoo, options.kind):
            pair = Pair(bench, index, f"{group}/{name}/{len(index)}/{'-'.join(map(str, index))}")
            one_shot(pair, usual, done, leading(usual) if group == "any" else (), probes=False)
            robust(pair, done)
            note_weights(pair, zoos / name, usual, done)
            if group == "any":
                mechanisms(pair, paper, done)
            write_figures(options.output, "same_table", bench.zoo.architecture, digests, done)
        print(f"{name}: done", flush=True)


def concerns(generator: str, kind: str) -> bool:
    """Tell whether a generator is in the tables: trained on silos alone, on the same data alone, or on both."""
    own = (f"same-{kind}-0", f"both-{kind}-0", "all-0")
    return re.fullmatch(r"both-\d", generator) is not None or generator in own or is_paper(generator, kind)


def is_paper(generator: str, kind: str) -> bool:
    """Tell whether a generator is the paper's, or that without one of its mechanisms."""
    return generator.startswith(f"same-{kind}-weightformer")


def sets(zoo: Zoo, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield all sets of teachers that are compared, each with its group."""
    faults = [str(teacher.recipe.get("fault", "none")) for teacher in zoo.teachers]
    sound = [i for i, fault in enumerate(faults) if fault == "none"]
    bad = [i for i, fault in enumerate(faults) if is_bad(fault)]
    for group, pool in (("sound", sound), ("any", range(len(faults)))):
        for count in COUNTS:
            draw = random.Random(count)
            for _ in range(SUBSETS[group] if count < len(pool) else 1):
                yield group, tuple(sorted(draw.sample(pool, count)))
    for number in BAD:
        draw = random.Random(number)
        yield f"{number} bad", tuple(sorted(draw.sample(sound, 8 - number) + draw.sample(bad, number)))
    for fault in sorted(set(faults) - {"none"}) if kind in ONE_BAD else ():
        i = faults.index(fault)
        yield f"one bad: {fault}", tuple(sorted([*random.Random(i).sample(sound, 3), i]))


def is_bad(fault: str) -> bool:
    """Tell whether a fault makes a teacher worse: to train four times as long does not."""
    return fault not in ("none", "long")


def robust(pair: Pair, done: Figures) -> None:
    """Fill in the rules that trust teachers less which stand apart."""
    if f"{pair.key}/{heuristics.LAST_ROBUST}, calibrated" in done:
        return
    bench = pair.bench
    for name, state in heuristics.robust_heuristics(pair.states).items():
        note(done, pair.key, f"{name}, calibrated", lambda s=state: top1(bench, calibrated(bench, s), bench.test))


def note_weights(pair: Pair, folder: Path, generators: dict[str, WeightFormer], done: Figures) -> None:
    """Fill in what weight the bad teachers get together, where there are some and others."""
    faults = [is_bad(str(pair.bench.zoo.teachers[i].recipe.get("fault", "none"))) for i in pair.index]
    if not any(faults):
        return
    for name, generator in generators.items():
        note(
            done,
            pair.key,
            f"generator {name}, weight of the bad teachers",
            lambda g=generator: sum(
                weight for weight, bad in zip(look(g, folder, list(pair.index)).teachers, faults, strict=True) if bad
            ),
        )


if __name__ == "__main__":
    main()
