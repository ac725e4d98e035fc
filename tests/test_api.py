"""`from wfcli import ...`: the names are frozen, the options are those of the engine, so are the results."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

import wfcli
from tests.conftest import Ran, TinyTeachers
from wfcli import Comparison, FuseResult, WfError, WfWarning, evaluate, fuse, load_generator, load_model
from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.engine.evaluate import EvaluateConfig
from wfcli.engine.fuse import FuseConfig

# Others import these: additions are fine, a missing name breaks somebody's code.
PUBLIC = "Comparison FuseResult Hooks Row WfError WfWarning __version__ evaluate fuse load_generator load_model"
ROOT = Path(__file__).resolve().parents[1]
NET: dict[str, Any] = {"arch": "vgg11_bn_cifar", "arch_args": {"width": 0.125}}


def test_the_public_names_are_frozen() -> None:
    assert wfcli.__all__ == PUBLIC.split()
    for name in wfcli.__all__:
        assert getattr(wfcli, name) is not None
        assert name in dir(wfcli)
    with pytest.raises(AttributeError, match="module 'wfcli' has no attribute 'fused'"):
        _ = wfcli.fused


@pytest.mark.parametrize(("verb", "config"), [(fuse, FuseConfig), (evaluate, EvaluateConfig)])
def test_the_options_are_those_of_the_engine(verb: Callable[..., Any], config: type[Any]) -> None:
    given = inspect.signature(verb).parameters
    own = {"arch", "arch_args", "hooks"}
    wanted = {field.name: field.default for field in fields(config) if field.name != "architecture"}
    assert set(given) - own == set(wanted)
    for name, default in wanted.items():
        offered = given[name].default
        if default is MISSING:
            assert offered in (inspect.Parameter.empty, ()), name
        elif name == "params":
            assert offered is None  # a mapping here, pairs there
        else:
            assert offered == default, name
    assert get_type_hints(verb)["return"] in (FuseResult, Comparison)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, wfcli; print(wfcli.__version__, 'torch' in sys.modules, 'wfcli.api' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [wfcli.__version__, "False", "False"]


def test_fuse_writes_what_the_command_line_writes(
    wfcli: Callable[..., Ran], tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    made = fuse(tiny_teachers.paths, tmp_path / "a.safetensors", **NET, method="ties", params={"density": 0.3})
    assert isinstance(made, FuseResult)
    assert (made.method, made.teachers) == ("ties", tuple(path.name for path in tiny_teachers.paths))
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "ties", "--param", "density=0.3")
    assert wfcli("fuse", *args, "-o", tmp_path / "b.safetensors").code == 0
    assert made.output.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_students_own_header_says_the_net(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    made = fuse(
        [str(tiny_teachers.folder)], tmp_path / "a.safetensors", **NET, method="soup", rules=["head.*:method=copy:0"]
    )
    model = load_model(made.output)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    again = fuse([made.output, tiny_teachers.paths[0]], tmp_path / "b.safetensors", method="soup")
    provenance = open_checkpoint(again.output).provenance or {}
    assert provenance["architecture"] == {"name": "vgg11_bn_cifar", "args": {"width": 0.125}}


def test_a_net_is_loaded_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = build_model(find_architecture("vit_tiny_cifar", {"width": 0.25}), 7).eval()
    save_state(tmp_path / "net.safetensors", net.state_dict(), {})
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    model = load_model(tmp_path / "net.safetensors", arch="vit_tiny_cifar", arch_args={"width": 0.25})
    assert torch.equal(torch.rand(1), drawn), "the caller's random numbers go on"
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(model(x), net(x))


def test_warnings_are_pythons_and_point_at_the_caller(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = build_model(find_architecture("vgg11_bn_cifar", {"width": 0.125}), 10).state_dict()
    save_state(tmp_path / "stranger.safetensors", state, {})
    with pytest.warns(WfWarning, match="no generator fits, so the student is the soup") as caught:
        fuse([*tiny_teachers.paths[:1], tmp_path / "stranger.safetensors"], tmp_path / "s.safetensors", **NET)
    assert caught[0].filename == __file__


def test_errors_are_ours(tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    with pytest.raises(WfError, match="no such teacher file"):
        fuse(["missing.safetensors", *tiny_teachers.paths], tmp_path / "s.safetensors", **NET)
    with pytest.raises(WfError, match="does not say which net it is of"):
        fuse(tiny_teachers.paths, tmp_path / "s.safetensors")
    with pytest.raises(WfError, match="arch_args: of no use without arch"):
        fuse(tiny_teachers.paths, tmp_path / "s.safetensors", arch_args={"width": 0.125})
    with pytest.raises(WfError, match="pretrained:universal?"):
        load_generator("pretrained:univers")
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_generator_is_loaded() -> None:
    generator = load_generator("pretrained:universal")
    assert generator.config.preset == "universal"
    assert sum(parameter.numel() for parameter in generator.parameters()) > 10_000


def test_the_lines_of_the_readme_run(
    digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zoo").symlink_to(digits_zoo)
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("## As a library")[1].split("```")[1]
    exec(compile(lines.removeprefix("python"), "README.md", "exec"), {})  # noqa: S102 (our own README)
    told = capsys.readouterr().out.splitlines()
    assert " universal (0." in told[0]
    assert {line.split()[0] for line in told} >= {"student.safetensors", "teacher-00.safetensors", "ensemble", "soup"}


def test_evaluate_gives_typed_rows(tiny_teachers: TinyTeachers) -> None:
    pytest.importorskip("sklearn")
    with pytest.warns(WfWarning, match="no more than by guessing"):  # they have learned nothing
        found = evaluate(tiny_teachers.paths[:1], "digits", teachers=tiny_teachers.paths, **NET, calibration_images=0)
    assert isinstance(found, Comparison)
    assert {"checkpoint", "ensemble", "soup"} <= {row.kind for row in found.rows}
    assert all(0 <= row.top1 <= 1 for row in found.rows if row.top1 is not None)
