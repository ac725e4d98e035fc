"""The wheel: whole on its own, away from the repository, with what is pretrained inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TinyTeachers
from wfcli.core.pretrained import list_pretrained

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it, without any download, into a folder of its own."""
    pytest.importorskip("hatchling")
    made = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", made, ROOT], check=True)
    (wheel,) = made.glob("wfcli-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", made / "site", wheel], check=True)
    return made / "site"


def _run(site: Path, folder: Path, *args: str | Path) -> str:
    """Run the installed console script from `folder`; return its stdout."""
    command = [sys.executable, site / "bin" / "wfcli", *args]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_wheel_lists_what_the_repository_holds(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(_run(installed, tmp_path, "list", "--json"))["pretrained"]
    assert [entry["name"] for entry in listed] == [generator.name for generator in list_pretrained()]
    assert all(Path(entry["path"]).is_relative_to(installed) for entry in listed)


def test_the_wheel_fuses_to_the_same_bytes(installed: Path, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    args = ("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "-o")
    _run(installed, tmp_path, *args, "from-wheel.safetensors")
    subprocess.run(
        [sys.executable, "-m", "wfcli", *args, tmp_path / "from-repository.safetensors"], cwd=ROOT, check=True
    )
    assert (tmp_path / "from-wheel.safetensors").read_bytes() == (tmp_path / "from-repository.safetensors").read_bytes()


def test_the_wheel_holds_types_tables_looks_and_licence(installed: Path) -> None:
    assert (installed / "wfcli" / "py.typed").is_file()
    assert (installed / "wfcli" / "core" / "layouts.json").is_file()
    assert (installed / "wfcli" / "report.css").is_file()
    assert list(installed.glob("wfcli-*.dist-info/licenses/LICENSE"))
    assert not (installed / "tests").exists()
