"""Hostile texts: recipes, timm's config.json, metrics, names, and what reaches a terminal."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile import Target, files, mutate
from wfcli.errors import WfError


def shown(result: Any) -> str:
    """Print a result or an error as the command line does, and make sure that the terminal is told nothing by it."""
    import sys

    from wfcli import terminal

    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = io.StringIO()
    try:
        if isinstance(result, WfError):
            terminal.print_error(result)
        else:
            terminal.write(result)
        text = sys.stdout.getvalue()
    finally:
        sys.stdout, sys.stderr = streams
    check_plain(text)
    return text


def attempt(step: Callable[[], Any]) -> None:
    """Take one of several steps: what it gives, or the error that it ends with, is shown."""
    try:
        result = step()
    except WfError as error:
        shown(error)
    else:
        if result is not None:
            shown(result)


def check_plain(text: str) -> None:
    """Make sure that a text has no letter which moves the cursor, changes colours or turns the direction."""
    wrong = {letter for letter in text if letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs")}
    wrong |= set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
    assert not wrong, f"reaches the terminal: {sorted(wrong)}"


def make_zoo_recipe(random: Random, folder: Path) -> None:
    """Spoil a zoo recipe."""
    (folder / "zoo.toml").write_bytes(mutate.lines(random, files.ZOO_RECIPE))


def read_zoo_recipe(folder: Path) -> None:
    """Read it."""
    from wfcli.core.zoo_recipes import read_zoo_recipe

    assert read_zoo_recipe(folder / "zoo.toml").zoos


def make_recipe(random: Random, folder: Path) -> None:
    """Spoil a recipe of fuse."""
    (folder / "merge.toml").write_bytes(mutate.lines(random, files.RECIPE))


@cache
def _fuse() -> Any:
    import typer

    from wfcli.cli import app

    return typer.main.get_command(app).commands["fuse"]  # type: ignore[attr-defined]


def read_recipe(folder: Path) -> None:
    """Take it as the defaults of `fuse`."""
    import typer

    from wfcli.recipe_file import take_recipe

    take_recipe(typer.Context(_fuse()), folder / "merge.toml")


def make_timm_config(random: Random, folder: Path) -> None:
    """Spoil a config.json of timm's."""
    (folder / "config.json").write_bytes(mutate.dumped(random, mutate.tree(random, files.TIMM_CONFIG)))


def read_timm_config(folder: Path) -> None:
    """Read the architecture from it, as from one that lies beside weights on the Hub."""
    from wfcli.core.timm_config import architecture_in

    architecture_in(folder / "config.json", "hf:owner/name: config.json")


def make_metrics(random: Random, folder: Path) -> None:
    """Spoil the output of eval --json."""
    fields, body = files.safetensors("net")
    (folder / "x.safetensors").write_bytes(files.packed(json.dumps(fields).encode(), body))
    (folder / "metrics.json").write_bytes(mutate.dumped(random, mutate.tree(random, files.METRICS)))


def read_metrics(folder: Path) -> None:
    """Read it for a card."""
    from wfcli.core.checkpoint import open_checkpoint
    from wfcli.core.hub_cards import write_card
    from wfcli.engine.hub_texts import read_metrics

    measured = read_metrics(folder / "metrics.json", open_checkpoint(folder / "x.safetensors"))
    write_card({"library_name": "timm"}, "", "name", measured).encode()


def make_names(random: Random, folder: Path) -> None:
    """Draw what a user may type for checkpoints, generators, data, architectures, classes."""
    known = (
        "teachers/a.safetensors",
        "pretrained:universal",
        "vgg11_bn_cifar",
        "0-4,7",
        "width=0.25",
        "digits",
        "hf:a/b@c:d",
    )
    text = random.choice(known) if random.random() < 0.6 else mutate.word(random)
    if random.random() < 0.8:
        at = random.randint(0, len(text))
        text = text[:at] + mutate.word(random) + text[at + random.randint(0, 3) :]
    (folder / "names.json").write_text(json.dumps(text.replace("\0", "")))


def read_names(folder: Path) -> None:
    """Resolve it, as each of them."""
    from wfcli.core.architectures import find_architecture, parse_arch_args
    from wfcli.core.data import parse_classes
    from wfcli.core.data_sources import open_table
    from wfcli.core.hub_names import parse_hub_name
    from wfcli.core.sources import resolve_generator, resolve_sources
    from wfcli.core.zoo import find_zoos, read_zoo

    text = json.loads((folder / "names.json").read_text())
    local = not text.startswith("hf:")
    for step in (
        lambda: resolve_sources([text]) if local else parse_hub_name(text),
        lambda: resolve_generator(text) if local else None,
        lambda: open_table(text) if text.count("/") != 1 else None,
        lambda: find_architecture(text),
        lambda: parse_arch_args([text]),
        lambda: parse_classes(text, files.CLASSES),
        lambda: [read_zoo(zoo) for zoo in find_zoos(text)],
    ):
        attempt(lambda step=step: step() and None)


def make_terminal(random: Random, folder: Path) -> None:
    """Write a file whose name and tensors carry escape sequences."""
    fields, body = files.safetensors("net" if random.random() < 0.5 else "state")
    fields = json.loads(json.dumps(fields))
    told = json.loads(json.dumps(files.PROVENANCE))
    for _ in range(random.randint(1, 3)):
        name = random.choice([name for name in fields if name != "__metadata__"])
        fields[name + random.choice(mutate.ESCAPES)] = fields.pop(name)
        told["sources"][0]["name"] = told["method"] = told["classes"][0] = random.choice(mutate.ESCAPES) + "[bold]"
        told["recipe"]["set"] = [random.choice(mutate.ESCAPES)]
    fields["__metadata__"] = {"wfcli": json.dumps(told)}
    escape = random.choice(mutate.ESCAPES).replace("\0", "").replace("/", "")
    (folder / f"{escape}[bold]x.safetensors").write_bytes(files.packed(json.dumps(fields).encode(), body))


def read_terminal(folder: Path) -> None:
    """Print all that is to be printed of it."""
    from wfcli import report
    from wfcli.core.architectures import find_architecture
    from wfcli.engine.inspect import InspectConfig, inspect
    from wfcli.engine.recipe import read_recipes
    from wfcli.engine.teachers import open_teachers

    source = str(next(folder.iterdir()))
    for step in (
        lambda: report.inspected(inspect(InspectConfig((source,), weights=True))),
        lambda: report.as_json(inspect(InspectConfig((source,)))),
        lambda: report.recipes_shown({"recipes": read_recipes([source])}),
        lambda: open_teachers([source], find_architecture("vgg11_bn_cifar"), minimum=1) and None,
        lambda: open_teachers([source + "\x1b[1m"], find_architecture("vgg11_bn_cifar"), minimum=1) and None,
    ):
        attempt(step)


TARGETS = {
    "zoo recipe": Target(make_zoo_recipe, read_zoo_recipe, 6),
    "fuse recipe": Target(
        make_recipe,
        read_recipe,
        6,
        lambda folder: ["fuse", "--recipe", str(folder / "merge.toml"), "-o", str(folder / "student.safetensors")],
    ),
    "timm config": Target(make_timm_config, read_timm_config, 4),
    "metrics": Target(make_metrics, read_metrics, 4),
    "names": Target(make_names, read_names, 4),
    "terminal": Target(make_terminal, read_terminal, 2, lambda folder: ["inspect", str(next(folder.iterdir()))]),
}
