"""How fast `wfcli` starts and averages, and how much memory that takes: against `import torch` on the same machine.

    python examples/benchmarks/start_and_soup.py [--runs 5] [--out examples/results/start_and_soup.json]

Every run is a process of its own, timed from outside; memory is the maximum resident set that the kernel reports for
it. The cases take turns, so that a change of load meets all of them; one round before the first fills the caches and is
not counted. The eight teachers (ResNet-50, torchvision's names, random weights, 102 MB each) are made in a temporary
folder. This process imports neither torch nor wfcli: a child starts with the memory of its parent on its account.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

TEACHERS = (2, 4, 8)
PACKAGES = ("wfcli", "torch", "timm", "typer", "rich", "safetensors")
WFCLI = str(Path(sys.executable).with_name("wfcli"))
# As a user has it: with byte code, in one terminal width, without progress.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

MAKE_TEACHERS = """
import sys
import torch
from wfcli.core.architectures import find_architecture, key_layout
from wfcli.core.checkpoint import save_state, torch_dtype
torch.manual_seed(0)
for path in sys.argv[1:]:
    specs = key_layout(find_architecture("resnet50"), 1000)  # timm and torchvision name and shape them alike
    state = {key: torch.rand(spec.shape).to(torch_dtype(spec.dtype)) for key, spec in specs.items()}
    save_state(path, state, {})
"""
HELP_LOADS = """
import sys
from wfcli.cli import app
app(["--help"], prog_name="wfcli", standalone_mode=False)
print("torch" in sys.modules)
"""


@dataclass(frozen=True)
class Run:
    """One process: wall-clock and processor seconds, maximum resident set in MB (10^6 bytes)."""

    wall: float
    processor: float
    memory: float


@dataclass(frozen=True)
class Target:
    """A promise, what was measured for it, and the most that it allows."""

    what: str
    got: float
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        """Tell whether the promise is kept."""
        return self.got <= self.limit


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted rounds over all cases")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "start_and_soup.json")
    parser.add_argument(
        "--folder", type=Path, help="where to make the teachers; default: the system's temporary folder"
    )
    options = parser.parse_args()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        teachers = make_teachers(Path(folder))
        runs = measure(cases(Path(folder), teachers), options.runs, teachers)
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "load_before_and_after": [before, os.getloadavg()],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "environment": {key: os.environ[key] for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if key in os.environ},
        "runs": {name: [asdict(run) for run in found] for name, found in runs.items()},
        "targets": [{**asdict(target), "met": target.met} for target in targets(runs)],
        "help_loads_torch": help_loads_torch(),
    }
    text = markdown(result, runs, targets(runs))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def make_teachers(folder: Path) -> list[Path]:
    """Write the checkpoints."""
    paths = [folder / f"teacher-{number}.safetensors" for number in range(max(TEACHERS))]
    subprocess.run([sys.executable, "-c", MAKE_TEACHERS, *map(str, paths)], check=True)
    return paths


def cases(folder: Path, teachers: Sequence[Path]) -> dict[str, list[str]]:
    """Name the commands to time."""
    fuse = ["--arch", "resnet50", "--method", "soup", "-o", str(folder / "student.safetensors")]
    soups = {f"soup of {count}": [WFCLI, "fuse", *map(str, teachers[:count]), *fuse] for count in TEACHERS}
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "wfcli --help": [WFCLI, "--help"],
        **soups,
        f"soup of {max(TEACHERS)}, files not in memory": soups[f"soup of {max(TEACHERS)}"],
    }


def measure(commands: Mapping[str, list[str]], rounds: int, teachers: Sequence[Path]) -> dict[str, list[Run]]:
    """Run the commands in turns, after one round that is not counted."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            if name.endswith("files not in memory"):
                drop_from_memory(teachers)
            found = run(command)
            if number > 0:
                runs[name].append(found)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return runs


def run(command: Sequence[str]) -> Run:
    """Time one process."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} ... ended with exit code {process.returncode}")
    resident = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(wall, usage.ru_utime + usage.ru_stime, resident / 1e6)


def drop_from_memory(files: Sequence[Path]) -> None:
    """Ask the kernel to forget the contents of files, so that they come from the disk (Linux; elsewhere nothing)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def targets(runs: Mapping[str, Sequence[Run]]) -> list[Target]:
    """Compare the medians with what we promise."""
    wall = {name: median(run.wall for run in found) for name, found in runs.items()}
    memory = {name: median(run.memory for run in found) for name, found in runs.items()}
    torch, least, most = wall["import torch"], f"soup of {min(TEACHERS)}", f"soup of {max(TEACHERS)}"
    return [
        Target("`wfcli --help`: a third of `import torch`", wall["wfcli --help"], torch / 3, "s"),
        Target(f"{most}: `import torch` and 2 s", wall[most], torch + 2, "s"),
        Target(f"memory of the {most}: that of the {least} and 5 %", memory[most], 1.05 * memory[least], "MB"),
    ]


def help_loads_torch() -> bool:
    """Tell whether `wfcli --help` imports torch."""
    done = subprocess.run([sys.executable, "-c", HELP_LOADS], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1] == "True"


def machine() -> str:
    """Describe the processor and the system."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = lines[0] if lines else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def markdown(result: Mapping[str, object], runs: Mapping[str, Sequence[Run]], kept: Sequence[Target]) -> str:
    """Draw the tables."""
    versions = ", ".join(f"{name} {number}" for name, number in dict(result["versions"]).items())  # type: ignore[call-overload]
    loads = " and ".join(f"{load[0]:.1f}" for load in result["load_before_and_after"])  # type: ignore[attr-defined]
    lines = [
        f"{result['date']}; {result['machine']}; {versions}; load average {loads} before and after;",
        f"median of {len(next(iter(runs.values())))} interleaved runs (smallest to largest).",
        "",
        "| | wall time, s | processor time, s | maximum resident set, MB |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {' | '.join(spread(found))} |" for name, found in runs.items()),
        "",
        "| promise | measured | at most | kept |",
        "|---|---:|---:|---|",
        *(f"| {t.what} | {t.got:.2f} {t.unit} | {t.limit:.2f} {t.unit} | {'yes' if t.met else 'no'} |" for t in kept),
        f"| `wfcli --help` does not import torch | | | {'no' if result['help_loads_torch'] else 'yes'} |",
    ]
    return "\n".join(lines) + "\n"


def spread(found: Sequence[Run]) -> list[str]:
    """Return median, least and most of each figure."""
    columns = (([getattr(run, name) for run in found], digits) for name, digits in FIGURES)
    return [f"{median(c):.{d}f} ({min(c):.{d}f} to {max(c):.{d}f})" for c, d in columns]


FIGURES = (("wall", 2), ("processor", 2), ("memory", 0))


if __name__ == "__main__":
    main()
