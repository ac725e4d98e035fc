"""Put what a finished examples/silo_teachers.sh measured where it is read: examples/results/ and the README's table.

Every mean is over pairs (a test task, a subset of its teachers), a generator's figure of a pair over its seeds;
behind the +- stands half the 95 % interval of the mean over the pairs (Student's t).
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
KINDS = {"vgg": "VGG-11 (BatchNorm)", "resnet": "ResNet-18", "vit": "Vision Transformer"}
HEURISTICS = ("FedAvg", "distance from", "head rows")
Values = dict[str, float]  # pair -> mean over the seeds, 0..1
Rows = Mapping[str, Values]

# Row of the tables -> row of the figures; {kind} is the kind of the net, None the best of the heuristics.
ONE_SHOT = {
    "mean single": "mean single",
    "best single (by validation)": "best single (by validation)",
    "soup, data-free": "soup, data-free",
    "soup, calibrated": "soup, calibrated",
    "FedAvg, calibrated": "FedAvg (by number of images), calibrated",
    "greedy soup, calibrated": "greedy soup, calibrated",
    "best of nine simple heuristics (chosen here)": None,
    "**generator of this kind of net, data-free**": "generator {kind}, data-free",
    "generator of this kind of net, calibrated": "generator {kind}, calibrated",
    "one generator for all three kinds, silos alone, data-free": "generator all, data-free",
    "one generator for all three kinds, silos alone, calibrated": "generator all, calibrated",
    "**one generator for all three kinds, data-free**": "generator both, data-free",
    "one generator for all three kinds, calibrated": "generator both, calibrated",
    "generator that never saw this kind of net, data-free": "generator no-{kind}, data-free",
    "generator that never saw this kind of net, calibrated": "generator no-{kind}, calibrated",
    "generator of this kind, data-free, `--probes 2000`": "generator {kind}, head fitted on probes",
    "generator for all kinds, silos alone, data-free, `--probes 2000`": "generator all, head fitted on probes",
    "generator for all kinds, data-free, `--probes 2000`": "generator both, head fitted on probes",
    "soup, data-free, `--probes 2000`": "soup, head fitted on probes",
    "control: generator of this kind, destroyed teachers": "control: generator {kind}, destroyed teachers",
    "ensemble": "ensemble",
    "ensemble, votes weighted by presence": "ensemble, votes weighted",
}
UNLABELLED = {
    "ensemble": "ensemble",
    "ensemble, votes weighted by presence": "ensemble, votes weighted",
    **{
        f"generator, {number:,} images: {label}": f"generator, {number} images, {row}"
        for number in (100, 300, 1000)
        for label, row in (("calibrated", "calibrated"), ("+ head fitted", "head fitted"), ("+ 100 steps", "100 steps"))
    },
    **{
        f"{start}, 1,000 images: {label}": f"{start}, 1000 images, {row}"
        for start in ("soup", "best single")
        for label, row in (("calibrated", "calibrated"), ("+ head fitted", "head fitted"), ("+ 100 steps", "100 steps"))
    },
}
MECHANISMS = {
    "`universal`: attention through cross tokens, flow": "vgg",
    "without cross-layer flow": "vgg-no-flow",
    "with shift consistency 0.1": "vgg-shift",
    "full attention": "vgg-full",
    "full attention, learned mask": "vgg-full-mask",
    "`weightformer`: full attention, mask, raw rows, residual, shift consistency 0.1": "vgg-weightformer",
    "`weightformer` without flow": "vgg-weightformer-no-flow",
    "`weightformer` without mask": "vgg-weightformer-no-mask",
    "`weightformer` without shift consistency": "vgg-weightformer-no-shift",
}
HEAD = """# examples/silo_teachers.sh: all tables

Top-1 in %. Silo teachers (Dirichlet 0.3 unless said otherwise) of three tasks of CIFAR-100 classes that no generator
and no base has seen (1,000 test images each) and of CIFAR-10 (2,000), K teachers a student, five subsets each (other
shares and unlabelled images: three; disjoint classes and all ten teachers: one); ± half the 95 % interval of the mean
over (task, subset).
Generators: the mean of three seeds where there are three (with probes, unlabelled images, and for controls: the first).
Calibrated: BatchNorm statistics of 1,000 augmented images that no teacher has seen. Presence, for weighted votes, is
taken on validation images. The raw numbers are in the JSON files beside this page.

