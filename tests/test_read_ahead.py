"""Layers read ahead: the same in the same order, errors where they are asked for, the same student on a GPU."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from wfcli.core.architectures import build_model, find_architecture
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.read_ahead import one_ahead
from wfcli.engine.plans import plan_of


def test_the_next_is_read_while_the_one_before_is_used() -> None:
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        return 10 * number

    got = []
    for value in one_ahead(read, [1, 2, 3]):
        patience = time.monotonic() + 10
        while value < 30 and len(begun) < value // 10 + 1:
            assert time.monotonic() < patience
        assert len(begun) <= value // 10 + 1  # one ahead, no more: each is a layer of every teacher
        got.append(value)
    assert got == [10, 20, 30]
    assert list(one_ahead(read, [])) == []


def test_an_error_is_raised_in_its_place_and_no_thread_is_left() -> None:
    def read(number: int) -> int:
        return 6 // number

    got = one_ahead(read, [3, 0, 1])
    assert next(got) == 2
    with pytest.raises(ZeroDivisionError):
        next(got)
    left = one_ahead(read, [3, 2, 1])
    assert next(left) == 2
    left.close()
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_student_of_the_processor() -> None:
    arch = find_architecture("resnet18_cifar", {"width": 0.125})
    torch.manual_seed(0)
    teachers = [build_model(arch, 10).state_dict() for _ in range(3)]
    generator = WeightFormer(WeightFormerConfig())
    torch.nn.init.normal_(generator.logits.weight)
    with torch.inference_mode():
        here = dict(generator.generate(plan_of(arch, 10), teachers))
        there = dict(generator.to("cuda").generate(plan_of(arch, 10), teachers, torch.device("cuda")))
    for name, tensor in here.items():
        torch.testing.assert_close(there[name].cpu(), tensor, rtol=1e-3, atol=1e-4)
