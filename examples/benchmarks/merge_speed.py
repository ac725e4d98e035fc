"""How fast `wfcli fuse` merges and how much memory that takes, beside mergekit on the same files.

    python examples/benchmarks/merge_speed.py resnet50|vit_b_32|large|layers [--mergekit BIN] [--runs 5]

    resnet50   2 and 8 ResNet-50 (102 MB each), random weights round a base
    vit_b_32   2 and 8 ViT-B/32 (353 MB each)
    large      2 vit_gigantic_patch14_224 (7.4 GB each, in shards); and `sha256sum` of both with a copy of one
    layers     how long the generator takes for one layer, by its number of channels

BIN is the `mergekit-pytorch` of an environment of its own (python -m venv E; E/bin/pip install mergekit); without it
its cells stay empty. Every run is a process of its own, timed from outside; memory is the maximum resident set that the
kernel reports. The cases take turns; one round before the first fills the caches and is not counted. Needs 25 GB of
disk for `large`. Each step adds to examples/results/merge_speed.json; write_merge_speed.py shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from start_and_soup import PACKAGES, WFCLI, Run, machine, run

RESULTS = Path(__file__).parents[1] / "results" / "merge_speed.json"
ARCHITECTURES = {"resnet50": "resnet50", "vit_b_32": "vit_b_32", "large": "vit_gigantic_patch14_224"}
COUNTS = {"resnet50": (2, 8), "vit_b_32": (2, 8), "large": (2,)}
METHODS = {"resnet50": ("soup", "karcher", "ties"), "vit_b_32": ("soup", "karcher", "ties"), "large": ("soup",)}
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
FAN_IN = 1152  # of a layer: 128 channels, 3 x 3
LAYER_TEACHERS = 8
SHARD = 2 * 10**9

# Teachers round a base: random numbers, as only time counts; made a tensor at a time.
MAKE = """
import sys, torch
from pathlib import Path
from wfcli.core.architectures import find_architecture, key_layout
from wfcli.core.checkpoint import torch_dtype, write_checkpoint, write_shards
arch, most, seed, *paths = sys.argv[1:]
specs = key_layout(find_architecture(arch), 1000)
def tensors(number):
    for name, spec in sorted(specs.items()):
        draw = torch.Generator().manual_seed(int(seed))
        base = torch.rand(spec.shape, generator=draw) - 0.5 * ("running_var" not in name)
        own = torch.Generator().manual_seed(number + 1)
        yield name, (base + 0.01 * torch.randn(spec.shape, generator=own).abs()).to(torch_dtype(spec.dtype))
for number, path in enumerate(map(Path, paths)):
    if int(most):
        write_shards(path, specs, tensors(number), {}, int(most))
    else:
        write_checkpoint(path, specs, tensors(number), {})
"""
# One layer of T teachers through the generator, by its channels N: seconds, median of some.
LAYERS = """
import json, sys, time, torch
from pathlib import Path
from statistics import median
from wfcli.core.generator_files import load_generator
from wfcli.core.plan import LayerSpec
from wfcli.core.tokens import LayerTokens, row_products
teachers, fan_in, runs, *widths = map(int, sys.argv[2:])
generator, _ = load_generator(Path(sys.argv[1]), "universal")
found = {}
for width in widths:
    torch.manual_seed(0)
    spec = LayerSpec("layer", "conv", width, "weight", norm_weight="norm", running_mean="mean", running_var="var")
    weight, affines = torch.randn(teachers, width, fan_in), torch.rand(3, teachers, width)
    tokens = LayerTokens(weight, affines, torch.rand(2, teachers, width))
    seconds = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            begun = time.perf_counter()
            generator.generate_layer(spec, tokens, row_products(tokens), generator.start(teachers))
            seconds.append(time.perf_counter() - begun)
    found[width] = median(seconds[1:])
