"""Zoo recipes: what a file means, what is wrong with it, and the zoos that come of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.selection import parse_selection
from wfcli.core.zoo import read_zoo
from wfcli.core.zoo_recipes import ZooRecipe, read_zoo_recipe
from wfcli.engine.train_zoos import TrainZoosConfig, train_zoos
from wfcli.errors import ArchitectureError, DataError, SourceError, WfError

RECIPE = """
arch = "vgg11_bn_cifar"
arch_args = { width = 0.125 }
data = "digits"

[roles]
base = "0-4"
training = "5-9"

[base]
role = "base"
epochs = 1
lr = 0.1

[[zoo]]
name = "task"
repeat = 3
role = "training"
classes = 3
count = 2
shares = "dirichlet"
concentration = [1.0, 10.0]
images_per_teacher = "40-60"
epochs = 1

[[zoo]]
name = "same"
classes = "5,7,9"
role = "training"
count = 2
epochs = 0.5
"""


def numbers(classes: str | None) -> list[int]:
    assert classes is not None
    return parse_selection(classes, 10, option="", noun="", plural="", owner="")


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], ZooRecipe]:
    def write_and_read(text: str) -> ZooRecipe:
        (tmp_path / "zoos.toml").write_text(text)
        return read_zoo_recipe(tmp_path / "zoos.toml")

    return write_and_read


def test_a_recipe_names_every_zoo(read: Callable[[str], ZooRecipe]) -> None:
    recipe = read(RECIPE)
    assert recipe.architecture.label == "vgg11_bn_cifar(width=0.125)"
    assert recipe.base is not None
    assert (recipe.base.classes, recipe.base.options["count"]) == ("0,1,2,3,4", 1)
    assert [zoo.name for zoo in recipe.zoos] == ["task-00", "task-01", "task-02", "same"]
    assert [zoo.options.get("concentration") for zoo in recipe.zoos] == [1.0, 10.0, 1.0, None]
    assert len({zoo.options["seed"] for zoo in [recipe.base, *recipe.zoos]}) == 5
    for zoo in recipe.zoos[:3]:
        drawn = numbers(zoo.classes)
        assert len(set(drawn)) == 3
        assert set(drawn) <= {5, 6, 7, 8, 9}
    assert len({zoo.classes for zoo in recipe.zoos[:3]}) > 1
    assert recipe == read(RECIPE)


def test_data_is_relative_to_the_file(read: Callable[[str], ZooRecipe], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert read(RECIPE.replace('"digits"', '"images"')).data == str(tmp_path / "images")
    assert read(RECIPE.replace('"digits"', '"owner/name"')).data == "owner/name"


def test_init_is_relative_to_the_file(read: Callable[[str], ZooRecipe], tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").touch()
    alone = RECIPE.replace('[base]\nrole = "base"\nepochs = 1\nlr = 0.1\n', "")
    for init, meant in (
        ("base.safetensors", str(tmp_path / "base.safetensors")),
        (str(tmp_path / "base.safetensors"), str(tmp_path / "base.safetensors")),
        ("other.safetensors", "other.safetensors"),
        ("hf:owner/name", "hf:owner/name"),
        ("pretrained:base", "pretrained:base"),
        ("", ""),
    ):
        assert read(f"init = {init!r}\n{alone}").init == meant


@pytest.mark.parametrize(
    ("seed", "seeds"), [("5", [5, 6, 7]), ("[5, 9]", [5, 9, 5]), ("4294967295", [4294967295, 0, 1])]
)
def test_each_zoo_of_a_group_has_its_seed(read: Callable[[str], ZooRecipe], seed: str, seeds: list[int]) -> None:
    zoos = read(RECIPE.replace("repeat = 3", f"repeat = 3\nseed = {seed}")).zoos
    assert [zoo.options["seed"] for zoo in zoos[:3]] == seeds
    assert len({zoo.classes for zoo in zoos[:3]}) > 1
    once = read(RECIPE.replace('name = "same"', 'name = "same"\nseed = 5')).zoos
    assert once[3].options["seed"] == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 1\nlr", "epoch = 1\nlr", r"\[base\] unknown key 'epoch'; did you mean epochs\?"),
        ("count = 2", 'count = "two"', r"\[\[zoo\]\] 0: count: got 'two', expected int"),
        ("count = 2", "count = true", r"count: got True, expected int"),
        ("count = 2\n", "", r"\[\[zoo\]\] 0: no count"),
        ("repeat = 3", "repeat = [1, 2]", r"\[\[zoo\]\] 0: repeat: got \[1, 2\], expected int$"),
        ('name = "same"', 'name = ["same"]', r"\[\[zoo\]\] 1: name: got \['same'\], expected str$"),
        (
            'arch = "vgg11_bn_cifar"',
            'arch = ["vgg11_bn_cifar"]',
            r"toml: arch: got \['vgg11_bn_cifar'\], expected str$",
        ),
        ('data = "digits"', 'data = ["digits"]', r"toml: data: got \['digits'\], expected str$"),
        ("epochs = 1\nlr", "epochs = [1, 2]\nlr", r"\[base\] epochs: got \[1, 2\], expected int or float$"),
        ("count = 2", "count = []", r"\[\[zoo\]\] 0: count: got \[\], expected int, or a list of it$"),
        ("count = 2", "count = 2\nseed = -1", r"\[\[zoo\]\] 0: seed: got -1, expected 0 to 4294967295"),
        ("count = 2", "count = 2\nseed = [1, -1]", r"\[\[zoo\]\] 0: seed: got \[1, -1\], expected 0 to"),
        ("lr = 0.1", "seed = 4294967296", r"\[base\] seed: got 4294967296, expected 0 to"),
        ('training = "5-9"', 'training = "4-9"', r"\[roles\] training shares classes with base"),
        ('training = "5-9"', 'training = "9-5"', r"\[roles\] training = 9-5: '9-5' is neither"),
        ("classes = 3", "classes = 6", r"task-00: 6 classes, the role has 5"),
        ('classes = "5,7,9"', 'classes = "3,5"', r"same: classes 3 are not of the role training"),
        ('role = "training"\nclasses = 3', 'role = "test"\nclasses = 3', r"task-00: unknown role 'test'"),
        ('name = "same"', 'name = "task-01"', r"two zoos are called task-01"),
        ('name = "same"', 'name = "../same"', r"\[\[zoo\]\] 1: got name '../same'"),
        ('data = "digits"', 'data = "digits"\ninit = "b.safetensors"', r"has both a \[base\] to train and init"),
        ('arch = "vgg11_bn_cifar"', "", r"no arch"),
    ],
)
def test_faults_are_named(read: Callable[[str], ZooRecipe], old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(DataError, match=f"(?m){message}") as caught:
        read(RECIPE.replace(old, new))
    assert caught.value.hint


def test_all_faults_at_once(read: Callable[[str], ZooRecipe]) -> None:
    text = RECIPE.replace("vgg11_bn_cifar", "vgg11_bn_cifr").replace("epochs = 1\nlr", "epoch = 1\nlr")
    with pytest.raises(WfError) as caught:
        read(text.replace("classes = 3", "classes = 6"))
    assert len(caught.value.problems) == 3


def test_what_is_no_recipe(read: Callable[[str], ZooRecipe], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not TOML"):
        read("arch = ")
    with pytest.raises(SourceError, match=r"nowhere\.toml: cannot be read"):
        read_zoo_recipe(tmp_path / "nowhere.toml")
    with pytest.raises(ArchitectureError, match="vgg11_bn_cifr"):
        read(RECIPE.replace("vgg11_bn_cifar", "vgg11_bn_cifr"))


def test_a_recipe_makes_its_zoos_and_makes_them_once(wfcli: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "zoos.toml").write_text(RECIPE.replace("repeat = 3", "repeat = 2"))
    args = ("train-teachers", "--zoo-recipe", tmp_path / "zoos.toml", "-o", tmp_path / "zoos", "--device", "cpu")
    ran = wfcli(*args, "--jobs", "2")
    assert (ran.code, ran.stderr) == (0, "")
    for name in ("base", "task-00", "task-01", "same"):
        assert name in ran.stdout
    zoo = read_zoo(tmp_path / "zoos" / "task-01")
    base = tmp_path / "zoos" / "base" / "teacher-00.safetensors"
    assert zoo.base == {"name": "teacher-00.safetensors", "sha256": open_checkpoint(base).digest()}
    assert zoo.shares["concentration"] == 10.0
    assert all(teacher.images is not None and 2 <= len(teacher.images) <= 60 for teacher in zoo.teachers)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(before) == 7
    again = json.loads(wfcli(*args, "--json").stdout)
    assert list(again["zoos"]) == ["base", "task-00", "task-01", "same"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_no_zoo_is_begun_where_one_of_them_has_no_place(wfcli: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "zoos.toml").write_text(RECIPE)
    (tmp_path / "zoos" / "same").mkdir(parents=True)
    (tmp_path / "zoos" / "same" / "mine.safetensors").write_bytes(b"mine")
    ran = wfcli("train-teachers", "--zoo-recipe", tmp_path / "zoos.toml", "-o", tmp_path / "zoos", "--device", "cpu")
    assert ran.code == 1
    assert "mine.safetensors is there already" in " ".join(ran.stderr.split())
    assert [path.name for path in (tmp_path / "zoos").rglob("*")] == ["same", "mine.safetensors"]


def test_no_base_is_trained_for_zoos_that_the_data_cannot_give(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    text = RECIPE.replace('training = "5-9"', 'training = "5-14"').replace('classes = "5,7,9"', 'classes = "5,12"')
    text = text.replace("classes = 3", 'classes = "5-7"').replace('"dirichlet"', '["dirichlet", "disjoint"]')
    text += """
