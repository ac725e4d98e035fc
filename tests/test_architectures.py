"""Names, layouts of tensors, and the table of layouts that stands in for timm."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wfcli.core.architectures import (
    Architecture,
    InputConfig,
    Layout,
    build_model,
    find_architecture,
    guess_architecture,
    head_keys,
    input_config,
    key_layout,
    match_layout,
    parse_arch_args,
)
from wfcli.core.checkpoint import TensorSpec, state_specs
from wfcli.core.layouts import COUNTER, listing, tables
from wfcli.errors import ArchitectureError

SMALL = [name for name, raw in tables().architectures.items() if raw.get("step")]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def torchvision_model(name: str, device: str = "meta", **args: object) -> nn.Module:
    with torch.device(device):
        model: nn.Module = torchvision.models.get_model(name, weights=None, **args)
    return model


def randomised(model: nn.Module) -> nn.Module:
    """Make every tensor random, the zero heads and unit statistics of a fresh net too."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point() and tensor.ndim <= 2:
                tensor.add_(0.05 * torch.randn_like(tensor))
    return model.eval()


def assert_same_function(theirs: nn.Module, arch: Architecture, size: int) -> None:
    """Check the logits of timm's net with torchvision's weights, and that the way back restores every bit."""
    state = randomised(theirs).state_dict()
    layout = match_layout(arch, state_specs(state), "file")
    ours = build_model(arch, layout.num_classes).eval()
    ours.load_state_dict(dict(layout.timm_view(state)))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert float(expected.std()) > 0

    back = layout.file_state(ours.state_dict())
    assert list(back) == [key for key in layout.files if key in state]
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)
    theirs.load_state_dict(back, strict=True)


# The same function from the same weights. examples/make_layouts.py checks this for every name of the table.


def test_torchvision_resnet_is_timms() -> None:
    torch.manual_seed(0)
    assert_same_function(torchvision_model("resnet18", "cpu", num_classes=7), find_architecture("resnet18"), 64)


def test_torchvision_mobilenet_is_timms_under_other_names() -> None:
    torch.manual_seed(0)
    assert_same_function(torchvision_model("mobilenet_v2", "cpu", num_classes=7), find_architecture("mobilenet_v2"), 64)


