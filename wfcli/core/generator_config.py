"""What a generator is made of: presets, and everything that its `config.json` keeps.

D model width, M cross tokens, F token width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wfcli.core.blocks import ATTENTIONS, Attention
from wfcli.core.forms import misfit

FORMAT = 1  # of the generator's files; raised when an older wfcli could not read them


@dataclass(frozen=True)
class Preset:
    """What a kind of generator is made of, and how it is trained."""

    attention: Attention = "cross"  # among the channels
    mask: bool = False  # learned, of the full attention
    raw_rows: bool = False  # weight embedder dict, and the residual
    prior: bool = False  # belongs to one base and dataset
    shift_weight: float = 0.0  # of shift consistency, in the loss


PRESETS = {
    "universal": Preset(),  # one small generator for any architecture and any number of classes
    "weightformer": Preset(attention="full", mask=True, raw_rows=True, shift_weight=0.1),  # the paper's
    "specialised": Preset(prior=True),
}


@dataclass(frozen=True)
class Frame:
    """What a specialised generator belongs to: one base, one architecture, one set of classes."""

    architecture: str  # its label, arguments included
    class_names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]  # of every tensor the prior shifts
    anchors: tuple[str, ...]  # tensors whose samples are the base's fingerprint
    base: str = ""  # name of the base checkpoint, for messages


@dataclass(frozen=True)
class WeightFormerConfig:
    """Everything needed to build a generator; stored as its `config.json`."""

    format: int = FORMAT
    preset: str = "universal"
    width: int = 32  # D
    cross_tokens: int = 4  # M
    blocks: int = 2
    heads: int = 4
    attention: Attention = "cross"  # among the channels
    mask: bool = False  # learned, of the full attention
    flow: bool = True  # cross tokens and column logits travel from layer to layer
    raw_widths: tuple[
        int, ...
    ] = ()  # token widths F with a raw-row embedder and residual decoder; empty: statistics alone
    frame: Frame | None = None  # with a prior
    norms: tuple[
        str, ...
    ] = ()  # normalisations of the nets it was trained on: a net of another kind is out of its reach
    relations: tuple[str, ...] = ("base",)  # of its teachers: "base", or "independent" and brought into one frame
    knowledge: tuple[str, ...] = ()  # "split", "same": what the teachers it was trained on knew
    trained_on: tuple[str, ...] = ()  # architecture labels, for messages and the card


MOST_BLOCKS = 64
MOST_WIDTH = 1 << 16
MOST_FAN_IN = 1 << 24
FORM = {
    "format?": int,
    "preset?": str,
    **dict.fromkeys(("width?", "cross_tokens?", "blocks?", "heads?"), int),
    "attention?": str,
    "mask?": bool,
    "flow?": bool,
    "raw_widths?": [int],
    "norms?": [str],
    "relations?": [str],
    "knowledge?": [str],
    "trained_on?": [str],
    "frame?": (
        {"architecture": str, "class_names": [str], "shapes": {"*": [int]}, "anchors": [str], "base?": str},
        None,
    ),
}


def config_from_dict(raw: Mapping[str, Any]) -> WeightFormerConfig:
    """Rebuild the config from its JSON form (lists become tuples, the frame its own dataclass).

    Raises:
        ValueError: it has not that form, or a size that no generator has.
    """
    if problem := misfit(raw, FORM):
        raise ValueError(problem)
    if unknown := sorted(set(raw) - {name.removesuffix("?") for name in FORM}):
        raise ValueError(f"unknown field {unknown[0]!r}")
    fields = dict(raw)
    frame = fields.get("frame")
    if frame is not None:
        fields["frame"] = Frame(
            frame["architecture"],
            tuple(frame["class_names"]),
            {name: tuple(shape) for name, shape in frame["shapes"].items()},
            tuple(frame["anchors"]),
            frame.get("base", ""),
        )
    for key in ("raw_widths", "norms", "knowledge", "trained_on"):
        fields[key] = tuple(fields.get(key, ()))
    if "relations" in fields:
        fields["relations"] = tuple(fields["relations"])
    config = WeightFormerConfig(**fields)
    _check_sizes(config)
    return config


def _check_sizes(config: WeightFormerConfig) -> None:
    """Refuse what cannot be built, before anything is: a number is written more quickly than its layers are made."""
    limits = {"width": MOST_WIDTH, "cross_tokens": MOST_WIDTH, "blocks": MOST_BLOCKS, "heads": MOST_WIDTH}
    sizes = [(name, getattr(config, name), most) for name, most in limits.items()]
    sizes += [("raw_widths", width, MOST_FAN_IN) for width in config.raw_widths]
    for name, got, most in sizes:
        if not 1 <= got <= most:
            raise ValueError(f"{name}: got {got}, expected 1 to {most}")
    if config.width % config.heads:
        raise ValueError(f"heads: got {config.heads}, which does not divide the width {config.width}")
    if config.attention not in ATTENTIONS:
        raise ValueError(f"attention: got {config.attention!r}, expected one of {', '.join(ATTENTIONS)}")
    for name, shape in config.frame.shapes.items() if config.frame else ():
        if not name or not all(size >= 1 for size in shape):
            raise ValueError(f"frame.shapes: got {shape} for {name!r}, expected sizes of 1 and more")
