"""The layer plan as the graph has it: norms where their inputs come from, layers tied to those that feed them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import wfcli.core.small_models  # noqa: F401  registers the small-image variants
from wfcli.core.architectures import find_architecture
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import WeightFormerConfig
from wfcli.core.graph_plan import linked, with_own_norms
from wfcli.core.plan import LayerPlan, plan_layers
from wfcli.core.symmetry import find_symmetry
from wfcli.engine.plans import plan_of


class Knotted(nn.Module):
    """A norm behind its layer; behind an activation; behind one that others take too; of a sum."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(4):
            self.add_module(f"conv{number}", nn.Conv2d(3 if number == 0 else 8, 8, 3, padding=1))
            self.add_module(f"norm{number}", nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv0(x)
        height, width = first.shape[2:]  # asks for a shape, takes nothing
        first = self.norm0(first).reshape(-1, 8, height, width).relu_()
        second = self.norm1(self.conv1(first).relu_())  # in place: the same tensor, other numbers
        third = self.conv2(second)
        fourth = self.norm2(third).reshape(third.shape) + third
        found: Tensor = self.head(self.norm3(self.conv3(fourth) + first).mean((2, 3)))
        return found


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_norms_go_to_the_layers_whose_output_they_alone_take(device: str) -> None:
    model = Knotted().to(device)
    plan = plan_layers(model, "head")
    found = with_own_norms(model, plan, torch.zeros(2, 3, 8, 8, device=device))
    assert [spec.name for spec in plan.specs] == ["conv0", "conv1", "conv2", "conv3", "head"]
    names = ["conv0", "conv1", "norm1", "conv2", "norm2", "conv3", "norm3", "head"]
    assert [spec.name for spec in found.specs] == names
    assert found.specs[0] == plan.specs[0]
    assert sorted(name for spec in found.specs for name in spec.tensors()) == sorted(model.state_dict())


def test_an_attention_is_not_tied_to_the_norm_before_it() -> None:
    arch = find_architecture("vit_tiny_cifar", {"width": 0.34})
    before = plan_layers(timm.create_model("vit_tiny_cifar", width=0.34, num_classes=7), "head")
    after = plan_of(arch, 7)
    plan_of.cache_clear()
    with torch.inference_mode():
        assert plan_of(arch, 7) == after
    columns = {spec.name: spec.columns for spec in after.specs}
    assert {s.name: s.columns for s in before.specs}["blocks.0.attn.proj"] == "blocks.0.norm1"
    assert columns["blocks.0.attn.proj"] is None
    assert columns["blocks.0.attn.qkv"] == "blocks.0.norm1"
    assert columns["blocks.0.mlp.fc2"] == "blocks.0.mlp.fc1"
    assert columns["head"] == "norm"


def test_a_net_that_cannot_be_followed_has_no_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = find_architecture("vgg11_bn_cifar", {"width": 0.125})
    plan_of.cache_clear()

    def refuse(*_: object) -> None:
        raise RuntimeError("no graph")

    with monkeypatch.context() as patched:
        patched.setattr("wfcli.engine.plans.find_symmetry", refuse)
        assert all(spec.columns is None for spec in plan_of(arch, 10).specs)
    plan_of.cache_clear()
    assert any(spec.columns is not None for spec in plan_of(arch, 10).specs)


def _run(plan: LayerPlan, generator: WeightFormer, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(generator.generate(plan, states))


@pytest.mark.parametrize("name", ["vit_tiny_cifar", "resnetv2_18"])
def test_permuting_the_units_of_all_teachers_permutes_the_student(name: str) -> None:
    """With the plan of the graph, for any net; by the order of definition the projection of an attention breaks it."""
    torch.manual_seed(0)
    args = {"width": 0.34} if "vit" in name else {}
    model = timm.create_model(name, num_classes=5, **args).eval()
    x = torch.randn(2, 3, 32, 32)
    symmetry = find_symmetry(model, x)
    head = str(model.pretrained_cfg["classifier"])
    drafted = plan_layers(model, head)
    plan = linked(with_own_norms(model, drafted, x), symmetry)
    generator = WeightFormer(WeightFormerConfig()).eval()
    with torch.no_grad():
        for layer in (generator.logits, generator.scales):
            layer.weight.normal_(0, 0.5)
    states = [
        {n: t + 0.3 * torch.randn_like(t).abs() if t.is_floating_point() else t for n, t in model.state_dict().items()}
        for _ in range(3)
    ]
    orders = symmetry.random(torch.Generator().manual_seed(1))
    moved = [symmetry.permuted(state, orders) for state in states]
    wanted = symmetry.permuted(_run(plan, generator, states), orders)
    found = _run(plan, generator, moved)
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-4, rtol=1e-4, msg=key)
    if "vit" in name:
        wrong, right = _run(drafted, generator, moved), symmetry.permuted(_run(drafted, generator, states), orders)
        assert not torch.allclose(wrong["blocks.0.attn.proj.weight"], right["blocks.0.attn.proj.weight"], atol=1e-4)
