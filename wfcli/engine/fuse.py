"""Turn T teachers into one student.

Resolve the sources, open them, check their structure from the headers, find out how they are related, generate or average layer by
layer, calibrate BatchNorm where there is data, write the student with its provenance, compare.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wfcli.core.architectures import Architecture, build_model, head_keys, input_config
from wfcli.core.checkpoint import Checkpoint, TensorSpec, check_writable, torch_dtype, write_checkpoint
from wfcli.core.devices import pick_device
from wfcli.core.methods import METHODS, soup_tensor
from wfcli.engine.hooks import Hooks, Silent
from wfcli.engine.provenance import data_record, known_classes, made_by
from wfcli.engine.teachers import Teachers, open_teachers
from wfcli.errors import CheckpointError, GeneratorError, OutputError, WfError

if TYPE_CHECKING:
    from wfcli.core.data import DataSpec
    from wfcli.core.generator import WeightFormer
    from wfcli.engine.evaluate import Comparison

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
FLOATS = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class FuseConfig:
    """Options of `wfcli fuse`."""

    teachers: tuple[str, ...]
    architecture: Architecture
    output: Path
    method: str = "weightformer"
    generator: str | None = None  # None: pretrained:universal where it fits
    data: DataSpec | None = None  # to calibrate BatchNorm and to compare
    split: str = "test"
    calibration_images: int = 4096
    seed: int = 0
    device: str = "auto"
    dtype: str = "keep"  # or one of DTYPES


@dataclass(frozen=True)
class FuseResult:
    """What a fuse made."""

    output: Path
    digest: str  # sha256 of the student's file
    method: str  # the one really used
    generator: str | None
    generator_digest: str | None  # sha256 of its weights
    teachers: tuple[str, ...]
    regime: str | None  # how the teachers are related, one sentence; None where the method does not ask
    calibrated: bool
    seconds: float  # without the comparison
    comparison: Comparison | None = None


def fuse(config: FuseConfig, hooks: Hooks | None = None) -> FuseResult:
    """Fuse the teachers into one student and write it to `config.output`.

    Without a generator that fits, `weightformer` gives the soup and says so through `hooks.warn`: an untrained generator is the soup.

    Raises:
        SourceError, ArchitectureError, CheckpointError: teachers that are missing, broken or do not belong together; numbers that are
            not finite (all of them, after reading; nothing is written).
        GeneratorError: the generator that was asked for does not belong to these teachers.
        DataError: the dataset is missing or has other classes.
        OutputError: the student cannot be written.
    """
    hooks = hooks or Silent()
    started = time.perf_counter()
    _check_options(config)
    check_writable(config.output)
    device = pick_device(config.device)
    teachers = open_teachers(config.teachers, config.architecture)
    _check_output(config.output, teachers.checkpoints)
    if config.data is not None:
        from wfcli.engine.classes import check_classes, head_of

        check_classes(
            config.data, [head_of(checkpoint, teachers.num_classes) for checkpoint in teachers.checkpoints], hooks
        )
    checked = [Finite(checkpoint) for checkpoint in teachers.checkpoints]
    found = None
    if config.method == "weightformer":
        from wfcli.engine.fitting import fit_generator

        found = fit_generator(config.generator, config.architecture, teachers, checked, hooks)
    generator = found.generator if found else None
    method = "weightformer" if generator is not None else "soup"
    specs = _output_specs(config, teachers)
    tensors = _student(config, teachers, checked, generator, device, hooks)
    calibrated = False
    if config.data is not None:
        student = dict(tensors)
        _raise_nonfinite(checked)
        calibrated = _calibrate(config, teachers, student, device, hooks)
        tensors = iter(student.items())
    record = {
        **made_by("fuse", config.architecture, config.seed),
        "sources": teachers.provenance(),
        "method": method,
        "generator": {"name": found.name, "sha256": found.digest} if found and generator else None,
        "dtype": config.dtype,
        "classes": known_classes(teachers.checkpoints),
    }
    if calibrated and config.data is not None:
        record["calibration"] = {**data_record(config.data), "images": config.calibration_images}
    digest = write_checkpoint(config.output, specs, _cast(tensors, specs, checked), record)
    seconds = time.perf_counter() - started
    comparison = None
    if config.data is not None:
        from wfcli.engine.evaluate import compare_fused

        comparison = compare_fused(config, teachers, hooks)
    names = tuple(checkpoint.name for checkpoint in teachers.checkpoints)
    return FuseResult(
        output=config.output,
        digest=digest,
        method=method,
        generator=found.name if found else None,
        generator_digest=found.digest if found else None,
        teachers=names,
        regime=found.regime.sentence(names) if found and found.regime else None,
        calibrated=calibrated,
        seconds=seconds,
        comparison=comparison,
    )


@dataclass
class Finite(Mapping[str, Tensor]):
    """A teacher that notes every tensor with NaN or Inf as it is read."""

    checkpoint: Checkpoint
    problems: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.checkpoint[name]
        # The sum is finite unless a number is not, or large ones overflow: cheap to ask first.
        if (
            tensor.is_floating_point()
            and name not in self.problems
            and not torch.isfinite(tensor.sum(dtype=torch.float32))
        ):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                self.problems[name] = (
                    f"{self.checkpoint.name}: {name}: got {bad} of {tensor.numel()} numbers NaN or Inf"
                )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint)

    def __len__(self) -> int:
        return len(self.checkpoint)

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoint


def _check_options(config: FuseConfig) -> None:
    if config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1)
        raise WfError(
            f"unknown method {config.method!r}{f'; did you mean {near[0]}?' if near else ''}",
            hint=f"use one of {', '.join(METHODS)}",
        )
    if config.dtype != "keep" and config.dtype not in DTYPES:
        raise WfError(f"unknown dtype {config.dtype!r}", hint=f"use keep, {', '.join(DTYPES)}")
    if config.method != "weightformer" and config.generator is not None:
        raise GeneratorError(
            f"--generator goes with --method weightformer, got --method {config.method}", hint="leave one of them out"
        )


def _check_output(output: Path, checkpoints: Sequence[Checkpoint]) -> None:
    same = [checkpoint.name for checkpoint in checkpoints if output.exists() and checkpoint.path.samefile(output)]
    if same:
        raise OutputError(f"{output}: is the teacher {same[0]}; it would be overwritten", hint="choose another -o")


def _raise_nonfinite(teachers: Sequence[Finite]) -> None:
    problems = [problem for teacher in teachers for problem in teacher.problems.values()]
    if problems:
        raise CheckpointError(*problems, hint="leave these teachers out, or mend them; nothing was written")


def _student(
    config: FuseConfig,
    teachers: Teachers,
    checked: Sequence[Finite],
    generator: WeightFormer | None,
    device: torch.device,
    hooks: Hooks,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the student's tensors under the names and in the shapes of the teachers' files."""
    layout = teachers.layout
    if generator is None:
        for done, name in enumerate(layout.files):
            yield name, soup_tensor(teacher[name] for teacher in checked)
            hooks.progress("averaging", done + 1, len(layout.files))
        return
    from wfcli.core.plan import plan_layers

    model = build_model(config.architecture, teachers.num_classes, device="meta")
    plan = plan_layers(model, head_keys(config.architecture)[0].removesuffix(".weight"))
    views = [layout.timm_view(teacher) for teacher in checked]
    with torch.inference_mode():
        for done, (timm_name, tensor) in enumerate(generator.to(device).generate(plan, views, device)):
            name, shape = layout.to_file[timm_name]
            yield name, tensor.reshape(shape).cpu()
            hooks.progress("generating", done + 1, len(layout.files))


