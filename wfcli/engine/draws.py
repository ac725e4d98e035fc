"""The lines of `wfcli compare`: what they say together, on disk and back."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from wfcli.core.outputs import atomic_path
from wfcli.errors import WfError


@dataclass(frozen=True)
class Line:
    """One student of one draw; accuracies 0..1, None where there is none."""

    count: int
    seed: int
    teachers: tuple[str, ...]
    method: str
    validation: float | None
    test: float | None
    seconds: float
    memory: int | None  # bytes
    note: str


@dataclass(frozen=True)
class Summary:
    """A method over all draws of so many teachers; `half` is half the 95 % interval of the mean (Student's t)."""

    count: int
    method: str
    draws: int  # of so many teachers
    made: int  # of them: in which this method was possible and gave a student
    validation: float | None
    test: float | None
    half: float | None  # None: one draw
    seconds: float  # median
    memory: int | None  # median, bytes


def read_lines(file: Path, asked: Mapping[str, Any]) -> list[Line]:
    """Read the lines of a comparison that goes on; none where there is none.

    Raises:
        WfError: the file cannot be read, or is that of another comparison.
    """
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        lines = [Line(**{**line, "teachers": tuple(line["teachers"])}) for line in found["lines"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WfError(f"{file}: cannot be read ({error})", hint="choose another -o, or remove it") from error
    other = [key for key, value in json.loads(json.dumps(asked)).items() if found.get(key) != value]
    if other:
        raise WfError(
            f"{file}: another comparison: it has other {', '.join(other)}",
            hint="the same command goes on with it; choose another -o, or remove it",
        )
    return lines


def summarise(lines: Sequence[Line]) -> list[Summary]:
    """Put the draws of each method together, in the order in which the methods came."""
    from scipy.stats import t as student_t

    grouped: dict[tuple[int, str], list[Line]] = defaultdict(list)
    seeds: dict[int, set[int]] = defaultdict(set)
    for line in lines:
        grouped[line.count, line.method].append(line)
        seeds[line.count].add(line.seed)
    found = []
    for (count, method), group in grouped.items():
        made = [line for line in group if line.validation is not None or line.test is not None]
        validation = [line.validation for line in made if line.validation is not None]
        test = [line.test for line in made if line.test is not None]
        memory = [line.memory for line in made if line.memory is not None]
        spread = stdev(test) / len(test) ** 0.5 if len(test) > 1 else None
        found.append(
            Summary(
                count=count,
                method=method,
                draws=len(seeds[count]),
                made=len(made),
                validation=fmean(validation) if validation else None,
                test=fmean(test) if test else None,
                half=None if spread is None else float(student_t.ppf(0.975, len(test) - 1)) * spread,
                seconds=median(line.seconds for line in group),
                memory=int(median(memory)) if memory else None,
            )
        )
    return found


def write_csv(path: Path, lines: Sequence[Line]) -> None:
    """Write one row a line.

    Raises:
        OutputError: the place cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Line)])
        for line in lines:
            cells = {**asdict(line), "teachers": " ".join(line.teachers)}
            writer.writerow(["" if cell is None else cell for cell in cells.values()])
