"""Layers of a student fitted to those of its aligned teachers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import wfcli.core.small_models  # noqa: F401  registers the small-image variants
from wfcli.core.graph_plan import with_own_norms
from wfcli.core.least_squares import inputs, least_squares, places, solve
from wfcli.core.methods import soup
from wfcli.core.plan import LayerPlan, plan_layers

NETS = {
    "vgg11_bn_cifar": ({"width": 0.125}, 32),
    "vgg11_cifar": ({"width": 0.125}, 32),
    "resnet18_cifar": ({"width": 0.125}, 32),
    "vit_tiny_cifar": ({"width": 0.34}, 32),
    "efficientnet_b0": ({}, 64),  # depthwise, BatchNorm and activation in one module
    "regnetx_002": ({}, 64),  # grouped
    "resnetv2_18": ({}, 32),  # batch norms before their convolutions
}


def nets(name: str, count: int) -> tuple[nn.Module, str, list[dict[str, Tensor]], Tensor]:
    """Return a model, its head, some nets near one another, and images."""
    torch.manual_seed(0)
    args, size = NETS[name]
    model = timm.create_model(name, num_classes=10, **args).eval()
    images = torch.randn(96, 3, size, size)  # 64 to fit on, 32 to look at
    model.train()
    with torch.no_grad():
        model(images)  # running statistics of its own
    start = {key: tensor.clone() for key, tensor in model.eval().state_dict().items()}
    found = []
    for _ in range(count):
        other = {key: value + 0.02 * torch.randn_like(value) for key, value in start.items() if value.dim() > 1}
        found.append({**start, **other})
    head = str(model.pretrained_cfg["classifier"])
    return model, head, found, images


def own_plan(model: nn.Module, head: str, images: Tensor) -> LayerPlan:
    return with_own_norms(model, plan_layers(model, head), images[:2])


def answers(model: nn.Module, state: dict[str, Tensor], images: Tensor) -> Tensor:
    model.load_state_dict(state)
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    return found


@pytest.mark.parametrize("name", NETS)
def test_copies_of_one_net_give_that_net_back(name: str) -> None:
    model, head, (one,), images = nets(name, 1)
    fitted = least_squares(model, own_plan(model, head, images), one, [one, one], images[:64])
    assert fitted.keys() == one.keys()
    before, after = answers(model, one, images[64:]), answers(model, fitted, images[64:])
    torch.testing.assert_close(after, before, atol=2e-3 * float(before.abs().max()), rtol=2e-3)


@pytest.mark.parametrize("name", ["vgg11_bn_cifar", "vgg11_cifar", "vit_tiny_cifar"])
def test_the_student_is_nearer_to_its_teachers_than_their_average(name: str) -> None:
    model, head, teachers, images = nets(name, 3)
    average = soup(teachers)
    fitted = least_squares(model, own_plan(model, head, images), average, teachers, images)
    wanted = torch.stack([answers(model, teacher, images) for teacher in teachers]).mean(0)
    errors = [float((answers(model, state, images) - wanted).norm()) for state in (average, fitted)]
    assert errors[1] < 0.5 * errors[0]


def test_a_layer_is_the_ridge_solution() -> None:
    torch.manual_seed(0)
    seen, aim = torch.randn(2, 50, 4), torch.randn(2, 50, 3)
    found = solve(seen, aim, torch.zeros(2, 3, 4))
    for group in range(2):
        gram = seen[group].T @ seen[group]
        pull = 0.03 * gram.diagonal().mean() * torch.eye(4)
        torch.testing.assert_close(found[group], torch.linalg.solve(gram + pull, seen[group].T @ aim[group]).T)
    true = torch.randn(1, 3, 4)
    torch.testing.assert_close(solve(seen[:1], seen[:1] @ true.mT, 0.5 * true), true)  # length and all


def test_what_the_places_do_not_tell_stays_as_it_was() -> None:
    seen = torch.zeros(1, 20, 2)
    seen[0, :, 0] = torch.linspace(-1, 1, 20)
    start = torch.tensor([[[1.0, 3.0]]])
    torch.testing.assert_close(solve(seen, seen @ start.mT, start), start)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 8, (3, 1), padding=(0, 2), dilation=2, groups=2, bias=False),
        nn.Conv2d(4, 8, (4, 3), padding="same", dilation=2, bias=False),
        nn.Conv2d(4, 8, 3, padding=(2, 1), padding_mode="reflect", bias=False),
        nn.Conv2d(4, 8, 3, padding="valid", bias=False),
    ],
    ids=["stride", "groups", "same", "reflect", "valid"],
)
def test_patches_are_those_of_the_convolution(layer: nn.Conv2d) -> None:
    x = torch.randn(40, 4, 9, 9)
    with torch.no_grad():
        output = layer(x).movedim(1, -1).flatten(0, 2)
        seen = inputs(layer, x, layer.groups)
        weight = layer.weight.reshape(layer.groups, -1, seen.shape[2])
        found = (seen @ weight.mT).movedim(0, 1).flatten(1)
    torch.testing.assert_close(found, output[places(len(output))], atol=1e-5, rtol=1e-4)
