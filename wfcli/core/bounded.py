"""JSON and TOML that others wrote, read within bounds: so many bytes, so many lists, so deep. No torch.

A few megabytes of text can ask for gigabytes (a list of empty lists takes thirty times its text), for hours (a key of a
hundred thousand parts) or for more frames than Python has. What is refused here no file of ours comes near.
"""

from __future__ import annotations

import json
import math
import re
import stat
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_JSON = 1 << 25  # bytes: the zoo.json of a million images has 24 MB
MOST_TOML = 1 << 20
MOST_LISTS = 1 << 20  # and tables: each takes a hundred bytes
MOST_DEPTH = 64
MOST_DIGITS = 20  # of a whole number
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){32}""")


def read_bounded(path: Path, most: int) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no plain file: a pipe or a device may have no end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is not a plain file")
    if found.st_size > most:
        raise ValueError(f"has {found.st_size:,} bytes, expected {most:,} at most")
    if not found.st_size:  # or a file of the kernel, which may have no end
        return b""
    with path.open("rb") as file:
        return file.read(found.st_size)


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or beyond the bounds.
    """
    return parse_json(read_bounded(path, most))


def parse_json(text: bytes | str) -> Any:
    """Parse JSON without names that stand twice, numbers that are none, or halves of letters.

    Raises:
        ValueError: it is not that, or beyond the bounds.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if text.count("[") + text.count("{") > MOST_LISTS:
        raise ValueError(f"it has more than {MOST_LISTS:,} lists and tables")
    try:
        found = json.loads(
            text, object_pairs_hook=_unique_keys, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_values(found)
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; it may be a pipe, as in ``--recipe <(...)``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML, or beyond the bounds.
    """
    with path.open("rb") as file:
        data = file.read(MOST_TOML + 1)
    if len(data) > MOST_TOML:
        raise ValueError(f"it has more than {MOST_TOML:,} bytes")
    text = data.decode("utf-8")
    if _LONG_KEY.search(text):  # the time a parser takes grows with the square of the parts
        raise ValueError("a key has more than 32 parts")
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_values(found)
    return found


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands there twice")
    return fields


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:MOST_DIGITS]} is no number")
    return number


def _check_values(root: Any) -> None:
    """Look at every value, without frames of its own for each level."""
    level, depth = [root], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested deeper than {MOST_DEPTH} levels")
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif type(value) is int and abs(value) >= 10**MOST_DIGITS:
                raise ValueError(f"a whole number of more than {MOST_DIGITS} digits")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is no number")
        level = below


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("a text with a NUL in it")
    if not text.isascii():
        text.encode("utf-8")  # half of a surrogate pair is no letter: UnicodeEncodeError, a ValueError
