"""The tensors of a student, under the names and in the shapes of its teachers' files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from wfcli.core.architectures import Architecture, build_model, input_config
from wfcli.core.checkpoint import TORCH_DTYPES, TensorSpec, dtype_name, file_order, torch_dtype
from wfcli.core.layouts import FLOATS, MOST, STATISTICS
from wfcli.core.methods import soup_pieces
from wfcli.engine.finite import Finite, count_nonfinite, raise_nonfinite
from wfcli.engine.hooks import Hooks
from wfcli.engine.teachers import Teachers
from wfcli.errors import CheckpointError, Problems

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wfcli.core.generator import WeightFormer
    from wfcli.core.images import Images

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
FUSE_HINTS = ("try another --generator, or --method soup", "choose --dtype bfloat16 or float32, which reach further")
METHOD_HINTS = ("try another --method, or other values of --param", FUSE_HINTS[1])


def output_specs(teachers: Teachers, dtype: str) -> dict[str, TensorSpec]:
    """Return shape and type of every tensor to write: floating point as asked for, or the widest of the teachers'.

    Widest as in PyTorch: float16 and bfloat16 together give float32, and so does float8 with anything else. Integers
    and bools are as in the first teacher.
    """
    wanted = DTYPES.get(dtype)  # None: keep
    specs = {}
    for name, shape in teachers.layout.files.items():
        first, *others = (checkpoint.specs[name].dtype for checkpoint in teachers.checkpoints)
        found = _widest(first, others) if first in FLOATS else first
        specs[name] = TensorSpec(shape, wanted if wanted and first in FLOATS else found)
    return specs


def _widest(first: str, others: Sequence[str]) -> str:
    import torch

    if len({first, *others}) > 1 and any(name.startswith("F8") for name in (first, *others)):
        return "F64" if "F64" in (first, *others) else "F32"
    return dtype_name(reduce(torch.promote_types, map(torch_dtype, others), torch_dtype(first)))


def average(specs: Mapping[str, TensorSpec], teachers: Sequence[Finite], hooks: Hooks) -> Iterator[tuple[str, Tensor]]:
    """Yield the soup in the order of the student's file, large tensors in pieces."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum of two pieces takes less time than threads that wait for each other
    try:
        for done, name in enumerate(file_order(specs)):
            for piece in soup_pieces(teachers, name):
                yield name, piece
            hooks.progress("averaging", done + 1, len(specs))
    finally:
        torch.set_num_threads(threads)


def generate(
    arch: Architecture,
    teachers: Teachers,
    checked: Sequence[Finite],
    generator: WeightFormer,
    device: torch.device,
    hooks: Hooks,
    weights: list[float],
    layers: dict[str, tuple[float, ...]],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that the generator gives.

    Afterwards `weights` holds what part each teacher has in them, `layers` the same by layer.
    """
    import torch

    from wfcli.engine.plans import plan_of

    layout = teachers.layout
    plan = plan_of(arch, teachers.num_classes)
    views = [layout.timm_view(teacher) for teacher in checked]
    with torch.inference_mode():
        state = generator.to(device).start(len(views))
        for done, (timm_name, tensor) in enumerate(generator.generate(plan, views, device, state)):
            name, shape = layout.to_file[timm_name]
            yield name, tensor.reshape(shape).cpu()
            hooks.progress("generating", done + 1, len(layout.files))
        weights[:] = state.weights()
        layers.update((name, tuple(shares)) for name, shares in state.layers().items())


def join(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Put the pieces of each tensor together, which come one after the other."""
    import torch

    joined: dict[str, Tensor] = {}
    for name, group in groupby(tensors, key=itemgetter(0)):
        pieces = [piece for _, piece in group]
        joined[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return joined


def cast(
    tensors: Iterable[tuple[str, Tensor]],
    specs: Mapping[str, TensorSpec],
    teachers: Sequence[Finite],
    hints: tuple[str, str] = FUSE_HINTS,
) -> Iterator[tuple[str, Tensor]]:
    """Give every tensor the type of its spec, and raise after the last one if a teacher or the student is not finite.

    `hints`: what to do about a student that was so before, and about one that the cast made so.

    Raises:
        CheckpointError: so inside the writer, which then leaves nothing behind.
    """
    made: Counter[str] = Counter()  # tensor -> numbers that were NaN or Inf before the cast
    lost: Counter[str] = Counter()  # those that the cast made so
    for name, tensor in tensors:
        written = tensor.to(torch_dtype(specs[name].dtype))
        narrow = specs[name].dtype == "F8_E4M3"  # has no infinity: what is too large becomes its largest number
        if (bad := count_nonfinite(written)) or narrow:
            before = count_nonfinite(tensor)
            made[name] += before
            lost[name] += _too_large(tensor, written.dtype) if narrow else bad - before
        yield name, written
    raise_nonfinite(teachers)
    problems = Problems()
    with problems:
        _raise_some(
            [f"student: {name}: got {count} numbers NaN or Inf" for name, count in made.items() if count],
            f"{hints[0]}; nothing was written",
        )
    with problems:
        _raise_some(
            [
                f"student: {name}: got {count} numbers too large for {TORCH_DTYPES[specs[name].dtype][0]}"
                for name, count in lost.items()
                if count
            ],
            f"{hints[1]}; nothing was written",
        )
    problems.raise_all()


def _too_large(tensor: Tensor, dtype: torch.dtype) -> int:
    import torch

    return int((tensor.isfinite() & (tensor.abs() > torch.finfo(dtype).max)).sum())


def is_finite(student: Mapping[str, Tensor]) -> bool:
    """Tell whether a student has neither NaN nor Inf; `cast` says where it has."""
    return not any(count_nonfinite(tensor) for tensor in student.values())


def _raise_some(lines: Sequence[str], hint: str) -> None:
    """Raise up to ten of the lines and the number of the others."""
    shown = lines if len(lines) <= MOST + 1 else lines[:MOST]  # a line that counts one would name it as well
    more = [f"student: ... and {len(lines) - len(shown)} more tensors"] if len(lines) > len(shown) else []
    if lines:
        raise CheckpointError(*shown, *more, hint=hint)


def calibrate(
    student: dict[str, Tensor],
    arch: Architecture,
    teachers: Teachers,
    images: Images,
    seed: int,
    device: torch.device,
    hooks: Hooks,
) -> None:
    """Recompute the BatchNorm statistics in `student`, in place, from `images`, augmented."""
    from wfcli.engine.lineup import Bench, calibrate_model, load_model

    bench = Bench(input_config(arch), device, 256, hooks)
    model = load_model(build_model(arch, teachers.num_classes), teachers.layout.timm_view(student), device)
    calibrate_model(bench, model, images, seed, "calibrating the student")
    state = model.state_dict()
    for name, (timm_name, _) in teachers.layout.to_timm.items():
        if timm_name.endswith(STATISTICS):
            student[name] = state[timm_name].cpu()
