"""The commands on the cards: the command line takes them as they stand, and they make the same bytes again."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from huggingface_hub import ModelCard

from tests.conftest import Ran
from tests.hub_server import TOKEN, HubServer, use_hub
from wfcli.cli import app
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.data import DataSpec
from wfcli.core.pretrained import list_pretrained
from wfcli.core.zoo import read_zoo
from wfcli.engine.again import (
    finetune_command,
    spelled,
    train_generator_command,
    train_teachers_command,
)
from wfcli.engine.hub_texts import zoo_metadata, zoo_text

pytest.importorskip("sklearn")  # for the digits
# The client's own way to upload; warnings are errors here.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

Run = Callable[..., Ran]
ARCH = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, tmp_path / "cache", monkeypatch, TOKEN)
        yield server


def card(hub: HubServer, repo: str) -> str:
    return hub.files(repo)["README.md"].decode()


def command(text: str) -> list[str]:
    """Return the words of the command under "Make it again", as the shell has them."""
    block = text.split("## Make it again\n")[1].split("```\n")[1]
    told = subprocess.run(
        ["bash", "-c", f'wfcli() {{ printf "%s\\0" "$@"; }}\n{block}'], capture_output=True, text=True, check=True
    )
    return told.stdout.split("\0")[:-1]


def parsed(words: list[str]) -> dict[str, object]:
    """Return the options as the command line's own parser reads them."""
    name, *rest = words
    return typer.main.get_command(app).commands[name].make_context(name, rest).params


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def given(zoo: Path, folder: Path) -> Path:
    """Lay the base that all teachers of a zoo start from into a new folder, by its base name."""
    folder.mkdir()
    shutil.copy(zoo.parent / "base" / "teacher-00.safetensors", folder)
    return folder


# Zoos


