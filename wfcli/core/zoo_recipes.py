"""A zoo recipe: a TOML file that says how to make many zoos, all from one base.

    arch = "vgg11_bn_cifar"                 # and arch_args = { width = 0.25 }
    data = "../data/cifar100"               # relative to the file; a command line may name other data
    label_column = "fine_label"

    [roles]                                 # groups of classes that share none
    base = "0-49"
    training = "50-84"

    [base]                                  # trained first, the start of all others; or, above, init = "b.safetensors"
    role = "base"
    epochs = 30

    [[zoo]]
    name = "task"                           # task-00 to task-11
    repeat = 12
    role = "training"
    classes = 10                            # so many of the role, drawn anew for every zoo; or "50,53-58"
    shares = "dirichlet"
    concentration = [0.3, 0.3, 0.1, 1.0]    # a list: the zoos of the group take one each, in turn
    seed = 100                              # task-00 has seed 100, task-11 has 111; without it: the zoo's number

The other keys of `[base]` and `[[zoo]]` are options of `wfcli train-teachers`.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wfcli.core.architectures import Architecture, find_architecture
from wfcli.core.bounded import read_toml
from wfcli.core.paths import is_there
from wfcli.core.selection import parse_selection
from wfcli.errors import DataError, Problems, SourceError

NUMBER, TEXT, FLAG = (int, float), (str,), (bool,)
# Option of a zoo -> types it may have, as in `TrainTeachersConfig`.
OPTIONS: dict[str, tuple[type, ...]] = {
    "count": (int,),
    "epochs": NUMBER,
    "seed": (int,),
    "shares": TEXT,
    "concentration": NUMBER,
    "images_per_teacher": (int, str),
    "same_recipe": FLAG,
    "faults": TEXT,
    "optimiser": TEXT,
    "lr": NUMBER,
    "batch_size": (int,),
}
OWN: dict[str, tuple[type, ...]] = {"role": TEXT, "classes": (int, str)}
GROUP: dict[str, tuple[type, ...]] = {"name": TEXT, "repeat": (int,)}
TOP: dict[str, tuple[type, ...]] = {
    "arch": TEXT,
    "arch_args": (dict,),
    "data": TEXT,
    "label_column": TEXT,
    "init": TEXT,
    "roles": (dict,),
    "base": (dict,),
    "zoo": (list,),
}
MOST_CLASSES = 100_000
MOST_SEED = 2**32 - 1  # what classes can be drawn from


@dataclass(frozen=True)
class PlannedZoo:
    """One zoo to make: its folder's name, its classes (None: all) and its options of `TrainTeachersConfig`."""

    name: str
    classes: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ZooRecipe:
    """What the file says. With `base` it is trained first, with `init` it is there already, with neither none."""

    architecture: Architecture
    data: str | None
    label_column: str | None
    init: str | None
    base: PlannedZoo | None
    zoos: tuple[PlannedZoo, ...]


def read_zoo_recipe(path: Path) -> ZooRecipe:
    """Read a zoo recipe; the classes of every zoo are drawn from its seed.

    Raises:
        SourceError: no such file, or it is not TOML.
        DataError: keys that are unknown, missing or of the wrong type; roles that share a class. All of them.
        ArchitectureError: an unknown architecture.
    """
    try:
        written = read_toml(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})", hint="give a zoo recipe in TOML") from error
    except ValueError as error:
        raise SourceError(f"{path}: is not TOML ({error})", hint="see examples/zoos for recipes") from error
    problems = Problems()
    with problems:
        _check_keys(path, "", written, TOP)
        _check_shape(path, written)
    problems.raise_all()
    roles: dict[str, list[int]] = {}
    with problems:
        roles = _read_roles(path, written.get("roles", {}))
    base = None
    if "base" in written:
        with problems:
            _check_keys(path, "[base] ", written["base"], OPTIONS | OWN)
            alone = {"count": 1, "same_recipe": True, **written["base"]}
            base = _plan(path, "base", alone, roles, 0)
    zoos: list[PlannedZoo] = []
    for number, group in enumerate(written["zoo"]):
        with problems:
            _check_keys(path, f"[[zoo]] {number}: ", group, OPTIONS | OWN | GROUP, lists=OPTIONS | OWN)
            zoos += _plan_group(path, number, group, roles, len(zoos))
    with problems:
        _check_names(path, [*zoos, *([base] if base else [])])
    architecture = None
    with problems:
        architecture = find_architecture(written["arch"], written.get("arch_args", {}))
    problems.raise_all()
    assert architecture is not None
    data, init = written.get("data"), written.get("init")
    if data != "digits":
        data = _from_file(path, data)
    return ZooRecipe(architecture, data, written.get("label_column"), _from_file(path, init), base, tuple(zoos))


def _from_file(path: Path, source: str | None) -> str | None:
    """Return a source as the recipe at `path` means it: relative to the recipe, where there is such a file."""
    return str(path.parent / source) if source and is_there(path.parent / source) else source


