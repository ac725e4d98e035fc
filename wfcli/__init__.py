"""wfcli: fuse trained networks of one architecture into a single student with a weight generator.

The command line is thin; the verbs are plain functions on frozen dataclasses (``wfcli.engine``), the mathematics is in
``wfcli.core``. What a library user needs is here: ``from wfcli import fuse, load_generator``. It is imported from
``wfcli.api`` when it is asked for, so ``import wfcli`` and ``wfcli --help`` stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wfcli.api import (
        Comparison,
        FuseResult,
        Hooks,
        Row,
        WfError,
        WfWarning,
        evaluate,
        fuse,
        load_generator,
        load_model,
    )

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "FuseResult",
    "Hooks",
    "Row",
    "WfError",
    "WfWarning",
    "__version__",
    "evaluate",
    "fuse",
    "load_generator",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wfcli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
