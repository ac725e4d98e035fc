"""Architecture names: to an empty model, to the layout of its tensors, to its input size.

The names are those of `architecture_names`. Neither torch nor timm is imported for what stands in layouts.json (see
`layouts`); timm alone takes three seconds.
C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from wfcli.core.architecture_names import (
    PATCH_SIZES,
    SPELLINGS,
    ArchArg,
    Architecture,
    find_architecture,
    parse_arch_args,
)
from wfcli.core.checkpoint import TensorSpec
from wfcli.core.layouts import (
    COUNTER,
    Layout,
    Shape,
    compare_tensors,
    infer_width,
    listing,
    shape_of,
    tables,
)
from wfcli.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ArchArg", "Architecture", "InputConfig", "Layout", "build_model", "find_architecture", "guess_architecture",
    "head_keys", "input_config", "key_layout", "match_layout", "parse_arch_args",
]  # fmt: skip

PATCHES = "patch_embed.proj.weight"
MOST_TENSORS = 20_000  # the deepest of timm's nets have a tenth of that
MOST_CLASSES = 1 << 20
EXAMPLES = 2  # of a kind, where the file holds another net altogether
SHAPELESS_ARGS = ("drop_rate", "drop_path_rate")  # arguments that leave every tensor as it is


@dataclass(frozen=True)
class InputConfig:
    """What a net wants to see: square images of `size` pixels, normalised per channel (mean, std of 0..1)."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build_model(arch: Architecture, num_classes: int, *, device: str = "cpu") -> nn.Module:
    """Build a model with random weights from torch's current seed; on ``"meta"`` it is empty and takes no memory.

    Raises:
        ArchitectureError: the arguments do not suit the architecture.
    """
    import timm
    import torch

    from wfcli.core import small_models  # noqa: F401  (registers the small nets with timm)

    counted = torch.nn.modules.module.register_module_parameter_registration_hook(_Counter())
    try:
        with torch.device(device):
            model: nn.Module = timm.create_model(arch.timm_name, num_classes=num_classes, **dict(arch.args))
    except Exception as error:  # of hundreds of constructors, each of which makes its own of an argument
        if not arch.args:
            raise
        raise ArchitectureError(f"{arch.label}: timm cannot build it: {error}", hint=SPELLINGS) from error
    finally:
        counted.remove()
    return model


class _Counter:
    """Stop a net that grows beyond all nets there are: arguments come from files too."""

    def __init__(self) -> None:
        self.tensors = 0

    def __call__(self, module: Any, name: str, parameter: Any) -> None:
        self.tensors += 1
        if self.tensors > MOST_TENSORS:
            raise ValueError(f"it would have more than {MOST_TENSORS:,} tensors")


def input_config(arch: Architecture) -> InputConfig:
    """Return the image size and normalisation of an architecture.

    torchvision's names have torchvision's normalisation, which timm's own weights of the same net need not share.
    """
    known = tables()
    listed = known.aliases.get(arch.name) or listing(arch.timm_name)
    if listed is not None:
        size, (mean, std) = listed.size, known.norms[listed.norm]
    else:
        cfg = _timm_cfg(arch)
        size, mean, std = int(cfg.input_size[-1]), tuple(cfg.mean), tuple(cfg.std)
    wanted = dict(arch.args).get("img_size", size)  # an argument of timm's Transformers
    return InputConfig(int(wanted), mean, std)


def _timm_cfg(arch: Architecture) -> Any:
    import timm

    cfg = timm.get_pretrained_cfg(arch.timm_name, allow_unregistered=False)
    if cfg is None:
        raise ArchitectureError(f"{arch.label}: timm knows no input size and no head for it", hint=SPELLINGS)
    return cfg


def head_keys(arch: Architecture) -> tuple[str, str]:
    """Return the names of the head's weight [C, N] and bias [C] in timm's layout.

    Raises:
        ArchitectureError: the architecture has no classifier.
    """
    entry = arch.entry
    head = entry.head if entry else _timm_cfg(arch).classifier
    if isinstance(head, tuple | list):
        head = head[0]
    if not head:
        raise ArchitectureError(f"{arch.label}: it has no classifier", hint="give an architecture for classification")
    return f"{head}.weight", f"{head}.bias"


def key_layout(arch: Architecture, num_classes: int) -> dict[str, TensorSpec]:
    """Return the shape and type of every tensor of an architecture, by timm's names."""
    return dict(_key_layout(arch, num_classes))


@lru_cache(maxsize=32)
def _key_layout(arch: Architecture, num_classes: int) -> dict[str, TensorSpec]:
    entry = arch.entry
    args = dict(arch.args)
    if entry is not None and all(key in SHAPELESS_ARGS or (key == "width" and entry.step) for key in args):
        width = float(args.get("width", 1.0))
        shapes = {key: shape_of(open_, num_classes, width, entry.step) for key, open_ in entry.tensors.items()}
        return {key: TensorSpec(shape, "I64" if key.endswith(COUNTER) else "F32") for key, shape in shapes.items()}
    from wfcli.core.checkpoint import state_specs

    return state_specs(build_model(arch, num_classes, device="meta").state_dict())


