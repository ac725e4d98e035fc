"""Students, generators and zoos on the Hub: what timm and huggingface_hub read back is what was pushed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import ModelCard
from torch import nn

from tests.conftest import Ran, TinyTeachers
from tests.hub_server import TOKEN, HubServer, use_hub
from wfcli.core.architectures import build_model, find_architecture, match_layout
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.data import DataSpec
from wfcli.core.generator import WeightFormer
from wfcli.core.pretrained import pretrained_folder
from wfcli.core.sources import resolve_sources
from wfcli.core.zoo import Zoo, ZooTeacher, read_zoo, zoo_to_json

Run = Callable[..., Ran]
# The client's own way to upload; warnings are errors here.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
VGG = find_architecture("vgg11_bn_cifar", {"width": 0.125})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch, TOKEN)
        yield server


@pytest.fixture
def student(tmp_path: Path, tiny_teachers: TinyTeachers, wfcli: Run) -> Path:
    """Fuse the tiny teachers into their soup."""
    out = tmp_path / "student.safetensors"
    assert wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", out, "--method", "soup").code == 0
    return out


@pytest.fixture
def zoo(tmp_path: Path, tiny_teachers: TinyTeachers) -> Path:
    """Write a zoo of the tiny teachers."""
    folder = tmp_path / "zoo"
    shutil.copytree(tiny_teachers.folder, folder)
    teachers = tuple(
        ZooTeacher(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), None, (5,) * 10, {}, 0.5, 0)
        for path in tiny_teachers.paths
    )
    names = tuple(map(str, range(10)))
    made = Zoo(folder, VGG, DataSpec("uoft-cs/cifar10"), names, None, {"kind": "same"}, teachers)
    (folder / "zoo.json").write_text(json.dumps(zoo_to_json(made)))
    return folder


def our_logits(path: Path, name: str, args: dict[str, object] | None = None) -> torch.Tensor:
    """Return the logits of a file as wfcli itself loads it."""
    arch = find_architecture(name, args)
    file = open_checkpoint(path)
    layout = match_layout(arch, file.specs, file.name)
    model = build_model(arch, layout.num_classes)
    model.load_state_dict(dict(layout.timm_view(file)), strict=False)
    return logits(model, 224 if not name.endswith("_cifar") else 32)


def logits(model: nn.Module, size: int) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


def metadata(hub: HubServer, repo: str) -> dict[str, object]:
    return ModelCard(hub.files(repo)["README.md"].decode()).data.to_dict()


# Students


def test_timm_loads_a_student_that_was_pushed(hub: HubServer, wfcli: Run, student: Path) -> None:
    ran = wfcli("push", student, "hf:me/net", "--json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["kind"], told["url"]) == ("student", f"{hub.endpoint}/me/net")
    assert told["commit"] == hub.repositories["me/net"].references["main"]
    assert {file["name"]: file["size"] for file in told["files"]}["model.safetensors"] == student.stat().st_size
    assert hub.files("me/net")["model.safetensors"] == student.read_bytes()  # timm's names already
    model = timm.create_model("hf-hub:me/net", pretrained=True)
    assert torch.equal(logits(model, 32), our_logits(student, "vgg11_bn_cifar", {"width": 0.125}))
    assert timm.data.resolve_model_data_config(model)["mean"] == [0.4914, 0.4822, 0.4465]


def test_the_card_of_a_student(hub: HubServer, wfcli: Run, student: Path, tiny_teachers: TinyTeachers) -> None:
    assert wfcli("push", student, "hf:me/net", "--license", "mit").code == 0
    found = metadata(hub, "me/net")
    assert found["library_name"] == "timm"
    assert found["tags"] == ["wfcli", "model-merging", "soup"]
    assert found["license"] == "mit"
    assert "base_model" not in found  # its teachers are no models of the Hub
    text = hub.files("me/net")["README.md"].decode()
    for path in tiny_teachers.paths:
        assert f"- {path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" in text
    assert 'timm.create_model("hf-hub:me/net", pretrained=True)' in text
    assert "import wfcli.core.small_models  # registers vgg11_bn_cifar with timm" in text


def test_the_recipe_on_the_card_makes_the_same_bytes(
    hub: HubServer, wfcli: Run, student: Path, tiny_teachers: TinyTeachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wfcli("push", student, "hf:me/net").code == 0
    text = hub.files("me/net")["README.md"].decode()
    recipe = student.parent / "recipe.toml"
    recipe.write_text(text.split("```toml\n")[1].split("```")[0])
    monkeypatch.chdir(tiny_teachers.folder)
    again = student.parent / "again.safetensors"
    assert wfcli("fuse", "--recipe", recipe, "-o", again).code == 0
    assert again.read_bytes() == student.read_bytes()


def test_sources_of_the_hub_are_base_models(
    hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers
) -> None:
    for number in (0, 1):
        hub.add(f"you/t{number}", {"model.safetensors": tiny_teachers.paths[number].read_bytes()})
    hub.add("you/zoo", {path.name: path.read_bytes() for path in tiny_teachers.paths[2:]})
    sources = ["hf:you/t1", "hf:you/t0", "hf:you/zoo:teacher-*.safetensors"]
    out = tmp_path / "s.safetensors"
    assert wfcli("fuse", *sources, *tiny_teachers.arch, "-o", out, "--method", "soup").code == 0
    assert wfcli("push", out, "hf:me/net").code == 0
    found = metadata(hub, "me/net")
    assert found["base_model"] == ["you/t0", "you/t1", "you/zoo"]
    assert found["base_model_relation"] == "merge"
    commit = hub.repositories["you/zoo"].references["main"]
    assert f'"hf:you/zoo@{commit}:teacher-02.safetensors"' in hub.files("me/net")["README.md"].decode()


def test_the_card_of_a_fine_tuned_student(hub: HubServer, wfcli: Run, student: Path, tmp_path: Path) -> None:
    commit = 40 * "a"
    record = {
        "verb": "finetune",
        "architecture": {"name": "vgg11_bn_cifar", "args": {"width": 0.125}},
        "sources": [{"name": "you/start (0123abcd)", "sha256": 64 * "1", "revision": commit}],
        "teachers": [{"name": "here.safetensors", "sha256": 64 * "2"}],
        "data": {"source": "hf:uoft-cs/cifar10", "label_column": None, "classes": None},
        "recipe": {"steps": 7},
    }
    save_state(tmp_path / "tuned.safetensors", dict(open_checkpoint(student)), record)
    assert wfcli("push", tmp_path / "tuned.safetensors", "hf:me/net").code == 0
    found = metadata(hub, "me/net")
    assert (found["base_model"], found["base_model_relation"]) == (["you/start"], "finetune")
    assert (found["tags"], found["datasets"]) == (["wfcli", "finetune"], ["uoft-cs/cifar10"])
    text = hub.files("me/net")["README.md"].decode()
    assert f"commit {commit}, sha256 {64 * '1'}" in text
    assert f"- here.safetensors, sha256 {64 * '2'}, a teacher" in text
    command = " ".join(text.replace("\\\n", " ").split())
    assert f"wfcli finetune hf:you/start@{commit} --teachers here.safetensors --arch vgg11_bn_cifar" in command
    assert "--data hf:uoft-cs/cifar10 --steps 7 " in command


def test_a_small_transformer_with_its_arguments(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    args = {"patch_size": 8, "width": 1 / 3}
    torch.manual_seed(0)
    state = build_model(find_architecture("vit_tiny_cifar", args), 5).state_dict()
    path = tmp_path / "vit.safetensors"
    written = {"verb": "finetune", "architecture": {"name": "vit_tiny_cifar", "args": args}, "classes": list("abcde")}
    save_state(path, state, written)
    assert wfcli("push", path, "hf:me/vit").code == 0
    model = timm.create_model("hf-hub:me/vit", pretrained=True)
    assert torch.equal(logits(model, 32), our_logits(path, "vit_tiny_cifar", args))
    assert model.pretrained_cfg["label_names"] == list("abcde")


def test_torchvision_names_become_timms(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2(num_classes=7)
    path = tmp_path / "mobile.safetensors"
    save_state(path, theirs.state_dict(), {"verb": "fuse", "architecture": {"name": "mobilenet_v2", "args": {}}})
    ran = wfcli("push", path, "hf:me/mobile")
    assert ran.code == 0, ran.stderr
    model = timm.create_model("hf-hub:me/mobile", pretrained=True)
    assert torch.allclose(logits(model, 224), logits(theirs, 224), atol=1e-5)
    assert torch.equal(logits(model, 224), our_logits(path, "mobilenet_v2"))
    prepared = timm.data.resolve_model_data_config(model)
    assert prepared["mean"] == [0.485, 0.456, 0.406]
    assert (prepared["crop_pct"], prepared["interpolation"]) == (1.0, "bilinear")  # as wfcli looks at images
    assert "wfcli.core.small_models" not in hub.files("me/mobile")["README.md"].decode()


def test_shards_become_one_file(hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    out = tmp_path / "large.safetensors"
    made = wfcli(
        "fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", out, "--method", "soup", "--max-shard-size", "300kB"
    )
    assert made.code == 0
    index = tmp_path / "large.safetensors.index.json"
    assert wfcli("push", index, "hf:me/net").code == 0
    assert sorted(hub.files("me/net")) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    model = timm.create_model("hf-hub:me/net", pretrained=True)
    assert torch.equal(logits(model, 32), our_logits(index, "vgg11_bn_cifar", {"width": 0.125}))


# Results on the card


def comparison(*names: str) -> dict[str, object]:
    rows = [{"name": "a", "kind": "teacher", "top1": 0.1, "nll": 9.0, "ece": 0.9}]
    rows += [{"name": name, "kind": "checkpoint", "top1": 0.75, "nll": 0.5, "ece": None} for name in names]
    return {"rows": rows, "data": "uoft-cs/cifar10 (classes 0-4)", "split": "test"}


def test_results_become_a_model_index(hub: HubServer, wfcli: Run, student: Path) -> None:
    file = student.parent / "eval.json"
    file.write_text(json.dumps(comparison("other.safetensors", "zoo/student.safetensors")))
    assert wfcli("push", student, "hf:me/net", "--metrics", file).code == 0
    [model] = metadata(hub, "me/net")["model-index"]
    [result] = model["results"]
    assert result["dataset"] == {"type": "uoft-cs/cifar10", "name": "uoft-cs/cifar10", "split": "test"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("accuracy", 0.75), ("nll", 0.5)]
    file.write_text(
        json.dumps(
            {
                "digest": hashlib.sha256(student.read_bytes()).hexdigest(),
                "comparison": comparison("student.safetensors"),
            }
        )
    )
    assert wfcli("push", student, "hf:me/net", "--metrics", file).code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"error: .*m\.json: is not the JSON of wfcli eval or wfcli fuse"),
        (json.dumps(comparison("b.safetensors")), r"error: .*expected one row of student\.safetensors, got 0 of: b\."),
        (json.dumps({"digest": "0", "comparison": None}), r"error: .*compares nothing: that fuse had no --data"),
        (
            json.dumps({"digest": "0" * 64, "comparison": comparison("student.safetensors")}),
            r"error: .*is about another student: sha256 000000000000",
        ),
    ],
)
def test_results_of_something_else(hub: HubServer, wfcli: Run, student: Path, content: str, message: str) -> None:
    file = student.parent / "m.json"
    file.write_text(content)
    ran = wfcli("push", student, "hf:me/net", "--metrics", file)
    assert_error(ran, message)
    assert hub.requests == []


def assert_error(ran: Ran, message: str) -> None:
    assert ran.code == 1
    assert re.search(message, ran.stderr), ran.stderr
    assert "hint: " in ran.stderr


# Generators and zoos


def test_a_generator_is_read_back(hub: HubServer, wfcli: Run, tmp_path: Path, tiny_teachers: TinyTeachers) -> None:
    folder = tmp_path / "gen"
    shutil.copytree(pretrained_folder() / "universal", folder)
    (folder / "log.jsonl").write_text("{}")
    assert wfcli("push", folder, "hf:me/gen").code == 0
    assert sorted(hub.files("me/gen")) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    ours = WeightFormer.from_pretrained(str(folder)).state_dict()
    theirs = WeightFormer.from_pretrained("me/gen").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    teachers = (*tiny_teachers.paths, *tiny_teachers.arch, "--no-guard")
    for name in ("hf:me/gen", str(folder)):
        out = tmp_path / f"{name.rpartition('/')[2]}-{name[:2] == 'hf'}.safetensors"
        assert wfcli("fuse", *teachers, "-o", out, "--generator", name).code == 0
    one, other = (dict(open_checkpoint(path)) for path in sorted(tmp_path.glob("gen-*.safetensors")))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_specialised_generator_takes_its_base_along(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    folder = tmp_path / "gen"
    shutil.copytree(pretrained_folder() / "vgg11_bn-cifar10", folder)
    assert wfcli("push", folder, "hf:me/gen").code == 0
    assert hub.files("me/gen")["base.safetensors"] == (folder / "base.safetensors").read_bytes()
    (folder / "base.safetensors").write_bytes(b"12")
    assert_error(wfcli("push", folder, "hf:me/gen"), "base.safetensors")


def test_the_card_of_a_generator_is_kept(hub: HubServer, wfcli: Run, tmp_path: Path) -> None:
    folder = tmp_path / "gen"
    shutil.copytree(pretrained_folder() / "universal", folder)
    before = (folder / "README.md").read_text()
    assert wfcli("push", folder, "hf:me/gen").code == 0
    card = ModelCard(hub.files("me/gen")["README.md"].decode())
    assert card.text.strip() == ModelCard(before).text.strip()
    assert card.data.to_dict() == {**ModelCard(before).data.to_dict(), "tags": card.data.tags}
    assert card.data.tags == ["model-merging", "weightformer", "wfcli"]
    assert (folder / "README.md").read_text() == before
    assert_error(wfcli("push", folder, "hf:me/gen", "--license", "mit"), "says license apache-2.0, --license mit")


def test_a_zoo_is_read_back(hub: HubServer, wfcli: Run, zoo: Path, tmp_path: Path) -> None:
    assert wfcli("push", zoo, "hf:me/zoo").code == 0
    assert metadata(hub, "me/zoo")["datasets"] == ["uoft-cs/cifar10"]
    [one] = resolve_sources(["hf:me/zoo:teacher-00.safetensors"])
    assert one.path.read_bytes() == (zoo / "teacher-00.safetensors").read_bytes()
    found = resolve_sources(["hf:me/zoo:teacher-*.safetensors"])
    assert [source.name for source in found] == [f"me/zoo:teacher-0{number}.safetensors" for number in range(3)]
    assert wfcli("pull", "hf:me/zoo", "--all", "-o", tmp_path / "back").code == 0
    assert read_zoo(tmp_path / "back").teachers == read_zoo(zoo).teachers
    card = hub.files("me/zoo")["README.md"].decode()
    assert "wfcli fuse 'hf:me/zoo:*.safetensors' --arch vgg11_bn_cifar --arch-arg width=0.125" in card


def test_what_an_earlier_push_left_is_told(hub: HubServer, wfcli: Run, zoo: Path) -> None:
    hub.add("me/zoo", {"teacher-09.safetensors": b"old"})
    ran = wfcli("push", zoo, "hf:me/zoo")
    assert ran.code == 0
    assert "warning: me/zoo still holds teacher-09.safetensors, from an earlier commit" in ran.stderr


# Where to


def test_a_branch_a_message_and_a_private_repository(hub: HubServer, wfcli: Run, student: Path) -> None:
    options = ("--revision", "v1", "--message", "First try", "--private")
    assert wfcli("push", student, "hf:me/net", *options).code == 0
    assert hub.repositories["me/net"].private
    assert hub.messages == ["First try"]
    assert "model.safetensors" in hub.files("me/net", "v1")
    assert "model.safetensors" not in hub.files("me/net")
    assert resolve_sources(["hf:me/net@v1"])[0].path.read_bytes() == student.read_bytes()


def test_a_pull_request(hub: HubServer, wfcli: Run, student: Path) -> None:
    hub.add("you/net", {"README.md": b"theirs"})
    ran = wfcli("push", student, "hf:you/net", "--create-pr", "--json")
    assert json.loads(ran.stdout)["url"] == f"{hub.endpoint}/you/net/discussions/1"
    assert hub.files("you/net") == {"README.md": b"theirs"}
    assert "model.safetensors" in hub.files("you/net", "refs/pr/1")
    assert_error(wfcli("push", student, "hf:you/no", "--create-pr"), "hf:you/no: no such repository, or it is private")


def test_the_same_push_again_changes_nothing(hub: HubServer, wfcli: Run, student: Path) -> None:
    first = json.loads(wfcli("push", student, "hf:me/net", "--json").stdout)
    again = json.loads(wfcli("push", student, "hf:me/net", "--json").stdout)
    assert first["commit"] == again["commit"]
    assert len(hub.messages) == 1


# What is refused


def test_a_dry_run_sends_nothing(hub: HubServer, wfcli: Run, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")  # it needs none
    ran = wfcli("push", student, "hf:me/net", "--dry-run")
    assert ran.code == 0
    assert hub.requests == []
    for part in ("model.safetensors", "config.json", "library_name: timm", "nothing was sent: --dry-run"):
        assert part in ran.stdout
    assert f"wfcli fuse --recipe recipe.toml -o {student.name}\n" in ran.stdout


def test_what_is_not_ours_is_refused_before_anything_is_sent(
    hub: HubServer, wfcli: Run, student: Path, zoo: Path, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    def refused(source: Path, message: str, *options: str) -> None:
        assert_error(wfcli("push", source, "hf:me/net", *options), message)
        assert hub.requests == []

    refused(tmp_path / "no.safetensors", r"no\.safetensors: no such file or folder\n")
    refused(tiny_teachers.paths[0], r"teacher-00\.safetensors: not written by wfcli: it does not say which net")
    refused(tmp_path / "cache", "no such file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"holds no generator and no zoo: config\.json, model\.safetensors, README\.md missing")
    (tmp_path / "cut.safetensors").write_bytes(student.read_bytes()[:-10])
    refused(tmp_path / "cut.safetensors", r"cut\.safetensors: ")
    state = dict(open_checkpoint(student))
    made = open_checkpoint(student).provenance or {}
    save_state(tmp_path / "nan.safetensors", state | {"head.bias": torch.full((10,), torch.nan)}, made)
    refused(tmp_path / "nan.safetensors", r"head\.bias: got 10 of 10 numbers NaN or Inf")
    save_state(tmp_path / "less.safetensors", {"head.bias": state["head.bias"]}, made)
    refused(tmp_path / "less.safetensors", r"features\.0\.weight: missing")
    (zoo / "teacher-01.safetensors").write_bytes((zoo / "teacher-02.safetensors").read_bytes())
    refused(zoo, r"teacher-01\.safetensors: got sha256 \w+, expected \w+ as in zoo\.json")
    generator = tmp_path / "gen"
    shutil.copytree(pretrained_folder() / "universal", generator)
    (generator / "config.json").write_text("{}")
    refused(generator, r"config\.json: got format None, expected 1")


def test_names_that_are_no_repository(hub: HubServer, wfcli: Run, student: Path) -> None:
    for target, message in (
        ("me/net", "me/net: expected a repository on the Hub\nhint: write hf:owner/name"),
        ("hf:me/net:x.safetensors", "a push goes to a whole repository\nhint: write hf:me/net"),
        ("hf:net", "hf:net: not a name on the Hub"),
    ):
        assert_error(wfcli("push", student, target), message)
    ran = wfcli("push", student, "hf:me/net@a", "--revision", "b")
    assert_error(ran, "got --revision b too\nhint: leave one")
    assert hub.requests == []


def test_who_may_not_write(
    hub: HubServer, wfcli: Run, student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("you/net", {"README.md": b"theirs"})
    assert_error(wfcli("push", student, "hf:you/net"), "hf:you/net: me may not write there\nhint: .*--create-pr")
    assert_error(wfcli("push", student, "hf:you/new"), "hf:you/new: me may not write there")
    hub.add("me/open", {"README.md": b"open"})
    assert_error(wfcli("push", student, "hf:me/open", "--private"), "--private: me/open is there, and everybody can")
    assert hub.messages == []
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert_error(wfcli("push", student, "hf:me/net"), "nobody is logged in .*token is no longer good\nhint: log in")
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.requests)
    assert_error(wfcli("push", student, "hf:me/net"), "nobody is logged in")
    assert len(hub.requests) == before


def test_a_hub_that_is_out_of_order(hub: HubServer, wfcli: Run, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    hub.status = 503
    assert_error(wfcli("push", student, "hf:me/net"), "the Hub did not take the files .*503.*\nhint: run the same")


def test_a_hub_that_is_away(hub: HubServer, wfcli: Run, student: Path) -> None:
    hub.stop()
    assert_error(wfcli("push", student, "hf:me/net"), "hf:me/net: the Hub did not take the files .*Connect")


def test_a_busy_hub_is_asked_again(hub: HubServer, wfcli: Run, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks again where that does no harm: on its way to the storage of large files."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.busy_at, hub.busy = "/preupload/", 2
    assert wfcli("push", student, "hf:me/net").code == 0
    assert len(waits) == 2
    assert hub.files("me/net")["model.safetensors"] == student.read_bytes()
