"""Inputs that a fuzzer finds by itself, by the lines of our readers that they reach: atheris, where it is installed.

It never returns from its loop, so each reader gets a process of its own: ``python guided.py READER -runs=N ...``, with
the options of libFuzzer. `run` starts one and reads what it says at its end.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
READERS = {  # name -> file that the bytes are written to, target whose inputs it starts from
    "safetensors header": ("x.safetensors", "safetensors"),
    "index of shards": ("model.safetensors.index.json", "shards"),
    "generator config": ("config.json", "generator"),
    "zoo.json": ("zoo.json", "zoo"),
    "pickle": ("x.pt", "pickle"),
}
LIMITS = ("-timeout=10", "-rss_limit_mb=3000", "-max_len=8192", "-print_final_stats=1", "-verbosity=0")


def installed() -> bool:
    """Tell whether atheris is there: pip install 'wfcli[fuzz]', with Python 3.11 to 3.13 on Linux."""
    return find_spec("atheris") is not None


def run(reader: str, inputs: int, seed: int) -> dict[str, Any]:
    """Fuzz one reader with so many inputs; return their number, and what was found."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        _plant(reader, corpus, seed)
        command = [sys.executable, __file__, reader, f"-runs={inputs}", f"-seed={seed + 1}", *LIMITS]
        command += [f"-artifact_prefix={folder}/found-", str(corpus)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        said = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        findings = [{"file": path.name, "bytes": path.read_bytes().hex()} for path in Path(folder).glob("found-*")]
    if findings or done.returncode:
        findings = findings or [{"file": "none", "bytes": ""}]
        findings[0]["said"] = done.stderr[-3000:]
    return {"inputs": int(said[-1]) if said else 0, "findings": findings}


def _plant(reader: str, corpus: Path, seed: int) -> None:
    """Write inputs to start from: some of the corpus of mutations."""
    from tests import hostile

    file, name = READERS[reader]
    corpus.mkdir()
    for number in range(60):
        with tempfile.TemporaryDirectory() as place:
            hostile.targets()[name].make(Random(f"{seed}/{number}"), Path(place))
            found = next((path for path in Path(place).glob("x.*" if name == "pickle" else file)), None)
            if found is not None and found.is_file():
                (corpus / str(number)).write_bytes(found.read_bytes()[:8192])


def fuzz(reader: str) -> None:
    """Never return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["wfcli", "torch._weights_only_unpickler"], enable_loader_override=False):
        from wfcli.core.checkpoint import open_checkpoint
        from wfcli.core.generator_files import _read_config
        from wfcli.core.zoo import read_zoo
        from wfcli.errors import WfError
    place = Path(tempfile.mkdtemp())
    file = place / READERS[reader][0]

    def read(data: bytes) -> None:
        file.write_bytes(data)
        try:
            if file.name == "config.json":
                _read_config(place, "generator")
            elif file.name == "zoo.json":
                read_zoo(place)
            else:
                checkpoint = open_checkpoint(file)
                for key in checkpoint:
                    checkpoint[key]
        except WfError:
            pass

    atheris.Setup([sys.argv[0], *sys.argv[2:]], read)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1])