def _check_keys(
    path: Path,
    where: str,
    table: Mapping[str, Any],
    known: Mapping[str, tuple[type, ...]],
    lists: Container[str] = (),
) -> None:
    """Check names and types; the keys in `lists` may also have a list of what they are."""
    wrong = []
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            wrong.append(f"{path}: {where}unknown key {key!r}{f'; did you mean {near[0]}?' if near else ''}")
            continue
        values = value if isinstance(value, list) and key in lists else [value]
        fine = bool(values) and all(
            isinstance(v, known[key]) and (not isinstance(v, bool) or known[key] == FLAG) for v in values
        )
        if not fine:
            kinds = " or ".join(kind.__name__ for kind in known[key]) + (", or a list of it" if key in lists else "")
            wrong.append(f"{path}: {where}{key}: got {value!r}, expected {kinds}")
        elif key == "seed" and not all(0 <= v <= MOST_SEED for v in values):
            wrong.append(f"{path}: {where}{key}: got {value!r}, expected 0 to {MOST_SEED}")
    if wrong:
        raise DataError(*wrong, hint=f"known keys: {', '.join(known)}")


def _check_shape(path: Path, written: Mapping[str, Any]) -> None:
    zoos = written.get("zoo")
    wrong = [f"{path}: no {key}" for key in ("arch", "zoo") if not written.get(key)]
    if zoos and not all(isinstance(group, dict) for group in zoos):
        wrong.append(f"{path}: zoo: expected [[zoo]] tables")
    if "base" in written and "init" in written:
        wrong.append(f"{path}: has both a [base] to train and init, a base that is there")
    if wrong:
        raise DataError(*wrong, hint="a recipe needs arch and at least one [[zoo]]; see examples/zoos")


def _read_roles(path: Path, written: Mapping[str, Any]) -> dict[str, list[int]]:
    roles: dict[str, list[int]] = {}
    taken: dict[int, str] = {}
    problems = []
    for role, classes in written.items():
        if not isinstance(classes, str):
            problems.append(f"{path}: [roles] {role}: got {classes!r}, expected text like '0-49'")
            continue
        roles[role] = parse_selection(
            classes, MOST_CLASSES, option=f"{path}: [roles] {role} =", noun="class", plural="classes", owner="a role"
        )
        others = sorted({taken[c] for c in roles[role] if c in taken})
        if others:
            problems.append(f"{path}: [roles] {role} shares classes with {', '.join(others)}")
        taken.update(dict.fromkeys(roles[role], role))
    if problems:
        raise DataError(*problems, hint="roles keep classes apart: each belongs to one")
    return roles


def _plan_group(
    path: Path, number: int, group: Mapping[str, Any], roles: Mapping[str, Sequence[int]], before: int
) -> list[PlannedZoo]:
    where = f"{path}: [[zoo]] {number}: "
    if "count" not in group:
        raise DataError(f"{where}no count", hint="say how many teachers each zoo has")
    name, repeat = str(group.get("name", "zoo")), int(group.get("repeat", 1))
    if repeat < 1 or not name or Path(name).name != name:
        raise DataError(f"{where}got name {name!r}, repeat {repeat}", hint="a plain folder name, and at least once")
    zoos = []
    for turn in range(repeat):
        own = {
            key: value[turn % len(value)] if isinstance(value, list) else value
            for key, value in group.items()
            if key not in GROUP
        }
        if isinstance(group.get("seed"), int):
            own["seed"] = (group["seed"] + turn) % (MOST_SEED + 1)  # else all zoos of the group would be the same
        zoos.append(_plan(path, f"{name}-{turn:02d}" if repeat > 1 else name, own, roles, before + turn + 1))
    return zoos


def _plan(path: Path, name: str, own: dict[str, Any], roles: Mapping[str, Sequence[int]], number: int) -> PlannedZoo:
    role, classes = own.pop("role", None), own.pop("classes", None)
    own.setdefault("seed", number)
    if role is not None and role not in roles:
        raise DataError(f"{path}: {name}: unknown role {role!r}", hint=f"[roles] has {', '.join(roles) or 'none'}")
    if isinstance(classes, int):
        if role is None or not 2 <= classes <= len(roles[role]):
            has = f"the role has {len(roles[role])}" if role is not None else "it has no role to draw them from"
            raise DataError(
                f"{path}: {name}: {classes} classes, {has}", hint="give classes by number, or a larger role"
            )
        draw = np.random.RandomState([own["seed"], 12])
        classes = ",".join(map(str, sorted(draw.permutation(roles[role])[:classes])))
    elif isinstance(classes, str) and role is not None:
        chosen = parse_selection(
            classes, MOST_CLASSES, option=f"{path}: {name}: classes", noun="class", plural="classes", owner="the data"
        )
        strange = sorted(set(chosen) - set(roles[role]))
        if strange:
            raise DataError(
                f"{path}: {name}: classes {', '.join(map(str, strange))} are not of the role {role}",
                hint="name classes of the role, or give the zoo no role",
            )
    elif role is not None:
        classes = ",".join(map(str, roles[role]))
    return PlannedZoo(name, classes, own)


def _check_names(path: Path, zoos: Sequence[PlannedZoo]) -> None:
    names = [zoo.name for zoo in zoos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(*(f"{path}: two zoos are called {name}" for name in twice), hint="give each group its own name")
