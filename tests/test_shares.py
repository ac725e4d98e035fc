from __future__ import annotations

import numpy as np
import pytest

from wfcli.core.shares import class_counts, share_images
from wfcli.errors import DataError

LABELS = [image % 10 for image in range(2000)]


def images_of(shares: list[tuple[int, ...] | None]) -> list[tuple[int, ...]]:
    assert all(share is not None for share in shares)
    return [share for share in shares if share is not None]


def unevenness(shares: list[tuple[int, ...] | None]) -> float:
    """Mean over the teachers of the largest class's part: 0.1 where all ten are even."""
    counts = [class_counts(LABELS, share, 10) for share in shares]
    return float(np.mean([max(row) / sum(row) for row in counts]))


@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_deals_every_image_to_one_teacher(seed: int) -> None:
    shares = images_of(share_images("dirichlet", LABELS, 6, concentration=0.3, seed=seed))
    assert sorted(image for share in shares for image in share) == list(range(2000))
    for share in shares:
        assert list(share) == sorted(share)
        assert len(share) >= 32
        assert sum(n > 0 for n in class_counts(LABELS, share, 10)) >= 2


def test_smaller_concentration_is_more_uneven() -> None:
    found = [unevenness(share_images("dirichlet", LABELS, 4, concentration=c, seed=1)) for c in (0.1, 1.0, 1000.0)]
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("kind", ["dirichlet", "disjoint"])
def test_shares_follow_from_the_seed(kind: str) -> None:
    assert share_images(kind, LABELS, 4, seed=1) == share_images(kind, LABELS, 4, seed=1)
    assert share_images(kind, LABELS, 4, seed=1) != share_images(kind, LABELS, 4, seed=2)


def test_disjoint_teachers_have_no_class_in_common() -> None:
    shares = images_of(share_images("disjoint", LABELS, 3, seed=0))
    known = [{LABELS[image] for image in share} for share in shares]
    assert sorted(len(classes) for classes in known) == [3, 3, 4]
    assert len(set().union(*known)) == 10
    assert sorted(image for share in shares for image in share) == list(range(2000))


def test_same_is_all_images_or_the_same_part_of_them() -> None:
    assert share_images("same", LABELS, 3) == [None, None, None]
    assert share_images("same", LABELS, 3, images_per_teacher=5000) == [None, None, None]
    shares = images_of(share_images("same", LABELS, 3, images_per_teacher=100))
    assert len(set(shares)) == 1
    assert len(set(shares[0])) == 100


@pytest.mark.parametrize("kind", ["dirichlet", "disjoint"])
def test_images_per_teacher_cuts_shares_down(kind: str) -> None:
    shares = images_of(share_images(kind, LABELS, 4, images_per_teacher=50, seed=3))
    assert max(len(share) for share in shares) == 50


def test_class_counts_of_all_and_of_some() -> None:
    assert class_counts([0, 2, 2], None, 4) == (1, 0, 2, 0)
    assert class_counts([0, 2, 2], (1, 2), 3) == (0, 0, 2)


def test_shares_that_cannot_be_are_errors() -> None:
    with pytest.raises(
        DataError, match=r"20 teachers of at least 32 images and 2 classes each .* from 100 images"
    ) as caught:
        share_images("dirichlet", LABELS[:100], 20)
    assert caught.value.hint is not None
    assert "--concentration" in caught.value.hint
    with pytest.raises(
        DataError, match="6 teachers of at least 2 classes each need 12 classes, the data has 10"
    ) as caught:
        share_images("disjoint", LABELS, 6)
    assert caught.value.hint == "ask for at most 5 teachers, or use --shares dirichlet"
    with pytest.raises(DataError, match="unknown kind 'even'"):
        share_images("even", LABELS, 6)
    with pytest.raises(DataError, match="--concentration: got 0, expected more than 0"):
        share_images("dirichlet", LABELS, 6, concentration=0)
    with pytest.raises(DataError, match="--images-per-teacher: got 1, expected at least 2"):
        share_images("same", LABELS, 6, images_per_teacher=1)


@pytest.mark.parametrize("kind", ["dirichlet", "disjoint"])
def test_a_range_gives_every_share_a_size_of_its_own(kind: str) -> None:
    shares = images_of(share_images(kind, LABELS, 4, images_per_teacher=(40, 200), seed=3))
    sizes = [len(share) for share in shares]
    assert all(2 <= size <= 200 for size in sizes)
    assert len(set(sizes)) > 1
    assert shares == images_of(share_images(kind, LABELS, 4, images_per_teacher=(40, 200), seed=3))


def test_a_range_that_goes_down_is_an_error() -> None:
    with pytest.raises(DataError, match="--images-per-teacher: got 200-40, expected at least 2, or a range"):
        share_images("disjoint", LABELS, 2, images_per_teacher=(200, 40))
