"""What holds for the project as a whole: which file may import what, what starts fast, what no file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wfcli.core.architectures import find_architecture, key_layout
from wfcli.core.checkpoint import save_state, torch_dtype

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wfcli"
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMAND_LINE = {
    "wfcli.cli",
    "wfcli.commands",
    "wfcli.html_page",
    "wfcli.html_pictures",
    "wfcli.html_plots",
    "wfcli.html_report",
    "wfcli.options",
    "wfcli.pipes",
    "wfcli.plots",
    "wfcli.recipe_file",
    "wfcli.report",
    "wfcli.terminal",
    "wfcli.typed",
    "wfcli.units",
    "typer",
    "rich",
}
HEAVY = (
    "torch",
    "timm",
    "torchvision",
    "datasets",
    "torchmetrics",
    "sklearn",
    "numpy",
    "huggingface_hub",
    "matplotlib",
)

# Who may import what touches the outside world, or is heavy: one place to look when a library changes.
ONLY_USERS: dict[str, set[str]] = {
    "typer": {"cli", "commands", "options", "pipes", "recipe_file", "typed"},
    "matplotlib": {"html_plots", "plots"},
    "rich": {"commands", "html_page", "report", "terminal"},
    "datasets": {"core/data_sources", "core/tables"},
    "huggingface_hub": {
        "core/data_sources",
        "core/generator",
        "core/hub",
        "core/hub_cards",
        "core/hub_lists",
        "core/hub_names",
        "core/hub_upload",
        "core/tables",
    },
    "safetensors": set(),  # we read and write the format ourselves; the mixin of the generator needs it
    "sklearn": {"core/digits"},
    "timm": {"core/architecture_names", "core/architectures", "core/small_models", "core/timm_config"},
    "torchmetrics": {"core/metrics"},
    "torchvision": {"core/decode"},
}


def _module(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def _imports(path: Path) -> set[str]:
    """Return the full names of all modules a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_module(path)}: a relative import"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _reaches(imports: set[str], forbidden: set[str]) -> set[str]:
    return {name for name in imports for no in forbidden if name == no or name.startswith(f"{no}.")}


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_imports_go_one_way(path: Path) -> None:
    forbidden: set[str] = set()
    if _module(path).startswith("core/"):
        forbidden = COMMAND_LINE | {"wfcli.engine"}
    elif _module(path).startswith("engine/"):
        forbidden = COMMAND_LINE
    elif _module(path) == "errors":
        forbidden = {"wfcli"}
    elif _module(path) in ("report", "options", "terminal", "units") or _module(path).startswith("html_"):
        forbidden = {"wfcli.cli", "wfcli.commands"}
    assert not _reaches(_imports(path), forbidden)


@pytest.mark.parametrize("library", ONLY_USERS)
def test_each_library_has_its_place(library: str) -> None:
    users = {_module(path) for path in MODULES if _reaches(_imports(path), {library})}
    assert users == ONLY_USERS[library]


def _loaded(code: str) -> set[str]:
    """Run code in a fresh Python and return which heavy libraries it loaded."""
    report = f"\nimport sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_the_command_line_starts_light() -> None:
    assert _loaded("import wfcli.cli") == set()


@pytest.mark.parametrize("args", [["--help"], ["fuse", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    code = f"from wfcli.cli import app\napp({args!r}, prog_name='wfcli', standalone_mode=False)"
    assert _loaded(code) == set()


def test_list_loads_the_client_of_the_hub_alone() -> None:
    code = "from wfcli.cli import app\napp(['list'], prog_name='wfcli', standalone_mode=False)"
    assert _loaded(code) == {"huggingface_hub"}  # which knows its cache


@pytest.mark.parametrize("module", ["wfcli.errors", "wfcli.core.sources", "wfcli.core.pretrained"])
def test_names_are_resolved_without_torch(module: str) -> None:
    assert "torch" not in _loaded(f"import {module}")


def test_torch_is_loaded_quickly_and_the_collector_goes_on() -> None:
    code = "import gc\nfrom wfcli.core.start import load_torch\nload_torch()\nassert gc.isenabled()\n"
    assert "torch" in _loaded(
        code + "frozen = gc.get_freeze_count()\nload_torch()\nassert gc.get_freeze_count() <= frozen"
    )


def _fuse(folder: Path, *teachers: Path) -> str:
    args = [*map(str, teachers), "--arch", "resnet18", "--method", "soup", "-o", str(folder / "out.safetensors")]
    return f"from wfcli.cli import app\napp(['fuse', *{args!r}], prog_name='wfcli', standalone_mode=False)"


def test_what_is_wrong_with_headers_is_told_without_torch(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_state(tmp_path / f"{name}.safetensors", {"x": torch.zeros(2)}, {"name": name})
    (tmp_path / "c.safetensors").write_bytes(b"12")
    assert _loaded(_fuse(tmp_path, *tmp_path.iterdir())) == set()


def test_a_soup_loads_torch_alone(tmp_path: Path) -> None:
    specs = key_layout(find_architecture("resnet18"), 3)
    state = {key: torch.ones(spec.shape, dtype=torch_dtype(spec.dtype)) for key, spec in specs.items()}
    for name in ("a", "b"):
        save_state(tmp_path / f"{name}.safetensors", state, {"name": name})
    assert _loaded(_fuse(tmp_path, *tmp_path.iterdir())) == {"torch", "numpy"}  # numpy comes with torch
    assert (tmp_path / "out.safetensors").exists()


def _committed_files() -> list[Path]:
    """Return the files of the project, ignored ones left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_path_of_a_machine() -> None:
    somewhere = re.compile(rb"/(?:home|root|Users)/\w|[A-Z]:\\Users|" + re.escape(str(ROOT).encode()))
    assert not [str(path.relative_to(ROOT)) for path in _committed_files() if somewhere.search(path.read_bytes())]


def test_every_module_says_what_it_is() -> None:
    silent = [
        _module(path) for path in MODULES if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_the_readme_has_every_module_and_nothing_else() -> None:
    rows = re.findall(r"^\| `([\w/]+\.py)` \| \S.* \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(f"{_module(path)}.py" for path in MODULES if path.stat().st_size)
