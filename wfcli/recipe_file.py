"""`--recipe FILE`: options of a command from a TOML file, by the names of its flags. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import typer

from wfcli.core.bounded import read_toml
from wfcli.errors import WfError


def take_recipe(context: typer.Context, file: Path | None) -> Path | None:
    """Make what a recipe says the defaults of the command's options: flags on the command line come before it.

    Raises:
        WfError: the file cannot be read, or it names options that the command does not have.
    """
    if file is None or context.resilient_parsing:
        return file
    hints = get_type_hints(context.command.callback) if context.command.callback else {}
    known = {_flag(parameter): parameter for parameter in context.command.params if parameter.name != "recipe"}
    found, problems, hint = {}, [], "use the names of the flags, without the dashes before them"
    for key, value in _read(file).items():
        if key not in known or key in ("help",):
            near = difflib.get_close_matches(key, known, n=1)
            problems.append(f"{file}: unknown option {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
            continue
        parameter: Any = known[key]
        several = parameter.nargs == -1 or bool(getattr(parameter, "multiple", False))
        if isinstance(value, dict) and several:
            value = list(_pairs(key, value))
        if wrong := _wrong(hints.get(parameter.name), several, value):
            problems.append(f"{file}: {key}: {wrong}")
            continue
        if several:
            value = [str(each) for each in (value if isinstance(value, list) else [value])]
        elif isinstance(value, list):  # weights = [1, 2]
            value = ",".join(str(each) for each in value)
        try:
            parameter.process_value(context, value)
        except typer.BadParameter as error:
            problems.append(f"{file}: {key}: {error.message}")
            continue
        assert parameter.name is not None
        found[parameter.name] = value
    if problems:
        raise WfError(*problems, hint=hint)
    context.default_map = {**(context.default_map or {}), **found}
    return file


def _pairs(key: str, table: dict[str, Any]) -> Iterator[str]:
    """Read a table as what is repeated on the command line: [arch-arg] width = 0.25, [set."head.*"] density = 0.5."""
    for name, value in table.items():
        if key != "set":
            yield f"{name}={value}"
        elif isinstance(value, dict):
            yield from (f"{name}:{each}={text}" for each, text in value.items())
        else:
            yield f"{name}:{value}"


def _wrong(wanted: Any, several: bool, value: Any) -> str | None:
    """Say what is wrong with the type of a value of an option that wants another, if anything."""
    each = value if isinstance(value, list) else [value]
    if any(isinstance(one, (dict, list)) for one in each):
        return "expected a string, a number, true, false or a list of them"
    switches = [isinstance(one, bool) for one in each]
    if wanted is bool:
        return None if all(switches) else f"got {value!r}, expected true or false"
    if any(switches):
        return f"got {str(value).lower()}, expected another kind of value"
    if wanted in (str, str | None) and not several and isinstance(value, float | int):
        return f"got {value!r}, expected a string"
    return None


def _flag(parameter: Any) -> str:
    """Name an option by its long flag; the argument is called teachers."""
    return "teachers" if parameter.param_type_name == "argument" else parameter.opts[0].removeprefix("--")


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_toml(file)
    except OSError as error:
        raise WfError(f"{file}: cannot be read ({error.strerror})", hint="--recipe takes a TOML file") from error
    except ValueError as error:
        hint = "wfcli inspect --recipe student.safetensors prints one"
        raise WfError(f"{file}: is not TOML ({error})", hint=hint) from error
