"""`--set PATTERN:KEY=VALUE`: tensors that are made otherwise than the rest.

T teachers.
"""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import TYPE_CHECKING

from wfcli.core.methods import METHODS, TENSORWISE
from wfcli.engine.teachers import Teachers
from wfcli.errors import Problems, WfError

if TYPE_CHECKING:
    from wfcli.engine.fuse import FuseConfig

Rule = tuple[str, str, str]  # pattern, key, value
BASE = -1  # the source of copy:base


@dataclass(frozen=True)
class Choice:
    """How one tensor is made."""

    method: str  # one that goes tensor by tensor, or copy
    weights: tuple[float, ...]  # of the T teachers; they sum to 1
    params: Mapping[str, float]
    source: int = 0  # of copy: which teacher, or `BASE`


def find_choices(
    config: FuseConfig,
    teachers: Teachers,
    weights: tuple[float, ...],
    shares: Callable[[str, tuple[float, ...] | None], tuple[float, ...]],
    check_param: Callable[[str, float], str | None],
) -> dict[str, Choice]:
    """Return how the tensors are made that a rule names; of several rules for one tensor the last one holds, by key.

    `shares` gives the weights of a method, with or without given ones; `check_param` what is wrong with a parameter.

    Raises:
        WfError: all rules that name no tensor, or say what cannot be done.
    """
    wanted: dict[str, dict[str, str]] = defaultdict(dict)
    problems = Problems()
    for pattern, key, value in config.rules:
        names = [name for name in teachers.layout.files if fnmatchcase(name, pattern)]
        if not names:
            near = difflib.get_close_matches(pattern, teachers.layout.files, n=3, cutoff=0.3)
            problems.errors.append(
                WfError(
                    f"--set {pattern}: no tensor has such a name",
                    hint=f"names are those of the files, {', '.join(near or list(teachers.layout.files)[:3])}, say; "
                    "* stands for anything",
                )
            )
        if key != "method" and key != "weights" and key not in {name for m in METHODS.values() for name in m.params}:
            problems.errors.append(
                WfError(f"--set {pattern}: unknown key {key!r}", hint="use method, weights or a parameter of a method")
            )
        for name in names:
            wanted[name][key] = value
    problems.raise_all()
    choices = {}
    told: dict[str, None] = {}  # of many tensors, once
    for name, settings in wanted.items():
        try:
            choices[name] = _choose(config, teachers, weights, settings, shares, check_param)
        except WfError as error:  # noqa: PERF203 (all problems at once)
            own = " ".join(dict.fromkeys(pattern for pattern, _, _ in config.rules if fnmatchcase(name, pattern)))
            told |= dict.fromkeys(f"--set {own}: {line}" for line in error.problems)
    if told:
        raise WfError(*told, hint=f"methods for --set: copy:N, copy:base, {', '.join(sorted(_methods()))}")
    return choices


def needs_base(value: str) -> bool:
    """Tell whether the value of a rule looks at the base."""
    return value == "copy:base" or (value in METHODS and bool(METHODS[value].base))


def _methods() -> set[str]:
    return {"soup", *TENSORWISE}


def _choose(
    config: FuseConfig,
    teachers: Teachers,
    weights: tuple[float, ...],
    settings: Mapping[str, str],
    shares: Callable[[str, tuple[float, ...] | None], tuple[float, ...]],
    check_param: Callable[[str, float], str | None],
) -> Choice:
    usual = config.method if config.method in TENSORWISE or "weights" not in settings else "weighted"
    method = settings.get("method", usual)
    if method.startswith("copy:"):
        if other := sorted(set(settings) - {"method"}):
            raise WfError(f"method {method}: it takes no {', '.join(other)}")
        return Choice("copy", weights, {}, _source(config, teachers, method))
    if method not in METHODS:
        near = difflib.get_close_matches(method, _methods(), n=1)
        raise WfError(f"unknown method {method!r}{f'; did you mean {near[0]}?' if near else ''}")
    if method not in _methods():
        raise WfError(f"method {method}: it does not go tensor by tensor")
    about = METHODS[method]
    if about.base == "must" and config.base is None:
        raise WfError(f"method {method}: got no --base, expected the checkpoint the teachers were made from")
    if method == "slerp" and len(weights) != 2:
        raise WfError(f"method slerp: got {len(weights)} teachers, expected 2")
    if method == "weighted" and "weights" not in settings and config.weights is None:
        raise WfError("method weighted: got no weights, expected a number for every teacher")
    given = None
    if "weights" in settings:
        given = _numbers(settings["weights"], len(weights))
        if not about.weights:
            raise WfError(f"method {method}: it takes no weights")
    params = {**about.params, **(dict(config.params) if method == config.method else {})}
    for key, text in settings.items():
        if key in ("method", "weights"):
            continue
        if key not in about.params:
            raise WfError(f"method {method}: it has no parameter {key}")
        params[key] = _number(key, text)
        if wrong := check_param(key, params[key]):
            raise WfError(f"method {method}: {key}: {wrong}")
    own = weights if given is None and method == config.method else shares(method, given)
    return Choice("weighted" if method == "soup" else method, own, params)


def _source(config: FuseConfig, teachers: Teachers, method: str) -> int:
    """Return which checkpoint a copy is of: base, a number, or the name of a teacher's file."""
    wanted = method.removeprefix("copy:")
    if wanted == "base":
        if config.base is None:
            raise WfError("method copy:base: got no --base")
        return BASE
    names = [checkpoint.path for checkpoint in teachers.checkpoints]
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    found = [number for number, path in enumerate(names) if wanted in (path.name, PurePath(path.name).stem)]
    if len(found) != 1:
        raise WfError(f"method {method}: no such teacher, expected 0 to {len(names) - 1}, a file or base")
    return found[0]


def _numbers(text: str, count: int) -> tuple[float, ...]:
    numbers = tuple(_number("weights", part) for part in text.split(","))
    if len(numbers) != count or not all(0 <= number < math.inf for number in numbers) or sum(numbers) <= 0:
        raise WfError(f"weights: got {text}, expected {count} numbers from 0 on, not all of them 0")
    return numbers


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise WfError(f"{key}: got {text!r}, expected a number") from None


def rules_of(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Read rules as they stand on the command line, PATTERN:KEY=VALUE.

    Raises:
        WfError: one that does not read so.
    """
    rules = []
    for text in texts:
        pattern, colon, rest = text.partition(":")
        key, equals, value = rest.partition("=")
        if not (pattern and colon and key and equals and value):
            raise WfError(f"--set: got {text!r}, expected PATTERN:KEY=VALUE", hint="'head.*:method=copy:0', say")
        rules.append((pattern.strip(), key.strip(), value.strip()))
    return tuple(rules)
