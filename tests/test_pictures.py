"""What the pictures of a report show: lines against a formula, files, and that nothing is measured unasked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import TinyTeachers
from tests.test_evaluate import WIDTH, constant_teacher, write_images
from wfcli.core.architectures import find_architecture, match_layout
from wfcli.core.checkpoint import file_digest, open_checkpoint
from wfcli.core.data import DataSpec
from wfcli.core.lines import SHARES, between
from wfcli.engine import pictures
from wfcli.engine.evaluate import EvaluateConfig, Student, compare, evaluate
from wfcli.engine.fuse import FuseConfig, fuse
from wfcli.engine.teachers import open_teachers
from wfcli.errors import WfError

PLAIN = find_architecture("vgg11_cifar", WIDTH)


@pytest.fixture
def opposed(tmp_path: Path) -> EvaluateConfig:
    """Two nets that always answer no, or yes, and a student like the latter; the test split has 2 of no, 8 of yes."""
    data = write_images(tmp_path / "data", {"train": (3, 3), "validation": (7, 3), "test": (2, 8)})
    no, yes = (constant_teacher(tmp_path / f"{name}.safetensors", place) for place, name in enumerate(("no", "yes")))
    student = constant_teacher(tmp_path / "student.safetensors", 1)
    return EvaluateConfig((student,), (no, yes), PLAIN, data, device="cpu", pictures=True)


def expected_loss(share: float) -> float:
    """Return the loss of a net whose only weights are the biases 5 * (1 - share) of no and 5 * share of yes."""
    margin = 5 * (2 * share - 1)
    return 0.2 * math.log1p(math.exp(margin)) + 0.8 * math.log1p(math.exp(-margin))


def test_nothing_is_measured_unasked(opposed: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wfcli.engine.evaluate.take_pictures", lambda *_: pytest.fail("nobody asked"))
    assert evaluate(replace(opposed, pictures=False)).pictures is None


def test_lines_follow_the_formula(opposed: EvaluateConfig) -> None:
    taken = evaluate(opposed).pictures
    assert taken is not None
    assert taken.lines is not None
    assert (taken.lines.images, taken.lines.calibrated, taken.lines.aligned) == (10, None, False)
    across, to_student, flat = taken.lines.lines
    assert (across.start, across.end) == ("no.safetensors", "yes.safetensors")  # the better by validation first
    assert (to_student.start, to_student.end) == ("no.safetensors", "student.safetensors")
    assert (flat.start, flat.end) == ("yes.safetensors", "student.safetensors")
    assert across.shares == SHARES == pytest.approx([step / 10 for step in range(11)])
    assert across.nll == pytest.approx([expected_loss(share) for share in SHARES], rel=1e-5)
    assert to_student.nll == pytest.approx(across.nll)
    assert flat.nll == pytest.approx([expected_loss(1)] * 11, rel=1e-5)
    assert (across.top1[0], across.top1[4], across.top1[6], across.top1[-1]) == (0.2, 0.2, 0.8, 0.8)


def test_agreement_files_and_names(opposed: EvaluateConfig) -> None:
    taken = evaluate(opposed).pictures
    assert taken is not None
    assert taken.agreement is not None
    assert taken.agreement.names == ("no.safetensors", "yes.safetensors", "ensemble", "soup", "student.safetensors")
    assert taken.agreement.kinds == ("teacher", "teacher", "ensemble", "soup", "checkpoint")
    same, wrong = taken.agreement.shares.same, taken.agreement.shares.both_wrong
    assert (same[0][1], same[1][4], wrong[0][1], wrong[1][4], wrong[0][0]) == (0, 1, 0, 0.2, 0.8)
    assert [one.name for one in taken.reliability] == list(taken.agreement.names)
    sure = taken.reliability[0].bins[0]
    assert (sure.images, sure.top1) == (10, 0.2)
    assert sure.confidence == pytest.approx(1 / (1 + math.exp(-5)))
    files = [*opposed.teachers, *opposed.checkpoints]
    assert [(one.name, one.sha256) for one in taken.files] == [(Path(f).name, file_digest(Path(f))) for f in files]
    assert taken.data == "data"  # no folder


def test_a_checkpoint_alone_has_neither_lines_nor_agreement(opposed: EvaluateConfig) -> None:
    taken = evaluate(replace(opposed, teachers=())).pictures
    assert taken is not None
    assert (taken.lines, taken.agreement) == (None, None)
    assert [one.name for one in taken.reliability] == ["student.safetensors"]


def test_lines_are_drawn_in_the_frame_of_the_student(opposed: EvaluateConfig) -> None:
    teachers = open_teachers(opposed.teachers, PLAIN)
    file = open_checkpoint(Path(opposed.checkpoints[0]))
    student = Student(file, match_layout(PLAIN, file.specs, file.name))
    framed: list[Mapping[str, Tensor]] = [dict(file), dict(teachers.checkpoints[1])]  # the first as if it had moved
    taken = compare([student], teachers, opposed, framed=framed).pictures
    assert taken is not None
    assert taken.lines is not None
    assert taken.lines.aligned
    assert taken.lines.lines[1].nll == pytest.approx([expected_loss(1)] * 11, rel=1e-5)
    assert (taken.reliability[0].bins[0].top1, taken.lines.lines[1].top1[0]) == (0.2, 0.8)  # answers are the file's


def test_statistics_on_lines_are_those_of_the_calibrated_soup(
    tiny_teachers: TinyTeachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SHARES", (0.0, 0.5, 1.0))
    config = EvaluateConfig(
        (), tuple(map(str, tiny_teachers.paths[:2])), find_architecture("vgg11_bn_cifar", WIDTH), DataSpec("digits"),
        calibration_images=64, device="cpu", pictures=True,
    )  # fmt: skip
    found = [evaluate(config), evaluate(replace(config, calibration_images=0))]
    calibrated, mixed = (one.pictures.lines for one in found if one.pictures is not None)
    assert calibrated is not None
    assert mixed is not None
    assert (calibrated.calibrated, mixed.calibrated) == (64, 0)
    middle = {row.kind: row.nll for row in found[0].rows}
    assert calibrated.lines[0].nll[1] == pytest.approx(middle["calibrated_soup"], rel=1e-4)
    assert mixed.lines[0].nll[1] == pytest.approx(middle["soup"], rel=1e-4)
    start = next(row for row in found[1].rows if row.name == mixed.lines[0].start)
    assert mixed.lines[0].nll[0] == pytest.approx(start.nll, rel=1e-4)


def test_between_is_the_ends_at_the_ends() -> None:
    one = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    two = {"a": torch.tensor([5.0, -2.0]), "n": torch.tensor(9)}
    assert torch.equal(between(one, two, 0.0)["a"], one["a"])
    assert torch.equal(between(one, two, 1.0)["a"], two["a"])
    quarter = between(one, two, 0.25)
    assert quarter["a"].tolist() == [2.0, 1.0]
    assert quarter["n"] == 3
    assert between({k: v.half() for k, v in one.items()}, two, 0.5)["a"].dtype == torch.float32


def test_fuse_tells_the_mixing_of_every_layer_where_pictures_are_asked_for(
    tiny_teachers: TinyTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SHARES", (0.0, 1.0))
    arch = find_architecture("vgg11_bn_cifar", WIDTH)
    teachers = tuple(map(str, tiny_teachers.paths))
    config = FuseConfig(
        teachers, arch, tmp_path / "s.safetensors", data=DataSpec("digits"), calibration_images=32, guard=False,
        device="cpu", pictures=True,
    )  # fmt: skip
    result = fuse(config)
    assert result.mixing is not None
    assert next(iter(result.mixing)) == "features.0"
    assert all(len(shares) == 3 and sum(shares) == pytest.approx(1) for shares in result.mixing.values())
    assert result.comparison is not None
    assert result.comparison.pictures is not None
    assert result.comparison.pictures.files[-1].sha256 == result.digest
    assert fuse(replace(config, pictures=False)).mixing is None
    with pytest.raises(WfError, match="pictures: got no images"):
        fuse(replace(config, data=None))
