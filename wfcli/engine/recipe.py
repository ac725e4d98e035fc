"""The recipe of a student: the options of `fuse` that made it, by the names of the flags, and back.

It travels in the student's provenance, without folders: `wfcli inspect --recipe` prints it as TOML, and
`wfcli fuse --recipe` takes that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.forms import ANYTHING, misfit
from wfcli.core.sources import resolve_sources
from wfcli.engine.provenance import source_name
from wfcli.errors import CheckpointError, Problems

if TYPE_CHECKING:
    from wfcli.engine.fuse import FuseConfig

# Flag -> field of the config: what makes another student. Not here: teachers and architecture, which stand in the
# provenance themselves; where it is written; and what is looked at afterwards.
OPTIONS = {
    "method": "method",
    "generator": "generator",
    "base": "base",
    "weights": "weights",
    "param": "params",
    "set": "rules",
    "heads": "heads",
    "calibration-images": "calibration_images",
    "dtype": "dtype",
    "max-shard-size": "max_shard_size",
    "align": "align",
    "guard": "guard",
    "probes": "probes",
    "unlabelled": "unlabelled",
    "images": "images",
    "distill-steps": "distill_steps",
    "distill-lr": "distill_lr",
    "methods": "methods",
    "time-budget": "time_budget",
    "seed": "seed",
}
FLAGS = (*OPTIONS, "data", "label-column", "classes")
OPTION = (str, float, bool, [(str, float)])
RECIPE = {"architecture": {"name": str, "args": {"*": ANYTHING}}, "recipe": {"*": OPTION}, "sources": [ANYTHING]}
SOURCES = ("generator", "base", "unlabelled")  # by their base names


def recipe_of(config: FuseConfig) -> dict[str, Any]:
    """Return the options that are not as they are by default, by flag."""
    usual = {field.name: field.default for field in fields(config)}
    found: dict[str, Any] = {}
    for flag, name in OPTIONS.items():
        value = getattr(config, name)
        if value == usual[name]:
            continue
        if flag in SOURCES:
            value = source_name(value)
        elif flag == "param":
            value = [f"{key}={number!r}" for key, number in value]
        elif flag == "set":
            value = [f"{pattern}:{key}={text}" for pattern, key, text in value]
        elif isinstance(value, tuple):
            value = list(value)
        found[flag] = value
    if config.data is not None:
        found["data"] = source_name(config.data.source)
        found |= {"label-column": config.data.label_column} if config.data.label_column else {}
        found |= {"classes": config.data.classes} if config.data.classes else {}
    return found


def read_recipes(texts: Sequence[str]) -> dict[str, str]:
    """Return the recipes of students as TOML, by the names of their files.

    Raises:
        SourceError, CheckpointError: a file that is not there, cannot be read, or was not made by `fuse`.
    """
    problems = Problems()
    found = {}
    for source in resolve_sources(texts, "checkpoint", problems):
        with problems:
            provenance = open_checkpoint(source.path, source.name).provenance or {}
            if provenance.get("verb") != "fuse" or "recipe" not in provenance:
                raise CheckpointError(
                    f"{source.name}: there is no recipe in it", hint="only students of wfcli fuse have one"
                )
            found[source.name] = _as_toml_of(source.name, provenance)
    problems.raise_all()
    return found


def _as_toml_of(name: str, provenance: Mapping[str, Any]) -> str:
    try:
        return as_toml(provenance)
    except CheckpointError as error:
        raise CheckpointError(*(f"{name}: {problem}" for problem in error.problems), hint=error.hint) from error


def as_toml(provenance: Mapping[str, Any]) -> str:
    """Write the recipe in a student's provenance as the TOML that `fuse --recipe` takes.

    Raises:
        CheckpointError: it is not one that `fuse` wrote.
    """
    if problem := misfit(provenance, RECIPE):
        raise CheckpointError(f"its recipe is damaged: {problem}", hint="only students of wfcli fuse have one")
    if strange := [flag for flag in provenance["recipe"] if flag not in FLAGS]:
        raise CheckpointError(f"its recipe names {strange[0]!r}, which is no option of fuse", hint="update wfcli")
    arch = provenance["architecture"]
    lines = [f"arch = {_quoted(arch['name'])}"]
    if arch["args"]:
        lines.append(f"arch-arg = {_quoted([f'{name}={value}' for name, value in arch['args'].items()])}")
    options = dict(provenance["recipe"])
    if "base" in options and "base" in provenance:
        options["base"] = pinned(provenance["base"])
    generator = provenance.get("generator") or provenance.get("rejected") or {}
    if "max-shard-size" in options:
        options["max-shard-size"] = str(options["max-shard-size"])  # as the flag takes it: bytes, or 5GB
    if "revision" in generator and not str(options.get("generator", "pretrained:")).startswith("pretrained:"):
        options["generator"] = pinned(generator)
    lines += [f"{flag} = {_quoted(value)}" for flag, value in options.items()]
    lines.append("teachers = [")
    for source in provenance["sources"]:
        name = source["name"].removesuffix(f" ({source['sha256'][:8]})")  # which tells apart those of one name
        name = pinned({**source, "name": name})
        digest = "".join(letter for letter in source["sha256"] if letter.isalnum())  # a comment is not to end early
        lines.append(f"  {_quoted(name)},  # sha256 {digest}")
    return "\n".join([*lines, "]"])


def _quoted(value: Any) -> str:
    """Write a text, a number or a list of them as TOML: as JSON, but for one letter that TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def pinned(source: Mapping[str, Any]) -> str:
    """Name a checkpoint as a user would: one of the Hub at its commit, hf:owner/name@commit:file."""
    if "revision" not in source:
        return str(source["name"])
    repository, colon, file = str(source["name"]).partition(":")
    repository = repository.partition("@")[0]  # the commit stands there where there are several of one repository
    return f"hf:{repository}@{source['revision']}{colon}{file}"
