"""The Hub as it is at its corners: redirects, gates, limits, and what other programs wrote there or read from there."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save
from timm.models._hub import save_for_hf

from tests.conftest import Ran, TinyTeachers
from tests.hub_server import TOKEN, HubServer, run_alone, use_hub
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.sources import resolve_sources

Run = Callable[..., Ran]
# The client's own way to upload; warnings are errors here.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
ROOT = str(Path(__file__).resolve().parents[1])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch, TOKEN)
        yield server


def weights(value: float, numbers: int = 1000) -> bytes:
    return save({"w": torch.full((numbers,), value)})


def assert_error(ran: Ran, message: str) -> None:
    assert ran.code == 1
    assert re.search(message, ran.stderr), ran.stderr
    assert "hint: " in ran.stderr


# Redirects


def test_large_files_come_from_the_storage_which_gets_no_token(hub: HubServer, wfcli: Run) -> None:
    body = weights(1)
    commit = hub.add("me/own", {"model.safetensors": body, "config.json": b"{}"}, private=True)
    told = json.loads(wfcli("pull", "hf:me/own", "--json").stdout)
    assert told["commit"] == commit
    assert Path(told["files"][0]["path"]).read_bytes() == body
    sent = {one.path: one.token for one in hub.downloads}
    assert sent == {f"/storage/{commit}/me/own/model.safetensors": False, f"/me/own/resolve/{commit}/config.json": True}


def test_a_renamed_repository_is_found_by_its_old_name(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_teachers.paths}
    old = hub.add("you/new", {**files, "teacher-01.safetensors": files["teacher-00.safetensors"]}, branch="v1")
    new = hub.add("you/new", files)
    hub.renamed["you/old"] = "you/new"
    for source, commit in (("hf:you/old:teacher-01.*", new), ("hf:you/old@v1:teacher-01.safetensors", old)):
        [found] = resolve_sources([source])
        assert found.revision == commit
        assert found.path.read_bytes() == files["teacher-01.safetensors" if commit == new else "teacher-00.safetensors"]
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", f"hf:you/old@{new}:*.safetensors", *tiny_teachers.arch, "--method", "soup", "-o", out)
    assert ran.code == 0, ran.stderr
    made = (open_checkpoint(out).provenance or {})["sources"]
    assert {source["revision"] for source in made} == {new}
    assert any(request.startswith("HEAD /you/old/resolve/") for request in hub.requests)
    assert not any(one.path.startswith("/storage") and "you/old" in one.path for one in hub.downloads)


def test_a_download_through_redirects_goes_on_where_it_stopped(
    hub: HubServer, wfcli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    body = weights(1, 4_000_000)
    hub.add("you/new", {"model.safetensors": body})
    hub.renamed["you/old"] = "you/new"
    hub.cut, hub.keep = 1, 0.9
    assert wfcli("pull", "hf:you/old:model.safetensors", "-o", tmp_path / "out").code == 0
    first, second = hub.downloads
    assert (first.status, second.status) == (200, 206)
    assert re.fullmatch(r"bytes=[1-9]\d+-", second.asked or "")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == body


def test_damage_behind_a_redirect_is_told(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    hub.add("you/new", {"model.safetensors": weights(1)})
    hub.renamed["you/old"] = "you/new"
    hub.corrupt = True
    ran = wfcli("pull", "hf:you/old:model.safetensors", "-o", tmp_path / "out")
    assert_error(ran, r"model\.safetensors: got sha256 \w{12}, expected \w{12}, as the Hub says: ")


# Who may read, and how often


def test_a_gated_repository_needs_a_token_with_access(
    hub: HubServer, wfcli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("you/gated", {"model.safetensors": weights(1)}, gated=True)
    refused = r"you/gated is gated, and you have no access\nhint: accept its terms on the page of you/gated, then log"
    assert_error(wfcli("pull", "hf:you/gated"), refused)
    hub.repositories["you/gated"].accepted.add("me")
    monkeypatch.delenv("HF_TOKEN")
    assert_error(wfcli("pull", "hf:you/gated"), refused)
    assert hub.downloads == []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert wfcli("pull", "hf:you/gated").code == 0


def test_a_limit_says_for_how_long_to_wait(hub: HubServer, wfcli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.add("you/net", {"model.safetensors": weights(1)})
    hub.busy, hub.busy_at, hub.busy_for = 1, "/storage/", 37
    assert wfcli("pull", "hf:you/net:model.safetensors").code == 0
    assert hub.busy == 0
    from huggingface_hub.utils import _http

    if hasattr(_http, "_parse_retry_after"):  # older clients wait as long as they like
        assert any(37 <= wait <= 39 for wait in waits), waits


def test_the_command_line_heeds_hf_home(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    commit = hub.add("me/own", {"model.safetensors": weights(1)}, private=True)
    home = tmp_path / "home"
    home.mkdir()
    pull = ("-m", "wfcli", "pull", "hf:me/own", "--json")
    done = run_alone(*pull, HF_HOME=str(home), HF_ENDPOINT=hub.endpoint, PYTHONPATH=ROOT)
    assert done.returncode == 1
    assert "no repository me/own on the Hub, or it is private" in done.stderr
    (home / "token").write_text(TOKEN)  # as hf auth login leaves it
    done = run_alone(*pull, HF_HOME=str(home), HF_ENDPOINT=hub.endpoint, PYTHONPATH=ROOT)
    assert done.returncode == 0, done.stderr
    folder = home / "hub" / "models--me--own" / "snapshots" / commit
    assert Path(json.loads(done.stdout)["folder"]) == folder
    assert (folder / "model.safetensors").read_bytes() == weights(1)


# Bars


def on_screen(hub: HubServer, tmp_path: Path, *args: str | Path) -> str:
    """Run the command line on a terminal; return what was drawn."""
    pytest.importorskip("termios")  # POSIX
    from tests.terminals import on_terminal

    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": ROOT}
    code, _, drawn = on_terminal([sys.executable, "-m", "wfcli", *args], variables)
    assert code == 0, drawn
    return drawn


def test_on_a_terminal_each_file_has_a_bar(hub: HubServer, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    for number, path in enumerate(tiny_teachers.paths):
        hub.add(f"me/t{number}", {f"net-{number}.safetensors": path.read_bytes()})
    sources = [f"hf:me/t{number}:net-{number}.safetensors" for number in range(3)]
    out = ("--method", "soup", "-o", tmp_path / "s.safetensors")
    drawn = on_screen(hub, tmp_path, "fuse", *sources, *tiny_teachers.arch, *out)
    for number in range(3):
        assert re.search(rf"\rnet-{number}\.safetensors: 100%\|", drawn), drawn
    assert "\u241b" not in drawn  # the picture of an escape code


def test_the_bars_of_the_client_and_ours_do_not_meet(
    hub: HubServer, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    hub.add("me/bigs", {path.name: path.read_bytes() for path in tiny_teachers.paths})
    out = ("--method", "soup", "-o", tmp_path / "s.safetensors")
    drawn = on_screen(hub, tmp_path, "fuse", "hf:me/bigs:*.safetensors", *tiny_teachers.arch, *out)
    assert re.search(r"\rFetching 3 files: 100%\|", drawn), drawn
    assert "\u241b" not in drawn
    fetching, _, merging = drawn.rpartition("Fetching 3 files")
    assert "\x1b[?25l" not in fetching  # our bar, which hides the cursor, comes after
    assert "\x1b[?25l" in merging


# What others read, and wrote


def test_a_zoo_as_the_client_alone_reads_it(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    pytest.importorskip("sklearn")  # for the digits
    made = ("--data", "digits", "--count", "2", "--epochs", "0.1", "--images-per-teacher", "64")
    zoo = tmp_path / "zoo"
    assert wfcli("train-teachers", *tiny_teachers.arch, *made, "-o", zoo).code == 0
    assert wfcli("push", zoo, "hf:me/zoo").code == 0
    back = Path(snapshot_download("me/zoo"))
    files = {path.name: path.read_bytes() for path in zoo.iterdir()}
    assert {path.name for path in back.iterdir()} == {*files, "README.md", ".gitattributes"}
    assert {name: (back / name).read_bytes() for name in files} == files


ALONE = """
import sys
import timm, torch
model = timm.create_model("hf-hub:me/net", pretrained=True).eval()
with torch.no_grad():
    torch.save((model(torch.load(sys.argv[1])), model.pretrained_cfg), sys.argv[2])
