"""Does it grow? Ten thousand fuses in one process, and a training of a quarter of an hour: memory, files, threads.

    python examples/faults/long_run.py [--part soups generator training] [--fuses 10000] [--passes 500] [--minutes 15]

Every fuse is the library's own (`wfcli.fuse`), of three nets of 0.15 M parameters; `generator` is the same with a
generator's pass and the guard. Samples are taken at even distances; flat means that the mean of the last tenth of them
is at most 4 MB (10^6 bytes) of resident memory above that of the second tenth (the first one fills caches), and not one
open file or thread. Parts can be run one by one. Writes examples/results/long_run.json and long_run.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from faults import machine

import wfcli
from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.checkpoint import save_state
from wfcli.core.data import DataSpec
from wfcli.engine.finetune import FinetuneConfig, finetune

RESULTS = Path(__file__).resolve().parents[1] / "results" / "long_run.json"
NET = find_architecture("vgg11_bn_cifar", {"width": 0.125})
MOST_GROWTH = 4.0  # MB
SAMPLES = 100
STEPS = 10**9  # more than a training gets to


@dataclass
class Gauge:
    """Samples of this process: what was done by then, resident MB, open files, threads."""

    samples: list[tuple[float, float, int, int]] = field(default_factory=list)

    def read(self, done: float) -> None:
        """Take a sample."""
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        files = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 (one is that of this look)
        resident = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        self.samples.append((round(done, 2), round(resident, 2), files, threading.active_count()))

    def growth(self) -> dict[str, float]:
        """Return the last tenth's means less the second tenth's."""
        tenth = max(1, len(self.samples) // 10)
        early, late = self.samples[tenth : 2 * tenth], self.samples[-tenth:]
        names = ("resident_mb", "files", "threads")
        return {
            name: round(fmean(s[place] for s in late) - fmean(s[place] for s in early), 3)
            for place, name in enumerate(names, start=1)
        }


class Enough(Exception):  # noqa: N818 (no error: the time is up)
    """The training has lasted long enough."""


class Clock:
    """Hooks that sample while a training goes on, and end it."""

    def __init__(self, gauge: Gauge, minutes: float) -> None:
        self.gauge, self.minutes = gauge, minutes
        self.began = time.monotonic()
        self.step = 0

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Take a sample when it is time for one."""
        past = (time.monotonic() - self.began) / 60
        self.step = done
        if past > len(self.gauge.samples) * self.minutes / SAMPLES:
            self.gauge.read(past)
        if past > self.minutes:
            raise Enough

    def warn(self, message: str) -> None:
        """Say it."""
        print(message)


def main() -> None:
    """Run the parts, write and print the table, fail if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("soups", "generator", "training"), help="all unless given")
    parser.add_argument("--fuses", type=int, default=10000, help="averages")
    parser.add_argument("--passes", type=int, default=500, help="fuses with a generator")
    parser.add_argument("--minutes", type=float, default=15, help="of training")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "soups": lambda folder: fuses(folder, options.fuses, "soup"),
        "generator": lambda folder: fuses(folder, options.passes, "weightformer"),
        "training": lambda folder: training(folder, options.minutes),
    }
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    for name in options.part or parts:
        with tempfile.TemporaryDirectory() as folder:
            make_teachers(Path(folder))
            result[name] = {**parts[name](Path(folder)), **made()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))
    raise SystemExit(0 if all(result[name]["flat"] for name in options.part or parts) else 1)


def make_teachers(folder: Path) -> None:
    """Write three nets near each other."""
    torch.manual_seed(0)
    base = build_model(NET, 10).state_dict()
    for number in range(3):
        state = {k: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v for k, v in base.items()}
        save_state(folder / f"teacher-{number}.safetensors", state, {"number": number})


def fuses(folder: Path, count: int, method: str) -> dict[str, Any]:
    """Fuse so many times; every result has to be the first one."""
    gauge, every = Gauge(), max(1, min(500, count // 20))
    teachers = sorted(folder.glob("teacher-*.safetensors"))
    arch = {"arch": NET.name, "arch_args": dict(NET.args)}
    began, seen = time.monotonic(), set()
    for number in range(count):
        if number % every == 0:
            gauge.read(number)
        seen.add(wfcli.fuse(teachers, folder / "student.safetensors", method=method, **arch).digest)
    gauge.read(count)
    assert len(seen) == 1, f"{len(seen)} different students"
    assert len(list(folder.iterdir())) == len(teachers) + 1
    return told(gauge, f"{count:,} fuses, {method}", began)


def training(folder: Path, minutes: float) -> dict[str, Any]:
    """Fine-tune for so long."""
    gauge = Gauge()
    clock = Clock(gauge, minutes)
    teachers = tuple(str(path) for path in sorted(folder.glob("teacher-*.safetensors")))
    began = time.monotonic()
    config = FinetuneConfig(
        teachers[0], teachers, NET, DataSpec("digits"), STEPS, folder / "student.safetensors", validate_every=100
    )
    with suppress(Enough):
        finetune(config, clock)
    return told(gauge, f"{minutes:g} minutes of finetune, {clock.step:,} steps", began)


def told(gauge: Gauge, what: str, began: float) -> dict[str, Any]:
    """Put together what was measured."""
    growth = gauge.growth()
    flat = growth["resident_mb"] <= MOST_GROWTH and growth["files"] <= 0 and growth["threads"] <= 0
    seconds = round(time.monotonic() - began, 1)
    return {"what": what, "seconds": seconds, "growth": growth, "flat": flat, "samples": gauge.samples}


def made() -> dict[str, Any]:
    """Say when, where and with what."""
    versions = {name: version(name) for name in ("wfcli", "torch", "timm")}
    return {"date": date.today().isoformat(), "machine": machine(), "python": platform.python_version(), **versions}


def page(result: dict[str, Any]) -> str:
    """Write long_run.md."""
    lines = ["# Long runs\n", "Made by `examples/faults/long_run.py`, which says what flat means.\n"]
    lines += ["| | seconds | resident at the start, at the end | growth | open files | threads | flat |"]
    lines += ["|---|---:|---:|---:|---:|---:|---|"]
    for part in result.values():
        growth, first, last = part["growth"], part["samples"][0], part["samples"][-1]
        files, threads = growth["files"], growth["threads"]
        lines.append(
            f"| {part['what']} | {part['seconds']:,.0f} | {first[1]:.0f} MB, {last[1]:.0f} MB | "
            f"{growth['resident_mb']:+.2f} MB | {files:+g} | {threads:+g} | {'yes' if part['flat'] else 'NO'} |"
        )
    where = dict.fromkeys(
        f"{p['date']}, {p['machine']}, Python {p['python']}, wfcli {p['wfcli']}, torch {p['torch']}."
        for p in result.values()
    )
    return "\n".join([*lines, "", *where]) + "\n"


if __name__ == "__main__":
    main()
