"""Numbers for a reader: the one place where 0..1 becomes percent and bytes become MB."""

from __future__ import annotations

import re
from collections.abc import Sequence


def count(number: float) -> str:
    """Write a count in at most three digits: 9.2 M, 640 k, 12."""
    return _scaled(number, ("", " k", " M", " G", " T"))


def megabytes(size: float) -> str:
    """Write a number of bytes in at most three digits: 37 MB, 2.5 MB, 80 kB."""
    return _scaled(size, (" B", " kB", " MB", " GB", " TB"))


def _scaled(number: float, units: Sequence[str]) -> str:
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    digits = 1 if power and abs(number) < 9.95 else 0
    return f"{number:.{digits}f}{units[power]}"


def percent(share: float, digits: int = 2) -> str:
    """Write a share of 0..1 as percent, without the sign of it."""
    return f"{100 * share:.{digits}f}"


def points(difference: float) -> str:
    """Write a difference of two shares in points, always with its sign."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def parse_size(text: str) -> int:
    """Read a number of bytes: 5GB, 1.5 GiB, 500000.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if found is None or (found[3] and not found[2]):
        raise ValueError(f"got {text!r}, expected a size: 5GB, 500MB")
    power = " kmgt".index(found[2].lower() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def duration(seconds: float) -> str:
    """Write seconds for a reader: 0.8 s, 42 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
