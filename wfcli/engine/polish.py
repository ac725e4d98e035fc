"""After the generator: is the student sound, and does its head say what the teachers say together?

B images, N features, C classes, T teachers. Both look at the nets as functions. The guard takes the calibration images
where there are any, else made-up ones; the head is fitted on made-up ones: no data are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wfcli.core.architectures import Architecture, build_model, head_keys
from wfcli.core.guard import Verdict, judge
from wfcli.core.head_fit import fit_head
from wfcli.core.images import Images, to_input
from wfcli.core.precision import whole_float32
from wfcli.engine.finite import Finite
from wfcli.engine.lineup import Bench, load_model
from wfcli.engine.teachers import Teachers
from wfcli.errors import ArchitectureError

SMALL_SIDE, GUARD_PROBES, FEW_PROBES = 64, 256, 32  # large images are dear: the guard looks at fewer
PRIOR_STRENGTH = 0.01
OWN_VOTE = 0.5  # of the student itself in what its head is fitted to: it knows things that the ensemble does not


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


def first_pixels(images: Images, number: int) -> Tensor:
    """Return so many of the images, uint8 [B, 3, H, W]."""
    return images.pixels[torch.arange(min(number, len(images)))]


def guard(nets: Nets, student: Mapping[str, Tensor], soup: Mapping[str, Tensor], pixels: Tensor) -> Verdict:
    """Compare the student with the soup of its teachers on uint8 images [B, 3, H, W]."""
    together = ensemble_answers(nets, pixels, "looking at the student")
    return judge(together, *(look(nets, state, pixels)[1] for state in (student, soup)))


def refit_head(nets: Nets, student: Mapping[str, Tensor], pixels: Tensor) -> dict[str, Tensor]:
    """Return the weight and bias of a head fitted to what teachers and student say of uint8 images [B, 3, H, W].

    Raises:
        ArchitectureError: the net's answer is not that of one linear layer with a bias on one vector of features.
    """
    weight, bias = f"{nets.head}.weight", f"{nets.head}.bias"
    features, own = look(nets, student, pixels)
    if not _is_linear(student.get(weight), student.get(bias), features, own):
        raise ArchitectureError(
            f"{nets.head}: the net's answer is not that of this layer alone, with a bias, on one vector of features",
            hint="leave out --probes: such a head cannot be fitted",
        )
    assert features is not None
    wanted = (1 - OWN_VOTE) * ensemble_answers(nets, pixels, "fitting the head").exp() + OWN_VOTE * own.exp()
    shape = student[weight].shape
    fitted = fit_head(features, wanted, student[weight].float().flatten(1), student[bias].float(), PRIOR_STRENGTH)
    return {weight: fitted[0].reshape(shape), bias: fitted[1]}


def _is_linear(weight: Tensor | None, bias: Tensor | None, features: Tensor | None, own: Tensor) -> bool:
    """Tell whether the head makes the net's answer all by itself: some nets average two heads, or scale the logits."""
    if weight is None or bias is None or features is None or features.shape[1] * len(bias) != weight.numel():
        return False
    found = (features @ weight.float().flatten(1).T + bias.float()).log_softmax(1)
    return torch.allclose(found, own, rtol=1e-3, atol=1e-3)


def ensemble_answers(nets: Nets, pixels: Tensor, stage: str) -> Tensor:
    """Return the log of the mean of the teachers' probabilities, [B, C]; one teacher in memory at a time."""
    answers = []
    for number, teacher in enumerate(nets.teachers):
        nets.bench.hooks.progress(stage, number, len(nets.teachers))
        answers.append(look(nets, teacher, pixels)[1])
    nets.bench.hooks.progress(stage, len(nets.teachers), len(nets.teachers))
    return torch.stack(answers).logsumexp(0) - torch.tensor(float(len(answers))).log()


@torch.no_grad()
def look(nets: Nets, state: Mapping[str, Tensor], pixels: Tensor) -> tuple[Tensor | None, Tensor]:
    """Run one net on uint8 images [B, 3, H, W]: what its head sees [B, N] (None: no vector) and log-probs [B, C]."""
    bench = nets.bench
    model = load_model(nets.blank, state, bench.device)
    seen: list[Tensor] = []
    said: list[Tensor] = []
    handle = model.get_submodule(nets.head).register_forward_pre_hook(lambda _, args: seen.append(args[0].cpu()))
    with whole_float32():
        for begin in range(0, len(pixels), bench.batch_size):
            x = to_input(pixels[begin : begin + bench.batch_size].to(bench.device), bench.settings)
            said.append(model(x).float().log_softmax(1).cpu())
    handle.remove()
    vector = len(seen) == len(said) and seen[0].shape[0] * seen[0].shape[1] == seen[0].numel()
    return torch.cat(seen).flatten(1).float() if vector else None, torch.cat(said)
