"""`--arch` left out: what checkpoints say themselves, in wfcli's own header or in timm's config.json on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wfcli.core.architectures import Architecture, find_architecture
from wfcli.core.checkpoint import PICKLE_SUFFIXES, open_checkpoint
from wfcli.core.hub import HubFile, fetch_beside, fetch_matching, fetch_weights
from wfcli.core.hub_names import HubName, parse_hub_name
from wfcli.core.sources import SUFFIXES, resolve_sources
from wfcli.core.timm_config import CONFIG, architecture_in
from wfcli.engine.hooks import Hooks, Silent
from wfcli.errors import ArchitectureError, Problems

HINT = "give --arch and --arch-arg"


@dataclass(frozen=True)
class Told:
    """What the checkpoints say: the architecture, and the sources spelled at the commit that was looked at."""

    architecture: Architecture
    pinned: dict[str, str]  # source as it was typed -> at its commit

    def at(self, sources: Sequence[str] | None) -> list[str]:
        """Spell sources at the commits that were looked at."""
        return [self.pinned.get(source, source) for source in sources or ()]


def architecture_of(sources: Sequence[str], hooks: Hooks | None = None) -> Told:
    """Read the architecture from the sources, of several checkpoints from the first.

    On the Hub the config.json beside the weights tells it, at their commit; else, and in files, the header that wfcli
    has written. Those that say nothing are checked against the architecture later, as all are.

    Raises:
        SourceError, CheckpointError: a source leads nowhere, or cannot be read.
        ArchitectureError: none says what net it is of, or they disagree.
    """
    hooks = hooks or Silent()
    problems = Problems()
    pinned: dict[str, str] = {}
    found: dict[str, tuple[Architecture, str]] = {}  # source -> what it says, and where
    silent: list[str] = []
    for text in dict.fromkeys(sources):
        with problems:
            if text.startswith("hf:"):
                name = parse_hub_name(text)
                weights = fetch_matching(name, SUFFIXES)[0] if name.is_pattern else fetch_weights(name)
                pinned[text] = name.at(weights.commit)
                path, shown, told = weights.path, text, _read_config(name, weights, hooks)
                missing = f"no {CONFIG} of timm's beside the weights at commit {weights.commit[:12]}"
            else:
                source = resolve_sources([text], "checkpoint")[0]
                path, shown, told = source.path, source.name, None
                missing = "its header does not say which net it is of"
            if told is not None:
                found[shown] = told, f"its {CONFIG}"
            elif (own := _read_header(path, shown)) is not None:
                found[shown] = own, "its header"
            else:
                silent.append(f"{shown}: {missing}")
    problems.raise_all()
    if not found:
        raise ArchitectureError(*silent, hint=f"which net is this? {HINT}")
    if len({(arch.timm_name, arch.args) for arch, _ in found.values()}) > 1:
        lines = [f"{text}: {where} says {arch.label}" for text, (arch, where) in found.items()]
        raise ArchitectureError(*lines, hint=f"checkpoints are of one architecture: leave the others out, or {HINT}")
    return Told(next(iter(found.values()))[0], pinned)


def _read_config(name: HubName, weights: HubFile, hooks: Hooks) -> Architecture | None:
    file = fetch_beside(name, weights, CONFIG)
    if file is None:
        return None
    told = architecture_in(file.path, f"{name.text}: {CONFIG}")
    if told is None:
        return None
    arch, warning = told
    if warning is not None:
        hooks.warn(warning)
    return arch


def _read_header(path: Path, name: str) -> Architecture | None:
    """Return what the provenance says; a pickle has none, and is not read for it."""
    if path.suffix in PICKLE_SUFFIXES:
        return None
    written = (open_checkpoint(path, name).provenance or {}).get("architecture")
    return None if written is None else find_architecture(written["name"], written.get("args"))
