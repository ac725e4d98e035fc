"""What a generator is made of: presets, and everything that its `config.json` keeps.

D model width, M cross tokens, F token width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wfcli.core.blocks import Attention

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


def config_from_dict(raw: Mapping[str, Any]) -> WeightFormerConfig:
    """Rebuild the config from its JSON form (lists become tuples, the frame its own dataclass)."""
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
    return WeightFormerConfig(**fields)
