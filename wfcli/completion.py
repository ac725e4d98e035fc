"""What the shell may complete: names that are known without torch, so that a key press is answered at once."""

from __future__ import annotations

from collections.abc import Iterator


def complete_architecture(incomplete: str) -> Iterator[str]:
    """Yield the names of the table (there are more: all of timm's) that begin so."""
    from wfcli.core.layouts import tables

    known = tables()
    yield from (name for name in sorted({*known.architectures, *known.aliases}) if name.startswith(incomplete))


def complete_method(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield the merge methods that begin so, each with what it does."""
    from wfcli.core.methods import METHODS

    yield from ((name, method.what) for name, method in METHODS.items() if name.startswith(incomplete))
    if "auto".startswith(incomplete):
        yield "auto", "the best of them by the validation images"


def complete_generator(incomplete: str) -> Iterator[str]:
    """Yield the generators that wfcli knows by name."""
    from wfcli.core.pretrained import list_pretrained

    names = (f"pretrained:{one.name}" for one in list_pretrained())
    yield from (name for name in names if name.startswith(incomplete))
