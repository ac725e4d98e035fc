"""Hostile and broken files: some thousands of each kind are read correctly or refused by an error of ours.

`examples/faults/fuzz.py` reads any number of them, watched from outside. What else was found
stands in `test_hostile_cases.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import hostile
from tests.hostile import files, images, mutate, texts, weights
from wfcli import terminal
from wfcli.core.bounded import parse_json, read_toml
from wfcli.core.forms import misfit
from wfcli.core.safetensors_io import read_header
from wfcli.engine.recipe import _quoted
from wfcli.errors import CheckpointError

FAULTS = Path(__file__).parents[1] / "examples" / "faults"
SEED = 1
INPUTS = {
    "safetensors": 500, "shards": 300, "pickle": 200, "provenance": 50, "generator": 200, "zoo": 80, "zoo recipe": 250,
    "fuse recipe": 120, "timm config": 30, "metrics": 100, "names": 60, "terminal": 20, "image": 120, "parquet": 8,
    "image folder": 4, "unlabelled": 4,
}  # fmt: skip
quick = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_the_corpus_is_two_thousand_inputs_of_all_targets() -> None:
    assert sum(INPUTS.values()) >= 2000
    assert INPUTS.keys() == hostile.targets().keys()


@pytest.mark.filterwarnings("ignore")  # what libraries say of broken files
@pytest.mark.parametrize("name", INPUTS)
def test_hostile_files_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    target, verdicts = hostile.targets()[name], set()
    for number in range(INPUTS[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        hostile.make(target, name, SEED, number, folder)
        began = time.process_time()
        try:
            verdicts.add(hostile.judge(target, folder))
        except Exception as error:
            raise AssertionError(f"fuzz.py --target '{name}' --seed {SEED} --only {number}") from error
        assert time.process_time() - began < 10, f"input {number} takes too long"
    assert "accepted" in verdicts or name in ("parquet", "image folder", "unlabelled", "zoo recipe")


@pytest.mark.parametrize("name", ["safetensors", "shards", "pickle", "generator", "zoo", "zoo recipe", "image"])
def test_the_same_seed_makes_the_same_bytes(name: str, tmp_path: Path) -> None:
    made = []
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        for number in range(12):
            place = tmp_path / turn / str(number)
            place.mkdir()
            hostile.make(hostile.targets()[name], name, 3, number, place)
        found = sorted(path for path in (tmp_path / turn).rglob("*") if path.is_file() and not path.is_symlink())
        made.append(
            [(path.relative_to(tmp_path / turn), path.read_bytes()) for path in found if os.access(path, os.R_OK)]
        )
    assert made[0] == made[1]


def test_what_the_inputs_are_made_from_is_read(tmp_path: Path) -> None:
    fields, body = files.safetensors("net")
    (tmp_path / "x.safetensors").write_bytes(files.packed(json.dumps(fields).encode(), body))
    weights.read_checkpoint(tmp_path)
    for kind in ("zip", "legacy", "wrapped", "parameters"):
        (tmp_path / "x.pt").write_bytes(files.pickled(kind))
        hostile.targets()["pickle"].read(_alone(tmp_path / "x.pt"))
    config, model, card = files.generator()
    generator = tmp_path / "generator"
    generator.mkdir()
    (generator / "config.json").write_text(json.dumps(config))
    (generator / "model.safetensors").write_bytes(model)
    (generator / "README.md").write_bytes(card)
    weights.read_generator(generator)
    zoo, teacher = files.zoo()
    for entry in zoo["teachers"]:
        (tmp_path / entry["file"]).write_bytes(teacher)
    (tmp_path / "zoo.json").write_text(json.dumps(zoo))
    weights.read_zoo(tmp_path)
    (tmp_path / "zoo.toml").write_text(files.ZOO_RECIPE)
    texts.read_zoo_recipe(tmp_path)
    (tmp_path / "merge.toml").write_text(files.RECIPE)
    texts.read_recipe(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(files.TIMM_CONFIG))
    texts.read_timm_config(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(files.METRICS))
    texts.read_metrics(tmp_path)
    (tmp_path / "x.img").write_bytes(files.image())
    images.read_image(tmp_path)
    for kind in ("hub", "plain"):
        data = tmp_path / kind
        data.mkdir()
        for split in ("train", "test"):
            (data / f"{split}-0.parquet").write_bytes(files.parquet(kind))
        images.read_labelled(data)


def _alone(path: Path) -> Path:
    folder = path.parent / "alone"
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)
    return folder


def test_another_error_than_ours_is_a_finding(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        hostile.judge(hostile.Target(lambda random, folder: None, read, 1), tmp_path)

    def say(folder: Path) -> None:
        raise CheckpointError(*["x" * 1900] * 100)

    with pytest.raises(AssertionError, match="a message of"):
        hostile.judge(hostile.Target(lambda random, folder: None, say, 1), tmp_path)


@pytest.mark.parametrize(
    ("event", "arguments", "found"),
    [
        ("os.system", (b"ls",), "os.system"),
        ("subprocess.Popen", ("gs", [], None, None), "subprocess.Popen"),
        ("socket.connect", (None, ("example.org", 80)), "socket.connect"),
        ("open", ("/etc/x", "w", os.O_WRONLY | os.O_CREAT), "writes /etc/x"),
        ("open", ("/etc/passwd", "r", os.O_RDONLY), None),
        ("open", (3, "w", os.O_WRONLY), None),
        ("os.remove", ("/etc/x", -1), "os.remove"),
        ("os.rename", ("inside", "/etc/x", -1, -1), "os.rename"),
        ("exec", (compile("1", "/elsewhere/x.py", "exec"),), "runs code of /elsewhere/x.py"),
    ],
)
def test_the_watch_sees_what_must_not_happen(
    event: str, arguments: tuple[Any, ...], found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(FAULTS), *sys.path])
    import watch

    arguments = tuple(str(tmp_path / "x") if one == "inside" else one for one in arguments)
    told = watch._wrong(event, arguments, tmp_path)
    assert told is None if found is None else told is not None and found in told
    assert watch._wrong("open", (str(tmp_path / "x"), "w", os.O_WRONLY), tmp_path) is None


# Properties


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
TREES = st.recursive(
    LEAVES, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4), max_leaves=20
)
SIZES = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**63, 2**64])
SPECS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "U8", "BF16", "F4", ""]),
        "shape": st.lists(SIZES, max_size=4),
        "data_offsets": st.lists(SIZES, min_size=1, max_size=3),
    }
)


@given(TREES)
@quick
def test_json_within_the_bounds_is_what_it_always_was(tree: Any) -> None:
    text = json.dumps(tree)
    if "\\u0000" in text:
        with pytest.raises(ValueError, match="NUL"):
            parse_json(text)
    else:
        assert parse_json(text) == tree


@given(st.dictionaries(st.text(max_size=5), SPECS | TREES, max_size=5), st.integers(0, 200))
@quick
def test_a_header_is_sound_or_refused(tmp_path: Path, fields: dict[str, Any], body: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(files.packed(json.dumps(fields).encode(), bytes(body)))
    try:
        header = read_header(path)
    except CheckpointError:
        return
    assert sum(spec.size for spec in header.specs.values()) == body
    assert all(0 <= header.offsets[name] <= path.stat().st_size for name in header.specs)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@quick
def test_what_is_printed_tells_the_terminal_nothing(text: str) -> None:
    texts.check_plain(texts.shown(CheckpointError(f"{text}: damaged", hint=text)))
    printed = json.dumps({"name": text}, ensure_ascii=False).translate(terminal._ESCAPES)
    texts.check_plain(printed)
    assert json.loads(printed) == {"name": text}


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@quick
def test_a_recipe_says_every_text_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_bytes(f"a = {_quoted(text)}".translate(terminal._ESCAPES).encode())
    assert read_toml(tmp_path / "x.toml") == {"a": text}


@given(TREES, st.integers(0, 1000))
@quick
def test_any_value_fits_a_form_or_is_told(tree: Any, seed: int) -> None:
    assert misfit(files.PROVENANCE, {"verb": str}) is None
    told = misfit(mutate.tree(Random(seed), {"a": tree, "b": [1, 2]}), {"a": (str, {"*": int}), "b": [int]})
    assert told is None or "expected" in told or "missing" in told