def match_layout(arch: Architecture, specs: Mapping[str, TensorSpec], file: str) -> Layout:
    """Recognise timm's or torchvision's tensors of an architecture in the headers of a file; C is read from the head.

    Raises:
        ArchitectureError: every missing, extra or misshaped tensor, as ``file: tensor: got .., expected ..``.
    """
    layout = _nearest_layout(arch, specs)
    expected = _expected(layout)
    problems = compare_tensors(file, specs, expected, arch.label)
    if problems:
        guess = _guess(specs)
        if guess is None or guess.label == arch.label:
            hint = f"expected timm's or torchvision's tensors of {arch.label}; `wfcli inspect` shows what a file holds"
            raise ArchitectureError(*problems, hint=hint)
        # It is another net: a few examples say as much as all its tensors.
        examples = compare_tensors(file, specs, expected, arch.label, most=EXAMPLES)
        options = "".join(f" --arch-arg {key}={value}" for key, value in guess.args)
        raise ArchitectureError(
            f"{file}: got the tensors of {guess.label}, expected those of {arch.label}",
            *examples,
            hint=f"the tensors look like {guess.name}: --arch {guess.name}{options}; or leave the file out",
        )
    present = {key: shape for key, shape in layout.files.items() if key in specs}  # counters may be missing
    return replace(layout, files=present, to_timm={key: layout.to_timm[key] for key in present})


def _nearest_layout(arch: Architecture, specs: Mapping[str, TensorSpec]) -> Layout:
    """Return the layout that explains most tensors of the file, whether or not it fits."""
    timm_keys = list(key_layout(arch, 1))
    names: Literal["timm", "torchvision"] = "timm"
    renamed = {key: key for key in timm_keys}
    foreign = _torchvision_keys(arch, timm_keys, specs)
    if sum(key in specs for key in foreign) > sum(key in specs for key in renamed):
        names, renamed = "torchvision", foreign
    num_classes = _count_classes(arch, renamed, specs)
    shapes = {key: spec.shape for key, spec in key_layout(arch, num_classes).items()}
    files = {key: _file_shape(arch, names, key, shapes[timm_key], num_classes) for key, timm_key in renamed.items()}
    return Layout(names, arch, num_classes, files, {key: (timm, shapes[timm]) for key, timm in renamed.items()})


def _expected(layout: Layout) -> dict[str, TensorSpec]:
    """Return shape and type of every tensor of a file in this layout."""
    own = key_layout(layout.arch, layout.num_classes)
    return {key: replace(own[layout.to_timm[key][0]], shape=shape) for key, shape in layout.files.items()}


def _torchvision_keys(arch: Architecture, timm_keys: list[str], specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Return torchvision key -> timm key; empty where torchvision's names are timm's or unknown."""
    entry = arch.entry
    if entry is None or set(entry.tensors) != set(timm_keys):
        return {}
    pairs = {key: timm_key for key, (timm_key, _) in entry.torchvision.items()}
    if any(".mlp.linear_1." in key for key in specs):  # its Transformers before torchvision 0.13; it still loads them
        pairs = {
            k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v for k, v in pairs.items()
        }
    return pairs


def _file_shape(arch: Architecture, layout: str, key: str, timm_shape: Shape, num_classes: int) -> Shape:
    """Return the shape of a tensor in the file: timm's, unless torchvision shapes it differently."""
    entry = arch.entry
    foreign = entry.torchvision.get(key, ("", None))[1] if entry and layout == "torchvision" else None
    return timm_shape if foreign is None else shape_of(foreign, num_classes)


def _count_classes(arch: Architecture, renamed: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> int:
    """Return C from the head's weight, else from its bias; 1,000 where the file has neither (an error follows)."""
    to_file = {timm_key: key for key, timm_key in renamed.items()}
    for timm_key in head_keys(arch):
        spec = specs.get(to_file.get(timm_key, timm_key))
        if spec is not None and spec.shape and spec.shape[0] <= MOST_CLASSES:
            return spec.shape[0]
    return 1000


def guess_architecture(specs: Mapping[str, TensorSpec]) -> str | None:
    """Name the architecture that has exactly these tensors, with the width of a small net; None if none is known.

    Only what stands in layouts.json is recognised. torchvision's layout gives torchvision's name.
    """
    guess = _guess(specs)
    return guess.label if guess else None


def _guess(specs: Mapping[str, TensorSpec]) -> Architecture | None:
    for timm_name in tables().architectures:
        candidate = _candidate(timm_name, specs)
        if candidate is not None:
            expected = _expected(_nearest_layout(candidate, specs))
            if not compare_tensors("", specs, expected, candidate.label):
                return candidate
    return None


def _candidate(timm_name: str, specs: Mapping[str, TensorSpec]) -> Architecture | None:
    """Return the architecture, with its width, where the names of all tensors agree."""
    entry = listing(timm_name)
    assert entry is not None
    keys = _counted(specs)
    if keys == _counted(entry.tensors):
        width = infer_width(entry, {key: spec.shape for key, spec in specs.items()}) if entry.step else 1.0
        if width is None:
            return None
        args: dict[str, ArchArg] = {"width": width} if width != 1.0 else {}
        usual = entry.tensors.get(PATCHES, ())[-1:]
        patch = specs[PATCHES].shape[-1:] if usual else ()
        if entry.step and patch != usual:
            if not set(patch) & set(PATCH_SIZES):
                return None
            args["patch_size"] = patch[0]
        return Architecture(timm_name, timm_name, tuple(sorted(args.items())))
    if keys == _counted(entry.torchvision):
        names = [alias.name for alias in tables().aliases.values() if alias.timm_name == timm_name]
        return Architecture(names[0] if names else timm_name, timm_name)
    return None


def _counted(keys: Iterable[str]) -> set[str]:
    """Return the names that every file of an architecture has: all but the counters of batch norms."""
    return {key for key in keys if not key.endswith(COUNTER)}
