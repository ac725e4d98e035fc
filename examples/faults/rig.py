"""What the parts of faults.py share: tiny nets, the real command line in processes of its own, a row of the table."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NET = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125")
DIGITS = ("--data", "digits")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
LOGS = (".log.jsonl",)  # they tell images a second
LIMIT = 600  # seconds that no command here should take

Digests = dict[str, str]  # file name -> sha256


@dataclass
class Row:
    """One line of the table: a fault, what it was tried on, how often, and what was lost, in words."""

    fault: str
    verb: str
    expected: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judge(self, problems: Sequence[str], trial: str) -> None:
        """Count a trial; it survived if there are no problems."""
        self.tried += 1
        if problems:
            self.lost.append(f"{trial}: {'; '.join(problems)}")
            print(f"  LOST {self.fault} {self.verb}: {self.lost[-1]}", flush=True)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def clean(self, code: int, *words: str) -> list[str]:
        """Say what is wrong with an end that should have had this exit code and these words, and no traceback."""
        problems = [] if self.code == code else [f"exit code {self.code}, expected {code}"]
        if "Traceback" in self.stderr or "Exception ignored" in self.stderr:
            problems.append(f"a traceback: {self.stderr.strip().splitlines()[-1][:120]}")
        problems += [f"does not say {word!r}: {self.stderr[:160]!r}" for word in words if word not in self.stderr]
        return problems


def command(*args: str | Path) -> list[str]:
    """Return the command line of `wfcli` as it is in this checkout."""
    return [sys.executable, "-m", "wfcli", *map(str, args)]


def start(*args: str | Path, environment: Mapping[str, str] | None = None, **options: object) -> subprocess.Popen[str]:
    """Start a command."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(command(*args), env={**ENVIRONMENT, **(environment or {})}, **pipes)  # type: ignore[call-overload]


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command."""
    stdout, stderr = process.communicate(timeout=LIMIT)
    return Ended(process.returncode, stdout or "", stderr or "")


def run(*args: str | Path, environment: Mapping[str, str] | None = None, **options: object) -> Ended:
    """Run a command to its end."""
    return end(start(*args, environment=environment, **options))


def must(*args: str | Path, environment: Mapping[str, str] | None = None) -> float:
    """Run a command that has to succeed; return the seconds it took."""
    began = time.monotonic()
    ended = run(*args, environment=environment)
    if ended.code:
        raise SystemExit(f"{' '.join(map(str, args))}: exit code {ended.code}\n{ended.stderr}")
    return time.monotonic() - began


def digests(folder: Path, of: str = "") -> Digests:
    """Return the sha256 of the files in a folder whose names begin so, without logs and what is temporary."""
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.name.startswith(of))
    kept = [path for path in found if not is_temporary(path.name) and not path.name.endswith(LOGS)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def is_temporary(name: str) -> bool:
    """Tell whether a name is one that no command may leave."""
    return name.endswith(".tmp") or re.match(r"tmp\w{8}$", name) is not None


def leftovers(folder: Path) -> list[str]:
    """Name what no command may leave in a folder."""
    return sorted(path.name for path in folder.iterdir() if is_temporary(path.name))


def differences(found: Digests, wanted: Digests) -> list[str]:
    """Name the files that are missing, too many, or of other bytes."""
    return [
        f"{name}: {'missing' if name not in found else 'too many' if name not in wanted else 'other bytes'}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]


class Rig:
    """A folder with four fine-tunes of one base, made once; every part has a folder of its own in it."""

    def __init__(self, folder: Path, trials: int, seed: int) -> None:
        self.folder, self.trials, self.seed = folder, trials, seed
        folder.mkdir(parents=True, exist_ok=True)
        base = ("train-teachers", *NET, *DIGITS, "--count", "1", "--epochs", "2", "--seed", "1")
        must(*base, "-o", folder / "base")
        init = ("--init", folder / "base" / "teacher-00.safetensors")
        must("train-teachers", *NET, *DIGITS, *init, "--count", "5", "--epochs", "1", "-o", folder / "zoo")
        self.zoo = folder / "zoo"
        self.teachers = sorted(self.zoo.glob("*.safetensors"))[:3]
        self.soup = folder / "soup.safetensors"
        must("fuse", *self.teachers, *NET, "--method", "soup", "-o", self.soup)

    def place(self, name: str) -> Path:
        """Return a new empty folder."""
        folder = self.folder / name
        if folder.exists():
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        folder.mkdir(exist_ok=True)
        return folder

    def draw(self, part: str) -> random.Random:
        """Return a random generator of this part's own, so that parts can run in any order."""
        return random.Random(f"{self.seed} {part}")


Part = Callable[[Rig], list[Row]]
