"""Results -> pictures. matplotlib is an extra: without it there is a warning and no picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wfcli.core.outputs import atomic_path

if TYPE_CHECKING:
    from wfcli.engine.compare import CompareResult
    from wfcli.engine.hooks import Hooks


def draw_comparison(result: CompareResult, path: Path, hooks: Hooks) -> None:
    """Draw every method's accuracy with its 95 % interval, one panel for each number of teachers.

    Raises:
        OutputError: the place cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        hooks.warn(f"{path.name} is not drawn: matplotlib is not installed (pip install 'wfcli[plot]')")
        return
    mpl.rcParams["svg.hashsalt"] = "wfcli"  # the same figures give the same bytes
    shown = [one for one in result.summary if one.made == one.draws]
    names = list(dict.fromkeys(one.method for one in shown))
    counts = list(dict.fromkeys(one.count for one in shown))
    figure = Figure(figsize=(2.5 + 2.8 * len(counts), 1.2 + 0.24 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for panel, count in zip(panels, counts, strict=True):
        for one in (one for one in shown if one.count == count):
            level = one.test if one.test is not None else one.validation
            assert level is not None
            heavy = one.method in ("auto", "ensemble")
            panel.errorbar(
                100 * level,
                names.index(one.method),
                xerr=None if one.half is None else 100 * one.half,
                fmt="o",
                color="tab:blue" if heavy else "0.35",
                markersize=6 if heavy else 4,
                capsize=2,
            )
        panel.set_title(f"K = {count}")
        panel.set_xlabel(f"top-1 in %, {result.split} split")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
