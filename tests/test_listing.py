"""`wfcli list`: what there is by name, in the cache and on the Hub; where there is nothing, it is said in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.conftest import Ran, TinyTeachers
from tests.hub_server import TOKEN, HubServer, run_offline, use_hub
from wfcli.core.checkpoint import save_state
from wfcli.core.hub_cards import write_card
from wfcli.core.hub_lists import list_tagged
from wfcli.core.pretrained import pretrained_folder
from wfcli.errors import SourceError

Run = Callable[..., Ran]
UNIVERSAL = ("config.json", "model.safetensors")
# The client's way to push, not ours.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch, TOKEN)
        yield server


def made(folder: Path, verb: str) -> bytes:
    """Return the bytes of a checkpoint that this verb has written."""
    save_state(folder / "made.safetensors", {"w": torch.ones(2)}, {"verb": verb})
    return (folder / "made.safetensors").read_bytes()


def listed(wfcli: Run, *args: str) -> dict[str, list[dict[str, object]]]:
    ran = wfcli("list", *args, "--json")
    assert (ran.code, ran.stderr) == (0, "")
    return json.loads(ran.stdout)  # type: ignore[no-any-return]


# The index


def test_generators_say_where_they_are(
    wfcli: Run, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    shutil.copytree(pretrained_folder(), tmp_path / "pretrained")
    index = json.loads((tmp_path / "pretrained" / "index.json").read_text())
    index["generators"]["vgg11_bn-cifar10"] |= {"hub": "me/vgg", "revision": "0" * 40}
    (tmp_path / "pretrained" / "index.json").write_text(json.dumps(index))
    for name in ("vgg11_bn-cifar10", "vit_tiny-cifar10"):
        shutil.rmtree(tmp_path / "pretrained" / name)
    monkeypatch.setattr("wfcli.core.pretrained.pretrained_folder", lambda: tmp_path / "pretrained")
    lines = {line.split()[0]: line.split() for line in wfcli("list").stdout.splitlines() if line.startswith("pretr")}
    assert lines["pretrained:universal"][1:4] == ["universal", "resnet18_cifar", "uoft-cs/cifar100"]
    assert lines["pretrained:universal"][4:] == ["2", "3", "4", "6", "8", "here"]
    assert [line[-1] for line in lines.values()] == ["here", "hf:me/vgg", "nowhere"]
    told = {entry["name"]: entry for entry in listed(wfcli)["pretrained"]}
    assert told["vgg11_bn-cifar10"]["sha256"] == index["generators"]["vgg11_bn-cifar10"]["sha256"]
    assert [entry["here"] for entry in told.values()] == [True, False, False]
    assert hub.requests == []


# The cache


def test_what_of_ours_is_in_the_cache(wfcli: Run, hub: HubServer, tmp_path: Path) -> None:
    generator = {name: (pretrained_folder() / "universal" / name).read_bytes() for name in UNIVERSAL}
    teacher, student = made(tmp_path, "train-teachers"), made(tmp_path, "finetune")
    timm = json.dumps({"architecture": "resnet18", "num_classes": 10}).encode()
    zoo = {"zoo.json": b'{"teachers": []}', "teacher-00.safetensors": teacher}
    commits = {
        ("generator", "me/gen"): hub.add("me/gen", generator),
        ("student", "me/student"): hub.add("me/student", {"config.json": timm, "model.safetensors": student}),
        ("zoo", "me/zoo"): hub.add("me/zoo", zoo),
        ("teachers", "me/some"): hub.add("me/some", zoo),
    }
    foreign = save({"w": torch.ones(2)}, {"format": "pt"})
    hub.add("timm/net", {"config.json": timm, "model.safetensors": foreign})
    hub.add("me/damaged", {"zoo.json": b"[", "config.json": b"no", "model.safetensors": b"12"})
    for name in ("me/gen", "me/student", "timm/net"):
        assert wfcli("pull", f"hf:{name}").code == 0
    for name in ("me/zoo", "me/damaged"):
        assert wfcli("pull", f"hf:{name}", "--all").code == 0
    assert wfcli("pull", "hf:me/some:teacher-*").code == 0
    asked = len(hub.requests)
    found = listed(wfcli)["cached"]
    assert {(one["kind"], one["repo"]): one["commit"] for one in found} == commits
    sizes = {one["repo"]: one["size"] for one in found}
    assert sizes["me/gen"] == sum(map(len, generator.values()))
    assert sizes["me/some"] == len(teacher)
    assert all((Path(str(one["path"])) / "..").resolve().is_relative_to(tmp_path / "cache") for one in found)
    text = wfcli("list").stdout
    for (kind, repo), commit in commits.items():
        [line] = [line for line in text.splitlines() if line.startswith(f"hf:{repo} ")]
        assert line.split()[1:3] == [kind, commit[:12]]
    assert "timm/net" not in text
    assert len(hub.requests) == asked  # the cache needs no Hub


def test_each_commit_in_the_cache_is_a_line(wfcli: Run, hub: HubServer, tmp_path: Path) -> None:
    commits = set()
    for verb in ("fuse", "finetune"):
        commits.add(hub.add("me/student", {"model.safetensors": made(tmp_path, verb)}))
        assert wfcli("pull", "hf:me/student").code == 0
    assert {one["commit"] for one in listed(wfcli)["cached"]} == commits


def test_an_empty_cache_is_said_in_words(wfcli: Run, hub: HubServer, tmp_path: Path) -> None:
    words = "in the Hub's cache is nothing that wfcli has made"
    assert words in wfcli("list").stdout
    (tmp_path / "cache").mkdir()
    assert words in wfcli("list").stdout
    assert listed(wfcli)["cached"] == []
    assert listed(wfcli)["hub"] is None


def test_a_cache_that_cannot_be_read(wfcli: Run, hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    ran = wfcli("list")
    assert (ran.code, ran.stdout) == (1, "")
    assert "error: the Hub's cache cannot be read (" in ran.stderr
    assert "hint: check HF_HOME and HF_HUB_CACHE" in ran.stderr


# The Hub


def test_what_was_pushed_is_found_by_its_tag(
    wfcli: Run, hub: HubServer, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    shutil.copytree(pretrained_folder() / "universal", tmp_path / "gen")
    student = tmp_path / "s.safetensors"
    assert wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "-o", student).code == 0
    commits = {}
    for kind, source in (("student", student), ("generator", tmp_path / "gen")):
        ran = wfcli("push", source, f"hf:me/{kind}", "--json")
        assert ran.code == 0, ran.stderr
        commits[f"me/{kind}"] = json.loads(ran.stdout)["commit"]
    commits["me/zoo"] = hub.add("me/zoo", {"README.md": card("wfcli", "wfcli", "model-merging", "zoo")})
    commits["me/other"] = hub.add("me/other", {"README.md": card("diffusers", "wfcli")})
    hub.add("me/untagged", {"README.md": card("timm", "resnet")})
    told = listed(wfcli, "--hub")["hub"]
    assert {one["repo"]: one["kind"] for one in told["models"]} == {
        "me/student": "student",
        "me/generator": "generator",
        "me/zoo": "zoo",
        "me/other": None,
    }
    assert {one["repo"]: one["commit"] for one in told["models"]} == commits
    assert (told["tag"], told["more"], told["models"][0]["date"]) == ("wfcli", False, "2026-11-23")
    assert [one["repo"] for one in listed(wfcli, "--hub", "--tag", "resnet")["hub"]["models"]] == ["me/untagged"]
    text = wfcli("list", "--hub").stdout
    [line] = [line for line in text.splitlines() if line.startswith("hf:me/student ")]
    assert line.split()[1:] == ["student", commits["me/student"][:12], "2026-11-23"]
    assert "there are more" not in text


def card(library: str, *tags: str) -> bytes:
    return write_card({"library_name": library, "tags": list(tags)}, "text").encode()


@pytest.mark.parametrize(("limit", "more"), [(1, True), (4, True), (5, False), (9, False)])
def test_the_limit_is_kept_and_more_is_said(wfcli: Run, hub: HubServer, limit: int, more: bool) -> None:
    for number in range(5):
        hub.add(f"me/gen-{number}", {"README.md": card("wfcli", "wfcli")})
    hub.page = 2  # the client goes from page to page
    models, told = list_tagged("wfcli", limit)
    assert [one.repo for one in models] == [f"me/gen-{number}" for number in range(min(limit, 5))]
    assert told == more
    text = wfcli("list", "--hub", "--limit", str(limit)).stdout
    assert (f"there are more than these {limit}: raise --limit" in text) == more


def test_a_tag_that_nothing_has_is_said_in_words(wfcli: Run, hub: HubServer) -> None:
    hub.add("me/gen", {"README.md": card("wfcli", "wfcli")})
    assert "on the Hub nothing has the tag no-such" in wfcli("list", "--hub", "--tag", "no-such").stdout
    assert listed(wfcli, "--hub", "--tag", "no-such")["hub"] == {"tag": "no-such", "models": [], "more": False}


def test_offline_lists_the_cache_and_not_the_hub(wfcli: Run, hub: HubServer, tmp_path: Path) -> None:
    hub.add("me/student", {"model.safetensors": made(tmp_path, "fuse")})
    assert wfcli("pull", "hf:me/student").code == 0
    asked = len(hub.requests)
    done = run_offline(hub, tmp_path / "cache", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hf:me/student" in done.stdout
    done = run_offline(hub, tmp_path / "cache", "list", "--hub")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: tag wfcli: the Hub cannot be reached, and the cache does not hold lists of models\n" in done.stderr
    assert "--offline and the variables HF_HUB_OFFLINE and HF_ENDPOINT\n" in done.stderr
    assert len(hub.requests) == asked


def test_a_hub_that_is_out_of_order(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    hub.status = 503
    with pytest.raises(SourceError) as caught:
        list_tagged("wfcli", 9)
    told = "tag wfcli: HTTP 503, the Hub has trouble: it did not deliver lists of models\nhint: try again later"
    assert str(caught.value) == told


def test_options_of_the_hub_need_the_hub(wfcli: Run) -> None:
    ran = wfcli("list", "--tag", "x", "--limit", "3")
    assert ran.code == 2
    assert "--tag, --limit: of no use without --hub" in " ".join(ran.stderr.replace("│", "").split())
