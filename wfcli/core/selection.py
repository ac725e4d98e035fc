"""Selections by number, as a user types them: ``0-9,20``."""

from __future__ import annotations

import re

from wfcli.errors import DataError


def parse_selection(text: str, count: int, *, option: str, noun: str, plural: str, owner: str) -> list[int]:
    """Read a selection like ``0-9,20`` of the `count` things of `owner`, numbered from 0, in the given order.

    Raises:
        DataError: not of that form, out of range, or something twice.
    """
    chosen: list[int] = []
    problems = []
    for item in map(str.strip, text.split(",")):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            problems.append(f"{option} {text}: {item!r} is neither a {noun} number nor a range")
        elif last >= count:
            problems.append(f"{option} {text}: {item} is out of range, {owner} has {count} {plural}")
        else:
            chosen.extend(range(first, last + 1))
    twice = sorted({number for number in chosen if chosen.count(number) > 1})
    if twice:
        problems.append(f"{option} {text}: given twice: {', '.join(map(str, twice))}")
    if problems:
        raise DataError(*problems, hint=f"write numbers and ranges from 0 to {count - 1}, like 0-4,7")
    return chosen