def test_torchvision_transformer_is_timms_with_arguments() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(64, 32, 12, 3, 96, 384, num_classes=7)
    arch = find_architecture("vit_b_32", {"img_size": 64, "embed_dim": 96, "num_heads": 3})
    assert_same_function(theirs, arch, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vit_b_32", "resnet50", "convnext_tiny", "regnet_y_400mf"])
def test_torchvision_net_in_full_size_is_timms(name: str) -> None:
    torch.manual_seed(0)
    assert_same_function(torchvision_model(name, "cpu", num_classes=7), find_architecture(name), 224)


FOREIGN = [
    "vgg11", "vgg16_bn", "vit_b_32", "vit_l_16", "convnext_tiny", "efficientnet_b0", "mobilenet_v2", "mnasnet0_5",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_torchvision_tensors_cover_timms(name: str) -> None:
    state = torchvision_model(name, num_classes=7).state_dict()
    arch = find_architecture(name)
    layout = match_layout(arch, state_specs(state), "file")
    assert (layout.name, layout.num_classes) == ("torchvision", 7)
    assert layout.files == {key: tuple(tensor.shape) for key, tensor in state.items()}
    timm_state = build_model(arch, 7, device="meta").state_dict()
    assert dict(layout.to_timm.values()) == {key: tuple(tensor.shape) for key, tensor in timm_state.items()}
    assert {key: tuple(tensor.shape) for key, tensor in layout.timm_view(state).items()} == dict(
        layout.to_timm.values()
    )
    assert {key: tuple(tensor.shape) for key, tensor in layout.file_state(timm_state).items()} == layout.files


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_torchvision_tensors_with_timms_names_are_timms(name: str) -> None:
    layout = match_layout(find_architecture(name), state_specs(torchvision_model(name).state_dict()), "file")
    assert (layout.name, layout.num_classes) == ("timm", 1000)
    assert all(key == timm_key for key, (timm_key, _) in layout.to_timm.items())


def test_vgg_classifier_is_reshaped_both_ways() -> None:
    state = torchvision_model("vgg11", num_classes=7).state_dict()
    layout = match_layout(find_architecture("vgg11"), state_specs(state), "file")
    assert layout.to_timm["classifier.0.weight"] == ("pre_logits.fc1.weight", (4096, 512, 7, 7))
    assert layout.to_timm["classifier.3.weight"] == ("pre_logits.fc2.weight", (4096, 4096, 1, 1))
    assert layout.to_timm["classifier.6.weight"] == ("head.fc.weight", (7, 4096))
    assert layout.to_file["pre_logits.fc1.weight"] == ("classifier.0.weight", (4096, 25088))


def test_timm_file_of_an_alias_stays_timms() -> None:
    arch = find_architecture("vit_b_32")
    layout = match_layout(arch, key_layout(arch, 10), "file")
    assert (layout.name, layout.num_classes) == ("timm", 10)


def test_torchvision_transformer_before_0_13_keeps_its_names() -> None:
    state = torchvision_model("vit_b_32", num_classes=7).state_dict()
    renames = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    old = {re.sub(r"\.mlp\.[03]\.", lambda found: renames[found[0]], key): tensor for key, tensor in state.items()}
    layout = match_layout(find_architecture("vit_b_32"), state_specs(old), "file")
    assert layout.name == "torchvision"
    assert list(layout.files) != list(state)
    assert set(layout.files) == set(old)


def test_view_reads_a_tensor_when_asked_for() -> None:
    arch = find_architecture("resnet18_cifar", {"width": 0.125})
    state = build_model(arch, 3).state_dict()
    read: list[str] = []

    class Noted(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            read.append(key)
            return super().__getitem__(key)

    view = match_layout(arch, state_specs(state), "file").timm_view(Noted(state))
    assert (list(view), len(view), read) == (list(state), len(state), [])
    assert torch.equal(view["fc.bias"], state["fc.bias"])
    assert read == ["fc.bias"]
    with pytest.raises(KeyError):
        view["fc.scale"]


def test_counters_of_batch_norms_may_be_missing() -> None:
    arch = find_architecture("resnet18")
    old = {key: spec for key, spec in key_layout(arch, 10).items() if not key.endswith(COUNTER)}
    layout = match_layout(arch, old, "file")
    assert set(layout.files) == set(old)
    assert guess_architecture(old) == "resnet18"
    state = build_model(arch, 10).state_dict()
    assert set(layout.file_state(state)) == set(old)
    build_model(arch, 10).load_state_dict(dict(layout.timm_view({key: state[key] for key in old})), strict=True)


# The table against timm.


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "vit_base_patch32_224", "convnext_tiny", "regnetx_004_tv"])
def test_table_lists_the_tensors_of_timms_model(name: str) -> None:
    assert_listed(find_architecture(name))


@pytest.mark.parametrize("width", [0.01, 0.25, 0.4, 1, 1.7])
@pytest.mark.parametrize("name", SMALL)
def test_table_lists_the_tensors_of_small_nets_at_any_width(name: str, width: float) -> None:
    assert_listed(find_architecture(name, {"width": width}))


def assert_listed(arch: Architecture) -> None:
    listed = key_layout(arch, 13)
    model = state_specs(build_model(arch, 13, device="meta").state_dict())
    assert listed == model
    assert list(listed) == list(model)
    assert all(key in listed and listed[key].shape[0] == 13 for key in head_keys(arch))


def test_whole_table_is_in_order() -> None:
    for name in tables().architectures:
        entry = listing(name)
        assert entry is not None
        layout = key_layout(find_architecture(name), 13)
        assert {f"{entry.head}.weight", f"{entry.head}.bias"} < set(layout)
        timm_keys = [timm_key for timm_key, _ in entry.torchvision.values()]
        assert timm_keys in ([], list(entry.tensors))
        assert guess_architecture(layout) == name
    assert {alias.timm_name for alias in tables().aliases.values()} <= set(tables().architectures)


def test_torchvision_names_that_the_project_promises() -> None:
    names = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
    names += [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    names += ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"]
    assert all(find_architecture(name).entry for name in names)
    assert all(name in torchvision.models.list_models() for name in [*names, *tables().aliases])


def test_listed_names_need_neither_torch_nor_timm() -> None:
    code = """
import sys
from wfcli.core.architectures import *
small = ("vgg11_bn_cifar", {"width": 0.25})
for name, args in (("vit_b_32", {}), ("resnet50", {}), small, ("vgg11", {"drop_rate": 0.5})):
    arch = find_architecture(name, args)
    layout = key_layout(arch, 10)
    match_layout(arch, layout, "file"), guess_architecture(layout), input_config(arch), head_keys(arch)
print([name for name in ("torch", "timm", "torchvision", "numpy") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


# Names outside the table.


def test_any_timm_name_with_arguments() -> None:
    arch = find_architecture("deit3_small_patch16_224", {"img_size": 64, "depth": 2})
    assert arch.label == "deit3_small_patch16_224(depth=2, img_size=64)"
    layout = match_layout(arch, key_layout(arch, 5), "file")
    assert (layout.name, layout.num_classes, head_keys(arch)) == ("timm", 5, ("head.weight", "head.bias"))
    assert layout.files["pos_embed"] == (1, 16, 384)
    assert "blocks.1.norm1.weight" in layout.files
    assert "blocks.2.norm1.weight" not in layout.files
    assert input_config(arch).size == 64
    assert guess_architecture(key_layout(arch, 5)) is None


def test_tag_of_timm_says_whose_weights() -> None:
    arch = find_architecture("resnet50.tv_in1k")
    assert key_layout(arch, 10) == key_layout(find_architecture("resnet50"), 10)
    assert input_config(arch).size == 224
    with pytest.raises(ArchitectureError, match=r"unknown architecture 'resnet50\.nobody'; nearest: resnet50"):
        find_architecture("resnet50.nobody")


def test_same_seed_same_model() -> None:
    arch = find_architecture("vit_tiny_cifar")
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model(arch, 10).state_dict())
    key = "blocks.3.attn.qkv.weight"
    assert torch.equal(models[0][key], models[1][key])
    assert not torch.equal(models[0][key], models[2][key])


def test_meta_model_takes_no_memory() -> None:
    assert {
        tensor.device.type for tensor in build_model(find_architecture("vgg19"), 10, device="meta").parameters()
    } == {"meta"}


def test_input_configs() -> None:
    assert input_config(find_architecture("vit_b_32")) == InputConfig(224, *IMAGENET)
    # timm's own weights of the same net were trained with another normalisation.
    assert input_config(find_architecture("vit_base_patch32_224")).mean == (0.5, 0.5, 0.5)
    assert input_config(find_architecture("resnet50")) == InputConfig(224, *IMAGENET)
    assert input_config(find_architecture("vit_b_32", {"img_size": 384})).size == 384
    assert input_config(find_architecture("vgg11_bn_cifar", {"width": 0.25})).size == 32


# Guesses from headers.


@pytest.mark.parametrize("name", ["vit_b_32", "vgg16_bn", "mobilenet_v2", "resnet34"])
def test_guess_names_torchvisions_layout_as_torchvision_does(name: str) -> None:
    assert guess_architecture(state_specs(torchvision_model(name, num_classes=7).state_dict())) == name


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0, 2.0])
def test_guess_infers_the_width(name: str, width: float) -> None:
    arch = find_architecture(name, {"width": width})
    specs = key_layout(arch, 10)
    guess = guess_architecture(specs)
    assert guess is not None
    found = re.fullmatch(r"(\w+)(?:\(width=(.+)\))?", guess)
    assert found is not None
    assert found[1] == name
    same = find_architecture(name, {"width": float(found[2] or 1)})
    assert key_layout(same, 10) == specs  # a Transformer of few heads has many widths
    if not name.startswith("vit"):
        assert same == arch or width == 1.0


def test_guess_infers_the_size_of_patches() -> None:
    specs = key_layout(find_architecture("vit_tiny_cifar", {"patch_size": 2}), 10)
    assert guess_architecture(specs) == "vit_tiny_cifar(patch_size=2)"
    specs["patch_embed.proj.weight"] = TensorSpec((192, 3, 5, 5), "F32")
    assert guess_architecture(specs) is None


def test_no_guess_for_anything_else() -> None:
    assert guess_architecture({}) is None
    assert guess_architecture({"weight": TensorSpec((3, 3), "F32")}) is None
    odd = key_layout(find_architecture("vgg11_bn_cifar"), 10)
    odd["features.0.weight"] = TensorSpec((72, 3, 3, 3), "F32")  # no width gives 72 here and 128 next
    assert guess_architecture(odd) is None


# Bad input.


def resnet18(edit: Callable[[dict[str, TensorSpec]], object]) -> dict[str, TensorSpec]:
    specs = key_layout(find_architecture("resnet18"), 10)
    edit(specs)
    return specs


def problems(name: str, specs: dict[str, TensorSpec]) -> ArchitectureError:
    with pytest.raises(ArchitectureError) as caught:
        match_layout(find_architecture(name), specs, "teacher-00.safetensors")
    return caught.value


def test_all_problems_of_a_file_at_once() -> None:
    def edit(specs: dict[str, TensorSpec]) -> None:
        del specs["bn1.bias"]
        specs["ema_decay"] = TensorSpec((), "F32")
        specs["conv1.weight"] = TensorSpec((64, 3, 3, 3), "F32")
        specs["layer1.0.conv1.weight"] = TensorSpec((64, 64, 3, 3), "I8")
        specs["fc.bias"] = TensorSpec((11,), "BF16")

    error = problems("resnet18", resnet18(edit))
    assert error.problems == (
        "teacher-00.safetensors: bn1.bias: missing, expected [64]",
        "teacher-00.safetensors: ema_decay: got [], expected no such tensor in resnet18",
        "teacher-00.safetensors: conv1.weight: got [64, 3, 3, 3], expected [64, 3, 7, 7]",
        "teacher-00.safetensors: fc.bias: got [11], expected [10]",
        "teacher-00.safetensors: layer1.0.conv1.weight: got I8, expected floating-point numbers",
    )
    assert error.hint == "expected timm's or torchvision's tensors of resnet18; `wfcli inspect` shows what a file holds"


def test_many_problems_are_counted() -> None:
    error = problems("resnet18", {})
    assert len(error.problems) == 11
    assert error.problems[-1] == "teacher-00.safetensors: ... and 92 more tensors are missing"
    assert "teacher-00.safetensors: conv1.weight: missing, expected [64, 3, 7, 7]" in error.problems


def test_missing_head_is_named() -> None:
    error = problems("resnet18", resnet18(lambda specs: specs.pop("fc.weight")))
    assert error.problems == ("teacher-00.safetensors: fc.weight: missing, expected [10, 512]",)


@pytest.mark.parametrize(
    ("asked", "name", "args", "hint"),
    [
        ("resnet50", "resnet34", {}, "the tensors look like resnet34: --arch resnet34"),
        ("vgg11_bn_cifar", "vgg11_bn_cifar", {"width": 0.25}, "--arch vgg11_bn_cifar --arch-arg width=0.25"),
        ("vit_b_16", "vit_base_patch32_224", {}, "the tensors look like vit_base_patch32_224"),
    ],
)
def test_hint_names_the_architecture_of_the_file(asked: str, name: str, args: dict[str, float], hint: str) -> None:
    error = problems(asked, key_layout(find_architecture(name, args), 10))
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize("name", ["vit_b32", "ViT-B-32", "vit_b_23"])
def test_unknown_name_suggests_the_nearest_in_both_spellings(name: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        find_architecture(name)
    (problem,) = caught.value.problems
    assert problem.startswith(f"unknown architecture {name!r}; nearest: ")
    assert "vit_b_32 (timm: vit_base_patch32_224)" in problem
    assert caught.value.hint is not None
    assert re.search(r"timm name .* torchvision name .* small net .* --arch-arg width=0\.25", caught.value.hint)


@pytest.mark.parametrize("name", ["", "zzz", "hf-hub:owner/name", "../resnet18"])
def test_unknown_name_without_a_neighbour(name: str) -> None:
    with pytest.raises(ArchitectureError, match=f"^unknown architecture {name!r}"):
        find_architecture(name)


def test_all_bad_arguments_at_once() -> None:
    with pytest.raises(ArchitectureError) as caught:
        find_architecture("vgg11_cifar", {"pretrained": True, "num_classes": 5, "widht": 2, "width": 0.0})
    assert caught.value.problems == (
        "vgg11_cifar: argument 'num_classes': the number of classes is read from the head, or from the data",
        "vgg11_cifar: argument 'pretrained': weights come from checkpoints",
        "vgg11_cifar: unknown argument 'widht', expected one of width, in_chans, drop_rate",
        "vgg11_cifar: width: got 0.0, expected a number above 0 and at most 64",
    )
    for width in ("wide", True, float("nan"), float("inf"), -1):
        with pytest.raises(ArchitectureError, match="width: got .*, expected a number above 0"):
            find_architecture("resnet18_cifar", {"width": width})
    with pytest.raises(ArchitectureError, match="vit_b_32: img_size: got 'big', expected a number of pixels"):
        find_architecture("vit_b_32", {"img_size": "big"})


def test_patches_of_the_small_transformers() -> None:
    shapes = {
        name: spec.shape
        for name, spec in key_layout(find_architecture("vit_tiny_cifar", {"patch_size": 8}), 10).items()
    }
    assert shapes["patch_embed.proj.weight"] == (192, 3, 8, 8)
    assert shapes["pos_embed"] == (1, 17, 192)
    with pytest.raises(ArchitectureError, match="vit_tiny_cifar: patch_size: got 5, expected one of 2, 4, 8, 16"):
        find_architecture("vit_tiny_cifar", {"patch_size": 5})
    with pytest.raises(ArchitectureError, match=r"patch_size: got 8\.0, expected one of"):
        find_architecture("vit_tiny_cifar", {"patch_size": 8.0})
    with pytest.raises(ArchitectureError, match="vgg11_cifar: unknown argument 'patch_size'"):
        find_architecture("vgg11_cifar", {"patch_size": 8})


def test_arguments_that_timm_refuses() -> None:
    arch = find_architecture("resnet18", {"widht": 2})
    with pytest.raises(ArchitectureError, match=r"resnet18\(widht=2\): timm cannot build it: .*widht"):
        build_model(arch, 10)


def test_arch_args_are_parsed() -> None:
    texts = ["width=0.25", "depth=6", "qkv_bias=False", "global_pool=avg", "path=a=b", "eps=1e-6"]
    assert parse_arch_args(texts) == {
        "width": 0.25, "depth": 6, "qkv_bias": False, "global_pool": "avg", "path": "a=b", "eps": 1e-6,
    }  # fmt: skip
    assert [type(value) for value in parse_arch_args(texts).values()] == [float, int, bool, str, str, float]
    assert parse_arch_args([]) == {}
    with pytest.raises(
        ArchitectureError, match=r"--arch-arg 'width': expected name=value\n.*'=3'.*\nhint: .*width=0\.25"
    ):
        parse_arch_args(["width", "=3"])


def test_layouts_compare_by_value() -> None:
    arch = find_architecture("resnet18")
    one, two = (match_layout(arch, key_layout(arch, 10), name) for name in ("a", "b"))
    assert isinstance(one, Layout)
    assert one == two
    assert one != match_layout(arch, key_layout(arch, 11), "c")
