"""Errors carry all problems, each with the hint that is for it."""

from __future__ import annotations

import pytest

from wfcli.errors import CheckpointError, DataError, Problems, WfError, gather


def test_an_error_reads_as_lines() -> None:
    assert str(WfError("a: got 1, expected 2", "b: missing", hint="look")) == (
        "a: got 1, expected 2\nb: missing\nhint: look"
    )
    assert str(WfError("a")) == "a"


def test_problems_of_one_hint_stand_together() -> None:
    found = gather([DataError("a", hint="one"), DataError("b", hint="two"), DataError("c", "a", hint="one")])
    assert type(found) is DataError
    assert found.problems == ("a", "c", "b")
    assert found.hint == "one\ntwo"
    assert str(found) == "a\nc\nhint: one\nb\nhint: two"
    assert str(gather([found, WfError("d", hint="two")])) == "a\nc\nhint: one\nb\nd\nhint: two"


def test_errors_of_several_kinds_are_of_none() -> None:
    assert type(gather([DataError("a"), CheckpointError("b")])) is WfError
    alone = CheckpointError("b", hint="h")
    assert gather([alone]) is alone


def test_checks_go_on_after_a_problem_but_not_after_a_bug() -> None:
    problems = Problems()
    problems.raise_all()
    reached = []
    with problems:
        raise DataError("first")
    with problems:
        reached.append("second")
    with problems:
        raise DataError("third")
    assert reached == ["second"]
    with pytest.raises(DataError, match="first\nthird"):
        problems.raise_all()
    with pytest.raises(ZeroDivisionError), problems:
        raise ZeroDivisionError
