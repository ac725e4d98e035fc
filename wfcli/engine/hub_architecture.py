"""`--arch` left out: the architecture that timm's config.json beside weights on the Hub names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from wfcli.core.architectures import Architecture
from wfcli.core.hub import HubFile, fetch_beside, fetch_matching, fetch_weights
from wfcli.core.hub_names import HubName, parse_hub_name
from wfcli.core.sources import SUFFIXES
from wfcli.core.timm_config import CONFIG, read_architecture
from wfcli.engine.hooks import Hooks, Silent
from wfcli.errors import ArchitectureError, Problems

HINT = "give --arch and --arch-arg"


@dataclass(frozen=True)
class Told:
    """What the Hub says: the architecture, and the sources spelled at the commit that was looked at."""

    architecture: Architecture
    pinned: dict[str, str]  # source as it was typed -> at its commit

    def at(self, sources: Sequence[str] | None) -> list[str]:
        """Spell sources at the commits that were looked at."""
        return [self.pinned.get(source, source) for source in sources or ()]


def architecture_of(sources: Sequence[str], hooks: Hooks | None = None) -> Told:
    """Read the architecture from the config.json beside each source of the Hub, at the commit of its weights.

    Sources of other kinds say nothing, and are checked against the architecture later as any are.

    Raises:
        SourceError: a source of the Hub leads nowhere.
        ArchitectureError: none says what net it is of, or they disagree.
    """
    hooks = hooks or Silent()
    problems = Problems()
    pinned: dict[str, str] = {}
    found: dict[str, Architecture] = {}
    silent: list[str] = []
    for text in dict.fromkeys(source for source in sources if source.startswith("hf:")):
        with problems:
            name = parse_hub_name(text)
            weights = _weights(name)
            pinned[text] = name.at(weights.commit)
            told = _read(name, weights, hooks)
            if told is None:
                silent.append(f"{text}: no {CONFIG} of timm's beside the weights at commit {weights.commit[:12]}")
            else:
                found[text] = told
    problems.raise_all()
    if not found:
        raise ArchitectureError(*silent, hint=f"the Hub does not say which net this is: {HINT}")
    if len({(arch.timm_name, arch.args) for arch in found.values()}) > 1:
        lines = [f"{text}: its {CONFIG} says {arch.label}" for text, arch in found.items()]
        raise ArchitectureError(*lines, hint=f"checkpoints are of one architecture: leave the others out, or {HINT}")
    return Told(next(iter(found.values())), pinned)


def _weights(name: HubName) -> HubFile:
    return fetch_matching(name, SUFFIXES)[0] if name.is_pattern else fetch_weights(name)


def _read(name: HubName, weights: HubFile, hooks: Hooks) -> Architecture | None:
    file = fetch_beside(name, weights, CONFIG)
    if file is None:
        return None
    what = f"{name.text}: {CONFIG}"
    try:
        config = json.loads(file.path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArchitectureError(f"{what}: is not JSON ({error})", hint=HINT) from error
    told = read_architecture(config, what)
    if told is None:
        return None
    arch, warning = told
    if warning is not None:
        hooks.warn(warning)
    return arch
