"""Every plan owns exactly the tensors of its state dict, each once; channels and columns are what the shapes say."""

from __future__ import annotations

import pytest
import torch

from wfcli.core.architectures import build_model, find_architecture, head_keys
from wfcli.core.plan import LayerPlan, plan_layers

ARCHITECTURES = [
    "vgg11_cifar", "vgg11_bn_cifar", "resnet18_cifar", "resnet50_cifar", "vit_tiny_cifar", "vgg11", "resnet50",
    "vit_b_32", "convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224", "densenet121",
    "nfnet_l0",
]  # fmt: skip


def plan_of(name: str) -> tuple[LayerPlan, dict[str, torch.Tensor]]:
    arch = find_architecture(name)
    model = build_model(arch, 10, device="meta")
    return plan_layers(model, head_keys(arch)[0].removesuffix(".weight")), model.state_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_plan_covers_exactly_the_state_dict(name: str) -> None:
    plan, state = plan_of(name)
    owned = [tensor for spec in plan.specs for tensor in spec.tensors()]
    assert sorted(owned) == sorted(state)
    earlier: dict[str, int] = {}
    for spec in plan.specs:
        if spec.kind != "free":
            vectors = (*spec.affines, spec.running_mean, spec.running_var)
            assert {tuple(state[v].shape) for v in vectors if v is not None} <= {(spec.channels,)}
            if spec.weight is not None:
                assert state[spec.weight].shape[0] == spec.channels
        if spec.columns is not None and spec.weight is not None:
            assert earlier[spec.columns] == state[spec.weight].shape[1]  # a layer before it, of that many channels
        earlier[spec.name] = spec.channels
    assert [spec.kind for spec in plan.specs].count("head") == 1


def test_batch_norm_belongs_to_its_convolution_and_layer_norm_to_itself() -> None:
    resnet, _ = plan_of("resnet18_cifar")
    first = resnet.specs[0]
    assert (first.weight, first.norm_weight, first.running_var) == ("conv1.weight", "bn1.weight", "bn1.running_var")
    assert first.counters == ("bn1.num_batches_tracked",)
    assert resnet.norms == {"batch"}
    vit, _ = plan_of("vit_tiny_cifar")
    assert {spec.kind for spec in vit.specs if "norm" in spec.name} == {"norm"}
    assert {spec.weight for spec in vit.specs if spec.kind == "free"} == {"cls_token", "pos_embed"}
    assert vit.norms == {"layer"}
    assert plan_of("vgg11_cifar")[0].norms == frozenset()


def test_the_head_reads_the_last_features() -> None:
    plan, _ = plan_of("vgg11_bn_cifar")
    head = plan.specs[-1]
    assert head.kind == "head"
    assert head.columns == plan.specs[-2].name
    assert (plan.specs[0].depth, head.depth) == (0.0, 1.0)
