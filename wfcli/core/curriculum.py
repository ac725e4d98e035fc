"""One zoo as a training ground for a generator: its teachers as tokens, its images with the teachers' answers.

K teachers of the zoo, T of them in a subset, P images of the pool, B images of a batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from wfcli.core.architectures import InputConfig
from wfcli.core.calibrate import batchnorms
from wfcli.core.data import to_input
from wfcli.core.devices import training_autocast
from wfcli.core.generator import WeightFormer
from wfcli.core.methods import soup_tensor
from wfcli.core.plan import LayerPlan, LayerSpec
from wfcli.core.tokens import LayerTokens, RowProducts, from_tokens, row_products, to_tokens
from wfcli.core.views import Views
from wfcli.core.votes import weighted_votes


@dataclass
class Pool:
    """Images for the generator with the teachers' log-probabilities, computed once."""

    pixels: Tensor | Views  # uint8 [P, 3, H, W], augmented already: the teachers answered these very images
    labels: Tensor  # int64 [P]
    log_probs: Tensor  # [K, P, C]
    present: Tensor  # log of how often a teacher answers with a class [K, C]

    def wanted(self, index: Tensor, batch: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the log of what the teachers in `index` [T] say together of the images in `batch` [B]: [B, C].

        With `classes`, of these alone, by the votes on all: a target may know more than the cut teachers.
        """
        votes = weighted_votes(self.log_probs[index][:, batch], self.present[index])
        return votes if classes is None else votes[:, classes].log_softmax(1)


@dataclass
class Ground:
    """A zoo in memory, ready for any number of steps on any subset of its teachers."""

    model: nn.Module  # structure alone; its weights are the generator's
    plan: LayerPlan
    layers: list[tuple[LayerSpec, LayerTokens, RowProducts]]
    constants: dict[str, Tensor]  # integer buffers
    settings: InputConfig
    train: Pool
    validation: Pool
    teachers: tuple[int, ...]  # to train on
    held_out: tuple[int, ...]  # to validate on
    digests: tuple[str, ...]  # sha256 of the K teachers' files
    aligned: bool = False  # whether the teachers had starts of their own, and have been brought into one frame
    divisible: bool = True  # whether some of its classes alone make a task: not where a net has several heads

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor of the student."""
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}

    @property
    def channels(self) -> int:
        """How many output channels the net has in all its layers: what a step on it costs, and what it teaches."""
        return sum(self.shapes[spec.weight][0] for spec, _, _ in self.layers if spec.weight is not None)


def pick_net(channels: Sequence[int], draw: torch.Generator) -> int:
    """Draw the number of a net, given the channels of each: with a probability by the root of 1 / channels.

    A step on a net with ten times the channels costs ten times as much, and more channels learn from it.
    """
    fewest = min(channels)
    while True:
        number = int(torch.randint(len(channels), (), generator=draw))
        taken = math.sqrt(fewest / channels[number])
        if taken == 1 or float(torch.rand((), generator=draw)) < taken:
            return number


def read_layers(
    plan: LayerPlan, teachers: Sequence[Mapping[str, Tensor]], device: torch.device
) -> tuple[list[tuple[LayerSpec, LayerTokens, RowProducts]], dict[str, Tensor]]:
    """Read all layers of K teachers into memory, with their inner products; integer tensors apart, as in the soup."""
    layers = []
    constants = {}
    for spec in plan.specs:
        names = set(spec.tensors())
        integers = {name for name in names if not teachers[0][name].is_floating_point()}
        constants.update({n: soup_tensor(teacher[n] for teacher in teachers).to(device) for n in integers})
        if names - integers:
            tokens = to_tokens(spec, teachers).to(device)
            layers.append((spec, tokens, row_products(tokens)))
    return layers, constants


def generate_subset(
    generator: WeightFormer, ground: Ground, index: Tensor, classes: Tensor | None = None
) -> dict[str, Tensor]:
    """Generate the student of the teachers in `index` [T]: name -> float32 tensor, with gradients to the generator.

    With `classes`, the teachers are taken to know only these of theirs: the other rows of the heads are left out.
    """
    state = generator.start(len(index))
    student = dict(ground.constants)
    for spec, tokens, products in ground.layers:
        chosen = tokens.subset(index)
        if spec.kind == "head" and classes is not None:
            chosen = chosen.rows(classes)
            layer = generator.generate_layer(spec, chosen, row_products(chosen), state)
        else:
            layer = generator.generate_layer(spec, chosen, products.subset(index), state)
        student.update(_in_shape(spec, layer, ground))
    return student