[[zoo]]
name = "many"
count = 900
shares = "dirichlet"

[[zoo]]
name = "few"
count = 2
images_per_teacher = "few"
"""
    (tmp_path / "zoos.toml").write_text(text)
    with pytest.raises(DataError) as caught:
        train_zoos(TrainZoosConfig(tmp_path / "zoos.toml", tmp_path / "zoos", device="cpu"))
    for problem in (
        "task-01: disjoint shares: 2 teachers of at least 2 classes each need 4 classes, the data has 3",
        "same: --classes 5,12: 12 is out of range, the data has 10 classes",
        "many: dirichlet shares: 900 teachers",
        "few: --images-per-teacher: got 'few'",
    ):
        assert len([told for told in caught.value.problems if told.startswith(problem)]) == 1
    assert len(caught.value.problems) == 4
    assert not (tmp_path / "zoos").exists()


def test_data_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "zoos.toml").write_text(RECIPE)
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(DataError) as caught:
        train_zoos(TrainZoosConfig(tmp_path / "zoos.toml", tmp_path / "zoos", data=nowhere, device="cpu"))
    assert len(caught.value.problems) == 1


def test_no_data_at_all(wfcli: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "zoos.toml").write_text(RECIPE.replace('data = "digits"', ""))
    ran = wfcli("train-teachers", "--zoo-recipe", tmp_path / "zoos.toml", "-o", tmp_path / "zoos")
    assert ran.code == 1
    assert "names no data" in ran.stderr