assert not [name for name in sys.modules if name.partition(".")[0] == "wfcli"]
"""


def timms(folder: Path, number: int) -> timm.models.ResNet:
    """Write a repository with timm's own function: a small net of timm's for three classes."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * number * torch.randn_like(parameter)
    save_for_hf(model, str(folder), model_config={"label_names": ["cat", "dog", "owl"]}, safe_serialization=True)
    return model.eval()


def test_repositories_of_timms_are_teachers_and_their_student_is_one_for_timm(
    hub: HubServer, wfcli: Run, tmp_path: Path
) -> None:
    nets = [timms(tmp_path / f"t{number}", number) for number in range(2)]
    for number in range(2):
        files = {path.name: path.read_bytes() for path in (tmp_path / f"t{number}").iterdir()}
        assert {"model.safetensors", "config.json"} <= set(files)
        hub.add(f"you/t{number}", files)
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", "hf:you/t0", "hf:you/t1", "--method", "soup", "-o", out)
    assert ran.code == 0, ran.stderr
    made = open_checkpoint(out).provenance or {}
    assert made["architecture"] == {"name": "test_resnet", "args": {}}
    key = "conv1.0.weight"
    mean = (nets[0].state_dict()[key] + nets[1].state_dict()[key]) / 2
    assert torch.allclose(dict(open_checkpoint(out))[key], mean, atol=1e-6)
    assert wfcli("push", out, "hf:me/net").code == 0
    images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    shutil.rmtree(tmp_path / "cache")
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = run_alone("-c", ALONE, tmp_path / "images.pt", tmp_path / "logits.pt", **variables)
    assert done.returncode == 0, done.stderr
    logits, prepared = torch.load(tmp_path / "logits.pt")
    student = timm.create_model("test_resnet", num_classes=3)
    student.load_state_dict(dict(open_checkpoint(out)))
    with torch.no_grad():
        assert torch.equal(logits, student.eval()(images))
    assert prepared["num_classes"] == 3