"""


def main() -> None:
    """Write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the work folder of silo_teachers.sh")
    runs: Path = parser.parse_args().runs
    if not any(runs.glob("*.json")):
        raise SystemExit(
            f"{runs}: no tables there, expected vgg.json, resnet.json, vit.json of examples/silo_teachers.sh"
        )
    results = {
        kind: json.loads((runs / f"{kind}.json").read_text()) for kind in KINDS if (runs / f"{kind}.json").exists()
    }
    for kind, result in results.items():
        (HERE / "results" / f"silo_teachers_{kind}.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / "silo_teachers.md").write_text(page(results))
    text = README.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- silo table -->\n).*(<!-- end of silo table -->)", re.DOTALL)
    table = one_shot_table(results, list(ONE_SHOT), (3, 6))
    text, found = marks.subn(lambda mark: mark[1] + table + mark[2], text)
    assert found == 1, "README.md lacks the marks of the table"
    README.write_text(text, encoding="utf-8")
    print("\n".join(differences(results)))


def rows_of(result: Mapping[str, Any], group: str, count: int, seed: str = r"\d") -> dict[str, Values]:
    """Return the rows of a group of figures for one number of teachers; names of generators without their seeds.

    `seed` is a pattern: of other seeds there is nothing.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, value in result["figures"].items():
        parts = key.split("/", 4)
        if parts[0] != group or len(parts) < 5 or int(parts[2]) != count:
            continue
        generator = re.search(r"generator [a-z-]+?(-\d)", parts[4])
        if generator and not re.fullmatch(f"-{seed}", generator[1]):
            continue
        row = parts[4] if generator is None else parts[4].replace(generator[1], "", 1)
        found[row]["/".join(parts[1:4])].append(value)
    return {row: {pair: fmean(values) for pair, values in pairs.items()} for row, pairs in found.items()}


def best_of(rows: Rows, begin: tuple[str, ...]) -> Values:
    """Return, of the rows that begin so, that with the highest mean on the test images: an advantage no user has."""
    return max((v for name, v in rows.items() if name.startswith(begin)), key=lambda v: fmean(v.values()), default={})


def pick(rows: Rows, row: str | None, kind: str) -> Values:
    """Return a row of a table."""
    return best_of(rows, HEURISTICS) if row is None else rows.get(row.format(kind=kind), {})


def figure(values: Sequence[float], sign: str = "") -> str:
    """Write mean and half the 95 % interval of the mean, in percent."""
    if not values:
        return ""
    return f"{100 * fmean(values):{sign}.1f}" + (f" ± {100 * half(values):.1f}" if len(values) > 1 else "")


def half(values: Sequence[float]) -> float:
    """Return half the 95 % interval of the mean."""
    return float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def one_shot_table(
    results: Mapping[str, Any], labels: Sequence[str], counts: Sequence[int], group: str = "dirichlet 0.3"
) -> str:
    """Write the students made in one pass, one column for each kind of net and number of teachers."""
    columns = {}
    for kind, result in results.items():
        for count in counts:
            if rows := rows_of(result, group, count):
                columns[f"{KINDS[kind]}, K = {count}"] = {label: pick(rows, ONE_SHOT[label], kind) for label in labels}
    return plain_table(columns, {label: label for label in labels})


def plain_table(columns: Mapping[str, Rows], labels: Mapping[str, str]) -> str:
    """Write rows under the given names."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for label, row in labels.items():
        cells = [figure(list(rows.get(row, {}).values())) for rows in columns.values()]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(results: Mapping[str, Any]) -> str:
    """Write all tables, with date, machine and versions."""
    one = next(iter(results.values()))
    made = f"{one['date']}; {one['machine']}; wfcli {one['wfcli']}, torch {one['torch']}, timm {one['timm']}.\n"
    every = list(ONE_SHOT)
    parts = [HEAD + made]
    parts += ["## One pass\n\n" + one_shot_table(results, every, (3, 6, 10))]
    parts += ["## Differences\n\n" + "\n".join(f"- {line}" for line in differences(results)) + "\n"]
    for group in ("dirichlet 0.1", "dirichlet 1.0", "disjoint classes"):
        if any(rows_of(result, group, 3) for result in results.values()):
            parts += [f"## Other shares: {group}\n\n" + one_shot_table(results, every, (3, 6), group)]
    columns = {
        f"{KINDS[kind]}, K = {count}": rows_of(result, "unlabelled", count)
        for kind, result in results.items()
        for count in (3, 6)
    }
    parts.append(
        "## With images without labels (three subsets a task)\n\n" + plain_table(columns, UNLABELLED) + joint(results)
    )
    if "vgg" in results:
        columns = {
            f"VGG-11, K = {count}": {
                row: {pair: value for pair, value in values.items() if pair.startswith("test")}
                for row, values in rows_of(results["vgg"], "dirichlet 0.3", count, "0").items()
            }
            for count in (3, 6)
        }
        parts.append(
            "## The paper's mechanisms (three tasks of CIFAR-100, data-free, one seed)\n\n"
            + mechanisms(columns, MECHANISMS)
        )
    return "\n".join(parts)


