"""The generators that come with wfcli: small, whole, and refused where they do not belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ran
from wfcli.core.architectures import find_architecture
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.generator import fingerprint
from wfcli.core.generator_files import load_generator
from wfcli.core.pretrained import describe_generator, list_pretrained

Cli = Callable[..., Ran]
FOLDER = Path(__file__).parent.parent / "pretrained"
FOLDERS = sorted(path for path in FOLDER.iterdir() if path.is_dir())
SPECIALISED = sorted(path.parent.name for path in FOLDER.glob("*/base.safetensors"))
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_all_of_them_are_listed() -> None:
    assert [one.name for one in list_pretrained() if one.here] == [path.name for path in FOLDERS]
    assert {"universal", "vgg11_bn-cifar10", "vit_tiny-cifar10"} <= {path.name for path in FOLDERS}
    assert all(one.here or one.hub for one in list_pretrained())


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.name)
def test_the_index_says_what_the_folder_holds(path: Path) -> None:
    [entry] = [one for one in list_pretrained() if one.name == path.name]
    found = describe_generator(path, entry.dataset, entry.results)
    found = replace(found, hub=entry.hub, revision=entry.revision, path=entry.path)
    assert found == entry, "run examples/write_index.py"
    assert set(entry.sha256) == {file.name for file in path.iterdir()} - {"README.md"}
    assert f"- {entry.dataset}\n" in (path / "README.md").read_text()


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.name)
def test_each_is_small_and_has_a_card(path: Path) -> None:
    assert sum(file.stat().st_size for file in path.iterdir()) <= 5 * 2**20
    card = (path / "README.md").read_text()
    assert "## Results" in card
    assert "## Limits" in card
    load_generator(path, path.name)


def fine_tunes(folder: Path, name: str, classes: list[str], far: float = 0.0) -> list[Path]:
    """Write nets near the base of a specialised generator, with a head of these classes; `far`: of another base."""
    base = {key: value.float() for key, value in load_file(FOLDER / name / "base.safetensors").items()}
    torch.manual_seed(0)
    other = {key: value + far * value.std(correction=0) * torch.randn_like(value) for key, value in base.items()}
    paths = []
    for number in range(2):
        state = {key: value + 0.05 * value.std(correction=0) * torch.randn_like(value) for key, value in other.items()}
        state = {key: value.abs() if key.endswith("running_var") else value for key, value in state.items()}
        head = "head" if "head.weight" in state else "fc"
        state[f"{head}.weight"] = torch.randn(len(classes), state[f"{head}.weight"].shape[1])
        state[f"{head}.bias"] = torch.randn(len(classes))
        paths.append(folder / f"teacher-{number}.safetensors")
        save_state(paths[-1], state, {"classes": classes})
    return paths


def arguments(name: str) -> list[str]:
    """Return the options for the architecture of a specialised generator."""
    made = (open_checkpoint(FOLDER / name / "base.safetensors").provenance or {})["architecture"]
    words = ["--arch", made["name"]]
    for key, value in made["args"].items():
        words += ["--arch-arg", f"{key}={value}"]
    return words


@pytest.mark.parametrize("name", SPECIALISED)
def test_a_specialised_one_knows_its_base(name: str) -> None:
    generator, _ = load_generator(FOLDER / name, name)
    frame = generator.config.frame
    assert frame is not None
    assert list(frame.class_names) == CLASSES
    assert frame.base == f"pretrained:{name}/base"
    made = (open_checkpoint(FOLDER / name / "base.safetensors").provenance or {})["architecture"]
    assert frame.architecture == find_architecture(made["name"], made["args"]).label
    state = {key: value.float() for key, value in load_file(FOLDER / name / "base.safetensors").items()}
    found = fingerprint(state, frame.anchors)
    assert float(torch.nn.functional.cosine_similarity(found, generator.fingerprint).mean()) > 0.9


@pytest.mark.parametrize("name", SPECIALISED)
def test_a_specialised_one_serves_fine_tunes_of_its_base_and_refuses_others(
    wfcli: Cli, tmp_path: Path, name: str
) -> None:
    args, out = [*arguments(name), "--generator", f"pretrained:{name}"], tmp_path / "s.safetensors"
    ran = wfcli("fuse", *fine_tunes(tmp_path, name, CLASSES), *args, "-o", out)
    assert ran.code == 0, ran.stderr
    assert (open_checkpoint(out).provenance or {})["generator"]["name"] == name
    out.unlink()
    ran = wfcli("fuse", *fine_tunes(tmp_path, name, CLASSES, far=3.0), *args, "-o", out)
    assert ran.code == 1
    assert "base: not a fine-tune of" in ran.stderr
    ran = wfcli("fuse", *fine_tunes(tmp_path, name, [*CLASSES[1:], CLASSES[0]]), *args, "-o", out)
    assert ran.code == 1
    assert "class names: got automobile, bird, cat, deer, ..., expected airplane" in ran.stderr
    ran = wfcli("fuse", *fine_tunes(tmp_path, name, CLASSES[:7]), *args, "-o", out)
    assert ran.code == 1
    assert "classes: got 7, expected 10" in ran.stderr
    assert not out.exists()
