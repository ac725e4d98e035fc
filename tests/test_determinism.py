"""The same command gives the same bytes, whatever the number of threads and the seed of Python's hashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wfcli.core.architectures import find_architecture, key_layout
from wfcli.core.checkpoint import save_state, torch_dtype

# Wide enough for products that are shared out among threads.
ARCH = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.5")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wide")
    specs = key_layout(find_architecture("vgg11_bn_cifar", {"width": 0.5}), 100)
    torch.manual_seed(0)
    base = {key: torch.randn(spec.shape).mul(0.05).abs() for key, spec in specs.items()}
    paths = [folder / f"{number}.safetensors" for number in range(3)]
    for path in paths:
        moved = {key: (tensor + 0.01 * torch.randn(tensor.shape)).abs() for key, tensor in base.items()}
        save_state(path, {key: tensor.to(torch_dtype(specs[key].dtype)) for key, tensor in moved.items()}, {})
    return [str(path) for path in paths]


def digest(teachers: list[str], method: str, output: Path, threads: int) -> str:
    """Fuse in a process of its own."""
    where = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(threads)}
    where.pop("MKL_CBWR", None)
    command = [sys.executable, "-m", "wfcli", "fuse", *teachers, *ARCH, "--align", "none", "--json", "-o", str(output)]
    done = subprocess.run(
        [*command, "--method", *method.split()], capture_output=True, text=True, check=True, env=where
    )
    return str(json.loads(done.stdout)["digest"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["soup", "karcher", "dare", "weightformer --no-guard", "weightformer --probes 200"])
def test_threads_and_hash_seeds_change_nothing(teachers: list[str], tmp_path: Path, method: str) -> None:
    one, two = (digest(teachers, method, tmp_path / "student.safetensors", threads) for threads in (1, 2))
    assert one == two
