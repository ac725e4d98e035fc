"""The record that travels inside a file, who made it from what: read back, and believed only in its usual form."""

from __future__ import annotations

from typing import Any

from wfcli.core.bounded import parse_json
from wfcli.core.forms import ANYTHING, misfit

VALUE = (str, float, bool)
ARCHITECTURE = {"name": str, "args?": {"*": VALUE}}
SOURCE = {"name": str, "sha256": str, "revision?": str}
OPTION = (str, float, bool, None, [(str, float)])
RECORD = {
    "wfcli?": str,
    "torch?": str,
    "timm?": str,
    "verb?": str,
    "architecture?": ARCHITECTURE,
    "seed?": int,
    "method?": str,
    "classes?": ([str], None),
    "sources?": [SOURCE],
    "teachers?": [SOURCE],
    "base?": SOURCE,
    "generator?": (SOURCE, None),
    "rejected?": SOURCE,
    "data?": {"source": str, "*": (str, None)},
    "share?": {"*": ANYTHING},
    "recipe?": {"*": OPTION},
}


def read_record(text: str) -> dict[str, Any] | None:
    """Read what stands in a file's metadata; None where that is no record of ours.

    Anybody can write anything there. A file whose record is not of the usual form is a file without one: its weights
    may be sound all the same.
    """
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and misfit(found, RECORD) is None else None
