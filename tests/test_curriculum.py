"""A training ground gives what the real thing gives: the generator's student, the soup, the logits of the student."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import TinyTeachers
from wfcli.core import curriculum
from wfcli.core.architectures import Architecture, build_model, find_architecture, head_keys, input_config
from wfcli.core.checkpoint import open_checkpoint
from wfcli.core.curriculum import (
    Ground,
    Pool,
    agreement,
    distillation_loss,
    generate_subset,
    is_divisible,
    pick_net,
    read_layers,
    soup_subset,
    student_logits,
)
from wfcli.core.data import to_input
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.methods import soup
from wfcli.core.plan import plan_layers
from wfcli.core.votes import presence

State = dict[str, Tensor]
CPU = torch.device("cpu")


def ground_of(arch: Architecture, states: list[State]) -> Ground:
    """Make a ground of these teachers without images."""
    model = build_model(arch, len(states[0][head_keys(arch)[0]]))
    plan = plan_layers(model, head_keys(arch)[0].removesuffix(".weight"))
    layers, constants = read_layers(plan, states, CPU)
    nothing = Pool(*[torch.empty(0)] * 4)
    everyone = tuple(range(len(states)))
    return Ground(model, plan, layers, constants, input_config(arch), nothing, nothing, everyone, (), ())


def eager() -> WeightFormer:
    """Return a generator that does not give the soup."""
    torch.manual_seed(5)
    generator = WeightFormer(WeightFormerConfig(preset="weightformer", raw_widths=(27, 72)))
    with torch.no_grad():
        for layer in (generator.logits, generator.scales, *generator.decode_rows.values()):
            layer.weight.normal_(0, 0.5)
    return generator.eval()


def pixels(count: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vgg(tiny_teachers: TinyTeachers) -> tuple[list[State], Ground]:
    states = [dict(open_checkpoint(path)) for path in tiny_teachers.paths]
    draw = torch.Generator().manual_seed(0)
    for number, state in enumerate(states):  # as training would leave the statistics
        for name in state:
            if name.endswith(("running_var", "running_mean")):
                state[name] = state[name] + torch.rand(state[name].shape, generator=draw)
            if name.endswith("num_batches_tracked"):
                state[name] = torch.tensor(number)
    return states, ground_of(find_architecture("vgg11_bn_cifar", {"width": 0.125}), states)


@pytest.fixture(scope="module")
def vit() -> tuple[list[State], Ground]:
    """A net with tensors that have no channels, class token and position embedding."""
    arch = find_architecture("vit_tiny_cifar", {"width": 0.34})
    torch.manual_seed(0)
    base = build_model(arch, 7).state_dict()
    states = [{name: t + 0.02 * torch.randn_like(t) for name, t in base.items()} for _ in range(3)]
    return states, ground_of(arch, states)


@pytest.mark.parametrize("net", ["vgg", "vit"])
def test_a_subset_of_all_is_what_the_generator_gives(net: str, request: pytest.FixtureRequest) -> None:
    states, ground = request.getfixturevalue(net)
    generator = eager()
    with torch.no_grad():
        expected = dict(generator.generate(ground.plan, states))
        found = generate_subset(generator, ground, torch.arange(3))
    assert found.keys() == expected.keys() == states[0].keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", ["vgg", "vit"])
@pytest.mark.parametrize("subset", [(0, 2), (2, 1), (0, 1, 2)])
def test_subsets_are_as_good_as_reading_those_teachers(
    net: str, subset: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    states, ground = request.getfixturevalue(net)
    generator, chosen = eager(), [states[number] for number in subset]
    index = torch.tensor(subset)
    with torch.no_grad():
        expected = dict(generator.generate(ground.plan, chosen))
        found = generate_subset(generator, ground, index)
    averaged, means = soup(chosen), soup_subset(ground, index)
    assert means.keys() == averaged.keys()
    for name in found:
        if found[name].is_floating_point():  # counters are those of all the teachers: they play no part
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(means[name], averaged[name], rtol=0, atol=0)


@pytest.fixture
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curriculum, "training_autocast", lambda device, model: nullcontext())


def plain_logits(ground: Ground, state: State, prepare: Callable[[nn.Module], object]) -> Tensor:
    model = build_model(find_architecture("vgg11_bn_cifar", {"width": 0.125}), 10)
    model.load_state_dict(state)
    prepare(model)
    with torch.no_grad():
        logits: Tensor = model(to_input(pixels(), ground.settings))
    return logits


@pytest.mark.usefixtures("whole_float32")
def test_without_data_the_folded_statistics_are_the_plain_net_in_eval_mode(vgg: tuple[list[State], Ground]) -> None:
    states, ground = vgg
    found = student_logits(ground, states[1], pixels(), batch_statistics=False)
    torch.testing.assert_close(found, plain_logits(ground, states[1], nn.Module.eval), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("whole_float32")
def test_with_batch_statistics_it_is_the_plain_net_in_train_mode(vgg: tuple[list[State], Ground]) -> None:
    states, ground = vgg
    before = {name: tensor.clone() for name, tensor in states[1].items()}
    found = student_logits(ground, states[1], pixels(), batch_statistics=True)
    torch.testing.assert_close(found, plain_logits(ground, states[1], nn.Module.train), rtol=1e-4, atol=1e-4)
    other = student_logits(ground, states[1], pixels(), batch_statistics=False)
    assert (other - found).abs().max() > 0.01  # the two modes differ, and one call does not change the next
    assert all(torch.equal(states[1][name], before[name]) for name in before)


@pytest.mark.usefixtures("whole_float32")
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_gradients_reach_every_tensor_that_the_logits_depend_on(
    vgg: tuple[list[State], Ground], batch_statistics: bool
) -> None:
    states, ground = vgg
    student = {
        name: t.clone().requires_grad_() if t.is_floating_point() else t.clone() for name, t in states[0].items()
    }
    student_logits(ground, student, pixels(), batch_statistics).square().sum().backward()
    without = {name for name, tensor in student.items() if tensor.is_floating_point() and tensor.grad is None}
    statistics = {name for name in student if name.endswith(("running_mean", "running_var"))}
    assert without == (statistics if batch_statistics else set())


def test_the_distillation_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0])
    log_student = logits.log_softmax(1)
    cross = -(log_student[0, 0] + log_student[1, 0]) / 2
    same = distillation_loss(logits, log_student, labels, ce_weight=0.5)
    torch.testing.assert_close(same, 0.5 * cross)  # no divergence from oneself
    wanted = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    divergence = (wanted.exp() * (wanted - log_student)).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, wanted, labels, ce_weight=0.0), divergence)


def test_students_agree_with_themselves_and_less_with_others() -> None:
    torch.manual_seed(0)
    logits, others = torch.randn(2, 5, 4)
    assert agreement(logits, logits + 3) == pytest.approx(0, abs=1e-6)  # softmax does not see a common shift
    assert 0 < agreement(logits, others) == pytest.approx(float(agreement(others, logits)), rel=1e-5)
    one, other = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert agreement(one, other) == pytest.approx(math.log(2), rel=1e-4)  # the most there can be


def test_some_classes_are_a_task_of_their_own(vgg: tuple[list[State], Ground]) -> None:
    states, ground = vgg
    classes, index = torch.tensor([4, 0, 7]), torch.arange(len(states))
    head = head_keys(find_architecture("vgg11_bn_cifar"))
    smaller = [{**state, **{name: state[name][classes] for name in head}} for state in states]
    few = ground_of(find_architecture("vgg11_bn_cifar", {"width": 0.125}), smaller)
    with torch.no_grad():
        got = generate_subset(eager(), ground, index, classes)
        wanted = generate_subset(eager(), few, index)
    assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in wanted.items()}
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert student_logits(ground, got, pixels(), batch_statistics=False).shape == (16, 3)


def test_wide_nets_are_drawn_less_often_by_the_root_of_their_channels(vgg: tuple[list[State], Ground]) -> None:
    assert vgg[1].channels == 8 + 16 + 2 * 32 + 4 * 64 + 10
    draw = torch.Generator().manual_seed(0)
    drawn = torch.tensor([pick_net([100, 400, 100], draw) for _ in range(5000)]).bincount() / 5000
    torch.testing.assert_close(drawn, torch.tensor([0.4, 0.2, 0.4]), atol=0.02, rtol=0)
    one_kind = torch.Generator().manual_seed(1)
    same = torch.Generator().manual_seed(1)  # nets of one size take one number from the stream, as randint does
    assert [pick_net([7] * 5, one_kind) for _ in range(20)] == [
        int(torch.randint(5, (), generator=same)) for _ in range(20)
    ]


def test_a_net_with_two_heads_cannot_be_cut() -> None:
    arch = find_architecture("deit_tiny_distilled_patch16_224", {"depth": 1, "embed_dim": 48, "img_size": 32})
    for net, divisible in ((arch, False), (find_architecture("vgg11_bn_cifar", {"width": 0.125}), True)):
        torch.manual_seed(0)
        ground = ground_of(net, [build_model(net, 5).state_dict() for _ in range(2)])
        pool = Pool(pixels(4), torch.zeros(4).long(), torch.zeros(2, 4, 5), torch.zeros(2, 5))
        assert is_divisible(replace(ground, train=pool, digests=("a", "b"))) is divisible


def test_what_is_wanted_of_some_classes() -> None:
    log_probs = torch.randn(2, 5, 4).log_softmax(-1)
    pool = Pool(torch.empty(5), torch.empty(5), log_probs, presence(log_probs))
    index, batch, classes = torch.tensor([1, 0]), torch.tensor([3, 3, 1]), torch.tensor([2, 0])
    whole = pool.wanted(index, batch).exp()
    torch.testing.assert_close(whole.sum(1), torch.ones(3))
    part = pool.wanted(index, batch, classes).exp()
    torch.testing.assert_close(part, whole[:, classes] / whole[:, classes].sum(1, keepdim=True))
