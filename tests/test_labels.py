"""Classes from config.json on the Hub: compared, warned of and handed on as those in wfcli's own files are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from tests.conftest import Ran, TinyTeachers
from tests.hub_server import HubServer, run_offline, use_hub
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.timm_config import label_names_in
from wfcli.engine.provenance import class_names

Run = Callable[..., Ran]
NAMES = [f"class {letter}" for letter in "abcdefghij"]
TINY: dict[str, Any] = {"architecture": "vgg11_bn_cifar", "model_args": {"width": 0.125}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def add(hub: HubServer, tiny_teachers: TinyTeachers) -> Callable[..., None]:
    """Add teacher N to the Hub, with what its config.json says beside the net."""

    def one(name: str, number: int, **more: Any) -> None:
        config = json.dumps({**TINY, **more}).encode()
        hub.add(f"me/{name}", {"model.safetensors": tiny_teachers.paths[number].read_bytes(), "config.json": config})

    return one


@pytest.mark.parametrize("with_arch", [True, False])
def test_another_order_of_classes_is_refused(
    add: Callable[..., None], wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers, with_arch: bool
) -> None:
    add("a", 0, label_names=NAMES)
    add("b", 1, pretrained_cfg={"label_names": NAMES[::-1]})
    arch = tiny_teachers.arch if with_arch else ()
    ran = wfcli("fuse", "hf:me/a", "hf:me/b", *arch, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert "me/b: class 0: got class j, expected class a as in me/a, and 9 more differ" in ran.stderr
    assert "wfcli pull -o DIR" in ran.stderr
    assert not (tmp_path / "s.safetensors").exists()
    stacked = ("--heads", "stack", "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert wfcli("fuse", "hf:me/a", "hf:me/b", *arch, *stacked).code == 0
    assert class_names(open_checkpoint(tmp_path / "s.safetensors")) == tuple(NAMES)  # each of them once


def test_the_student_knows_the_classes(
    add: Callable[..., None], hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    add("a", 0, label_names=NAMES)
    add("b", 1, label_names=NAMES)
    fuse = ("fuse", "hf:me/a", "hf:me/b", *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert wfcli(*fuse).code == 0
    once = (tmp_path / "s.safetensors").read_bytes()
    assert (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["classes"] == NAMES
    asked = len(hub.requests)
    done = run_offline(hub, tmp_path / "cache", *fuse)
    assert (done.returncode, len(hub.requests)) == (0, asked), done.stderr
    assert (tmp_path / "s.safetensors").read_bytes() == once


def test_what_the_file_says_itself_comes_first(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    config = json.dumps({**TINY, "label_names": NAMES[::-1]}).encode()
    for number, path in enumerate(tiny_teachers.paths[:2]):
        save_state(tmp_path / f"t{number}.safetensors", load(path.read_bytes()), {"classes": NAMES})
        body = (tmp_path / f"t{number}.safetensors").read_bytes()
        hub.add(f"me/t{number}", {"model.safetensors": body, "config.json": config})
    output = tmp_path / "s.safetensors"
    fuse = ("fuse", "hf:me/t0", "hf:me/t1", *tiny_teachers.arch, "--method", "soup", "-o", output)
    assert wfcli(*fuse).code == 0
    assert class_names(open_checkpoint(output)) == tuple(NAMES)
    assert not any("config.json" in request for request in hub.requests)


def test_eval_and_finetune_warn_of_other_classes(
    add: Callable[..., None], wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    pytest.importorskip("sklearn")
    add("a", 0, label_names=NAMES)
    told = "me/a was trained on the classes class a, class b, class c, class d, ...; digits has 0, 1, 2, 3, ..."
    options = (*tiny_teachers.arch, "--data", "digits")
    ran = wfcli("eval", "hf:me/a", *options)
    assert (ran.code, told in " ".join(ran.stderr.split())) == (0, True), ran.stderr
    options = (*options, "--steps", "1", "-o", tmp_path / "s.safetensors")
    ran = wfcli("finetune", "hf:me/a", "--teachers", tiny_teachers.paths[1], *options)
    assert (ran.code, told in " ".join(ran.stderr.split())) == (0, True), ran.stderr


def test_a_base_of_other_classes_gets_a_new_head(
    add: Callable[..., None], wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    pytest.importorskip("sklearn")
    add("same", 0, label_names=list("0123456789"))
    add("other", 0, label_names=NAMES)
    heads = {}
    for name in ("same", "other"):
        options = ("--data", "digits", "--count", "1", "--epochs", "1e-9", "--lr", "1e-12", "--seed", "7")
        ran = wfcli("train-teachers", "--init", f"hf:me/{name}", *options, "-o", tmp_path / name)
        assert ran.code == 0, ran.stderr
        heads[name] = open_checkpoint(tmp_path / name / "teacher-00.safetensors")["head.weight"]
    own = open_checkpoint(tiny_teachers.paths[0])["head.weight"]
    assert (heads["same"] - own).abs().max() < 1e-4
    assert (heads["other"] - own).abs().max() > 1e-2


def test_weights_without_a_config_are_taken_from_the_cache(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    for number in (0, 1):
        hub.add(f"me/{number}", {"model.safetensors": tiny_teachers.paths[number].read_bytes()})
    fuse = ("fuse", "hf:me/0", "hf:me/1", *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "s.safetensors")
    assert wfcli(*fuse).code == 0
    assert (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["classes"] is None
    before = len(hub.requests)
    assert wfcli(*fuse).code == 0
    assert not any("config.json" in request for request in hub.requests[before:])
    hub.stop()
    assert wfcli(*fuse).code == 0


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"label_names": ["a", "b"]}, ("a", "b")),
        ({"pretrained_cfg": {"label_names": ["a", "b"]}}, ("a", "b")),
        ({"label_names": ["a", "b", "c"], "pretrained_cfg": {"label_names": ["b", "a"]}}, ("b", "a")),
        ({"label_names": ["a", "a"]}, None),
        ({"label_names": ["a", ""]}, None),
        ({"label_names": ["a", 1]}, None),
        ({"label_names": ["a"]}, None),
        ({"label_names": {"a": 0, "b": 1}}, None),
        ({"label_names": "ab"}, None),
        ({"pretrained_cfg": None}, None),
        ([], None),
        (None, None),
    ],
)
def test_labels_that_fit_the_head(tmp_path: Path, config: Any, wanted: tuple[str, ...] | None) -> None:
    file = tmp_path / "config.json"
    assert label_names_in(file, 2) is None  # not there
    file.write_text("no JSON" if config is None else json.dumps(config))
    assert label_names_in(file, 2) == wanted
