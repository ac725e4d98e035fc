"""`wfcli fuse` from the command line: the student, its file, and every wrong input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import kl_div
from torchvision.io import write_png

from tests.conftest import Ran, TinyTeachers
from wfcli.core.architectures import build_model, find_architecture, head_keys, input_config
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.data import DataSpec, load_images
from wfcli.core.generator import WeightFormer, fingerprint
from wfcli.core.generator_config import Frame, WeightFormerConfig
from wfcli.core.generator_files import save_generator
from wfcli.core.methods import soup
from wfcli.core.metrics import ensemble
from wfcli.core.plan import plan_layers
from wfcli.core.probes import probe_images
from wfcli.engine.hooks import Silent
from wfcli.engine.lineup import Bench
from wfcli.engine.polish import Nets, look, teachers_answers

Cli = Callable[..., Ran]
README = Path(__file__).parent.parent / "README.md"


def save_untrained(folder: Path, **options: object) -> Path:
    """Write an untrained generator: by design it gives the soup."""
    save_generator(folder, WeightFormer(WeightFormerConfig(**options)), "# untrained\n")  # type: ignore[arg-type]
    return folder


def save_eager(folder: Path, **options: object) -> Path:
    """Write a generator whose heads are off zero: it does not give the soup."""
    torch.manual_seed(0)
    generator = WeightFormer(WeightFormerConfig(**options))  # type: ignore[arg-type]
    with torch.no_grad():
        generator.logits.weight.normal_(0, 0.5)
        generator.scales.weight.normal_(0, 0.5)
    save_generator(folder, generator, "# eager\n")
    return folder


def soup_of(paths: tuple[Path, ...]) -> dict[str, Tensor]:
    return soup([load_file(path) for path in paths])


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_soup(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    ran = wfcli(
        "fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "student.safetensors"
    )
    assert ran.code == 0
    assert same(load_file(tmp_path / "student.safetensors"), soup_of(tiny_teachers.paths))


def test_threads_are_as_they_were_after_a_soup(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        args = (*tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "student.safetensors")
        assert wfcli("fuse", *tiny_teachers.paths, *args).code == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_same_inputs_give_the_same_bytes(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    generator = save_eager(tmp_path / "generator", norms=("batch",))
    for name in ("one", "other"):
        args = ("--generator", generator, "-o", tmp_path / f"{name}.safetensors")
        assert wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, *args).code == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_the_student_says_who_made_it_from_what(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    generator = save_eager(tmp_path / "mine", norms=("batch",))
    out = tmp_path / "student.safetensors"
    ran = wfcli(
        *("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--generator", generator),
        *("--no-guard", "--seed", "3", "-o", out, "--json"),
    )
    told = json.loads(ran.stdout)
    assert (told["method"], told["generator"], ran.stderr) == ("weightformer", "mine", "")
    assert sum(told["weights"]) == pytest.approx(1)
    assert "share a base" in told["regime"]
    record = open_checkpoint(out).provenance
    assert record is not None
    assert record["method"] == "weightformer"
    assert record["architecture"] == {"name": "vgg11_bn_cifar", "args": {"width": 0.125}}
    assert record["seed"] == 3
    assert [source["name"] for source in record["sources"]] == [path.name for path in tiny_teachers.paths]
    assert record["sources"][0]["sha256"] == open_checkpoint(tiny_teachers.paths[0]).digest()
    assert record["generator"]["sha256"] == open_checkpoint(generator / "model.safetensors").digest()
    assert told["digest"] == open_checkpoint(out).digest()
    assert str(tmp_path) not in json.dumps(record)
    assert not same(load_file(out), soup_of(tiny_teachers.paths))


def test_a_glob_and_a_folder_are_the_same_teachers(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    for name, source in (("glob", tiny_teachers.folder / "teacher-*.safetensors"), ("folder", tiny_teachers.folder)):
        args = ("--method", "soup", "-o", tmp_path / f"{name}.safetensors")
        assert wfcli("fuse", source, *tiny_teachers.arch, *args).code == 0
    assert (tmp_path / "glob.safetensors").read_bytes() == (tmp_path / "folder.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("option", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_dtype_of_the_student(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, option: str, dtype: torch.dtype
) -> None:
    out = tmp_path / "student.safetensors"
    wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "--dtype", option, "-o", out)
    student = load_file(out)
    assert student["head.weight"].dtype == dtype
    counters = [t for name, t in student.items() if name.endswith("num_batches_tracked")]
    assert {t.dtype for t in counters} == {torch.int64}


def saved(folder: Path, states: list[dict[str, Tensor]]) -> list[Path]:
    paths = [folder / f"t{number}.safetensors" for number in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return paths


def converted(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(path).items()}


def test_the_soup_of_halves_is_rounded_once(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    states = [converted(path, torch.bfloat16) for path in tiny_teachers.paths]
    out = tmp_path / "student.safetensors"
    args = (*saved(tmp_path, states), *tiny_teachers.arch, "--method", "soup", "-o", out)
    assert wfcli("fuse", *args, "--dtype", "float32").code == 0
    mean = {name: torch.stack([state[name].float() for state in states]).sum(0) / 3 for name in states[0]}
    torch.testing.assert_close(load_file(out)["head.weight"], mean["head.weight"], rtol=1e-6, atol=0)
    assert wfcli("fuse", *args).code == 0
    assert torch.equal(load_file(out)["head.weight"], mean["head.weight"].bfloat16())


@pytest.mark.parametrize("method", ["soup", "weightformer"])
def test_keep_is_the_widest_type_whatever_the_order(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, method: str
) -> None:
    dtypes = (torch.bfloat16, torch.float16)
    states = [converted(path, dtype) for path, dtype in zip(tiny_teachers.paths, dtypes, strict=False)]
    states[1]["head.bias"] = states[1]["head.bias"].bfloat16()  # as in the other one
    paths = saved(tmp_path, states)
    for order in (paths, paths[::-1]):
        out = tmp_path / "student.safetensors"
        assert wfcli("fuse", *order, *tiny_teachers.arch, "--method", method, "-o", out).code == 0
        student = load_file(out)
        assert (student["head.weight"].dtype, student["head.bias"].dtype) == (torch.float32, torch.bfloat16)


def test_a_student_that_a_type_cannot_hold_is_not_written(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    states = [load_file(path) for path in tiny_teachers.paths]
    for state in states:
        state["features.1.running_var"][:3] = 1e5
    out = tmp_path / "student.safetensors"
    args = (*saved(tmp_path, states), *tiny_teachers.arch, "--method", "soup", "-o", out)
    ran = wfcli("fuse", *args, "--dtype", "float16")
    told = " ".join(ran.stderr.split())
    assert ran.code == 1
    assert "student: features.1.running_var: got 3 numbers too large for float16" in told
    assert "choose --dtype bfloat16 or float32" in told
    assert "nothing was written" in told
    assert not out.exists()
    assert wfcli("fuse", *args, "--dtype", "bfloat16").code == 0


def test_a_generator_that_gives_no_numbers(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    generator = WeightFormer(WeightFormerConfig(norms=("batch",)))
    with torch.no_grad():
        generator.final_norm.weight[0] = float("nan")
    save_generator(folder, generator, "# broken\n")
    out = tmp_path / "student.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--generator", folder, "-o", out)
    told = " ".join(ran.stderr.split())
    assert ran.code == 1
    assert "student: features.0.weight: got 216 numbers NaN or Inf" in told
    assert told.count("numbers NaN or Inf") == 10
    assert "more tensors" in told
    assert "try another --generator, or --method soup" in told
    assert not out.exists()


def test_a_student_under_another_suffix_is_refused(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "-o", tmp_path / "x.pt")
    assert ran.code == 1
    assert "x.pt: suffix: got .pt, expected .safetensors" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_replaced(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    out = tmp_path / "student.safetensors"
    out.write_bytes(b"old")
    assert wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--method", "soup", "-o", out).code == 0
    assert same(load_file(out), soup_of(tiny_teachers.paths))
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]


def test_independent_teachers_are_told_apart_and_aligned_unless_told(wfcli: Cli, tmp_path: Path) -> None:
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    for number in range(2):
        torch.manual_seed(number)
        save_file(build_model(arch, 10).state_dict(), tmp_path / f"t{number}.safetensors")
    out = tmp_path / "student.safetensors"
    args = ("fuse", tmp_path / "t*.safetensors", "--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "-o", out)
    ran = wfcli(*args, "--align", "none")
    assert ran.code == 0
    assert "the student is the soup" in " ".join(ran.stderr.split())
    assert "trained independently" in " ".join(ran.stderr.split())
    average = soup_of((tmp_path / "t0.safetensors", tmp_path / "t1.safetensors"))
    assert same(load_file(out), average)
    out.unlink()
    ran = wfcli(*args)
    assert ran.code == 0
    assert "trained independently" in " ".join(ran.stderr.split())
    assert not same(load_file(out), average)


TORCHVISION = {
    "vit_b_32": lambda: torchvision.models.vit_b_32(num_classes=10),
    "vgg11": lambda: torchvision.models.vgg11(num_classes=10, init_weights=False),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=10),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_headline_call_on_torchvision_files(wfcli: Cli, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = TORCHVISION[name]()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    paths = (tmp_path / "teacher0.safetensors", tmp_path / "teacher1.safetensors")
    for number, path in enumerate(paths):
        save_file({n: t * (1 + 0.01 * number) if t.is_floating_point() else t for n, t in base.items()}, path)
    out = tmp_path / "student.safetensors"
    generator = save_untrained(tmp_path / "generator", norms=("batch", "layer", "none"))
    guard = "--guard" if name == "vit_b_32" else "--no-guard"  # once is enough: it runs the nets
    ran = wfcli("fuse", tmp_path / "teacher*.safetensors", "--arch", name, "--generator", generator, guard, "-o", out)
    assert (ran.code, ran.stderr) == (0, "")
    student = load_file(out)
    model.load_state_dict(student, strict=True)
    for key, tensor in base.items():
        torch.testing.assert_close(
            student[key], tensor * 1.005 if tensor.is_floating_point() else tensor, rtol=1e-4, atol=1e-6
        )


def test_the_headline_call_as_it_stands_in_the_readme(
    wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    base = torchvision.models.vit_b_32(num_classes=10).state_dict()
    for number in range(2):
        save_file({n: t * (1 + 0.01 * number) for n, t in base.items()}, tmp_path / f"teacher{number}.safetensors")
    monkeypatch.chdir(tmp_path)
    headline = "wfcli fuse teacher*.safetensors --arch vit_b_32 -o student.safetensors"
    assert headline in README.read_text(encoding="utf-8").splitlines()
    ran = wfcli(*headline.split()[1:])
    assert ran.code == 0
    assert ran.stderr.splitlines()[0].startswith("warning: generator universal: it was trained on ")
    student = load_file(tmp_path / "student.safetensors")
    assert {name: tensor.shape for name, tensor in student.items()} == {n: t.shape for n, t in base.items()}


def test_a_net_that_no_generator_fits_gets_the_soup_and_is_told_so(wfcli: Cli, tmp_path: Path) -> None:
    arch = find_architecture("vgg11_cifar", {"width": 0.125})  # no norm at all
    torch.manual_seed(0)
    base = build_model(arch, 10).state_dict()
    paths = saved(tmp_path, [{n: t * (1 + 0.01 * k) for n, t in base.items()} for k in range(2)])
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *paths, "--arch", "vgg11_cifar", "--arch-arg", "width=0.125", "-o", out)
    assert ran.code == 0
    (told,) = ran.stderr.splitlines()
    assert told.startswith("warning: no generator fits, so the student is the soup: it was trained on nets with ")
    assert same(load_file(out), soup_of(tuple(paths)))


DIGITS = Path(__file__).parent.parent / "examples" / "digits"
DIGITS_ARCH = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125")


def test_a_broken_student_gives_way_to_the_soup(wfcli: Cli, tmp_path: Path) -> None:
    teachers = tuple(sorted(DIGITS.glob("teacher-*.safetensors")))
    generator = WeightFormer(WeightFormerConfig(norms=("batch",)))
    with torch.no_grad():
        generator.scales.bias.fill_(-5.0)  # every channel as small as can be, layer after layer
    save_generator(tmp_path / "bad", generator, "# bad\n")
    out = tmp_path / "student.safetensors"
    args = ("fuse", *teachers, *DIGITS_ARCH, "--generator", tmp_path / "bad", "-o", out)
    ran = wfcli(*args, "--json")
    assert ran.code == 0
    assert ran.stderr.startswith("warning: the student of bad is worse than the soup on made-up images: KL from the")
    told = json.loads(ran.stdout)
    assert (told["method"], told["generator"], told["weights"]) == ("soup", None, None)
    assert told["guard"]["divergence"] > told["guard"]["soup_divergence"] or told["guard"]["information"] < 1
    assert same(load_file(out), soup_of(teachers))
    record = open_checkpoint(out).provenance or {}
    assert (record["method"], record["generator"], record["rejected"]["name"]) == ("soup", None, "bad")
    ran = wfcli(*args, "--no-guard")
    assert (ran.code, ran.stderr) == (0, "")
    assert not same(load_file(out), soup_of(teachers))
    assert (open_checkpoint(out).provenance or {})["recipe"]["guard"] is False


def test_nets_of_other_images_are_fused_without_the_guard(wfcli: Cli, tmp_path: Path) -> None:
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125, "in_chans": 1})
    torch.manual_seed(0)
    base = build_model(arch, 10).state_dict()
    states = [{n: t * (1 + 0.01 * k) if t.is_floating_point() else t for n, t in base.items()} for k in range(2)]
    args = ("--arch", "vgg11_bn_cifar", "--arch-arg", "width=0.125", "--arch-arg", "in_chans=1")
    paths = saved(tmp_path, states)
    ran = wfcli("fuse", *paths, *args, "--generator", save_untrained(tmp_path / "g"), "-o", tmp_path / "s.safetensors")
    assert ran.code == 0
    ran = wfcli("fuse", *paths, *args, "--probes", "200", "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert "error: --probes: its images have 3 channels" in ran.stderr


def test_a_head_that_is_not_the_whole_answer_is_not_fitted(wfcli: Cli, tmp_path: Path) -> None:
    arch = find_architecture("deit_tiny_distilled_patch16_224", {"depth": 1, "embed_dim": 48, "img_size": 32})
    torch.manual_seed(0)
    states = [build_model(arch, 5).state_dict() for _ in range(2)]
    args = ("--arch", "deit_tiny_distilled_patch16_224", *(a for k, v in arch.args for a in ("--arch-arg", f"{k}={v}")))
    ran = wfcli(
        "fuse", *saved(tmp_path, states), *args, "--method", "soup", "--probes", "100", "-o", tmp_path / "s.safetensors"
    )
    assert ran.code == 1
    assert "error: head: the net's answer is not that of this layer alone" in ran.stderr
    assert not (tmp_path / "s.safetensors").exists()


def test_probes_bring_the_head_alone_nearer_to_the_ensemble(wfcli: Cli, tmp_path: Path) -> None:
    args = ("fuse", DIGITS, *DIGITS_ARCH, "--method", "soup", "-o")
    assert wfcli(*args, tmp_path / "soup.safetensors").code == 0
    ran = wfcli(*args, tmp_path / "fitted.safetensors", "--probes", "500")
    assert ran.code == 0
    assert "head fitted on 500 made-up images" in ran.stdout
    soup, fitted = load_file(tmp_path / "soup.safetensors"), load_file(tmp_path / "fitted.safetensors")
    assert [name for name in soup if not torch.equal(soup[name], fitted[name])] == ["head.bias", "head.weight"]
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    teachers = [load_file(path) for path in sorted(DIGITS.glob("teacher-*.safetensors"))]
    bench = Bench(input_config(arch), torch.device("cpu"), 250, Silent())
    nets = Nets(bench, build_model(arch, 10), "head", teachers)
    others = probe_images(300, 32, seed=99)  # not those it was fitted on
    together = ensemble(teachers_answers(nets, others, ""))
    apart = [kl_div(look(nets, s, others)[1], together, reduction="batchmean", log_target=True) for s in (soup, fitted)]
    assert apart[1] < 0.6 * apart[0]


def pictures(folder: Path, number: int) -> Path:
    """Write digits as PNG files into one folder, without any labels."""
    digits = load_images(DataSpec("digits"), "train", 32, limit=number)
    folder.mkdir()
    for place, pixels in enumerate(digits.pixels[torch.arange(number)]):
        write_png(pixels, str(folder / f"{place:03d}.png"))
    return folder


def test_images_without_labels_bring_the_student_above_the_soup(wfcli: Cli, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 200)
    args = ("fuse", DIGITS, *DIGITS_ARCH, "--method", "soup", "--data", "digits", "--json", "-o")
    plain = json.loads(wfcli(*args, tmp_path / "soup.safetensors").stdout)
    learnt = ("--unlabelled", images, "--images", "150", "--distill-steps", "10")
    ran = wfcli(*args, tmp_path / "learnt.safetensors", *learnt)
    assert (ran.code, ran.stderr) == (0, "")
    told = json.loads(ran.stdout)
    assert (told["unlabelled"], told["calibrated"], plain["unlabelled"]) == (150, True, 0)
    top1 = [next(r for r in t["comparison"]["rows"] if r["kind"] == "checkpoint")["top1"] for t in (plain, told)]
    assert top1[1] > top1[0] + 0.05
    record = open_checkpoint(tmp_path / "learnt.safetensors").provenance or {}
    assert record["unlabelled"] == {"source": "images", "images": 150, "distill_steps": 10}
    assert "calibration" not in record
    wfcli(*args, tmp_path / "again.safetensors", *learnt)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "learnt.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--unlabelled", "digits", "--probes", "200"), "--probes and --unlabelled: got both, expected one"),
        (("--unlabelled", "digits", "--images", "5"), "--images: got 5, expected at least 16"),
        (("--unlabelled", "nowhere"), "data nowhere: no such folder"),
        (("--unlabelled", ""), "--unlabelled: got nothing, expected a dataset"),
        (("--unlabelled", "digits", "--distill-lr", "0"), "--distill-lr 0.0: expected at least 0, above 0"),
        (("--images", "100"), "--images: of no use without --unlabelled"),
    ],
)
def test_options_of_unlabelled_images(wfcli: Cli, tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    ran = wfcli("fuse", DIGITS, *DIGITS_ARCH, *options, "-o", tmp_path / "s.safetensors")
    assert ran.code in (1, 2)
    assert problem in " ".join(ran.stderr.split())
    assert not (tmp_path / "s.safetensors").exists()


def test_a_few_images_are_too_few(wfcli: Cli, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 3)
    ran = wfcli("fuse", DIGITS, *DIGITS_ARCH, "--unlabelled", images, "-o", tmp_path / "s.safetensors")
    assert ran.code == 1
    assert f"error: data {images}: got 3 images, expected at least 16" in ran.stderr
    assert not (tmp_path / "s.safetensors").exists()


def test_steps_that_lead_away_from_the_teachers_are_undone(wfcli: Cli, tmp_path: Path) -> None:
    args = ("fuse", DIGITS, *DIGITS_ARCH, "--method", "soup", "--unlabelled", "digits", "--images", "64")
    assert wfcli(*args, "--distill-steps", "0", "-o", tmp_path / "fitted.safetensors").code == 0
    wild = ("--distill-steps", "3", "--distill-lr", "50")
    ran = wfcli(*args, *wild, "-o", tmp_path / "s.safetensors")
    assert ran.code == 0
    assert "warning: 3 steps of distillation lead away from the teachers" in " ".join(ran.stderr.split())
    assert same(load_file(tmp_path / "s.safetensors"), load_file(tmp_path / "fitted.safetensors"))


def test_a_head_that_cannot_be_fitted_is_distilled_all_the_same(wfcli: Cli, tmp_path: Path) -> None:
    arch = find_architecture("deit_tiny_distilled_patch16_224", {"depth": 1, "embed_dim": 48, "img_size": 32})
    torch.manual_seed(0)
    states = [build_model(arch, 10).state_dict() for _ in range(2)]
    args = ("--arch", "deit_tiny_distilled_patch16_224", *(a for k, v in arch.args for a in ("--arch-arg", f"{k}={v}")))
    learnt = ("--unlabelled", pictures(tmp_path / "images", 32), "--distill-steps", "2")
    out = tmp_path / "s.safetensors"
    ran = wfcli("fuse", *saved(tmp_path, states), *args, "--method", "soup", *learnt, "-o", out)
    assert ran.code == 0
    assert "warning: head: the net's answer is not that of this layer alone" in " ".join(ran.stderr.split())
    assert not same(load_file(out), soup(states))


def test_nan_and_inf_are_all_found_and_nothing_is_written(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    state = load_file(tiny_teachers.paths[0])
    state["head.weight"][0, :3] = float("nan")
    state["features.0.weight"][1] = float("inf")
    save_file(state, tmp_path / "broken.safetensors")
    out = tmp_path / "student.safetensors"
    out.write_bytes(b"old")
    ran = wfcli("fuse", tmp_path / "broken.safetensors", tiny_teachers.paths[1], *tiny_teachers.arch, "-o", out)
    assert ran.code == 1
    told = " ".join(ran.stderr.split())
    assert "broken.safetensors: features.0.weight: got 27 of 216 numbers NaN or Inf" in told
    assert "broken.safetensors: head.weight: got 3 of 640 numbers NaN or Inf" in told
    assert "nothing was written" in told
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.safetensors", "student.safetensors"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--method", "suop"), "unknown method 'suop'; did you mean soup?"),
        (("--method", "soup", "--generator", "pretrained:universal"), "--generator goes with --method weightformer"),
        (("--generator", "pretrained:univresal"), "univresal"),
        (("--device", "cuda"), "--device cuda: PyTorch sees no CUDA device here"),
        (("--data", "no/such/folder"), "no/such/folder"),
    ],
)
def test_wrong_options(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, extra: tuple[str, ...], message: str
) -> None:
    if "cuda" in extra and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "-o", tmp_path / "out.safetensors", *extra)
    assert ran.code == 1
    assert message in " ".join(ran.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_data_without_a_training_split(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / "data" / "test" / str(number)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (number, 0, 9)).save(tmp_path / "data" / "test" / str(number) / "a.png")
    out = tmp_path / "student.safetensors"
    args = ("--method", "soup", "--data", tmp_path / "data", "-o", out)
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, *args)
    assert ran.code == 1
    assert "no training split to calibrate BatchNorm with; it has test" in " ".join(ran.stderr.split())
    assert "--calibration-images 0" in ran.stderr.splitlines()[-1]
    ran = wfcli(
        "fuse", *tiny_teachers.paths, *tiny_teachers.arch, *args, "--calibration-images", "0", "--batch-size", "3"
    )
    assert (ran.code, ran.stderr) == (0, "")
    # A net without BatchNorm needs none: the guard looks at made-up images then.
    arch = find_architecture("vit_tiny_cifar", {"width": 0.34})
    base = build_model(arch, 10).state_dict()
    states = [{name: v + 0.01 * torch.randn_like(v) for name, v in base.items()} for _ in range(2)]
    teachers = (*saved(tmp_path, states), "--arch", "vit_tiny_cifar", "--arch-arg", "width=0.34")
    generator = save_untrained(tmp_path / "mine", norms=("layer",))
    ran = wfcli(
        "fuse", *teachers, "--generator", generator, "--data", tmp_path / "data", "-o", out, "--batch-size", "3"
    )
    assert ran.code == 0


def test_the_output_may_not_be_a_teacher(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    for path in tiny_teachers.paths:
        shutil.copy(path, tmp_path)
    out = tmp_path / tiny_teachers.paths[0].name
    before = out.read_bytes()
    ran = wfcli("fuse", tmp_path / "*.safetensors", *tiny_teachers.arch, "-o", out)
    assert (ran.code, out.read_bytes()) == (1, before)
    assert "which would be overwritten" in " ".join(ran.stderr.split())


def test_a_generator_far_from_its_training_says_so_and_goes_on(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    out = tmp_path / "student.safetensors"
    for trained_on, told in (("vgg11_bn_cifar(width=0.25)", False), ("resnet18_cifar(width=0.5)", True)):
        generator = save_untrained(tmp_path / "mine", norms=("batch",), trained_on=(trained_on,))
        ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--generator", generator, "-o", out)
        expected = f"generator mine: it was trained on {trained_on}, never on vgg11_bn_cifar: compare the student with"
        assert ran.code == 0
        assert (expected in " ".join(ran.stderr.split())) == told
        assert (open_checkpoint(out).provenance or {})["method"] == "weightformer"


def test_the_default_generator_says_where_it_was_not_trained(wfcli: Cli, tmp_path: Path) -> None:
    arch = find_architecture("resnet50_cifar", {"width": 0.125})
    torch.manual_seed(0)
    base = build_model(arch, 10).state_dict()
    states = [{n: t * (1 + 0.01 * k) if t.is_floating_point() else t for n, t in base.items()} for k in range(2)]
    out = tmp_path / "student.safetensors"
    args = ("--arch", "resnet50_cifar", "--arch-arg", "width=0.125", "--no-guard", "-o", out)
    ran = wfcli("fuse", *saved(tmp_path, states), *args)
    told = " ".join(ran.stderr.split())
    assert ran.code == 0
    assert "generator universal: it was trained on " in told
    assert "never on resnet50_cifar: compare the student with the soup" in told
    assert (open_checkpoint(out).provenance or {})["method"] == "weightformer"


def specialised(folder: Path, paths: tuple[Path, ...], classes: tuple[str, ...]) -> Path:
    """Write a specialised generator for the base of these teachers."""
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    mean = soup_of(paths)
    plan = plan_layers(build_model(arch, 10, device="meta"), head_keys(arch)[0].removesuffix(".weight"))
    anchors = tuple(spec.weight for spec in plan.specs if spec.kind == "conv" and spec.weight is not None)
    frame = Frame(arch.label, classes, {n: tuple(t.shape) for n, t in mean.items()}, anchors, "base")
    generator = WeightFormer(WeightFormerConfig(preset="specialised", frame=frame, norms=("batch",)))
    generator.fingerprint.copy_(fingerprint(mean, anchors))
    save_generator(folder, generator, "# specialised\n")
    return folder


def test_a_specialised_generator_serves_its_own_base(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    generator = specialised(tmp_path / "mine", tiny_teachers.paths, tuple("0123456789"))
    out = tmp_path / "student.safetensors"
    ran = wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, "--generator", generator, "-o", out)
    assert ran.code == 0
    assert (open_checkpoint(out).provenance or {})["method"] == "weightformer"


def test_a_specialised_generator_refuses_another_base_and_other_classes(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    generator = specialised(tmp_path / "mine", tiny_teachers.paths, tuple("01234567"))
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    torch.manual_seed(77)
    stranger = build_model(arch, 10).state_dict()
    for number in range(2):
        save_file({n: t + number for n, t in stranger.items()}, tmp_path / f"t{number}.safetensors")
    out = tmp_path / "student.safetensors"
    ran = wfcli("fuse", tmp_path / "t*.safetensors", *tiny_teachers.arch, "--generator", generator, "-o", out)
    told = " ".join(ran.stderr.split())
    assert ran.code == 1
    assert "generator mine: classes: got 10, expected 8" in told
    for number in range(2):
        assert f"generator mine: t{number}.safetensors: base: not a fine-tune of base" in told
    assert not out.exists()


def test_a_specialised_generator_looks_at_every_teacher(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path
) -> None:
    generator = specialised(tmp_path / "mine", tiny_teachers.paths, tuple("0123456789"))
    torch.manual_seed(77)
    stranger = tmp_path / "stranger.safetensors"
    save_file(build_model(find_architecture("vgg11_bn_cifar", {"width": 0.125}), 10).state_dict(), stranger)
    other = tmp_path / "other.safetensors"  # its classes are known, those of the rest are not
    save_state(other, converted(tiny_teachers.paths[0], torch.float32), {"classes": list("abcdefghij")})
    out = tmp_path / "student.safetensors"
    args = (*tiny_teachers.arch, "--generator", generator, "-o", out)
    ran = wfcli("fuse", *tiny_teachers.paths[1:], stranger, other, *args)
    told = " ".join(ran.stderr.split())
    assert ran.code == 1
    assert "generator mine: stranger.safetensors: base: not a fine-tune of base" in told
    assert "generator mine: other.safetensors: class names: got a, b, c, d, ..., expected 0, 1, 2, 3, ..." in told
    assert "teacher-0" not in told
    assert not out.exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_cpu_give_the_same_student(wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path) -> None:
    generator = save_eager(tmp_path / "generator", norms=("batch",))
    for device in ("cpu", "cuda"):
        args = ("--generator", generator, "--device", device, "-o", tmp_path / f"{device}.safetensors")
        assert wfcli("fuse", *tiny_teachers.paths, *tiny_teachers.arch, *args).code == 0
    one, other = load_file(tmp_path / "cpu.safetensors"), load_file(tmp_path / "cuda.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
