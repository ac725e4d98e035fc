"""Models side by side: loaded from their weights, run over the same batches, timed one by one.

T teachers, B images, C classes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wfcli.core.architectures import InputConfig, Layout
from wfcli.core.calibrate import calibrate_batchnorm
from wfcli.core.checkpoint import torch_dtype
from wfcli.core.data import Images, iterate
from wfcli.core.layouts import COUNTER
from wfcli.core.methods import soup_tensor
from wfcli.core.metrics import ensemble
from wfcli.core.precision import whole_float32
from wfcli.engine.finite import Finite
from wfcli.engine.hooks import Hooks
from wfcli.engine.student import output_specs
from wfcli.engine.teachers import Teachers

Kind = Literal["teacher", "mean", "best", "ensemble", "soup", "calibrated_soup", "checkpoint"]
CALIBRATION_BATCH = 256


@dataclass(frozen=True)
class Entry:
    """A model in the line-up; `size` in bytes."""

    name: str
    kind: Kind
    model: nn.Module
    size: int


@dataclass(frozen=True)
class Bench:
    """Where and how models run."""

    settings: InputConfig
    device: torch.device
    batch_size: int
    hooks: Hooks


@dataclass(frozen=True)
class Answers:
    """What the models said about the same images, and how long each took for all of them, without decoding."""

    log_probs: list[Tensor]  # float32 [B, C] each
    ensemble: Tensor | None  # log of the mean of the teachers' probabilities [B, C]
    labels: Tensor  # int64 [B]
    seconds: list[float]


def load_model(blank: nn.Module, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """Return a copy of `blank` with the weights of `state` (timm's names) in float32, in eval mode, channels last."""
    # The weights of `blank` are nobody's: the copy gets room for its own instead.
    room = {id(p): nn.Parameter(torch.empty_like(p), requires_grad=p.requires_grad) for p in blank.parameters()}
    model = copy.deepcopy(blank, room)
    # The counters of batch norms play no part in eval mode, and old files lack them.
    weights = {name: state[name] for name in state if not name.endswith(COUNTER)}
    missing, extra = model.load_state_dict(weights, strict=False)
    assert not extra, extra
    assert all(name.endswith(COUNTER) for name in missing), missing
    return model.eval().to(device).to(memory_format=torch.channels_last)


def load_entries(bench: Bench, blank: nn.Module, kind: Kind, files: Sequence[tuple[Finite, Layout]]) -> list[Entry]:
    """Load checkpoints as copies of `blank`; whether they are finite is noted in them."""
    return [
        Entry(file.checkpoint.name, kind, load_model(blank, layout.timm_view(file), bench.device), file.checkpoint.size)
        for file, layout in files
    ]


def soup_entry(bench: Bench, teachers: Teachers, blank: nn.Module) -> Entry:
    """Make the uniform soup of the teachers as they are, to the bit what `fuse --method soup --align none` writes."""
    views = [teachers.layout.timm_view(checkpoint) for checkpoint in teachers.checkpoints]
    specs = output_specs(teachers, "keep")
    dtypes = {timm_name: torch_dtype(specs[name].dtype) for timm_name, (name, _) in teachers.layout.to_file.items()}
    state = {name: soup_tensor(view[name] for view in views).to(dtypes[name]) for name in views[0]}
    return Entry("soup", "soup", load_model(blank, state, bench.device), sum(t.nbytes for t in state.values()))


def calibrated_entry(bench: Bench, soup: Entry, images: Images, seed: int) -> Entry:
    """Return a copy of the soup with BatchNorm statistics from the augmented `images`."""
    model = copy.deepcopy(soup.model)
    calibrate_model(bench, model, images, seed, "calibrating the soup")
    return Entry("calibrated soup", "calibrated_soup", model, soup.size)


def calibrate_model(bench: Bench, model: nn.Module, images: Images, seed: int, stage: str) -> None:
    """Recompute the BatchNorm statistics of `model` from the augmented `images`."""
    draw = torch.Generator().manual_seed(seed)
    batches = iterate(
        images, CALIBRATION_BATCH, bench.settings, augment=True, generator=draw, shuffle=True, device=bench.device
    )
    bench.hooks.progress(stage, 0, len(images))
    calibrate_batchnorm(model, (x for x, _ in batches))
    bench.hooks.progress(stage, len(images), len(images))


def ask(bench: Bench, models: Sequence[nn.Module], images: Images, *, stage: str, teachers: int = 0) -> Answers:
    """Run all models in float32 in one pass over `images`, each batch decoded and normalised once for all.

    The first `teachers` of the models also answer together, as the ensemble.
    """
    device, progress = bench.device, bench.hooks.progress
    log_probs: list[list[Tensor]] = [[] for _ in models]
    together: list[Tensor] = []
    seconds = [0.0] * len(models)
    seen = 0
    progress(stage, 0, len(images))
    with torch.inference_mode(), whole_float32():
        for x, labels in iterate(images, bench.batch_size, bench.settings, device=device):
            if seen == 0 and device.type == "cuda":
                _ = [model(x) for model in models]  # untimed: kernels are loaded at the first call
            logits = []
            for i, model in enumerate(models):
                started = _now(device)
                logits.append(model(x).float())
                seconds[i] += _now(device) - started
                log_probs[i].append(logits[i].log_softmax(dim=1).cpu())
            if teachers:
                together.append(ensemble(torch.stack(logits[:teachers])).cpu())
            seen += len(labels)
            progress(stage, seen, len(images))
    joined = [torch.cat(parts) for parts in log_probs]
    return Answers(joined, torch.cat(together) if together else None, images.labels.cpu(), seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
