"""The command that makes a thing again, from what is on record of it: for the cards.

Files and folders stand there by their base names, those of the Hub at their commit. All options that decide about the
bytes are written out: what a later wfcli takes for those left out may be something else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wfcli.core.paths import is_there
from wfcli.core.pretrained import BASE, list_pretrained
from wfcli.core.zoo import Zoo
from wfcli.engine.provenance import source_name
from wfcli.engine.recipe import pinned
from wfcli.errors import SourceError

WIDTH = 100  # of a line, where words allow it
SEVERAL = re.compile(r" \([0-9a-f]{8}\)$")  # which tells apart sources of one name


def finetune_command(made: Mapping[str, Any], output: str) -> str:
    """Return the `wfcli finetune` that makes a student again, from its provenance."""
    start = spelled(made["sources"][0])
    words = [
        [f"./{start}" if start.startswith("-") else start],
        *(["--teachers", spelled(teacher)] for teacher in made.get("teachers") or ()),
        *_architecture(made["architecture"]["name"], made["architecture"].get("args") or {}),
        *_data(made["data"]),
        *(_option(name, value) for name, value in made["recipe"].items() if value is not None),
        ["--seed", str(made.get("seed", 0))],
        ["-o", output],
    ]
    return _command("finetune", words)


def train_teachers_command(zoo: Zoo) -> str | None:
    """Return the `wfcli train-teachers` that makes a zoo again; None where its zoo.json, an older one, does not say."""
    if zoo.options is None:
        return None
    shares = {key: value for key, value in zoo.shares.items() if key not in ("kind", "seed") and value is not None}
    if isinstance(cap := shares.get("images_per_teacher"), list | tuple):
        shares["images_per_teacher"] = "-".join(map(str, cap))
    options = {"count": len(zoo.teachers), "shares": zoo.shares["kind"], **shares, **zoo.options}
    words = [
        *_architecture(zoo.architecture.name, dict(zoo.architecture.args)),
        *_data({"source": zoo.data.source, "label_column": zoo.data.label_column, "classes": zoo.data.classes}),
        *([["--init", spelled(zoo.base)]] if zoo.base else []),
        *(_option(name, value) for name, value in options.items() if value is not False),
        ["--seed", str(zoo.shares.get("seed", 0))],
        ["-o", "zoo"],
    ]
    return _command("train-teachers", words)


def train_generator_command(zoos: Sequence[Path], settings: Mapping[str, Any]) -> str:
    """Return the `wfcli train-generator` that makes a generator again, from its zoos and its options by their flags."""
    words = [
        *(["--zoo", name] for name in _names(zoos)),
        *(_option(flag, value) for flag, value in settings.items() if value is not None),
        ["-o", "generator"],
    ]
    return _command("train-generator", words)


def spelled(source: Mapping[str, Any]) -> str:
    """Name a checkpoint on record as a user would: one that comes with wfcli by its name there, the Hub's pinned."""
    with suppress(SourceError):  # without an index there are none
        for one in list_pretrained():
            if source["sha256"] == one.sha256.get(BASE):
                return f"pretrained:{one.name}/{Path(BASE).stem}"
    return pinned({**source, "name": SEVERAL.sub("", str(source["name"]))})


def _architecture(name: str, args: Mapping[str, Any]) -> list[list[str]]:
    return [["--arch", name], *(["--arch-arg", f"{key}={value}"] for key, value in args.items())]


def _data(data: Mapping[str, Any]) -> list[list[str]]:
    """Return the options of a dataset: of a folder its base name, also where it has been moved since."""
    source = str(data["source"])
    named = Path(source).name if Path(source).is_absolute() and not is_there(source) else source_name(source)
    more = [_option(name, data[name]) for name in ("label_column", "classes") if data.get(name) is not None]
    return [["--data", named], *more]


def _option(name: str, value: Any) -> list[str]:
    """Spell one option; a switch is a word alone."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return base names of folders, with as many of the folders they are in as it takes to tell them apart."""
    parts = [folder.resolve().parts[1:] for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _command(verb: str, groups: Iterable[Sequence[str]]) -> str:
    return " \\\n  ".join(_lines(f"wfcli {verb}", groups))


def _lines(first: str, groups: Iterable[Sequence[str]]) -> Iterator[str]:
    """Fill lines with groups of words that belong together, an option and its value."""
    line = first
    for group in groups:
        text = " ".join(map(_quoted, group))
        if len(line) + 1 + len(text) > WIDTH:
            yield line
            line = text
        else:
            line += " " + text
    yield line


def _quoted(word: str) -> str:
    """Quote a word for the shell; letters that are not to be printed, a line break say, as bash's $'...' has them."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escaped(letter) for letter in word) + "'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return "\\" + letter
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