def test_the_command_on_the_card_of_a_zoo_makes_the_same_bytes(
    hub: HubServer, wfcli: Run, digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--epochs", "0.4", "--lr", "0.03", "--batch-size", "33", "--faults", "none,labels", "--seed", "7")
    shares = ("--shares", "dirichlet", "--concentration", "2", "--images-per-teacher", "60-90", "--classes", "0-3,7")
    base = digits_zoo.parent / "base" / "teacher-00.safetensors"
    own = (*ARCH, "--data", "digits", "--count", "3", "--init", base, *options, *shares, "--optimiser", "adamw")
    assert wfcli("train-teachers", *own, "-o", tmp_path / "made").code == 0
    assert wfcli("push", tmp_path / "made", "hf:me/zoo").code == 0
    words = command(card(hub, "me/zoo"))
    monkeypatch.chdir(given(digits_zoo, tmp_path / "again"))
    ran = wfcli(*words)
    assert ran.code == 0, ran.stderr
    assert bytes_of(tmp_path / "again" / "zoo") == bytes_of(tmp_path / "made")


def test_a_zoo_of_one_recipe_and_random_starts(wfcli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = (*ARCH, "--data", "digits", "--count", "2", "--epochs", "0.1", "--images-per-teacher", "64", "--same-recipe")
    assert wfcli("train-teachers", *own, "-o", tmp_path / "made").code == 0
    words = command(zoo_text("me/zoo", read_zoo(tmp_path / "made")))
    monkeypatch.chdir(tmp_path)
    assert wfcli(*words).code == 0
    assert bytes_of(tmp_path / "zoo") == bytes_of(tmp_path / "made")


def test_a_base_of_the_hub_is_pinned_and_named_in_the_metadata(digits_zoo: Path) -> None:
    zoo = read_zoo(digits_zoo)
    assert "base_model" not in {key for key, value in zoo_metadata(zoo).items() if value}  # one of this machine
    base = {"name": "you/bases:b.safetensors", "sha256": 64 * "1", "revision": 40 * "a"}
    zoo = replace(zoo, base=base, data=DataSpec("uoft-cs/cifar100", "fine_label", "0-9"))
    words = command(zoo_text("me/zoo", zoo))
    found = parsed(words)
    assert found["init"] == f"hf:you/bases@{40 * 'a'}:b.safetensors"
    assert (found["data"], found["label_column"], found["classes"]) == ("uoft-cs/cifar100", "fine_label", "0-9")
    told = zoo_metadata(zoo)
    assert (told["base_model"], told["base_model_relation"]) == (["you/bases"], "finetune")
    assert told["datasets"] == ["uoft-cs/cifar100"]


def test_a_base_that_comes_with_wfcli_goes_by_its_name_there() -> None:
    one = next(one for one in list_pretrained() if "base.safetensors" in one.sha256)
    source = {"name": "base.safetensors", "sha256": one.sha256["base.safetensors"]}
    assert spelled(source) == f"pretrained:{one.name}/base"
    assert spelled({**source, "sha256": 64 * "0"}) == "base.safetensors"


def test_an_older_zoo_says_that_its_options_are_not_known(digits_zoo: Path) -> None:
    zoo = replace(read_zoo(digits_zoo), options=None)
    assert train_teachers_command(zoo) is None
    assert "The zoo.json of an earlier wfcli does not say all options" in zoo_text("me/zoo", zoo)


def test_no_folder_of_this_machine_stands_on_a_card(digits_zoo: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "cifar", tmp_path / "moved"):
        (tmp_path / "cifar").mkdir(exist_ok=True)
        text = zoo_text("me/zoo", replace(read_zoo(digits_zoo), data=DataSpec(str(place))))
        assert parsed(command(text))["data"] == place.name
        assert str(tmp_path) not in text


# Students of finetune


@pytest.fixture
def tuned(wfcli: Run, digits_zoo: Path, tmp_path: Path) -> Path:
    """Distil two teachers into one of them, with options that matter to the bytes."""
    options = ("--steps", "5", "--batch-size", "40", "--temperature", "1.5", "--validate-every", "2", "--seed", "3")
    teachers = [word for number in (1, 2) for word in ("--teachers", digits_zoo / f"teacher-0{number}.safetensors")]
    start, out = digits_zoo / "teacher-00.safetensors", tmp_path / "tuned.safetensors"
    ran = wfcli("finetune", start, *teachers, *ARCH, "--data", "digits", "--lr", "0.02", *options, "-o", out)
    assert ran.code == 0, ran.stderr
    return out


def test_the_command_on_the_card_of_a_fine_tuned_student_makes_the_same_bytes(
    hub: HubServer, wfcli: Run, tuned: Path, digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wfcli("push", tuned, "hf:me/net").code == 0
    words = command(card(hub, "me/net"))
    shutil.copytree(digits_zoo, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    ran = wfcli(*words)
    assert ran.code == 0, ran.stderr
    assert (tmp_path / "there" / tuned.name).read_bytes() == tuned.read_bytes()


def test_the_provenance_has_all_that_decides(tuned: Path) -> None:
    """Which step is the best depends on when it was looked."""
    made = open_checkpoint(tuned).provenance or {}
    assert made["recipe"]["validate_every"] == 2
    found = parsed(shlex.split(finetune_command(made, "x.safetensors").replace("\\\n", " "))[1:])
    assert (found["validate_every"], found["steps"], found["seed"], found["lr"]) == (2, 5, 3, 0.02)


def test_names_that_are_not_as_usual_are_quoted() -> None:
    odd = "it's -- a\n```\n$(touch x) \\ name.safetensors"
    made = {
        "architecture": {"name": "resnet18", "args": {"width": 0.5, "deep": True}},
        "sources": [{"name": "-o", "sha256": 64 * "0"}],
        "teachers": [
            {"name": f"{odd} (0123abcd)", "sha256": 64 * "1"},
            {"name": "you/t@0123456789ab (89abcdef)", "sha256": 64 * "2", "revision": 40 * "b"},
        ],
        "data": {"source": "a b", "label_column": None, "classes": None},
        "recipe": {"steps": 7, "lr": None},
    }
    text = f"## Make it again\n```\n{finetune_command(made, 'x.safetensors')}\n```\n"
    assert text.count("\n```") == 2
    found = parsed(command(text))
    assert (found["checkpoint"], found["teachers"]) == ("./-o", [odd, f"hf:you/t@{40 * 'b'}"])
    assert (found["data"], found["steps"], found["lr"]) == ("a b", 7, None)
    assert found["arch_arg"] == ["width=0.5", "deep=True"]


# Generators


def test_the_command_on_the_card_of_a_generator_makes_the_same_bytes(
    hub: HubServer, wfcli: Run, digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "--steps",
        "2",
        "--batch-size",
        "32",
        "--lr",
        "0.004",
        "--seed",
        "5",
        "--accumulate",
        "2",
        "--width",
        "16",
    )
    made, more = tmp_path / "made", tmp_path / "more"
    assert wfcli("train-generator", "--zoo", digits_zoo, *options, "--views", "1", "-o", made).code == 0
    start = ("--init", made, "--preset", "specialised", "--train", "prior", "--steps", "1", "--shift-weight", "0.5")
    assert wfcli("train-generator", "--zoo", digits_zoo, *start, "-o", more).code == 0
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    shutil.copytree(digits_zoo, "zoo")
    for folder in (made, more):
        ran = wfcli(*command((folder / "README.md").read_text()))
        assert ran.code == 0, ran.stderr
        assert bytes_of(Path("generator")) == bytes_of(folder)
        Path("generator").rename(folder.name)
    assert wfcli("push", made, "hf:me/gen").code == 0
    assert command(card(hub, "me/gen")) == command((made / "README.md").read_text())


def test_the_metadata_of_a_generator(
    hub: HubServer, wfcli: Run, digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "named"
    shutil.copytree(digits_zoo, named)
    zoos = ("--zoo", digits_zoo, "--zoo", named)
    assert wfcli("train-generator", *zoos, "--steps", "1", "--batch-size", "32", "-o", tmp_path / "gen").code == 0
    assert wfcli("push", tmp_path / "gen", "hf:me/gen", "--license", "mit").code == 0
    found = ModelCard(card(hub, "me/gen")).data.to_dict()
    assert (found["library_name"], found["license"]) == ("wfcli", "mit")
    assert found["tags"] == ["wfcli", "model-merging", "weightformer"]
    assert "datasets" not in found  # digits is none of the Hub
    [model] = found["model-index"]
    [result] = model["results"]
    assert result["dataset"] == {"type": "digits", "name": "digits", "split": "validation"}
    log = [json.loads(line) for line in (tmp_path / "gen" / "training.jsonl").read_text().splitlines()]
    best = max(log, key=lambda row: row["gain"])
    assert [metric["value"] for metric in result["metrics"]] == [best["calibrated"], best["data_free"]]
    assert [word for word in command(card(hub, "me/gen")) if word in ("zoo", "named")] == ["zoo", "named"]


def test_datasets_of_the_hub_stand_in_the_metadata_of_a_generator(
    wfcli: Run, digits_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfcli.engine import train_generator as engine

    write, written = engine.generator_card, []

    def of_the_hub(generator: object, zoos: list[object], *rest: object) -> str:
        there = [replace(one, zoo=replace(one.zoo, data=DataSpec("hf:uoft-cs/cifar10"))) for one in zoos]
        written.append(write(generator, there, *rest))
        return written[0]

    monkeypatch.setattr(engine, "generator_card", of_the_hub)
    args = ("--zoo", digits_zoo, "--steps", "1", "--batch-size", "32", "-o", tmp_path / "gen")
    assert wfcli("train-generator", *args).code == 0
    found = ModelCard(written[0]).data.to_dict()
    assert found["datasets"] == ["uoft-cs/cifar10"]
    assert found["model-index"][0]["results"][0]["dataset"]["type"] == "uoft-cs/cifar10"


def test_zoos_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "zoo", tmp_path / "b" / "zoo", tmp_path / "b" / "zoo"]
    words = shlex.split(train_generator_command(folders, {"mask": False, "flow": True}).replace("\\\n", " "))
    assert words[3:8:2] == ["a/zoo", "b/zoo", "b/zoo"]
    assert words[8:10] == ["--no-mask", "--flow"]