def _cast(
    tensors: Iterable[tuple[str, Tensor]], specs: Mapping[str, TensorSpec], teachers: Sequence[Finite]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, tensor.to(torch_dtype(specs[name].dtype))
    _raise_nonfinite(teachers)  # inside the writer: the temporary file goes, the output is untouched


def _output_specs(config: FuseConfig, teachers: Teachers) -> dict[str, TensorSpec]:
    """Return shape and dtype of every tensor to write: floating point as asked for, else as in the first teacher."""
    first = teachers.checkpoints[0].specs
    specs = {}
    for name, shape in teachers.layout.files.items():
        dtype = first[name].dtype
        specs[name] = TensorSpec(shape, DTYPES[config.dtype] if config.dtype != "keep" and dtype in FLOATS else dtype)
    return specs


def _calibrate(
    config: FuseConfig, teachers: Teachers, student: dict[str, Tensor], device: torch.device, hooks: Hooks
) -> bool:
    """Recompute the BatchNorm statistics in `student` (named as in the files), in place; False where the net has none."""
    from wfcli.core.calibrate import has_batchnorm
    from wfcli.core.data import load_images
    from wfcli.engine.lineup import Bench, Entry, calibrated_entry, load_model

    assert config.data is not None
    blank = build_model(config.architecture, teachers.num_classes)
    if not has_batchnorm(blank) or config.calibration_images == 0:
        return False
    bench = Bench(input_config(config.architecture), device, 256, hooks)
    images = load_images(config.data, "train", bench.settings.size, limit=config.calibration_images, seed=config.seed)
    model = load_model(blank, teachers.layout.timm_view(student), device)
    state = calibrated_entry(bench, Entry("student", "checkpoint", model, 0), images, config.seed).model.state_dict()
    for name, (timm_name, _) in teachers.layout.to_timm.items():
        if timm_name.endswith(("running_mean", "running_var")):
            student[name] = state[timm_name].cpu()
    return True
