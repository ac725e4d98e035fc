"""After the generator: is the student sound, and does it say what the teachers say together?

B images, N features, C classes, T teachers. All of this looks at the nets as functions, on images without labels. The
guard takes real ones where there are any, else made-up ones; so does the fit of the head; a few steps of distillation
are worth while on real ones alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from wfcli.core.architectures import Architecture, build_model, head_keys
from wfcli.core.decode import LazyPixels
from wfcli.core.devices import training_autocast
from wfcli.core.guard import Verdict, judge
from wfcli.core.head_fit import fit_head
from wfcli.core.images import Images, crop_padding, to_input
from wfcli.core.layouts import COUNTER
from wfcli.core.precision import whole_float32
from wfcli.core.training import (
    BatchOrder,
    Loss,
    cosine_rate,
    make_optimiser,
    repeatable,
    seed_layers,
    train_step,
    training_batch,
    usual_optimiser,
)
from wfcli.core.votes import presence, weighted_votes
from wfcli.engine.finite import Finite
from wfcli.engine.lineup import Bench, load_model
from wfcli.engine.teachers import Teachers
from wfcli.errors import ArchitectureError

SMALL_SIDE, GUARD_PROBES, FEW_PROBES = 64, 256, 16  # large images are dear: the guard looks at fewer
PRIOR_STRENGTH = {"made up": 0.01, "real": 0.1}  # real images are few
OWN_VOTE = 0.5  # of the student itself in what its head is fitted to: it knows things that the teachers do not
LATER_VOTE = 0.3  # the same in the steps of distillation
DISTILL_BATCH = 128
JUDGED = 500  # images on which the steps of distillation are judged
DISTILL_RATE = {"sgd": 0.03, "adamw": 5e-4}
DISTILL_DECAY = {"sgd": 5e-4, "adamw": 0.01}
WARMUP = 0.1


Pixels = Tensor | LazyPixels  # uint8 [B, 3, H, W], in memory or decoded when looked at


@dataclass(frozen=True)
class Nets:
    """A student and its teachers, ready to be run one at a time. States have timm's names."""

    bench: Bench
    blank: nn.Module
    head: str  # module name
    teachers: Sequence[Mapping[str, Tensor]]


def open_nets(bench: Bench, arch: Architecture, teachers: Teachers, checked: Sequence[Finite]) -> Nets:
    """Prepare to run the teachers and nets like them."""
    blank = build_model(arch, teachers.num_classes)
    views = [teachers.layout.timm_view(teacher) for teacher in checked]
    return Nets(bench, blank, head_keys(arch)[0].removesuffix(".weight"), views)


def guard_probes(side: int) -> int:
    """Say how many images the guard makes up."""
    return GUARD_PROBES if side <= SMALL_SIDE else FEW_PROBES


def some_pixels(images: Images, number: int) -> Tensor:
    """Return so many of the images, evenly spaced (they may be sorted by class), uint8 [B, 3, H, W]."""
    return images.pixels[torch.linspace(0, len(images) - 1, min(number, len(images))).long()]


def guard(nets: Nets, student: Mapping[str, Tensor], soup: Mapping[str, Tensor], pixels: Tensor) -> Verdict:
    """Compare the student with the soup of its teachers on uint8 images [B, 3, H, W]."""
    answers = teachers_answers(nets, pixels, "looking at the student")
    together = weighted_votes(answers, presence(answers))
    return judge(together, *(look(nets, state, pixels)[1] for state in (student, soup)))


def refit_head(nets: Nets, student: Mapping[str, Tensor], pixels: Pixels, real: bool) -> dict[str, Tensor]:
    """Return the weight and bias of a head fitted to what teachers and student say of uint8 images [B, 3, H, W].

    `real` says whether they are images of the world, or made up.

    Raises:
        ArchitectureError: the net's answer is not that of one linear layer with a bias on one vector of features.
    """
    weight, bias = f"{nets.head}.weight", f"{nets.head}.bias"
    features, own = look(nets, student, pixels)
    if not _is_linear(student.get(weight), student.get(bias), features, own):
        raise ArchitectureError(
            f"{nets.head}: the net's answer is not that of this layer alone, with a bias, on one vector of features",
            hint="such a head cannot be fitted on its own: leave out --probes",
        )
    assert features is not None
    answers = teachers_answers(nets, pixels, "fitting the head")
    wanted = (1 - OWN_VOTE) * weighted_votes(answers, presence(answers)).exp() + OWN_VOTE * own.exp()
    shape, strength = student[weight].shape, PRIOR_STRENGTH["real" if real else "made up"]
    fitted = fit_head(features, wanted, student[weight].float().flatten(1), student[bias].float(), strength)
    return {weight: fitted[0].reshape(shape), bias: fitted[1]}


