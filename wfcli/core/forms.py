"""What a JSON file has to look like, written as one, and the first place where a file does not.

str, int, float, bool      a value of that kind; float takes whole numbers too
None                       null
(str, None)                any of these
[form]                     a list
{"a": form, "b?": form}    a table: `b` may be missing; "*" stands for all names that are not given
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
ANYTHING = object()


def misfit(value: Any, form: Any, where: str = "") -> str | None:
    """Return where a value is not of the form, as ``teachers[1].sha256: got 5, expected a text``; None where it is."""
    if form is ANYTHING:
        return None
    if isinstance(form, tuple):
        problems = [misfit(value, one, where) for one in form]
        if None in problems:
            return None
        # Of several forms the one that goes as deep as the value tells best what is wrong.
        alike = [found for one, found in zip(form, problems, strict=True) if type(one) is type(value)]
        return alike[0] if alike else _wrong(value, form, where)
    if isinstance(form, list):
        return _list_misfit(value, form[0], where) if isinstance(value, list | tuple) else _wrong(value, (list,), where)
    if isinstance(form, dict):
        return _table_misfit(value, form, where) if isinstance(value, dict) else _wrong(value, (dict,), where)
    fits = value is None if form is None else type(value) is form or (form is float and type(value) is int)
    return None if fits else _wrong(value, (form,), where)


def _list_misfit(values: Sequence[Any], form: Any, where: str) -> str | None:
    if all(type(value) is form for value in values):  # a million numbers in a moment
        return None
    found = (misfit(value, form, f"{where}[{number}]") for number, value in enumerate(values))
    return next((problem for problem in found if problem), None)


def _table_misfit(table: Mapping[str, Any], form: dict[str, Any], where: str) -> str | None:
    dot = f"{where}." if where else ""
    for name in form:
        if not name.endswith("?") and name != "*" and name not in table:
            return f"{dot}{name}: missing"
    for name, value in table.items():
        wanted = form.get(name, form.get(f"{name}?", form.get("*", ANYTHING)))
        if problem := misfit(value, wanted, f"{dot}{name}"):
            return problem
    return None


def _wrong(value: Any, wanted: tuple[Any, ...], where: str) -> str:
    kinds = [one if isinstance(one, type) or one is None else type(one) for one in wanted]
    words = " or ".join("null" if kind is None else _WORDS[kind] for kind in kinds)
    return f"{where}{': ' if where else ''}got {reprlib.repr(value)}, expected {words}"