def soup_subset(ground: Ground, index: Tensor) -> dict[str, Tensor]:
    """Return the uniform soup of the teachers in `index` [T]: name -> float32 tensor."""
    student = dict(ground.constants)
    for spec, tokens, _ in ground.layers:
        chosen = tokens.subset(index)
        weight = None if chosen.weight is None else soup_tensor(chosen.weight)
        running = None if chosen.running is None else soup_tensor(chosen.running.transpose(0, 1))
        layer = from_tokens(spec, weight, soup_tensor(chosen.affines.transpose(0, 1)), running)
        student.update(_in_shape(spec, layer, ground))
    return student


def _in_shape(spec: LayerSpec, layer: dict[str, Tensor], ground: Ground) -> dict[str, Tensor]:
    """A free tensor was one row; give it its own shape again."""
    if spec.kind != "free" or spec.weight is None:
        return layer
    return {spec.weight: layer[spec.weight].reshape(ground.shapes[spec.weight])}


def is_divisible(ground: Ground) -> bool:
    """Tell whether the net runs with some rows of its head alone."""
    classes = torch.arange(ground.train.log_probs.shape[2] - 1, device=ground.train.labels.device)
    everyone = torch.arange(len(ground.digests), device=classes.device)
    student = soup_subset(ground, everyone)
    for spec, tokens, _ in ground.layers:
        if spec.kind == "head":
            cut = tokens.subset(everyone).rows(classes)
            weight = None if cut.weight is None else soup_tensor(cut.weight)
            student.update(from_tokens(spec, weight, soup_tensor(cut.affines.transpose(0, 1)), None))
    try:
        with torch.no_grad():
            logits = student_logits(ground, student, ground.train.pixels[torch.arange(2)], False)
    except RuntimeError:  # shapes that do not fit: another head has all classes
        return False
    return logits.shape[1] == len(classes)


def student_logits(ground: Ground, student: Mapping[str, Tensor], pixels: Tensor, batch_statistics: bool) -> Tensor:
    """Run the student on uint8 images [B, 3, H, W] and return float32 logits [B, C].

    With `batch_statistics` BatchNorm takes the statistics of this batch, which is what calibration will give it;
    without, the student's own running ones, which is what it has without data.
    """
    model = ground.model.eval()
    for layer in batchnorms(model):
        layer.train(batch_statistics)
    weights = {**student, **{name: counter.clone() for name, counter in ground.constants.items()}}
    for spec in ground.plan.specs:
        if spec.running_mean is not None and spec.running_var is not None:
            weights.update(_batch_norm(model, spec, student, batch_statistics))
    x = to_input(pixels, ground.settings)
    with training_autocast(x.device, model):
        logits: Tensor = functional_call(model, weights, (x,))
    return logits.float()


def _batch_norm(
    model: nn.Module, spec: LayerSpec, student: Mapping[str, Tensor], batch_statistics: bool
) -> dict[str, Tensor]:
    """Return what a BatchNorm is to run with: torch knows no gradient with respect to its running statistics.

    With batch statistics it only overwrites them: give it some it may. Else they go into its affine map, and the
    statistics it runs with are 0 and 1.
    """
    assert spec.running_mean is not None
    assert spec.running_var is not None
    mean, variance = student[spec.running_mean], student[spec.running_var]
    if batch_statistics or spec.norm_weight is None or spec.norm_bias is None:
        return {spec.running_mean: mean.detach().clone(), spec.running_var: variance.detach().clone()}
    eps = getattr(model.get_submodule(spec.running_var.removesuffix(".running_var")), "eps", 1e-5)
    factor = student[spec.norm_weight] / (variance + eps).sqrt()
    return {
        spec.running_mean: torch.zeros_like(mean),
        spec.running_var: torch.ones_like(variance),
        spec.norm_weight: factor * (1 + eps) ** 0.5,
        spec.norm_bias: student[spec.norm_bias] - mean * factor,
    }


def distillation_loss(logits: Tensor, wanted: Tensor, labels: Tensor, ce_weight: float) -> Tensor:
    """KL(teachers' votes || student) + ce_weight * cross entropy; `wanted` is the log of the votes [B, C]."""
    divergence = functional.kl_div(functional.log_softmax(logits, 1), wanted, reduction="batchmean", log_target=True)
    return divergence + ce_weight * functional.cross_entropy(logits, labels)


def agreement(logits: Tensor, others: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of two students' answers [B, C], mean over the images; 0: they agree."""
    a, b = functional.log_softmax(logits, 1), functional.log_softmax(others, 1)
    middle = torch.logaddexp(a, b) - math.log(2)
    apart = [functional.kl_div(middle, x, reduction="batchmean", log_target=True) for x in (a, b)]
    return (apart[0] + apart[1]) / 2
