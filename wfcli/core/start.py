"""Import torch in less time than `import torch` takes."""

from __future__ import annotations

import gc
import sys


def load_torch() -> None:
    """Import torch, unless that was done; a third of the processor time of ``import torch`` is saved.

    Python's cycle collector looks through all objects again and again while an import makes more of them, and once more
    at exit. What torch makes stays to the end: the collector is told to leave it alone.
    """
    if "torch" in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        if collecting:
            gc.enable()
