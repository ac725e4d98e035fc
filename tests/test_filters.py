"""`--set`, `--heads` and `--recipe`: students that are not of one piece."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ran, TinyTeachers
from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.engine.recipe import as_toml

Cli = Callable[..., Ran]


def test_a_rule_makes_the_tensors_it_names_otherwise(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    rules = ["head.*:method=copy:1", "features.0.*:weights=0,0,2", "features.4.weight:method=copy:teacher-02"]
    given = [word for rule in rules for word in ("--set", rule)]
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", *given, "-o", out)
    assert ran.code == 0, ran.stderr
    student, states = load_file(out), [load_file(path) for path in tiny_teachers.paths]
    for name, tensor in student.items():
        if name.startswith("head."):
            assert tensor.equal(states[1][name])
        elif name.startswith("features.0.") or name == "features.4.weight":
            torch.testing.assert_close(tensor, states[2][name])
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor, sum(state[name] for state in states) / 3)
    assert (open_checkpoint(out).provenance or {})["recipe"]["set"] == rules


def test_rules_come_after_the_generator_too(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    plain, ruled = tmp_path / "p.safetensors", tmp_path / "r.safetensors"
    base = ["fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--no-guard"]
    assert wfcli(*base, "-o", plain).code == 0
    ran = wfcli(*base, "--set", "head.*:method=copy:0", "-o", ruled)
    assert ran.code == 0, ran.stderr
    first, second, teacher = load_file(plain), load_file(ruled), load_file(tiny_teachers.paths[0])
    for name in first:
        assert second[name].equal(teacher[name] if name.startswith("head.") else first[name])


def test_rules_hold_whatever_comes_after(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out, first = tmp_path / "s.safetensors", load_file(tiny_teachers.paths[0])
    rules = ["--set", "head.*:method=copy:0", "--set", "*running*:method=copy:0"]
    for images in (["--probes", "200"], ["--unlabelled", "digits", "--images", "64", "--distill-steps", "2"]):
        ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, *images, *rules, "-o", out)
        assert ran.code == 0, ran.stderr
        student = load_file(out)
        kept = {name for name in first if name.startswith("head.") or "running" in name}
        assert all(student[name].equal(first[name]) for name in kept)
        assert not any(student[name].equal(first[name]) for name in set(first) - kept if name.endswith("0.weight"))


def test_what_is_copied_takes_nothing_else(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    rules = ["--set", "head.*:method=copy:0", "--set", "head.*:weights=1,2,3"]
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", *rules, "-o", out)
    assert ran.code == 1
    assert "--set head.*: method copy:0: it takes no weights" in ran.stderr


def test_the_last_rule_for_a_tensor_holds_key_by_key(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    args = ["fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "--set", "*:method=ties"]
    both = [*args, "--set", "*:density=0.9", "--set", "head.*:density=0.1"]
    alone = ["fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "ties", "--param"]
    names = ("both", "wide", "narrow")
    for words, name in zip((both, [*alone, "density=0.9"], [*alone, "density=0.1"]), names, strict=True):
        ran = wfcli(*words, "-o", tmp_path / f"{name}.safetensors")
        assert ran.code == 0, ran.stderr
    both_, wide, narrow = (load_file(tmp_path / f"{name}.safetensors") for name in names)
    assert not wide["head.weight"].equal(narrow["head.weight"])
    for name in both_:
        assert both_[name].equal((narrow if name.startswith("head.") else wide)[name])


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("hed.*:method=soup", "--set hed.*: no tensor has such a name"),
        ("head.*:method=greedy", "--set head.*: method greedy: it does not go tensor by tensor"),
        ("head.*:method=copy:7", "--set head.*: method copy:7: no such teacher, expected 0 to 2, a file or base"),
        ("head.*:method=copy:base", "--set head.*: method copy:base: got no --base"),
        ("head.*:method=task-arithmetic", "got no --base, expected the checkpoint"),
        ("head.*:weights=1,2", "--set head.*: weights: got 1,2, expected 3 numbers from 0 on, not all of them 0"),
        ("head.*:density=0.5", "--set head.*: method soup: it has no parameter density"),
        ("head.*:weights=nan,1,1", "--set head.*: weights: got nan,1,1, expected 3 numbers"),
        ("head.*:colour=red", "--set head.*: unknown key 'colour'"),
        ("head.*", "--set: got 'head.*', expected PATTERN:KEY=VALUE"),
    ],
)
def test_rules_that_cannot_be_followed(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, rule: str, told: str
) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "--set", rule, "-o", out)
    assert ran.code == 1
    assert told in ran.stderr
    assert ran.stderr.count("error:") == 1
    assert not out.exists()


@pytest.fixture
def of_other_classes(tmp_path: Path) -> list[Path]:
    """Make fine-tunes of one base with three, two and two classes, one of which two of them know."""
    torch.manual_seed(0)
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    body = build_model(arch, 3).state_dict()
    paths = []
    for number, classes in enumerate((["cat", "dog", "bird"], ["dog", "car"], ["ship", "boat"])):
        state = {
            name: tensor + 0.1 * tensor.std(correction=0) * torch.randn_like(tensor)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in body.items()
        }
        state["head.weight"] = torch.randn(len(classes), body["head.weight"].shape[1])
        state["head.bias"] = torch.randn(len(classes))
        paths.append(tmp_path / f"t{number}.safetensors")
        save_state(paths[-1], state, {"classes": classes})
    return paths


ARCH = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125")


def test_heads_of_other_classes_are_stacked_by_their_names(
    wfcli: Cli, of_other_classes: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *of_other_classes, *ARCH, "--method", "soup", "--heads", "stack", "-o", out)
    assert ran.code == 0, ran.stderr
    student, states = load_file(out), [load_file(path) for path in of_other_classes]
    assert (open_checkpoint(out).provenance or {})["classes"] == ["cat", "dog", "bird", "car", "ship", "boat"]
    heads = [state["head.weight"] - state["head.weight"].mean(0) for state in states]
    wanted = [heads[0][0], (heads[0][1] + heads[1][0]) / 2, heads[0][2], heads[1][1], *heads[2]]
    torch.testing.assert_close(student["head.weight"], torch.stack(wanted))
    assert student["head.bias"].shape == (6,)
    torch.testing.assert_close(
        student["features.0.weight"], sum(state["features.0.weight"] for state in states) / len(states)
    )
    build_model(find_architecture("vgg11_bn_cifar", {"width": 0.125}), 6).load_state_dict(student)


def test_classes_without_names_are_kept_apart(wfcli: Cli, of_other_classes: list[Path], tmp_path: Path) -> None:
    paths = []
    for number, path in enumerate(of_other_classes):
        (tmp_path / str(number)).mkdir()
        paths.append(tmp_path / str(number) / "model.safetensors")
        save_state(paths[-1], load_file(path), {})
    out = tmp_path / "s.safetensors"
    assert wfcli("fuse", *paths, *ARCH, "--method", "soup", "--heads", "stack", "-o", out).code == 0
    assert load_file(out)["head.bias"].shape == (7,)
    assert (open_checkpoint(out).provenance or {})["classes"][2:4] == ["teacher 0: 2", "teacher 1: 0"]


def test_the_head_of_one_is_kept_or_all_are_dropped(wfcli: Cli, of_other_classes: list[Path], tmp_path: Path) -> None:
    kept, dropped = tmp_path / "k.safetensors", tmp_path / "d.safetensors"
    assert wfcli("fuse", *of_other_classes, *ARCH, "--method", "ties", "--heads", "keep:1", "-o", kept).code == 0
    second = load_file(of_other_classes[1])
    assert load_file(kept)["head.weight"].equal(second["head.weight"])
    assert (open_checkpoint(kept).provenance or {})["classes"] == ["dog", "car"]
    assert wfcli("fuse", *of_other_classes, *ARCH, "--method", "ties", "--heads", "drop", "-o", dropped).code == 0
    assert set(load_file(dropped)) == {name for name in second if not name.startswith("head.")}


def test_a_body_of_other_heads_is_calibrated(wfcli: Cli, of_other_classes: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    plain, calibrated = tmp_path / "p.safetensors", tmp_path / "c.safetensors"
    args = ["fuse", *of_other_classes, *ARCH, "--method", "soup", "--heads", "stack"]
    assert wfcli(*args, "-o", plain).code == 0
    ran = wfcli(*args, "--unlabelled", "digits", "--images", "64", "-o", calibrated)
    assert ran.code == 0, ran.stderr
    first, second = load_file(plain), load_file(calibrated)
    assert {name for name in first if not first[name].equal(second[name])} == {
        name for name in first if name.endswith(("running_mean", "running_var"))
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--method", "soup"), "or join their heads with fuse --heads"),
        (("--method", "soup", "--heads", "merge"), "unknown --heads 'merge'"),
        (("--method", "soup", "--heads", "stack", "--set", "*:method=ties"), "which --heads stack decides"),
        (("--method", "soup", "--heads", "keep:3"), "--heads keep:3: got 3 teachers, from 0"),
        (("--heads", "stack"), "--heads goes with methods that go tensor by tensor, got --method weightformer"),
        (
            ("--method", "soup", "--heads", "stack", "--data", "digits"),
            "teachers of other classes do not answer together",
        ),
    ],
)
def test_heads_that_cannot_be_joined(
    wfcli: Cli, of_other_classes: list[Path], tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *of_other_classes, *ARCH, *options, "-o", out)
    assert ran.code == 1
    assert told in ran.stderr
    assert not out.exists()


def test_a_recipe_and_its_flags_give_the_same_bytes_and_come_back(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_teachers.folder)
    recipe = tmp_path / "merge.toml"
    recipe.write_text(
        'teachers = ["teacher-*.safetensors"]\narch = "vgg11_bn_cifar"\nmethod = "ties"\n'
        'param = ["density=0.12345678"]\n'
        'set = ["head.*:method=copy:1"]\nweights = [1, 2, 0.5]\ndtype = "bfloat16"\nseed = 3\n'
        "[arch-arg]\nwidth = 0.125\n"
    )
    flags = [
        "teacher-*.safetensors",
        *ARCH,
        "--method",
        "ties",
        "--param",
        "density=0.12345678",
        "--weights",
        "1,2,0.5",
    ]
    flags += ["--set", "head.*:method=copy:1", "--dtype", "bfloat16", "--seed", "3"]
    one, two, three = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "three"))
    assert wfcli("fuse", "--recipe", recipe, "-o", one).code == 0
    assert wfcli("fuse", *flags, "-o", two).code == 0
    assert one.read_bytes() == two.read_bytes()
    told = wfcli("inspect", "--recipe", one)
    assert told.code == 0
    again = tmp_path / "again.toml"
    again.write_text(told.stdout)
    assert wfcli("fuse", "--recipe", again, "-o", three).code == 0
    assert three.read_bytes() == one.read_bytes()
    ran = wfcli("fuse", "--recipe", again, "--method", "soup", "-o", three, "--json")  # flags come first
    assert ran.code == 1
    assert "--method soup: --weights: it takes none" in ran.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('metod = "soup"', "unknown option 'metod'; did you mean method?"),
        ("method = [[1]]", "method: expected a string, a number, true, false or a list of them"),
        ("method = ", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_recipes_that_cannot_be_read(wfcli: Cli, tmp_path: Path, text: str | None, told: str) -> None:
    recipe = tmp_path / "merge.toml"
    if text is not None:
        recipe.write_text(text)
    ran = wfcli("fuse", "--recipe", recipe, "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert told in ran.stderr
    assert ran.stderr.startswith(f"error: {recipe}: ")


def test_a_recipe_says_what_needs_what_as_flags_do(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    recipe = tmp_path / "merge.toml"
    recipe.write_text("images = 20\n")
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--recipe", recipe, "-o", tmp_path / "s.safetensors")
    assert ran.code == 2
    assert "--images: of no use without --unlabelled" in " ".join(ran.stderr.split())


def test_a_checkpoint_without_a_recipe(wfcli: Cli, tiny_teachers: TinyTeachers) -> None:
    ran = wfcli("inspect", "--recipe", tiny_teachers.paths[0])
    assert ran.code == 1
    assert "there is no recipe in it" in ran.stderr


def test_aligned_soup_and_repair_are_of_one_frame(wfcli: Cli, tmp_path: Path) -> None:
    paths = []
    arch = find_architecture("vgg11_cifar", {"width": 0.125})
    for number in range(3):
        torch.manual_seed(number)
        paths.append(tmp_path / f"t{number}.safetensors")
        save_state(paths[-1], build_model(arch, 10).state_dict(), {})
    found = {}
    for method in ("aligned-soup", "repair", "soup"):
        out = tmp_path / f"{method}.safetensors"
        ran = wfcli(
            "fuse",
            *paths,
            "--arch",
            "vgg11_cifar",
            "--arch-arg",
            "width=0.125",
            "--method",
            method,
            "-o",
            out,
            "--json",
        )
        assert ran.code == 0, ran.stderr
        assert json.loads(ran.stdout)["alignment"]["how"] == "weights"
        found[method] = load_file(out)
    assert all(found["repair"][name].equal(found["soup"][name]) for name in found["soup"])
    assert any(not found["repair"][name].equal(found["aligned-soup"][name]) for name in found["soup"])
    ran = wfcli(
        "fuse", *paths, "--arch", "vgg11_cifar", "--arch-arg", "width=0.125", "--method", "repair", "--align", "none",
        "-o", tmp_path / "x.safetensors",
    )  # fmt: skip
    assert ran.code == 1
    assert "--align none: it averages teachers in one frame" in ran.stderr


def test_statistics_are_calibrated_whatever_rule_their_layer_has(wfcli: Cli, digits_zoo: Path, tmp_path: Path) -> None:
    args = (digits_zoo, "--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--data", "digits")
    for name, options in (
        ("all", ("--method", "karcher")),
        ("rule", ("--method", "soup", "--set", "*:method=karcher")),
    ):
        ran = wfcli("fuse", *args, *options, "-o", tmp_path / f"{name}.safetensors")
        assert ran.code == 0, ran.stderr
    every, rule = load_file(tmp_path / "all.safetensors"), load_file(tmp_path / "rule.safetensors")
    assert all(torch.equal(rule[name], tensor) for name, tensor in every.items())


def test_weights_of_a_rule_are_those_of_the_method(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_state(base, {name: tensor * 0.9 for name, tensor in load_file(tiny_teachers.paths[0]).items()}, {})
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "ties", "--base", base)
    heads = []
    for options in (("--set", "head.*:weights=1,2,3"), ("--weights", "1,2,3"), ()):
        assert wfcli("fuse", *args, *options, "-o", tmp_path / "s.safetensors").code == 0
        heads.append(load_file(tmp_path / "s.safetensors")["head.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_rule_may_need_the_base_where_the_method_does_not(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    save_state(
        base, {name: (tensor * 0.9).to(tensor.dtype) for name, tensor in load_file(tiny_teachers.paths[0]).items()}, {}
    )
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "--base", base)
    ran = wfcli("fuse", *args, "--set", "head.*:method=copy:base", "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    assert torch.equal(load_file(tmp_path / "s.safetensors")["head.bias"], load_file(base)["head.bias"])
    assert "--base: it takes none" in wfcli("fuse", *args, "-o", tmp_path / "x.safetensors").stderr


def test_a_base_that_is_none(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "task-arithmetic", "-o", tmp_path / "s.safetensors")
    ran = wfcli("fuse", *args, "--base", tiny_teachers.paths[1])
    assert ran.code == 1
    assert f"it is the teacher {tiny_teachers.paths[1].name} itself" in ran.stderr
    torch.manual_seed(9)
    stranger = tmp_path / "stranger.safetensors"
    state = load_file(tiny_teachers.paths[0])
    save_state(stranger, {n: torch.rand_like(t) if t.is_floating_point() else t for n, t in state.items()}, {})
    ran = wfcli("fuse", *args, "--base", stranger)
    assert ran.code == 0
    assert "do not look as if they were fine-tuned from it" in ran.stderr


def test_two_classes_of_one_name_in_a_head_stay_two(wfcli: Cli, tmp_path: Path) -> None:
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    paths = []
    for number, classes in enumerate((["crane", "crane", "hen"], ["hen", "crane"])):
        torch.manual_seed(number)
        paths.append(tmp_path / f"{number}.safetensors")
        save_state(paths[-1], build_model(arch, len(classes)).state_dict(), {"classes": classes})
    args = (*paths, "--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--align", "none", "--method", "soup")
    ran = wfcli("fuse", *args, "--heads", "stack", "-o", tmp_path / "s.safetensors")
    assert ran.code == 0, ran.stderr
    assert (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["classes"] == [
        "teacher 0: crane (0)",
        "teacher 0: crane (1)",
        "hen",
        "teacher 1: crane (1)",
    ]
    save_state(paths[1], build_model(arch, 2).state_dict(), {"classes": ["hen"]})
    ran = wfcli("fuse", *args, "--heads", "keep:1", "-o", tmp_path / "x.safetensors")
    assert ran.code == 1
    assert "1.safetensors: head.weight: got 1 names of classes, expected 2 as the head has rows" in ran.stderr


def test_a_stacked_head_goes_by_the_weights(wfcli: Cli, of_other_classes: list[Path], tmp_path: Path) -> None:
    args = (*of_other_classes, "--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--heads", "stack")
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *args, "--method", "weighted", "--weights", "1,0,0", "--align", "none", "-o", out)
    assert ran.code == 0, ran.stderr
    first = load_file(of_other_classes[0])["head.weight"]
    student = load_file(out)["head.weight"]
    torch.testing.assert_close(student[: len(first)], first - first.mean(0))


def test_only_students_of_fuse_have_a_recipe(wfcli: Cli, digits_zoo: Path) -> None:
    ran = wfcli("inspect", "--recipe", next(iter(sorted(digits_zoo.glob("*.safetensors")))))
    assert ran.code == 1
    assert "there is no recipe in it" in ran.stderr
    assert wfcli("inspect", "--recipe", "--plan", digits_zoo).code == 2


def test_checkpoints_of_the_hub_come_back_at_their_commit() -> None:
    commit = "c" * 40
    provenance = {
        "architecture": {"name": "resnet18", "args": {}},
        "recipe": {"method": "ties", "base": "x/base"},
        "base": {"name": "x/base", "sha256": "0" * 64, "revision": commit},
        "sources": [
            {"name": "owner/one:sub/w.safetensors", "sha256": "1" * 64, "revision": commit},
            {"name": "owner/two@cccccccccccc", "sha256": "2" * 64, "revision": commit},
        ],
    }
    text = as_toml(provenance)
    assert f'base = "hf:x/base@{commit}"' in text
    assert f'"hf:owner/one@{commit}:sub/w.safetensors"' in text
    assert f'"hf:owner/two@{commit}"' in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('seed = "abc"', "seed: "),
        ("seed = true", "seed: got true, expected another kind of value"),
        ("guard = 1", "guard: got 1, expected true or false"),
        ("data = 3", "data: got 3, expected a string"),
        ('dtype = "float9"', "dtype: "),
    ],
)
def test_a_recipe_names_what_is_wrong_in_it(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, text: str, told: str
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--recipe", recipe, "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert f"error: {recipe}: {told}" in ran.stderr


def test_rules_as_a_table(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('method = "ties"\n[set."head.*"]\ndensity = 0.5\nweights = "1,2,3"\n')
    args = (*tiny_teachers.paths, *tiny_teachers.arch)
    assert wfcli("fuse", *args, "--recipe", recipe, "-o", tmp_path / "a.safetensors").code == 0
    flags = ("--method", "ties", "--set", "head.*:density=0.5", "--set", "head.*:weights=1,2,3")
    assert wfcli("fuse", *args, *flags, "-o", tmp_path / "b.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_method_says_that_it_measures_from_the_mean(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    args = (*tiny_teachers.paths, *tiny_teachers.arch, "--method", "ties", "-o", tmp_path / "s.safetensors")
    assert "measured from their mean (no --base)" in wfcli("fuse", *args).stdout
    assert (open_checkpoint(tmp_path / "s.safetensors").provenance or {})["origin"] == "mean"
