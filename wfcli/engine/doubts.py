"""Say what looks like a mistake: teachers that do not belong together, though their files fit. Warnings, no errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wfcli.core.architectures import Architecture, head_keys
from wfcli.core.doubts import is_better, is_guessing, near_copies, reordered_answers, reordered_heads
from wfcli.core.images import Images
from wfcli.core.layouts import tables
from wfcli.core.pieces import in_pieces
from wfcli.core.regime import Regime
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.lineup import Bench, Entry, ask
from wfcli.engine.relation import distances
from wfcli.engine.teachers import Teachers

LOOKED_AT = 256  # images, to try other normalisations on
FEATURES = 128  # of a head's, to compare classes by
BEHIND = 0.1  # top-1 behind that of the best net, or behind its own confidence: then its normalisation is doubted


def doubt_weights(
    arch: Architecture,
    teachers: Teachers,
    checked: Sequence[Mapping[str, Tensor]],
    relation: Regime | None,
    hooks: Hooks,
) -> None:
    """Warn of fine-tunes of one base that are nearly the same, or have the classes in another order."""
    names = [checkpoint.name for checkpoint in teachers.checkpoints]
    if relation is None or not relation.shared_base:
        return
    between = relation.between
    if near_copies(between):  # of some tensors: fine-tunes of the last layer alone may differ in none of those
        between = distances(teachers, checked)
    for first, second in near_copies(between):
        apart = _percent(between[first][second])
        hooks.warn(
            f"{names[first]} and {names[second]} are nearly the same net ({apart} apart): one run and its moving "
            "average, or two epochs of it? Together they count twice: leave one out"
        )
    key, _ = head_keys(arch)
    heads = [_some_features(teachers.layout.timm_view(teacher), key) for teacher in checked]
    for name, found in zip(names, reordered_heads(heads), strict=True):
        if found is not None:
            hooks.warn(
                f"{name}: its head seems to have {found.moved} of the {teachers.num_classes} classes in another order "
                f"than the others' (likeness of the rows {found.own:.2f}, reordered {found.after:.2f}): one output "
                "stands for one class, so leave it out, or put its head's rows in their order"
            )


def doubt_answers(bench: Bench, entries: Sequence[Entry], answers: Sequence[Tensor], images: Images) -> None:
    """Warn of nets whose answers [B, C] to labelled images fit in another order of the classes or normalisation."""
    labels = images.labels
    right = [log_probs.argmax(1) == labels for log_probs in answers]
    top1 = [_mean(own) for own in right]
    sure = [_mean(log_probs.amax(1).exp()) for log_probs in answers]
    for place, entry in enumerate(entries):
        if answers[place].isnan().any():  # its row says so
            continue
        own = f"{entry.name}: {_percent(top1[place])} right on {images.name}"
        if (found := reordered_answers(answers[place], labels)) is not None:
            bench.hooks.warn(
                f"{own}, {_percent(found.after)} with {found.moved} of its classes renamed: it seems to know them in "
                "another order; put its head's rows in the order of the data's classes, or leave it out"
            )
        elif max(*top1, sure[place]) - top1[place] > BEHIND and (other := _normalised(bench, entry, images)):
            bench.hooks.warn(f"{own} {other}")
        elif is_guessing(int(right[place].sum()), labels):
            bench.hooks.warn(
                f"{own}, no more than by guessing: trained on other classes or images, or broken? Leave it out, or "
                "check --data, --classes and --arch"
            )


def _some_features(state: Mapping[str, Tensor], key: str) -> Tensor:
    """Return some columns of a head, [C, N']: enough to tell its classes apart, whatever the number of teachers."""
    columns: Tensor | None = None
    pieces = []
    for piece in in_pieces(state, key):
        rows = piece.flatten(1)
        if columns is None:
            columns = torch.linspace(0, rows.shape[1] - 1, min(FEATURES, rows.shape[1])).long()
        pieces.append(rows[:, columns])
    return torch.cat(pieces)


def _normalised(bench: Bench, entry: Entry, images: Images) -> str:
    """Try the known normalisations on some images; say which one is clearly better than the net's, if one is."""
    some = images.subset(torch.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).long())
    known = {**tables().norms, "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
    own = bench.settings.mean, bench.settings.std
    found: dict[str, Tensor] = {}
    silent = replace(bench, hooks=Silent())
    for norm, (mean, std) in {"own": own, **known}.items():
        if norm != "own" and (mean, std) == own:
            continue
        so = replace(silent, settings=replace(bench.settings, mean=mean, std=std))
        asked = ask(so, [entry.model], some, stage="trying normalisations")
        found[norm] = asked.log_probs[0].argmax(1) == asked.labels
    top = max(found, key=lambda norm: int(found[norm].sum()))
    if not is_better(found["own"], found[top]):
        return ""
    mean, std = known[top]
    return (
        f"({_percent(_mean(found['own']))} of {len(some)} images), but "
        f"{_percent(_mean(found[top]))} with images normalised by mean {mean}, std {std}: it was "
        "trained so? Give the name of the net whose images are normalised so (timm's or torchvision's), or leave it out"
    )


def _mean(right: Tensor) -> float:
    return float(right.float().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
