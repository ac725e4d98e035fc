"""Where the time of one `wfcli fuse` goes: seconds by phase, and the functions that take most of it.

    python examples/benchmarks/profile_fuse.py teacher*.safetensors --arch resnet50 --method soup

takes the arguments of `wfcli fuse`, but for -o: the student goes to a temporary folder. Phases are told by the
functions they are spent in; a phase that runs inside another one is part of that one too. Threads (digests) are not
seen, but for the time that is spent waiting for them. The profile costs time itself: compare shares, not seconds.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
import tempfile
import time
from pathlib import Path

# Phase -> file and function whose cumulative time it is.
PHASES = {
    "import torch": ("core/start.py", "load_torch"),
    "import timm, build nets": ("core/architectures.py", "build_model"),
    "open the teachers: headers, wait for digests": ("engine/teachers.py", "open_teachers"),
    "are they related?": ("engine/situation.py", "_relate"),
    "follow the graph": ("engine/plans.py", "plan_of"),
    "align": ("engine/align.py", "align"),
    "look at the student (guard)": ("engine/polish.py", "guard"),
    "write the student, all that is read for it included": ("engine/writing.py", "write_student"),
    "read pieces": ("core/safetensors_io.py", "read_tensor"),
    "look for NaN and Inf": ("engine/finite.py", "count_nonfinite"),
    "sums": ("core/methods.py", "soup_tensor"),
    "weighted sums": ("core/methods.py", "weighted_sum"),
    "inner products": ("core/merges.py", "products"),
    "the generator's layers": ("core/generator.py", "generate_layer"),
    "hash and write pieces": ("core/safetensors_writer.py", "put"),
    "sync to disk": ("core/outputs.py", "sync"),
}


def main() -> None:
    """Profile, and print both tables."""
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        raise SystemExit(__doc__)
    profile = cProfile.Profile()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["wfcli", "fuse", *sys.argv[1:], "-o", str(Path(folder) / "student.safetensors")]
        profile.enable()
        try:
            from wfcli.cli import main as command_line

            command_line()
        except SystemExit as end:
            if end.code:
                raise
        finally:
            profile.disable()
    seconds = time.perf_counter() - begun
    out = io.StringIO()
    stats = pstats.Stats(profile, stream=out)
    print(f"\n{seconds:.2f} s in all, with the profiler\n")
    for phase, spent in phases(stats).items():
        print(f"{spent:8.2f} s  {100 * spent / seconds:3.0f} %  {phase}")
    stats.sort_stats("tottime").print_stats(15)
    print(out.getvalue().partition("filename:lineno(function)")[2])


def phases(stats: pstats.Stats) -> dict[str, float]:
    """Return phase -> cumulative seconds of its function, for those that were called."""
    found: dict[str, float] = {}
    for (file, _, name), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        for phase, (place, function) in PHASES.items():
            if file.endswith(f"wfcli/{place}") and name == function:
                found[phase] = found.get(phase, 0.0) + cumulative
    return {phase: found[phase] for phase in PHASES if phase in found}


if __name__ == "__main__":
    main()
