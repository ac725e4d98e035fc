"""The library: what `from wfcli import ...` gives, with the engine's typed results. Nothing is printed.

Sources, options and errors are those of the command line, by the same names; warnings are Python's, of the class
`WfWarning`, unless the caller passes hooks of his own.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from wfcli.core.architectures import Architecture, build_model, find_architecture, match_layout
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import DataSpec
from wfcli.core.downloads import check_downloads
from wfcli.core.generator import WeightFormer
from wfcli.core.sources import resolve_source
from wfcli.engine import evaluate as evaluating
from wfcli.engine import fuse as fusing
from wfcli.engine.evaluate import Comparison, Row
from wfcli.engine.filters import rules_of
from wfcli.engine.finite import Finite, raise_nonfinite
from wfcli.engine.fitting import load_named
from wfcli.engine.fuse import FuseConfig, FuseResult
from wfcli.engine.hooks import Hooks
from wfcli.engine.lineup import load_model as load_weights
from wfcli.engine.own_architecture import architecture_of
from wfcli.errors import WfError

__all__ = [
    "Comparison",
    "FuseResult",
    "Hooks",
    "Row",
    "WfError",
    "WfWarning",
    "evaluate",
    "fuse",
    "load_generator",
    "load_model",
]

Source: TypeAlias = str | PathLike[str]  # a path, a glob, a folder, hf:owner/name[@revision][:file]
HERE = str(Path(__file__).parent) + os.sep
ArchArg: TypeAlias = str | int | float | bool


class WfWarning(UserWarning):
    """Something that the user of `fuse` or `evaluate` should know, and that is no error."""


class _Warnings:
    """Hooks that warn as Python does, and draw no progress."""

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        pass

    def warn(self, message: str) -> None:
        frame, level = inspect.currentframe(), 1
        while frame is not None and frame.f_code.co_filename.startswith(HERE):  # from how deep it comes differs
            frame, level = frame.f_back, level + 1
        warnings.warn(message, WfWarning, stacklevel=level)


def fuse(
    teachers: Sequence[Source],
    output: Source,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, ArchArg] | None = None,
    method: str = "weightformer",
    generator: str | None = None,
    base: Source | None = None,
    weights: Sequence[float] | None = None,
    params: Mapping[str, float] | None = None,
    rules: Sequence[str] = (),
    heads: str | None = None,
    methods: Sequence[str] = (),
    time_budget: float | None = None,
    data: str | DataSpec | None = None,
    split: str = "test",
    calibration_images: int = 4096,
    batch_size: int = 500,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "keep",
    align: str = "auto",
    guard: bool = True,
    probes: int = 0,
    unlabelled: str | None = None,
    images: int = 1000,
    distill_steps: int = 100,
    distill_lr: float | None = None,
    max_shard_size: int | None = None,
    pictures: bool = False,
    hooks: Hooks | None = None,
) -> FuseResult:
    """Fuse teachers into one student and write it to `output`: `wfcli fuse`, option by option.

    Args:
        teachers: checkpoints of one architecture, by path, glob, folder or name on the Hub.
        output: the `.safetensors` file; one that is there is replaced when the new one is whole.
        arch, arch_args: a timm or torchvision name and its arguments; left out, what the checkpoints say themselves.
        params: of the method, `--param`.
        rules: tensors that are made otherwise, "PATTERN:KEY=VALUE" each, `--set`.
        data: images to calibrate BatchNorm and to compare with: "digits", a folder, "owner/name" on the Hub.
        max_shard_size: bytes; a larger student is written as shards and their index.
        pictures: measure also what the pictures of a report show, into `comparison.pictures` and `mixing`.
        hooks: told of progress and warnings; left out, warnings are Python's.

    Returns:
        Where the student is, its sha256, how it was made, and with `data` the comparison with its teachers.

    Raises:
        WfError: what is wrong with sources, options or data, one problem in each of `problems`; nothing is written.
    """
    hooks = hooks or _Warnings()
    architecture, files = _net_of(arch, arch_args, [fspath(one) for one in teachers], hooks)
    config = FuseConfig(
        teachers=tuple(files),
        architecture=architecture,
        output=Path(output),
        method=method,
        generator=generator,
        base=None if base is None else fspath(base),
        weights=None if weights is None else tuple(weights),
        params=tuple((params or {}).items()),
        rules=rules_of(rules),
        heads=heads,
        methods=tuple(methods),
        time_budget=time_budget,
        data=DataSpec(data) if isinstance(data, str) else data,
        split=split,
        calibration_images=calibration_images,
        batch_size=batch_size,
        seed=seed,
        device=device,
        dtype=dtype,
        align=align,
        guard=guard,
        probes=probes,
        unlabelled=unlabelled,
        images=images,
        distill_steps=distill_steps,
        distill_lr=distill_lr,
        max_shard_size=max_shard_size,
        pictures=pictures,
    )
    return fusing.fuse(config, hooks)


def evaluate(
    checkpoints: Sequence[Source],
    data: str | DataSpec,
    *,
    teachers: Sequence[Source] = (),
    arch: str | None = None,
    arch_args: Mapping[str, ArchArg] | None = None,
    split: str = "test",
    batch_size: int = 500,
    calibration_images: int = 4096,
    seed: int = 0,
    device: str = "auto",
    pictures: bool = False,
    hooks: Hooks | None = None,
) -> Comparison:
    """Compare checkpoints with their teachers, the ensemble and the soup: `wfcli eval`, option by option.

    Returns:
        A row for each, with top-1 (0..1), NLL in nats and ECE (0..1) on `split`; with `pictures`, also reliability,
        agreement and the loss along lines.

    Raises:
        WfError: what is wrong with sources, options or data.
    """
    hooks = hooks or _Warnings()
    files, others = [fspath(one) for one in checkpoints], [fspath(one) for one in teachers]
    architecture, found = _net_of(arch, arch_args, [*files, *others], hooks)
    config = evaluating.EvaluateConfig(
        checkpoints=tuple(found[: len(files)]),
        teachers=tuple(found[len(files) :]),
        architecture=architecture,
        data=DataSpec(data) if isinstance(data, str) else data,
        split=split,
        batch_size=batch_size,
        calibration_images=calibration_images,
        seed=seed,
        device=device,
        pictures=pictures,
    )
    return evaluating.evaluate(config, hooks)


def load_generator(source: str) -> WeightFormer:
    """Load a generator: "pretrained:universal", a folder of train-generator, "hf:owner/name[@revision]".

    Its `generate(plan, teachers)` yields the student's tensors layer by layer; `config` says what it was trained on.

    Raises:
        SourceError, GeneratorError: it is not there, or damaged.
    """
    return load_named(source).generator


def load_model(source: Source, *, arch: str | None = None, arch_args: Mapping[str, ArchArg] | None = None) -> nn.Module:
    """Load a checkpoint as a timm model in float32, in eval mode, on the CPU: images [B, 3, H, W] -> logits [B, C].

    Raises:
        SourceError, CheckpointError, ArchitectureError: it leads nowhere, is damaged, or of another net.
    """
    architecture, (text,) = _net_of(arch, arch_args, [fspath(source)], _Warnings())
    found = resolve_source(text)
    checkpoint = open_checkpoint(found.path, found.name)
    layout = match_layout(architecture, checkpoint.specs, checkpoint.name)
    check_downloads([checkpoint])
    weights = Finite(checkpoint)
    with torch.random.fork_rng(devices=[]):  # the random start of the net is thrown away
        blank = build_model(architecture, layout.num_classes)
    model = load_weights(blank, layout.timm_view(weights), torch.device("cpu"))
    raise_nonfinite([weights])
    return model


def _net_of(
    arch: str | None, args: Mapping[str, ArchArg] | None, sources: list[str], hooks: Hooks
) -> tuple[Architecture, list[str]]:
    if arch is not None:
        return find_architecture(arch, args), sources
    if args:
        raise WfError("arch_args: of no use without arch", hint="give both, or leave both out")
    told = architecture_of(sources, hooks)
    return told.architecture, told.at(sources)
