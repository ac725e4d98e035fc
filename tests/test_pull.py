"""From the Hub: what comes is what is there, at one commit, whole; offline the cache alone; --arch from config.json."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tests.conftest import Ran, TinyTeachers
from tests.hub_server import TOKEN, HubServer, run_offline, use_hub
from wfcli.core.architectures import Architecture, find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.pretrained import pretrained_folder
from wfcli.core.sources import resolve_generator, resolve_sources
from wfcli.core.timm_config import read_architecture, timm_config
from wfcli.engine.recipe import as_toml
from wfcli.errors import ArchitectureError, SourceError

Run = Callable[..., Ran]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch, TOKEN)
        yield server


STRETCH = 10 * 2**20  # bytes that the client takes at a time


def weights(value: float, numbers: int = 1000) -> bytes:
    return save({"w": torch.full((numbers,), value)})


def value(path: Path) -> float:
    return float(load(path.read_bytes())["w"][0])


def assert_error(ran: Ran, message: str) -> None:
    assert ran.code == 1
    assert re.search(message, ran.stderr), ran.stderr
    assert "hint: " in ran.stderr


# Patterns


def test_a_pattern_gives_its_checkpoints_at_one_commit(hub: HubServer) -> None:
    files = {f"teacher-{number:02d}.safetensors": weights(number) for number in (2, 0, 1)}
    old = hub.add("me/zoo", files, branch="v1")
    more = {"sub/teacher-09.safetensors": weights(9), "teacher-03.json": b"{}", "other.safetensors": weights(8)}
    new = hub.add("me/zoo", {**files, "teacher-01.safetensors": weights(7), **more})
    found = resolve_sources(["hf:me/zoo:teacher-*.safetensors"])
    assert [source.name for source in found] == [f"me/zoo:teacher-0{number}.safetensors" for number in range(3)]
    assert [value(source.path) for source in found] == [0, 7, 2]
    assert {source.revision for source in found} == {new}
    assert [value(source.path) for source in resolve_sources(["hf:me/zoo@v1:teacher-0[12].*"])] == [1, 2]
    assert {source.revision for source in resolve_sources(["hf:me/zoo@v1:*"])} == {old}
    assert [source.name for source in resolve_sources(["hf:me/zoo:*/*"])] == ["me/zoo:sub/teacher-09.safetensors"]
    assert not any("sub/" in request for request in hub.requests[:-4])  # `*` stays within a folder, and fetches no more


def test_a_pattern_without_a_match_names_some_files(hub: HubServer) -> None:
    hub.add("me/zoo", {"README.md": b"", **{f"t{number}.safetensors": weights(0) for number in range(8)}})
    with pytest.raises(SourceError) as caught:
        resolve_sources(["hf:me/zoo:teacher-*.safetensors", "hf:me/zoo:*.md"])
    names = ", ".join(f"t{number}.safetensors" for number in range(6))
    assert caught.value.problems == (
        f"hf:me/zoo:teacher-*.safetensors: no checkpoint of me/zoo matches teacher-*.safetensors; it has {names}, ...",
        f"hf:me/zoo:*.md: no checkpoint of me/zoo matches *.md, of 1 that it matches; it has {names}, ...",
    )
    assert "checkpoints end in .safetensors" in str(caught.value.hint)


def test_a_pattern_of_shards_gives_their_index(hub: HubServer) -> None:
    index = json.dumps({"weight_map": {"w": "a-1.safetensors"}}).encode()
    hub.add("me/big", {"net/a.safetensors.index.json": index, "net/a-1.safetensors": weights(3)})
    [source] = resolve_sources(["hf:me/big:net/*"])
    assert float(open_checkpoint(source.path)["w"][0]) == 3


def test_a_file_at_two_commits_is_pinned_in_the_recipe(hub: HubServer) -> None:
    old = hub.add("me/zoo", {"a.safetensors": weights(1)}, branch="v1")
    new = hub.add("me/zoo", {"a.safetensors": weights(2)})
    found = resolve_sources(["hf:me/zoo@v1:a.safetensors", "hf:me/zoo:a.safetensors"])
    assert [source.name for source in found] == [f"me/zoo@{commit[:12]}:a.safetensors" for commit in (old, new)]
    records = [{"name": one.name, "sha256": "0", "revision": one.revision} for one in found]
    toml = as_toml({"architecture": {"name": "x", "args": {}}, "recipe": {}, "sources": records})
    assert f'"hf:me/zoo@{old}:a.safetensors"' in toml
    assert f'"hf:me/zoo@{new}:a.safetensors"' in toml


# pull


def test_pull_tells_where_weights_lie(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    commit = hub.add("me/net", {"model.safetensors": weights(1), "config.json": b"{}", "log.txt": b"long"})
    told = json.loads(wfcli("pull", "hf:me/net", "--json").stdout)
    assert (told["repo"], told["commit"]) == ("me/net", commit)
    assert [file["name"] for file in told["files"]] == ["model.safetensors", "config.json"]
    assert told["size"] == len(weights(1)) + 2
    assert Path(told["files"][0]["path"]).read_bytes() == weights(1)
    assert Path(told["folder"]).is_relative_to(tmp_path / "cache")
    ran = wfcli("pull", "hf:me/net@main:model.safetensors")
    assert commit in "".join(ran.stdout.split())
    assert "1 files" in ran.stdout


def test_pull_copies_to_a_new_folder(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    files = {"model.safetensors": weights(1), "sub/x.txt": b"x", "README.md": b"card"}
    hub.add("me/net", files)
    out = tmp_path / "out"
    ran = wfcli("pull", "hf:me/net", "--all", "-o", out)
    assert (ran.code, ran.stderr) == (0, "")  # no bars where nobody looks
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.*")} == files
    assert not any(path.is_symlink() for path in out.rglob("*"))
    before = len(hub.requests)
    assert_error(wfcli("pull", "hf:me/net", "-o", out), "out: is there already, and not empty\nhint: choose another")
    assert len(hub.requests) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".out")) == []


def test_pull_of_a_generator_can_be_used(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    folder = pretrained_folder() / "universal"
    hub.add("me/gen", {path.name: path.read_bytes() for path in folder.iterdir()})
    assert wfcli("pull", "hf:me/gen", "-o", tmp_path / "gen").code == 0
    assert resolve_generator(str(tmp_path / "gen")).path == tmp_path / "gen"
    assert (tmp_path / "gen" / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_pull_of_shards_brings_all_of_them(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"w": "a-1.safetensors"}}).encode()
    hub.add("me/big", {"model.safetensors.index.json": index, "a-1.safetensors": weights(3)})
    assert wfcli("pull", "hf:me/big", "-o", tmp_path / "big").code == 0
    assert float(open_checkpoint(tmp_path / "big")["w"][0]) == 3
    evil = json.dumps({"weight_map": {"w": "../../a.safetensors"}}).encode()
    hub.add("me/evil", {"model.safetensors.index.json": evil})
    assert_error(wfcli("pull", "hf:me/evil", "-o", tmp_path / "evil"), "lies outside the folder of the index")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["net.safetensors"], r"expected a source on the Hub\nhint: write hf:owner/name"),
        (["hf:me/zoo"], r"none of model\.safetensors.*\nhint: fetch all of it: wfcli pull hf:me/zoo --all"),
        (["hf:me/zoo:a.safetensors", "--all"], "names a file, and --all means all of them"),
        (["hf:me/no", "--all"], "no repository me/no on the Hub, or it is private"),
        (["hf:me/zoo@v9", "--all"], "me/zoo has no revision v9"),
        (["hf:me/gated", "--all"], "me/gated is gated, and you have no access"),
    ],
)
def test_pulls_that_lead_nowhere(hub: HubServer, wfcli: Run, args: list[str], message: str) -> None:
    hub.add("me/zoo", {"a.safetensors": weights(1)})
    hub.add("me/gated", {"model.safetensors": weights(1)}, gated=True)
    assert_error(wfcli("pull", *args), message)


def test_a_private_repository_needs_the_token(hub: HubServer, wfcli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/own", {"model.safetensors": weights(1)}, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert_error(wfcli("pull", "hf:me/own"), "no repository me/own on the Hub, or it is private\nhint: .*hf auth login")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert wfcli("pull", "hf:me/own").code == 0


# On the way


def test_a_busy_hub_is_asked_again(hub: HubServer, wfcli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.add("me/net", {"model.safetensors": weights(1)})
    hub.busy = 2
    assert wfcli("pull", "hf:me/net").code == 0
    assert hub.busy == 0
    assert waits


def test_a_download_that_is_cut_short_goes_on_where_it_stopped(
    hub: HubServer, wfcli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    body = weights(1, 8_000_000)  # several of the stretches, of 10 MB, in which the client writes
    hub.add("me/net", {"model.safetensors": body})
    hub.cut, hub.keep = 2, 0.7
    assert wfcli("pull", "hf:me/net:model.safetensors", "-o", tmp_path / "out").code == 0
    assert hub.cut == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == body
    first, *others = hub.downloads
    assert (first.asked, first.status) == (None, 200)
    had, starts = first.sent, []
    for again in others:
        start = int(re.fullmatch(r"bytes=(\d+)-", again.asked or "")[1])  # type: ignore[index]
        assert again.status == 206
        assert had - STRETCH < start <= had  # but for a stretch that was not complete
        starts.append(start)
        had = start + again.sent
    assert had == len(body)
    assert 0 < starts[0] <= starts[1]


def test_a_server_that_sends_the_whole_again_gives_the_right_bytes(
    hub: HubServer, wfcli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    body = weights(1, 4_000_000)
    hub.add("me/net", {"model.safetensors": body})
    hub.cut, hub.keep, hub.ranges = 1, 0.9, False
    assert wfcli("pull", "hf:me/net:model.safetensors", "-o", tmp_path / "out").code == 0
    assert [one.status for one in hub.downloads] == [200, 200]
    assert hub.downloads[1].asked is not None
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == body


def test_a_download_that_never_ends_is_refused(
    hub: HubServer, wfcli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("me/net", {"model.safetensors": weights(1)})
    hub.cut, hub.keep = 10**6, 0.0
    assert_error(
        wfcli("pull", "hf:me/net:model.safetensors", "-o", tmp_path / "out"),
        r"the Hub did not deliver model\.safetensors|the Hub cannot be reached",
    )
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_damaged_download_is_told(hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    hub.add("me/zoo", {path.name: path.read_bytes() for path in tiny_teachers.paths})
    hub.corrupt = True
    ran = wfcli("pull", "hf:me/zoo:teacher-00.safetensors", "-o", tmp_path / "out")
    assert_error(ran, r"teacher-00\.safetensors: got sha256 \w{12}, expected \w{12}, as the Hub says: (\S+)\nhint: del")
    assert not (tmp_path / "out").exists()
    fuse = (
        "fuse",
        "hf:me/zoo:*.safetensors",
        *tiny_teachers.arch,
        "--method",
        "soup",
        "-o",
        tmp_path / "s.safetensors",
    )
    ran = wfcli(*fuse)
    assert ran.stderr.count("as the Hub says: ") == 3
    hub.corrupt = False
    for path in re.findall(r"as the Hub says: (\S+)", ran.stderr):
        Path(path).unlink()  # as the hint says
    assert wfcli(*fuse).code == 0


# Offline


def test_offline_takes_the_cache(hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    commit = hub.add("me/zoo", {path.name: path.read_bytes() for path in tiny_teachers.paths})
    assert wfcli("pull", "hf:me/zoo", "--all").code == 0
    asked = len(hub.requests)
    fuse = ("fuse", "hf:me/zoo:teacher-*.safetensors", *tiny_teachers.arch, "--method", "soup", "--json")
    done = run_offline(hub, tmp_path / "cache", *fuse, "-o", tmp_path / "s.safetensors")
    assert done.returncode == 0, done.stderr
    sources = (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["sources"]
    assert [source["revision"] for source in sources] == [commit] * 3
    assert len(hub.requests) == asked


def test_offline_without_a_cache(hub: HubServer, tmp_path: Path) -> None:
    hub.add("me/net", {"model.safetensors": weights(1)})
    for args in (["pull", "hf:me/net"], ["pull", "hf:me/net", "--all"], ["inspect", "hf:me/net:*.safetensors"]):
        done = run_offline(hub, tmp_path / "cache", *args)
        assert done.returncode == 1
        assert "hf:me/net" in done.stderr
        assert "the Hub cannot be reached, and the cache does not hold" in done.stderr
        assert "--offline" in done.stderr
    assert hub.requests == []


def test_offline_a_pattern_is_not_half_of_what_the_hub_has(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    hub.add("me/zoo", {"a.safetensors": weights(1), "b.safetensors": weights(2)})
    assert wfcli("pull", "hf:me/zoo:a.safetensors").code == 0
    done = run_offline(hub, tmp_path / "cache", "inspect", "hf:me/zoo:*.safetensors")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the cache does not hold" in done.stderr


def test_offline_nothing_is_pushed(hub: HubServer, tmp_path: Path) -> None:
    shutil.copytree(pretrained_folder() / "universal", tmp_path / "gen")
    done = run_offline(hub, tmp_path / "cache", "push", tmp_path / "gen", "hf:me/gen")
    assert (done.returncode, hub.requests) == (1, [])
    assert "hf:me/gen: a push needs the Hub\nhint: leave out --offline" in done.stderr


# The architecture from the Hub


def test_arch_may_be_left_out(hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    config = json.dumps(timm_config(find_architecture("vgg11_bn_cifar", {"width": 0.125}), 10, None)).encode()
    for number, path in enumerate(tiny_teachers.paths[:2]):
        hub.add(f"me/t{number}", {"model.safetensors": path.read_bytes(), "config.json": config})
    sources = ("hf:me/t0", "hf:me/t1", tiny_teachers.paths[2])
    ran = wfcli("fuse", *sources, "-o", tmp_path / "s.safetensors", "--method", "soup")
    assert ran.code == 0, ran.stderr
    made = open_checkpoint(tmp_path / "s.safetensors").provenance or {}
    assert made["architecture"] == {"name": "vgg11_bn_cifar", "args": {"width": 0.125}}
    assert [source["name"] for source in made["sources"]] == ["me/t0", "me/t1", "teacher-02.safetensors"]
    pytest.importorskip("sklearn")
    teachers = ("--teachers", "hf:me/t0", "--teachers", "hf:me/t1")
    ran = wfcli("eval", tmp_path / "s.safetensors", *teachers, "--data", "digits", "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["architecture"] == "vgg11_bn_cifar(width=0.125)"


def test_architectures_that_disagree_are_named(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    for name, width in (("a", 0.125), ("b", 0.25)):
        config = json.dumps({"architecture": "vgg11_bn_cifar", "model_args": {"width": width}}).encode()
        hub.add(f"me/{name}", {"model.safetensors": tiny_teachers.paths[0].read_bytes(), "config.json": config})
    ran = wfcli("fuse", "hf:me/a", "hf:me/b", "-o", tmp_path / "s.safetensors", "--method", "soup")
    assert_error(ran, r"hf:me/a: its config\.json says vgg11_bn_cifar\(width=0\.125\)\n")
    assert_error(ran, r"hf:me/b: its config\.json says vgg11_bn_cifar\(width=0\.25\)\n")


def test_where_nothing_says_the_architecture(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    body = tiny_teachers.paths[0].read_bytes()
    commit = hub.add("me/a", {"model.safetensors": body})
    hub.add("me/gen", {"model.safetensors": body, "config.json": b'{"format": 1, "preset": "universal"}'})
    hub.add("me/odd", {"model.safetensors": body, "config.json": b"no JSON"})
    out = ("-o", tmp_path / "s.safetensors", "--method", "soup")
    ran = wfcli("fuse", "hf:me/a", "hf:me/gen", *out)
    assert_error(ran, rf"hf:me/a: no config\.json of timm's beside the weights at commit {commit[:12]}\n")
    assert_error(ran, r"hf:me/gen: no config\.json of timm's(?s:.*)hint: .*give --arch")
    assert_error(wfcli("fuse", "hf:me/a", "hf:me/odd", *out), r"hf:me/odd: config\.json: is not JSON")
    ran = wfcli("fuse", *tiny_teachers.paths, *out)
    assert_error(ran, r"teacher-00\.safetensors: its header does not say which net it is of\n(?s:.*)give --arch")
    assert_error(wfcli("fuse", "a.safetensors", "b.safetensors", *out), r"a\.safetensors: no such checkpoint file\n")
    ran = wfcli("fuse", "hf:me/a", "--arch-arg", "width=1", *out)
    assert ran.code == 2
    assert "--arch-arg goes with --arch, which is missing" in " ".join(re.sub("[│╭╮╰╯─]", "", ran.stderr).split())


def test_students_of_wfcli_say_their_net_themselves(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    net = {"name": "vgg11_bn_cifar", "args": {"width": 0.125}}
    for number, path in enumerate(tiny_teachers.paths[:2]):
        save_state(tmp_path / f"t{number}.safetensors", load(path.read_bytes()), {"architecture": net})
    zoo = {f"t{number}.safetensors": (tmp_path / f"t{number}.safetensors").read_bytes() for number in range(2)}
    hub.add("me/zoo", zoo)
    for sources in (("hf:me/zoo:*.safetensors",), (tmp_path / "t0.safetensors", tiny_teachers.paths[2])):
        ran = wfcli("fuse", *sources, "-o", tmp_path / "out" / "s.safetensors", "--method", "soup")
        assert ran.code == 1, "there is no folder out"
        ran = wfcli("fuse", *sources, "-o", tmp_path / "s.safetensors", "--method", "soup")
        assert ran.code == 0, ran.stderr
        assert (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["architecture"] == net
    (tmp_path / "s.safetensors").unlink()
    wider = {"name": "vgg11_bn_cifar", "args": {"width": 0.25}}
    save_state(tmp_path / "wide.safetensors", load(tiny_teachers.paths[2].read_bytes()), {"architecture": wider})
    ran = wfcli("fuse", tmp_path / "t0.safetensors", tmp_path / "wide.safetensors", "-o", tmp_path / "s.safetensors")
    assert_error(ran, r"t0\.safetensors: its header says vgg11_bn_cifar\(width=0\.125\)\n")
    assert_error(ran, r"wide\.safetensors: its header says vgg11_bn_cifar\(width=0\.25\)\n")


def test_a_generator_of_the_hub_is_pinned_in_the_recipe(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    shipped = pretrained_folder() / "universal"
    commit = hub.add("me/gen", {file: (shipped / file).read_bytes() for file in ("config.json", "model.safetensors")})
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--generator", "hf:me/gen", "--no-guard")
    ran = wfcli("fuse", *args, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    provenance = open_checkpoint(tmp_path / "s.safetensors").provenance or {}
    assert provenance["generator"]["revision"] == commit
    toml = wfcli("inspect", "--recipe", tmp_path / "s.safetensors").stdout
    assert f'generator = "hf:me/gen@{commit}"\n' in toml
    (tmp_path / "recipe.toml").write_text(toml.replace('"teacher-', f'"{tiny_teachers.folder}/teacher-'))
    hub.add("me/gen", {"config.json": b"{}", "model.safetensors": weights(1)})
    ran = wfcli("fuse", "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "again.safetensors")
    assert ran.code == 0, ran.stderr
    again = open_checkpoint(tmp_path / "again.safetensors").provenance or {}
    assert again["generator"] == provenance["generator"]


def test_the_weights_are_those_beside_the_config(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    config = b'{"architecture": "vgg11_bn_cifar", "model_args": {"width": 0.125}}'
    commits = []
    for number, path in enumerate(tiny_teachers.paths[:2]):
        files = {"deep/a.safetensors": path.read_bytes(), "deep/config.json": config, "config.json": b"{}"}
        commits.append(hub.add("me/net", files, branch=f"v{number}"))
    sources = [f"hf:me/net@v{number}:deep/a.safetensors" for number in (0, 1)]
    ran = wfcli("fuse", *sources, "-o", tmp_path / "s.safetensors", "--method", "soup")
    assert ran.code == 0, ran.stderr
    made = (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["sources"]
    assert [source["revision"] for source in made] == commits


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {}),
        ("vit_b_32", {}),  # torchvision's, whose images are normalised otherwise than timm's
        ("vit_base_patch32_224", {}),
        ("vit_base_patch32_224", {"img_size": 256}),
        ("vit_tiny_cifar", {"patch_size": 8, "width": 2.0}),
    ],
)
def test_a_config_says_which_net_and_which_normalisation(name: str, args: dict[str, float]) -> None:
    arch = find_architecture(name, args)
    assert read_architecture(timm_config(arch, 10, None), "x") == (arch, None)


def test_a_config_as_timm_writes_it_has_no_arguments_that_are_usual() -> None:
    cfg = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}
    args = {"num_classes": 10, "global_pool": "token", "img_size": [224, 224], "in_chans": 3}
    config = {"architecture": "vit_base_patch32_224", "model_args": args, "pretrained_cfg": cfg}
    plain = Architecture("vit_base_patch32_224", "vit_base_patch32_224")
    assert read_architecture(config, "x") == (plain, None)
    args["global_pool"] = "avg"
    told = read_architecture(config, "x")
    assert told is not None
    assert told[0].args == (("global_pool", "avg"),)


def test_configs_that_cannot_be_taken() -> None:
    with pytest.raises(ArchitectureError, match=r"x: unknown architecture 'resnet1'(?s:.*)hint: give --arch"):
        read_architecture({"architecture": "resnet1"}, "x")
    with pytest.raises(ArchitectureError, match=r"x: model_args: layers: got \[1, 2\], expected one value"):
        read_architecture({"architecture": "resnet18", "model_args": {"layers": [1, 2]}}, "x")
    assert read_architecture({"architectures": ["BertModel"]}, "x") is None
    cfg = {"input_size": [3, 224, 224], "mean": [0.1] * 3, "std": [0.5] * 3}
    told = read_architecture({"architecture": "resnet18", "pretrained_cfg": cfg}, "x")
    assert told is not None
    assert told[1] is not None
    assert "x: says mean (0.1, 0.1, 0.1)" in told[1]
