"""The paper's table with our controls: one architecture on one dataset, from the base to the table, in some minutes.

    python examples/benchmarks/full_table.py --scale full --arch vgg11 --dataset cifar10

A base is trained on the other dataset (or taken: --base), from it two zoos of fine-tunes (the same images; split into
Dirichlet-0.3 shares), two more from random starts, generators on teachers that are not tested; then every student of
sets of 2, 4 and 8 teachers is measured. The minutes are shared among the stages by what a step of training takes here;
what follows from that is in the result under `sizes`. A stage whose output is there is skipped, and the result is
written as it grows: the same command goes on. A dataset of your own (an image folder such as ImageNet's train/ and
val/, owner/name on the Hub) takes --base, as there is nothing to train one on; without a test split one half of its
validation images is tested on, and what is chosen is chosen on the other.

The result, examples/results/full_<scale>_<arch>_<dataset>.json:

    scale, arch, dataset       as asked for; `architecture`: the net that was built
    date, machine, wfcli, torch, timm
    minutes                    that were given to each run
    sizes                      images of an epoch, images a second, epochs and steps of every stage
    costs                      stage -> seconds, and training images seen
    generators                 name -> sha256
    complete                   whether all rows are there, of the --counts and --draws that were asked for
    figures                    "origin/knowledge/K/draw/row/metric" -> value: top1, ece (0..1), nll (nats), seconds to
                               make the student and images it was trained on; of the first set of four also top-1 under
                               noise, blur, contrast, JPEG and brightness, the mean of three strengths
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules of the other examples

import torch
from bench import BATCH, RATES, machine
from full_rows import COUNTS, DISTILLED, DRAWS, TESTED, Figures, distillation, measure, open_zoo, sets

from wfcli.core.architectures import Architecture, build_model, find_architecture, input_config
from wfcli.core.data import DataSpec, load_labels
from wfcli.core.devices import pick_device, training_autocast
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_files import load_generator
from wfcli.core.outputs import write_json
from wfcli.core.training import Loss, make_optimiser, train_step, usual_optimiser
from wfcli.engine.fitting import load_named
from wfcli.engine.provenance import made_by
from wfcli.engine.train_generator import TrainGeneratorConfig, train_generator
from wfcli.engine.train_teachers import TrainTeachersConfig, train_teachers

RESULTS = Path(__file__).resolve().parents[1] / "results"
NETS: dict[str, dict[str, tuple[str, dict[str, int | float]]]] = {
    "full": {"vgg11": ("vgg11_bn_cifar", {}), "resnet50": ("resnet50_cifar", {}), "vit_b_32": ("vit_b_32", {})},
    "cpu": {
        "vgg11": ("vgg11_bn_cifar", {"width": 0.25}),
        "resnet50": ("resnet50_cifar", {"width": 0.125}),
        "vit_b_32": ("vit_tiny_cifar", {"width": 0.67, "patch_size": 8}),
    },
}
TEST_IMAGES = {"full": 10_000, "cpu": 2_000}
OTHER = {"cifar10": "cifar100", "cifar100": "cifar10"}
LABELS = {"cifar100": "fine_label"}
LEARNED = 4  # teachers of a zoo that generators learn from
ZOOS = ("base/same", "base/split", "scratch/same", "scratch/split")
# Of the minutes; the rest is for measuring.
SHARES = {"base": 0.10, "base/same": 0.18, "base/split": 0.04, "scratch/same": 0.20, "scratch/split": 0.08,
          "generators": 0.16, "distillation": 0.08}  # fmt: skip
GENERATORS = {  # name -> preset, the zoos it learns from
    "weightformer": ("weightformer", ("base/same", "base/split")),
    "specialised": ("specialised", ("base/same", "base/split")),
    "specialised-scratch": ("specialised", ("scratch/same",)),
}
DEARER = 4  # a step of training a generator, in steps of training the student, at most about


@dataclass
class Piece:
    """One architecture on one dataset."""

    arch: Architecture
    data: DataSpec
    other: DataSpec | None  # that the base is trained on
    base: str | None
    work: Path
    output: Path
    minutes: float
    counts: tuple[int, ...]  # teachers of a set
    draws: int  # sets of each count
    test_images: int
    began: float = field(default_factory=time.monotonic)
    result: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Return the seconds that are left of this run."""
        return 60 * self.minutes - (time.monotonic() - self.began)

    def keep(self) -> None:
        """Write what is known."""
        write_json(self.output, self.result)


