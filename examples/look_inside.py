"""One picture of what a generator does with silo teachers: which layers, rows and teachers get weight, and why.

Left: per layer, how far the weights that rows give the teachers are from equal ones. Middle: the head's
weights of one set of teachers, class by class, beside the images of the class that each has seen. Right: weight against
that share of images, all test teachers.

T teachers, N channels, C classes.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from scipy.stats import spearmanr
from torch import Tensor

from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.generator import GATE, WeightFormer
from wfcli.core.generator_files import load_generator
from wfcli.core.tokens import layer_deviation, row_products, to_tokens
from wfcli.core.zoo import read_zoo
from wfcli.engine.plans import plan_of

mpl.use("svg")
from matplotlib import pyplot as plt

SUBSETS = 5
COUNT = 4  # teachers of a set


@dataclass(frozen=True)
class Look:
    """What a generator did with one set of teachers."""

    names: list[str]  # of the layers
    teachers: list[float]  # per teacher: mean weight over the channels of all layers
    unequal: list[float]  # per layer: mean over its channels of 1 - entropy of the weights / log T
    head: Tensor  # weights of the class rows [T, C]
    given_up: Tensor  # share of its teacher's mean row that a class gives up [T, C]
    seen: Tensor  # share of the images of a class that a teacher has seen [T, C]


def main() -> None:
    """Look at the sets of one zoo and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True, help="with silo teachers that the generator never saw")
    parser.add_argument("--output", type=Path, required=True, help="SVG; a JSON with the figures goes beside it")
    options = parser.parse_args()
    generator = load_generator(options.generator, options.generator.name)[0]
    draw = random.Random(0)
    everyone = range(len(read_zoo(options.zoo).teachers))
    looks = [look(generator, options.zoo, sorted(draw.sample(everyone, COUNT))) for _ in range(SUBSETS)]
    weights = torch.cat([one.head.flatten() for one in looks])
    seen = torch.cat([one.seen.flatten() for one in looks])
    by_layer = {name: sum(one.unequal[i] for one in looks) / SUBSETS for i, name in enumerate(looks[0].names)}
    figures = {
        "generator": options.generator.name,
        "zoo": str(Path(*options.zoo.parts[-2:])),
        "teachers": COUNT,
        "inequality of the weights, by layer": by_layer,
        "rank correlation of weight and share of images, head rows": float(spearmanr(weights, seen).statistic),
        "mean weight of a class row, class seen": float(weights[seen > 0].mean()),
        "mean weight of a class row, class not seen": float(weights[seen == 0].mean()) if (seen == 0).any() else None,
        "share of its mean row that a class gives up": float(torch.stack([one.given_up for one in looks]).mean()),
    }
    options.output.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    picture(looks[0], by_layer, weights, seen).savefig(options.output, metadata={"Date": None})


def look(generator: WeightFormer, folder: Path, index: list[int]) -> Look:
    """Run the generator on some teachers of a zoo and keep the weights it gives them."""
    zoo = read_zoo(folder)
    states = [dict(open_checkpoint(zoo.paths[i])) for i in index]
    logits: list[Tensor] = []
    centres: list[Tensor] = []
    handles = [
        generator.logits.register_forward_hook(lambda *a: logits.append(a[2])),
        generator.centres.register_forward_hook(lambda *a: centres.append(a[2])),
    ]
    state = generator.start(len(states))
    names, unequal, head_weights, gate = [], [], torch.empty(0), torch.empty(0)
    with torch.no_grad():
        for spec in plan_of(zoo.architecture, len(zoo.class_names)).specs:
            tokens = to_tokens(spec, states)
            products = row_products(tokens)
            generator.generate_layer(spec, tokens, products, state)
            weights = logits[-1][:, :, 0 if spec.weight else 1].softmax(0)  # [T, N]
            entropy = -(weights * weights.clamp_min(1e-12).log()).sum(0) / torch.tensor(float(len(states))).log()
            names.append(spec.name)
            unequal.append(float(1 - entropy.mean()))
            if spec.kind == "head":
                deviation = layer_deviation(products)
                head_weights, gate = weights, deviation / (deviation + GATE)
    for handle in handles:
        handle.remove()
    counts = torch.tensor([zoo.teachers[i].class_counts for i in index], dtype=torch.float32)
    given_up = centres[-1][:, :, 0].tanh() * gate
    return Look(names, state.weights(), unequal, head_weights, given_up, counts / counts.sum(0).clamp_min(1))


def picture(one: Look, by_layer: dict[str, float], weights: Tensor, seen: Tensor) -> plt.Figure:
    """Draw the three parts."""
    plt.rcParams.update({"svg.hashsalt": "wfcli", "font.size": 8})
    figure, (left, upper, lower, right) = plt.subplots(
        1, 4, figsize=(13, 4), width_ratios=(1.4, 1, 1, 1.1), layout="constrained"
    )
    left.barh(list(by_layer), list(by_layer.values()), color="#4878a8")
    left.invert_yaxis()
    left.set(title="how unequal the weights are (0: the soup)", xlabel="1 - entropy / log T")
    for axes, shares, title in ((upper, one.head, "weight of a class row"), (lower, one.seen, "share of its images")):
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axes.set(title=title, xlabel="class", ylabel="teacher", yticks=range(len(shares)))
    right.scatter(seen, weights, s=8, alpha=0.6, color="#4878a8")
    right.set(title="head: weight against share of images", xlabel="share of the images of the class", ylabel="weight")
    return figure


if __name__ == "__main__":
    main()