print(json.dumps(found))
"""


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*ARCHITECTURES, "layers"])
    parser.add_argument("--mergekit", help="mergekit-pytorch of an environment of its own")
    parser.add_argument("--runs", type=int, default=5, help="counted rounds over all cases")
    parser.add_argument("--folder", type=Path, help="where to make the teachers; default: the temporary folder")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.part == "layers":
        known["layers"] = layers(options.runs)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            known[options.part] = compared(options.part, Path(folder), options.mergekit, options.runs)
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def compared(part: str, folder: Path, mergekit: str | None, rounds: int) -> dict[str, Any]:
    """Make the teachers, and time all commands in turns."""
    teachers = make(part, folder)
    commands = cases(part, folder, teachers, mergekit)
    before = os.getloadavg()
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    for number in range(rounds + 1):
        for name, command in commands.items():
            if name in failed:
                continue
            shutil.rmtree(folder / "out", ignore_errors=True)
            (folder / "out").mkdir()
            try:
                found = run(command)
            except SystemExit:
                failed[name] = why(command)
                continue
            if number:
                runs[name].append(found)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "mergekit": mergekit_version(mergekit),
        "load_before_and_after": [before, os.getloadavg()],
        "bytes": {str(count): sum(size(path) for path in teachers[:count]) for count in COUNTS[part]},
        "student": size(teachers[0]),
        "disk": disk_rate(folder, teachers[:1]),
        "runs": {name: [asdict(each) for each in found] for name, found in runs.items()},
        "failed": failed,
    }


def make(part: str, folder: Path) -> list[Path]:
    """Write the teachers, and a base after them."""
    count = max(COUNTS[part])
    places = [folder / f"t{number}" for number in range(count + 1)]
    for place in places:
        place.mkdir()
    files = [place / "model.safetensors" for place in places]
    most = SHARD if part == "large" else 0
    wanted = files[:-1] if part == "large" else files
    subprocess.run([sys.executable, "-c", MAKE, ARCHITECTURES[part], str(most), "0", *map(str, wanted)], check=True)
    return wanted


def cases(part: str, folder: Path, teachers: Sequence[Path], mergekit: str | None) -> dict[str, list[str]]:
    """Name the commands to time."""
    names = [str(path.parent if part == "large" else path) for path in teachers]
    base, student = names[-1], str(folder / "out" / "student.safetensors")
    fuse = [WFCLI, "fuse", "--arch", ARCHITECTURES[part], "-o", student]
    commands: dict[str, list[str]] = {"import torch": [sys.executable, "-c", "import torch"]}
    commands["wfcli --help"] = [WFCLI, "--help"]
    if mergekit:
        commands["mergekit --help"] = [mergekit, "--help"]
    for count in COUNTS[part]:
        chosen = names[:count]
        for method in METHODS[part]:
            more = ["--base", base] if method == "ties" else []
            commands[f"wfcli {method} {count}"] = [*fuse, *chosen, "--method", method, *more]
            if mergekit:
                config = folder / f"{method}-{count}.json"  # JSON is YAML
                config.write_text(json.dumps(recipe(method, chosen, base)))
                commands[f"mergekit {method} {count}"] = [mergekit, str(config), str(folder / "out" / "merged")]
        if part != "large":
            commands[f"wfcli weightformer {count}"] = [*fuse, *chosen, "--align", "none"]
            commands[f"wfcli weightformer, no guard {count}"] = [*fuse, *chosen, "--align", "none", "--no-guard"]
    if part == "large":
        files = [str(file) for path in teachers for file in sorted(path.parent.glob("*.safetensors"))]
        copies = " ".join(str(file) for file in sorted(teachers[0].parent.glob("*.safetensors")))
        copied = f"sha256sum {' '.join(files)} > /dev/null && cat {copies} > {student} && sync {student}"
        commands["sha256sum of the inputs, one write"] = ["bash", "-c", copied]
        commands["wfcli soup 2 in shards"] = [*commands["wfcli soup 2"], "--max-shard-size", "2GB"]
    return commands


def recipe(method: str, teachers: Sequence[str], base: str) -> dict[str, Any]:
    """Return mergekit's configuration of a merge."""
    own = {"weight": 1.0, **({"density": 0.2} if method == "ties" else {})}
    models = [{"model": teacher, "parameters": own} for teacher in teachers]
    found = {"merge_method": "linear" if method == "soup" else method, "models": models, "dtype": "float32"}
    return {**found, "base_model": base} if method == "ties" else found


def why(command: Sequence[str]) -> str:
    """Say in a line why a command failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def mergekit_version(mergekit: str | None) -> str | None:
    """Return the version of mergekit and of its torch."""
    if mergekit is None:
        return None
    ask = "from importlib.metadata import version as v; print(v('mergekit'), 'with torch', v('torch'))"
    python = Path(mergekit).with_name("python")
    return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def size(path: Path) -> int:
    """Return the bytes of a checkpoint, whole or in shards."""
    return sum(file.stat().st_size for file in path.parent.glob("*.safetensors"))


def disk_rate(folder: Path, teachers: Sequence[Path]) -> dict[str, float]:
    """Measure what the disk gives to one reader and one writer of files that are not in memory, bytes a second."""
    script = (
        "import os, sys, time\n"
        "from start_and_soup import drop_from_memory\n"
        "from pathlib import Path\n"
        "files = [Path(f) for f in sys.argv[2:]]\n"
        "drop_from_memory(files)\n"
        "begun, total = time.perf_counter(), 0\n"
        "for file in files:\n"
        "    with file.open('rb', buffering=0) as opened:\n"
        "        while piece := opened.read(1 << 22): total += len(piece)\n"
        "read = total / (time.perf_counter() - begun)\n"
        "begun, data = time.perf_counter(), os.urandom(1 << 22)\n"
        "with open(sys.argv[1], 'wb', buffering=0) as opened:\n"
        "    for _ in range(256): opened.write(data)\n"
        "    os.fsync(opened.fileno())\n"
        "print(read, 256 * len(data) / (time.perf_counter() - begun))\n"
    )
    files = [str(file) for path in teachers for file in sorted(path.parent.glob("*.safetensors"))]
    target = folder / "rate.bin"
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(target), *files]
    read, write = subprocess.run(command, capture_output=True, text=True, check=True, env=where).stdout.split()
    target.unlink()
    return {"read": float(read), "write": float(write)}


def layers(rounds: int) -> dict[str, Any]:
    """Time the generator that comes with wfcli on one layer of eight teachers."""
    generator = Path(__file__).parents[2] / "pretrained" / "universal"
    numbers = [LAYER_TEACHERS, FAN_IN, rounds, *WIDTHS]
    command = [sys.executable, "-c", LAYERS, str(generator), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = json.loads(done.stdout)
    return {"date": date.today().isoformat(), "machine": machine(), "fan_in": FAN_IN, "seconds": seconds}


if __name__ == "__main__":
    main()