def main() -> None:
    """Run what is missing of one piece."""
    piece = read_options()
    train(piece)
    done: Figures = piece.result.setdefault("figures", {})
    piece.result["complete"] = fill(piece, done)
    piece.keep()
    told = "complete" if piece.result["complete"] else "not complete: the same command goes on"
    print(f"{piece.output.name}: {len(done):,} figures, {told}")


def read_options() -> Piece:
    """Read the command line, and what an earlier run has left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(NETS), required=True)
    parser.add_argument("--arch", choices=tuple(NETS["full"]), required=True)
    parser.add_argument("--dataset", required=True, help="cifar10, cifar100, an image folder or owner/name on the Hub")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where cifar10 and cifar100 lie")
    parser.add_argument("--label-column", help="of a dataset of your own")
    parser.add_argument("--base", help="a checkpoint to start from, path or hf:owner/name, instead of training one")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each run [default: 8]")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="teachers of a set [default: 2 4 8]")
    parser.add_argument("--draws", type=int, default=DRAWS, help="sets of each count [default: 3; one of all teachers]")
    parser.add_argument("--work", type=Path, default=Path("runs/full"), help="the work folder [default: runs/full]")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where the result goes [default: examples/results]"
    )
    given = parser.parse_args()
    known = given.dataset in OTHER
    if not known and given.base is None:
        parser.error(f"--dataset {given.dataset}: give --base, as there is nothing to train one on")
    name, args = NETS[given.scale][given.arch]
    arch = find_architecture(name, args)
    source = str(given.data / given.dataset) if known else given.dataset
    data = DataSpec(source, LABELS.get(given.dataset, given.label_column))
    other = DataSpec(str(given.data / OTHER[given.dataset]), LABELS.get(OTHER[given.dataset])) if known else None
    label = f"{given.scale}_{given.arch}_{Path(given.dataset).name}"
    output = given.results / f"full_{label}.json"
    work = given.work / label
    work.mkdir(parents=True, exist_ok=True)
    piece = Piece(
        arch, data, other, given.base, work, output, given.minutes, tuple(given.counts), given.draws,
        TEST_IMAGES[given.scale],
    )  # fmt: skip
    # What was trained belongs to the result that stands beside it; without the nets a result is begun anew.
    if output.exists() and (work / "sizes.json").exists():
        piece.result = json.loads(output.read_text())
    piece.result |= {
        "scale": given.scale, "arch": given.arch, "dataset": Path(given.dataset).name,
        **{key: value for key, value in made_by("full_table", arch, 0).items() if key not in ("verb", "seed")},
        "date": date.today().isoformat(), "machine": device_name(), "minutes": given.minutes, "complete": False,
    }  # fmt: skip
    piece.result["sizes"] = sizes(piece)
    return piece


def device_name() -> str:
    """Name what it runs on."""
    device = pick_device("auto")
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{machine()}, {torch.get_num_threads()} threads"
    )


def sizes(piece: Piece) -> dict[str, float]:
    """Share the minutes: epochs of every zoo, steps of generators and distillation. Found once, then kept."""
    kept = piece.work / "sizes.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    speed = images_a_second(piece.arch)
    images = len(load_labels(piece.data, "teachers"))
    of_base = len(load_labels(piece.other, "teachers")) if piece.other else images
    seen = {name: share * 60 * piece.minutes * speed for name, share in SHARES.items()}
    teachers = TESTED + LEARNED
    starts = 5 * (len(RATES["sgd"]) + DRAWS)  # scratch, soup, best, two generators; the rates are tried on one set
    found = {
        "images_a_second": round(speed),
        "images": images,
        "base_images": of_base,
        "base": seen["base"] / of_base,
        "base/same": seen["base/same"] / images / teachers,
        "base/split": seen["base/split"] / images,  # all shares together are one epoch
        "scratch/same": seen["scratch/same"] / images / teachers,
        "scratch/split": seen["scratch/split"] / images,
        "generator_steps": max(5, round(seen["generators"] / len(GENERATORS) / DEARER / BATCH)),
        "distillation_steps": max(3, round(seen["distillation"] / starts / BATCH / len(ZOOS))),
    }
    found = {name: max(0.01, round(value, 2)) for name, value in found.items()}
    write_json(kept, found)
    return found


def images_a_second(arch: Architecture) -> float:
    """Measure the steps of training one net."""
    device, settings = pick_device("auto"), input_config(arch)
    model = build_model(arch, 10).to(device, memory_format=torch.channels_last).train()
    optimiser = make_optimiser(model, 0.0, usual_optimiser(model))
    x = torch.randn(128, 3, settings.size, settings.size, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(128, dtype=torch.int64, device=device)
    autocast = training_autocast(device, model)

    def step() -> None:
        float(train_step(model, optimiser, x, labels, rate=1e-4, loss=Loss(), autocast=autocast))

    for _ in range(3):
        step()
    began, steps = time.perf_counter(), 0
    while steps < 5 or time.perf_counter() - began < 3:
        step()
        steps += 1
    return 128 * steps / (time.perf_counter() - began)


def train(piece: Piece) -> None:
    """Train base, zoos and generators."""
    found = piece.result["sizes"]
    if piece.base is None:
        assert piece.other is not None
        base = TrainTeachersConfig(
            piece.arch, piece.other, 1, piece.work / "base", epochs=found["base"], same_recipe=True
        )
        seen = found["base"] * found["base_images"]
        stage(piece, "base", piece.work / "base" / "zoo.json", seen, lambda: train_teachers(base))
        start = str(piece.work / "base" / "teacher-00.safetensors")
    else:
        start = piece.base
    for number, zoo in enumerate(ZOOS):
        origin, knowledge = zoo.split("/")
        config = TrainTeachersConfig(
            piece.arch,
            piece.data,
            TESTED + LEARNED,
            piece.work / origin / knowledge,
            init=start if origin == "base" else None,
            epochs=found[zoo],
            seed=100 * number,
            shares="dirichlet" if knowledge == "split" else "same",
            same_recipe=origin == "scratch" or knowledge == "split",
        )
        seen = found[zoo] * found["images"] * (1 if knowledge == "split" else config.count)
        stage(piece, zoo, config.output / "zoo.json", seen, lambda c=config: train_teachers(c))
    for name, (preset, zoos) in GENERATORS.items():
        settings = TrainGeneratorConfig(
            tuple(piece.work / zoo for zoo in zoos),
            piece.work / "generators" / name,
            preset=preset,
            steps=int(found["generator_steps"]),
            max_teachers=LEARNED,
            teachers=f"{TESTED}-{TESTED + LEARNED - 1}",
            resume=True,
        )
        output, seen = settings.output / "model.safetensors", settings.steps * settings.batch_size
        stage(piece, f"generator {name}", output, seen, lambda s=settings: train_generator(s))


def stage(piece: Piece, name: str, output: Path, images: float, run: Callable[[], object]) -> None:
    """Run a stage, which sees so many training images, unless its output is there; keep what it cost."""
    if output.exists():
        return
    print(f"{name} ... ({piece.left():.0f} s left)", flush=True)
    began = time.perf_counter()
    run()
    seconds = round(time.perf_counter() - began, 1)
    piece.result.setdefault("costs", {})[name] = {"seconds": seconds, "images": round(images)}
    piece.keep()


def fill(piece: Piece, done: Figures) -> bool:
    """Measure what is missing while there is time; tell whether all is there."""
    device = pick_device("auto")
    universal, digest = load_shipped()
    learned: dict[str, WeightFormer] = {}
    digests = {"universal": digest}
    for name in GENERATORS:
        learned[name], digests[name] = load_generator(piece.work / "generators" / name, name)
    piece.result["generators"] = digests
    of_origin = {
        "base": {
            "universal": universal,
            "weightformer": learned["weightformer"],
            "specialised": learned["specialised"],
        },
        "scratch": {"specialised-scratch": learned["specialised-scratch"]},
    }
    for zoo in ZOOS:
        origin = zoo.split("/")[0]
        generators = {name: one.to(device) for name, one in of_origin[origin].items()}
        bench = open_zoo(piece.work / zoo, device, piece.test_images)
        for one in sets(bench, zoo, origin == "scratch", piece.counts, piece.draws):
            if piece.left() < 0:
                return False
            measure(one, generators, done)
            if len(one.index) == DISTILLED:
                own = {name: g for name, g in generators.items() if name != "universal"}
                distillation(one, own, int(piece.result["sizes"]["distillation_steps"]), done)
            piece.keep()
        print(f"{zoo}: measured ({piece.left():.0f} s left)", flush=True)
    return True


def load_shipped() -> tuple[WeightFormer, str]:
    """Load the generator that comes with wfcli, and its digest."""
    loaded = load_named("pretrained:universal")
    return loaded.generator, loaded.digest


if __name__ == "__main__":
    main()
