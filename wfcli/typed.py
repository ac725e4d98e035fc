"""The command line as it was typed, without the folders of this machine. No torch."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

REMOTE = ("hf:", "pretrained:")


def as_typed(context: typer.Context) -> str:
    """Return the command with what was given on the command line, each option on a line; files by their base names."""
    lines = [["wfcli", context.command.name or ""]]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE":
            continue
        if parameter.param_type_name == "argument":
            lines[0] += map(_place, _several(context.params[parameter.name or ""]))
        else:
            lines += _options(parameter, context.params[parameter.name or ""])
    return " \\\n  ".join(map(shlex.join, lines))


def _options(parameter: Any, value: Any) -> Iterator[list[str]]:
    if isinstance(value, bool):
        yield [(parameter.opts if value else parameter.secondary_opts or parameter.opts)[0]]
    else:
        yield from ([parameter.opts[0], _place(one)] for one in _several(value))


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _place(value: Any) -> str:
    """Return the base name of a file, a folder or a glob that may be one of this machine; anything else as it is."""
    text = str(value)
    if text.startswith(REMOTE) or "/" not in text.replace("\\", "/"):
        return text
    path = Path(text)
    local = isinstance(value, Path) or path.exists() or path.is_absolute() or text.startswith((".", "~"))
    return path.name or path.resolve().name if local or glob.has_magic(text) else text
