"""Seeded mutations of bytes, of JSON trees and of text: the same `Random` gives the same input, on any machine."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from random import Random
from typing import Any

ESCAPES = ("\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "a\rb", "\u202egnp.exe", "\x7f", "a\nerror: b", "\x00")
WORDS = (
    "", ".", "..", "/", "../../x", "/etc/passwd", "/dev/zero", "~nobody-of-that-name/x", "a/b", "a\\b", "C:\\x",
    "*", "[", "**", "hf:a/b", "hf:", "pretrained:", "pretrained:../x", "\ud800", "ü" * 60, "x" * 300, "y" * 5000,
    "1" * 5000, "nan", "None", "[bold]x[/]", "[/]", "{0}", "%s", "all", "F32", "same", "constructor", "__class__",
    "__dict__", *ESCAPES,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 255, 256, 65_535, 65_537, 10**6, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63,
    2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip


def word(random: Random) -> str:
    """Draw a text that some reader may stumble on."""
    if random.random() < 0.2:
        letters = string.printable + "äß\u2028\u200b\U0001f600\x80\x9f"
        return "".join(random.choice(letters) for _ in range(random.randint(0, 40)))
    return random.choice(WORDS)


def value(random: Random, depth: int = 2) -> Any:
    """Draw any JSON value."""
    kind = random.randint(0, 6 if depth else 4)
    if kind == 0:
        return random.choice((None, True, False))
    if kind in (1, 2):
        return random.choice(NUMBERS)
    if kind in (3, 4):
        return word(random)
    if kind == 5:
        return [value(random, depth - 1) for _ in range(random.randint(0, 4))]
    return {word(random): value(random, depth - 1) for _ in range(random.randint(0, 4))}


def tree(random: Random, root: Any, times: int | None = None) -> Any:
    """Change a few places of a JSON tree; the tree itself is left as it is."""
    root = json.loads(json.dumps(root))
    for _ in range(times if times is not None else random.choice((1, 1, 1, 2, 3, 6))):
        root = _change_one(random, root)
    return root


def _change_one(random: Random, root: Any) -> Any:
    places = list(_places(root))
    if not places or random.random() < 0.02:
        return value(random)
    holder, key = random.choice(places)
    change: Callable[..., None] = random.choice((_replace, _replace, _replace, _nudge, _remove, _rename, _swap, _grow))
    change(random, holder, key, places)
    return root


def _places(node: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [node]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def _replace(random: Random, holder: Any, key: Any, places: Any) -> None:
    holder[key] = value(random)


def _nudge(random: Random, holder: Any, key: Any, places: Any) -> None:
    old = holder[key]
    if isinstance(old, bool) or not isinstance(old, int | float):
        holder[key] = f"{old}{word(random)}" if isinstance(old, str) else [old]
    else:
        holder[key] = random.choice((old + 1, old - 1, -old, old * 2, old * 10**6, old / 3, str(old), [old], old**2))


def _remove(random: Random, holder: Any, key: Any, places: Any) -> None:
    del holder[key]


def _rename(random: Random, holder: Any, key: Any, places: Any) -> None:
    if isinstance(holder, dict):
        holder[word(random)] = holder.pop(key)


def _swap(random: Random, holder: Any, key: Any, places: Any) -> None:
    other, name = random.choice(places)
    if not isinstance(holder[key], dict | list) and not isinstance(other[name], dict | list):
        holder[key], other[name] = other[name], holder[key]


def _grow(random: Random, holder: Any, key: Any, places: Any) -> None:
    old = holder[key]
    if isinstance(old, list) and len(old) < 1000:
        holder[key] = old * random.choice((2, 3, 50))
    elif isinstance(old, dict):
        old.update({f"{random.randint(0, 10**6)}": value(random) for _ in range(random.choice((1, 5, 200)))})
    elif isinstance(old, str) and len(old) < 5000:
        holder[key] = old * random.choice((2, 50, 2000))


def dumped(random: Random, root: Any) -> bytes:
    """Write a tree as JSON, now and then with what `json.dumps` would not write."""
    text = json.dumps(root, ensure_ascii=random.random() < 0.5)
    draw = random.random()
    if draw < 0.04:  # nested, and not closed
        at = random.randint(0, len(text))
        text = (
            text[:at] + random.choice("[{").replace("{", '{"a":') * random.choice((50, 500, 5000, 100_000)) + text[at:]
        )
    elif draw < 0.07:  # nested, and closed
        depth = random.choice((50, 300, 900, 3000, 60_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1) if "null" in text else "[" * depth + "]" * depth
    elif draw < 0.10 and "{" in text:  # a name twice
        text = text.replace(
            "{", '{"dtype": 1, "dtype": 2, ' if random.random() < 0.5 else '{"format": 1, "format": 1, ', 1
        )
    elif draw < 0.12:
        text = text.replace("0", "9" * random.choice((30, 4000, 5000)), 1)
    data = text.encode("utf-8", "surrogatepass")
    return bytestring(random, data) if random.random() < 0.12 else data


def bytestring(random: Random, data: bytes) -> bytes:
    """Flip, cut, repeat or insert some bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randint(0, len(changed))
        kind = random.randint(0, 5)
        if kind == 0 and at < len(changed):
            changed[at] = random.randint(0, 255)
        elif kind == 1 and at < len(changed):
            changed[at] ^= 1 << random.randint(0, 7)
        elif kind == 2:
            changed[at:at] = random.randbytes(random.randint(1, 16))
        elif kind == 3:
            del changed[at : at + random.choice((1, 2, 8, 100, 10**6))]
        elif kind == 4:
            changed[at:at] = changed[at : at + random.randint(1, 64)] * random.choice((1, 2, 100))
        else:
            number = random.choice((0, 1, 2**8 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
            changed[at : at + 8] = number.to_bytes(8, random.choice(("little", "big")))
    return bytes(changed)


def lines(random: Random, text: str) -> bytes:
    """Change a few places of a text of lines and words (TOML, say)."""
    parts = text.split("\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(parts))
        kind = random.randint(0, 7)
        if kind == 0:
            del parts[at]
        elif kind == 1:
            parts.insert(at, random.choice(parts) if parts else "")
        elif kind == 2 and "=" in parts[at]:
            parts[at] = parts[at].partition("=")[0] + "= " + toml_value(random)
        elif kind == 3 and "=" in parts[at]:
            parts[at] = toml_key(random) + " =" + parts[at].partition("=")[2]
        elif kind == 4:
            parts.insert(at, f"{toml_key(random)} = {toml_value(random)}")
        elif kind == 5:
            parts.insert(
                at, random.choice(("[a.b.c]", "[[zoo]]", "[zoo]", "[roles]", "[base]", "[", "[[", "[a]\n[a]", "[arch]"))
            )
        elif kind == 6:
            parts[at] = parts[at].replace(
                random.choice("=\"[]{},'0123456789"), random.choice(("", "=", '"', "[", "9" * 30)), 1
            )
        else:
            parts[at] = word(random)
        parts = parts or [""]
    data = "\n".join(parts).encode("utf-8", "surrogatepass")
    return bytestring(random, data) if random.random() < 0.1 else data


def toml_key(random: Random) -> str:
    """Draw a key of TOML, right or wrong."""
    plain = random.choice(
        ("seed", "count", "epochs", "classes", "role", "name", "arch", "data", "method", "teachers", "x")
    )
    dotted = ".".join(["a"] * random.choice((2, 50, 2000)))
    return random.choice((plain, plain, plain, json.dumps(word(random)), dotted, f"{plain}.{plain}"))


def toml_value(random: Random) -> str:
    """Draw a value of TOML, right or wrong."""
    if random.random() < 0.15:
        depth = random.choice((20, 400, 3000, 50_000))
        return random.choice(("[" * depth + "]" * depth, "{a=" * depth + "1" + "}" * depth, "[" * depth))
    drawn = value(random)
    if isinstance(drawn, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in drawn.items()) + "}"
    special = ("1979-05-27", "1979-05-27T07:32:00Z", "inf", "-nan", "0x7f", '"""a\nb"""', "'0-9999999'", "true")
    return (
        random.choice(special)
        if random.random() < 0.3
        else json.dumps(drawn).replace("NaN", "nan").replace("Infinity", "inf")
    )
