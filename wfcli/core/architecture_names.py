"""Architecture names: timm's, torchvision's where timm has the same function, and the nets of `small_models`.

Neither torch nor timm is imported for a name that stands in layouts.json.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wfcli.core.layouts import Listing, listing, tables
from wfcli.errors import ArchitectureError

ArchArg = str | int | float | bool

LONGEST_NAME = 100
MOST = 1 << 16  # of an argument: files bring some too, and a depth is written more quickly than its layers are made

SMALL_ARGS = ("width", "in_chans", "drop_rate")  # all that the nets of small_models take
PATCH_SIZES = (2, 4, 8, 16)  # of the small Vision Transformers, in pixels of 32
# Arguments of timm.create_model that are no choice of an architecture: they load files, or are set here.
RESERVED_ARGS = {
    "num_classes": "the number of classes is read from the head, or from the data",
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "pretrained_strict"),
        "weights come from checkpoints",
    ),
    **dict.fromkeys(("device", "dtype", "features_only", "scriptable", "exportable", "no_jit"), "it is set by wfcli"),
}
SPELLINGS = (
    "give a timm name (vit_base_patch32_224, resnet50), a torchvision name (vit_b_32) or a small net (vgg11_bn_cifar); "
    "its options as --arch-arg width=0.25"
)


@dataclass(frozen=True)
class Architecture:
    """A net without weights and without a number of classes."""

    name: str  # as the user typed it
    timm_name: str
    args: tuple[tuple[str, ArchArg], ...] = ()  # sorted by name

    @property
    def label(self) -> str:
        """Name and arguments, as in ``vgg11_bn_cifar(width=0.25)``."""
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.args)})" if self.args else self.name

    @property
    def entry(self) -> Listing | None:
        """The entry of the table; a tag of timm's (resnet50.a1_in1k) says whose weights, not which tensors."""
        return listing(self.timm_name.partition(".")[0])


def parse_arch_args(texts: Sequence[str]) -> dict[str, ArchArg]:
    """Turn ``["width=0.25"]`` into ``{"width": 0.25}``; numbers, true and false are recognised.

    Raises:
        ArchitectureError: a text without ``=`` or without a name.
    """
    pairs = [text.partition("=") for text in texts]
    problems = [f"--arch-arg {''.join(pair)!r}: expected name=value" for pair in pairs if not pair[0] or not pair[1]]
    if problems:
        raise ArchitectureError(*problems, hint="for instance --arch-arg width=0.25")
    return {name.strip(): _parse_value(value.strip()) for name, _, value in pairs}


def _parse_value(text: str) -> ArchArg:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def find_architecture(name: str, args: Mapping[str, ArchArg] | None = None) -> Architecture:
    """Find an architecture by its name in timm, torchvision or `small_models`.

    Raises:
        ArchitectureError: an unknown name (the nearest ones are suggested) or arguments that cannot be.
    """
    known = tables()
    alias = known.aliases.get(name)
    timm_name = alias.timm_name if alias else name
    if timm_name not in known.architectures and not _timm_has(timm_name):
        raise ArchitectureError(f"unknown architecture {name!r}{_nearest(name)}", hint=SPELLINGS)
    arch = Architecture(name, timm_name, tuple(sorted((args or {}).items())))
    problems = _arg_problems(arch)
    if problems:
        raise ArchitectureError(*problems, hint=SPELLINGS)
    return arch


def _timm_has(timm_name: str) -> bool:
    import timm

    base, _, tag = timm_name.partition(".")
    return timm.is_model(base) and (not tag or timm_name in timm.list_models(f"{base}.*", pretrained=True))


def _nearest(name: str) -> str:
    if len(name) > LONGEST_NAME:
        return ""
    import timm

    aliases = tables().aliases
    names = {*tables().architectures, *aliases, *timm.list_models()}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(names), n=3, cutoff=0.6)
    shown = [f"{n} (timm: {aliases[n].timm_name})" if n in aliases else n for n in near]
    return f"; nearest: {', '.join(shown)}" if near else ""


def _arg_problems(arch: Architecture) -> list[str]:
    args = dict(arch.args)
    problems = [f"{arch.name}: argument {key!r}: {RESERVED_ARGS[key]}" for key in args if key in RESERVED_ARGS]
    problems += [
        f"{arch.name}: {key}: got {value}, expected a number of {MOST:,} at most"
        for key, value in args.items()
        if isinstance(value, int | float) and not abs(value) <= MOST
    ]
    size = args.get("img_size", 1)
    if isinstance(size, bool | str | float) or size < 1:
        problems.append(f"{arch.name}: img_size: got {size!r}, expected a number of pixels")
    entry = arch.entry
    if entry is None or not entry.step:
        return problems
    allowed = (*SMALL_ARGS, "patch_size") if arch.timm_name.startswith("vit") else SMALL_ARGS
    problems += [
        f"{arch.name}: unknown argument {key!r}, expected one of {', '.join(allowed)}"
        for key in args
        if key not in RESERVED_ARGS and key not in allowed
    ]
    patch = args.get("patch_size", PATCH_SIZES[0])
    if "patch_size" in allowed and (type(patch) is not int or patch not in PATCH_SIZES):
        problems.append(f"{arch.name}: patch_size: got {patch!r}, expected one of {', '.join(map(str, PATCH_SIZES))}")
    width = args.get("width", 1.0)
    if isinstance(width, bool | str) or not 0 < width <= 64:
        problems.append(f"{arch.name}: width: got {width!r}, expected a number above 0 and at most 64")
    return problems