def distill(
    nets: Nets, student: Mapping[str, Tensor], images: Images, steps: int, seed: int, lr: float | None = None
) -> dict[str, Tensor]:
    """Return the student (timm's names) after some steps towards what its teachers say together of unlabelled images.

    The images are augmented, and every teacher answers the very views of each step; one teacher is in memory at a time.
    Minimises KL(votes || student), where a part of the votes is that of the student before the first step. BatchNorm
    has running statistics of the last steps. `lr` None: `DISTILL_RATE`.
    """
    bench, device = nets.bench, nets.bench.device
    model = load_model(nets.blank, student, device)
    order = BatchOrder(len(images), DISTILL_BATCH, seed)
    pad = crop_padding(images.pixels.shape[-2], images.flip)

    def batch(step: int) -> Tensor:
        return training_batch(images, order, step, bench.settings, pad, device)[0]

    def answers(net: nn.Module) -> list[Tensor]:
        with torch.inference_mode(), training_autocast(device, net):
            return [net(batch(step)).float().log_softmax(1).cpu() for step in range(steps)]

    own = answers(model)
    said = []
    for number, teacher in enumerate(nets.teachers):
        bench.hooks.progress("asking the teachers", number, len(nets.teachers))
        said.append(answers(load_model(nets.blank, teacher, device)))
    bench.hooks.progress("asking the teachers", len(said), len(said))
    present = presence(torch.stack([torch.cat(parts) for parts in said]))
    kind = usual_optimiser(model)
    optimiser = make_optimiser(model, DISTILL_DECAY[kind], kind)
    autocast = training_autocast(device, model)
    model.train()
    with repeatable(device):
        for step in range(steps):
            votes = weighted_votes(torch.stack([parts[step] for parts in said]), present).exp()
            wanted = ((1 - LATER_VOTE) * votes + LATER_VOTE * own[step].exp()).to(device)
            rate = cosine_rate(step, steps, DISTILL_RATE[kind] if lr is None else lr, WARMUP)
            x, labels = batch(step), torch.empty(0)
            seed_layers(seed, step)
            train_step(model, optimiser, x, labels, rate=rate, loss=Loss(0.0, 1.0), wanted=wanted, autocast=autocast)
            bench.hooks.progress("distilling", step + 1, steps)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}


def distance(nets: Nets, students: Sequence[Mapping[str, Tensor]], images: Images) -> list[float]:
    """Return KL(votes of the teachers || student) of each student, on some of the images."""
    pixels = some_pixels(images, JUDGED)
    answers = teachers_answers(nets, pixels, "looking at the student")
    votes = weighted_votes(answers, presence(answers))
    said = [look(nets, student, pixels)[1] for student in students]
    return [float(kl_div(own, votes, reduction="batchmean", log_target=True)) for own in said]


def _is_linear(weight: Tensor | None, bias: Tensor | None, features: Tensor | None, own: Tensor) -> bool:
    """Tell whether the head makes the net's answer all by itself: some nets average two heads, or scale the logits."""
    if weight is None or bias is None or features is None or features.shape[1] * len(bias) != weight.numel():
        return False
    found = (features @ weight.float().flatten(1).T + bias.float()).log_softmax(1)
    return torch.allclose(found, own, rtol=1e-3, atol=1e-3)


def teachers_answers(nets: Nets, pixels: Pixels, stage: str) -> Tensor:
    """Return the teachers' log-probabilities on uint8 images [B, 3, H, W]: [T, B, C]; one teacher at a time."""
    answers = []
    for number, teacher in enumerate(nets.teachers):
        nets.bench.hooks.progress(stage, number, len(nets.teachers))
        answers.append(look(nets, teacher, pixels)[1])
    nets.bench.hooks.progress(stage, len(nets.teachers), len(nets.teachers))
    return torch.stack(answers)


@torch.no_grad()
def look(nets: Nets, state: Mapping[str, Tensor], pixels: Pixels) -> tuple[Tensor | None, Tensor]:
    """Run one net on uint8 images [B, 3, H, W]: what its head sees [B, N] (None: no vector) and log-probs [B, C]."""
    bench = nets.bench
    model = load_model(nets.blank, state, bench.device)
    seen: list[Tensor] = []
    said: list[Tensor] = []
    handle = model.get_submodule(nets.head).register_forward_pre_hook(lambda _, args: seen.append(args[0].cpu()))
    with whole_float32():
        for begin in range(0, len(pixels), bench.batch_size):
            some = pixels[torch.arange(begin, min(begin + bench.batch_size, len(pixels)))]
            x = to_input(some.to(bench.device), bench.settings)
            said.append(model(x).float().log_softmax(1).cpu())
    handle.remove()
    vector = len(seen) == len(said) and seen[0].shape[0] * seen[0].shape[1] == seen[0].numel()
    return torch.cat(seen).flatten(1).float() if vector else None, torch.cat(said)