def mechanisms(columns: Mapping[str, Rows], names: Mapping[str, str]) -> str:
    """Write the data-free rows of some generators, the usual one first, and how the others differ from it."""
    usual = next(iter(names.values()))
    head = [text for title in columns for text in (title, "difference to `universal`")]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for label, name in names.items():
        cells = []
        for rows in columns.values():
            first, here = (rows.get(f"generator {one}, data-free", {}) for one in (usual, name))
            apart = [] if name == usual else [here[key] - first[key] for key in here if key in first]
            cells += [figure(list(here.values())), figure(apart, "+")]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def joint(results: Mapping[str, Any]) -> str:
    """Say how good one net is that was trained on all images of a task."""
    lines = []
    for kind, result in results.items():
        rows = {
            k.split("/")[1]: v
            for k, v in result["figures"].items()
            if k.endswith("one net trained on the images of all teachers")
        }
        if rows:
            each = ", ".join(f"{task} {100 * value:.1f}" for task, value in rows.items())
            who = f"One {KINDS[kind]} trained on the images of all teachers of the task"
            passes = [rows_of(result, "dirichlet 0.3", count)[f"generator {kind}, data-free"] for count in (3, 6)]
            levels = [fmean(v for pair, v in own.items() if pair.split("/")[0] in rows) for own in passes]
            one = " and ".join(f"{100 * level:.1f}" for level in levels)
            lines.append(
                f"\n{who}: mean {figure(list(rows.values()))} ({each}); one pass on these, K = 3 and 6: {one}.\n"
            )
    return "".join(lines)


def differences(results: Mapping[str, Any]) -> list[str]:
    """Compare rows pair by pair, and say how much of the gap from soup to ensemble is closed."""
    lines = []
    for kind, result in results.items():
        for count in (3, 6, 10):
            rows = rows_of(result, "dirichlet 0.3", count)
            if not rows:
                continue
            own, every, both, unseen = (f"generator {name}" for name in (kind, "all", "both", f"no-{kind}"))
            compared = (
                (f"{own}, data-free", "soup, data-free"),
                (f"{own}, data-free", None),
                (f"{own}, data-free", f"{own}, calibrated"),
                (f"{own}, data-free", "ensemble"),
                (f"{own}, head fitted on probes", "ensemble"),
                (f"{every}, data-free", f"{own}, data-free"),
                ("generator all-long, data-free", f"{own}, data-free"),  # twice the steps; on the CIFAR-100 tasks
                (f"{every}, data-free", "ensemble"),
                (f"{every}, head fitted on probes", "ensemble"),
                (f"{every}, data-free", None),
                (f"{every}, head fitted on probes", None),
                (f"{both}, data-free", f"{own}, data-free"),
                (f"{both}, data-free", "ensemble"),
                (f"{both}, head fitted on probes", "ensemble"),
                (f"{both}, data-free", None),
                (f"{unseen}, data-free", "soup, data-free"),
            )
            for a, b in compared:
                first, second = pick(rows, a, kind), pick(rows, b, kind)
                apart = [first[pair] - second[pair] for pair in first if pair in second]
                if apart:
                    lines.append(f"{KINDS[kind]}, K = {count}: {a} - {b or 'best heuristic'}: {figure(apart, '+')}")
                if apart and b == "ensemble" and count < 10:
                    lines.append(f"{KINDS[kind]}, K = {count}: {a} - ensemble: " + by_data(first, second))
            lines += above_ensemble(rows_of(result, "unlabelled", count), f"{KINDS[kind]}, K = {count}")
            low, high = (fmean(rows[row].values()) for row in ("soup, data-free", "ensemble"))
            for name in (own, every, both, unseen, "soup"):
                for way in ("data-free", "calibrated", "head fitted on probes"):
                    values = rows.get(f"{name}, {way}")
                    if values and (name, way) != ("soup", "data-free"):
                        share = 100 * (fmean(values.values()) - low) / (high - low)
                        where = f"{KINDS[kind]}, K = {count}: {name}, {way}"
                        lines.append(f"{where}: {share:.0f} % of the gap from soup to ensemble")
    return lines


def by_data(first: Values, second: Values) -> str:
    """Write the differences of two rows on the tasks of CIFAR-100 and on CIFAR-10 apart."""
    tasks, other = (
        [value - second[pair] for pair, value in first.items() if pair in second and pair.startswith("test") == own]
        for own in (True, False)
    )
    return f"CIFAR-100 tasks {figure(tasks, '+')}, CIFAR-10 {figure(other, '+')}"


def above_ensemble(rows: Rows, where: str) -> list[str]:
    """Say how far students made with unlabelled images are from the ensemble."""
    lines = []
    for row, values in rows.items():
        if row.startswith("generator") and not row.endswith("calibrated"):
            apart = [values[pair] - rows["ensemble"][pair] for pair in values]
            lines.append(f"{where}: unlabelled: {row} - ensemble: {figure(apart, '+')}")
    return lines


if __name__ == "__main__":
    main()
