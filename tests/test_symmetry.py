"""What may be permuted is found from the graph: nothing more (the function stays), and all that may be."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import wfcli.core.small_models  # noqa: F401  registers the small-image variants
from wfcli.core.matching import comparable, match_activations, match_all, match_weights
from wfcli.core.plan import plan_layers
from wfcli.core.repair import lengthened, repair
from wfcli.core.spaces import Space, cut, fix, index_of, is_fixed, places, product, split_product, total, unify
from wfcli.core.symmetry import Symmetry, Watcher, compose, find_symmetry, inverse, observe

SMALL = {
    "vgg11_bn_cifar": {"width": 0.25},
    "resnet18_cifar": {"width": 0.125},
    "vit_tiny_cifar": {"width": 0.34},
}


def shaken(model: nn.Module) -> nn.Module:
    """Give every tensor values of its own: zeros and ones would hide a wrong order."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=draw)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype))
    return model.eval()


def change(model: nn.Module, x: Tensor, symmetry: Symmetry) -> float:
    """Return how far the answers move, relative to the largest, when everything free is permuted at random."""
    permutations = symmetry.random(torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(x)
        model.load_state_dict(symmetry.permuted(model.state_dict(), permutations))
        return float((model(x) - before).abs().max() / before.abs().max())


def free_share(model: nn.Module, symmetry: Symmetry) -> float:
    """Return the share of the parameters in a tensor with a free axis."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    free = sum(size for name, size in sizes.items() if not all(is_fixed(axis) for axis in symmetry.axes.get(name, [])))
    return free / sum(sizes.values())


# Whole architectures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "size", "spaces", "share"),
    [
        ("vgg11_bn_cifar", {"width": 0.25}, 32, 8, 0.99),
        ("resnet18_cifar", {"width": 0.125}, 32, 12, 0.99),
        ("vit_tiny_cifar", {"width": 0.34}, 32, 19, 0.99),
        ("mobilenetv3_small_050", {}, 64, 26, 0.99),  # depthwise, squeeze and excitation
        ("regnety_002", {}, 64, 57, 0.99),  # groups
        ("densenet121", {}, 64, 120, 0.99),  # concatenation
        ("convnextv2_atto", {}, 64, 16, 0.99),  # global response normalisation
        ("mixer_s32_224", {}, 224, 17, 0.9),  # tokens are mixed
        ("efficientvit_b0", {}, 64, 17, 0.97),
        ("res2net50_14w_8s", {}, 64, 173, 0.99),
        ("ghostnet_050", {}, 64, 31, 0.99),
        ("poolformer_s12", {}, 64, 16, 0.99),
    ],
)
def test_random_permutations_do_not_change_the_function(
    name: str, args: dict[str, Any], size: int, spaces: int, share: float
) -> None:
    model = shaken(timm.create_model(name, num_classes=7, **args).double())
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    symmetry = find_symmetry(model, x)
    assert change(model, x, symmetry) < 1e-8
    assert len(symmetry.spaces()) >= spaces
    assert free_share(model, symmetry) >= share
    assert symmetry.unknown == []


def test_heads_move_as_units_with_channels_of_their_own() -> None:
    model = timm.create_model("vit_tiny_cifar", num_classes=7, width=0.67)
    symmetry = find_symmetry(model, torch.randn(2, 3, 32, 32))
    inner = [space for space in symmetry.spaces() if space.within is not None]
    heads = {space.within.find() for space in inner if space.within is not None}
    blocks, attention = len(model.blocks), model.blocks[0].attn
    assert len(heads) == blocks
    assert {space.size for space in heads} == {attention.num_heads}
    assert len(inner) == 2 * blocks  # of query with key, and of value with the projection
    queries, keys, values = symmetry.axes["blocks.0.attn.qkv.weight"][0].find().parts
    assert list(queries.leaves()) == list(keys.leaves())
    (head, channel), (same, own) = queries.leaves(), values.leaves()
    assert head is same
    assert channel is not own
    assert list(symmetry.axes["blocks.0.attn.proj.weight"][1].leaves()) == list(values.leaves())


def test_the_residual_stream_is_one_space() -> None:
    symmetry = find_symmetry(timm.create_model("vit_tiny_cifar", num_classes=7, width=0.34), torch.randn(2, 3, 32, 32))
    (stream,) = symmetry.axes["pos_embed"][2].leaves()
    assert is_fixed(symmetry.axes["pos_embed"][1])
    for name, axis in (("blocks.0.norm1.weight", 0), ("blocks.1.attn.proj.weight", 0), ("head.weight", 1)):
        assert list(symmetry.axes[name][axis].leaves()) == [stream]
    assert is_fixed(symmetry.axes["head.weight"][0])  # classes have names


# What is not understood is fixed --------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two linear layers with something in between."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.between, self.first, self.last = between, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("between", "free"),
    [
        (functional.relu, True),
        (lambda x: x + x.mean(-1, keepdim=True), True),
        (lambda x: functional.layer_norm(x, (8,)), True),
        (lambda x: x.flip(-1) + x, False),
        (lambda x: x.roll(1, -1) + x, False),
        (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1) + x, True),  # both halves alike
        (lambda x: x * torch.arange(8.0), False),
        (lambda x: x.cumsum(-1), False),
        (lambda x: torch.special.entr(x.sigmoid()), False),  # pointwise, but nothing here knows it
    ],
)
def test_an_axis_is_free_only_where_its_order_does_not_matter(between: Any, free: bool) -> None:
    model = shaken(Net(between).double())
    x = torch.randn(4, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert (len(symmetry.spaces()) > 0) == free
    assert change(model, x, symmetry) < 1e-12


def parted(x: Tensor) -> Tensor:
    """Return 4 entries of 2 each: [B, 4, 2]."""
    return x.reshape(len(x), 4, 2)


def mixing(x: Tensor) -> Tensor:
    """Return a matrix that mixes those 4 entries, and follows their order: [B, 4, 4]."""
    mean = parted(x).mean(-1)
    return (mean[:, :, None] * mean[:, None]).softmax(-1)


def attended(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, **more)


def turned(x: Tensor) -> Tensor:
    return x.transpose(-2, -1)


class Between(Net):
    """Two linear layers with something in between, of whatever shape."""

    def __init__(self, between: Any, width: int, out: int) -> None:
        super().__init__(between)
        self.first, self.last = nn.Linear(6, width), nn.Linear(out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("between", "out"),
    [
        (lambda x: parted(x) @ turned(parted(x)), 16),
        (lambda x: turned(turned(parted(x)) @ mixing(x)), 8),
        (lambda x: turned((turned(parted(x))[:, :, None] @ mixing(x)[:1])[:, :, 0]), 8),
        (lambda x: torch.baddbmm(mixing(x), parted(x), turned(parted(x))), 16),
        (lambda x: functional.linear(parted(x), parted(x)[0]), 16),
        (lambda x: functional.conv1d(parted(x)[0][..., None], parted(x)[1][..., None])[None].expand(4, 4, 4, 1), 16),
        (lambda x: torch.einsum("bhd,bgd->bhg", parted(x), parted(x)), 16),
        (lambda x: torch.einsum("bhd,bgd->bhd", parted(x), parted(x)), 8),
        (lambda x: torch.einsum("bhd,bg->bgd", parted(x), parted(x).mean(-1)), 8),
        (lambda x: attended(parted(x), parted(x), parted(x)), 8),
        (lambda x: turned(attended(*[turned(parted(x))[..., None]] * 3)[..., 0]), 8),
        (lambda x: parted(x).softmax(1) * parted(x).mean(-1, keepdim=True), 8),
        (lambda x: turned(functional.layer_norm(turned(parted(x)), (4,))), 8),
        (lambda x: turned(functional.group_norm(turned(parted(x)), 2)), 8),
        (lambda x: turned(functional.batch_norm(turned(parted(x)), None, None, training=True)), 8),
    ],
)
def test_what_meets_has_one_order(between: Any, out: int) -> None:
    """What is inside of each of 4 entries meets what is inside of the others: no order of its own in each."""
    model = shaken(Between(between, 8, out).double())
    x = torch.randn(4, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert sorted(space.size for space in symmetry.spaces()) == [2, 4]
    assert all(space.within is None for space in symmetry.spaces())
    assert change(model, x, symmetry) < 1e-8


def test_what_does_not_meet_has_an_order_of_its_own() -> None:
    model = shaken(Between(lambda x: torch.einsum("bhd,bhd->bh", parted(x), parted(x).relu()), 8, 4).double())
    x = torch.randn(4, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert [space.size for space in symmetry.spaces() if space.within is not None] == [2]
    assert change(model, x, symmetry) < 1e-8


def test_an_order_within_an_order_has_none_within() -> None:
    """Two levels: three would be right, but are not what permutations [H, n] can tell."""

    def between(x: Tensor) -> Tensor:
        y = x.reshape(len(x), 2, 3, 4)
        return y * y.mean(-1, keepdim=True) * y.mean((-1, -2), keepdim=True)

    model = shaken(Between(between, 24, 24).double())
    x = torch.randn(4, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert {space.size: space.within and space.within.find().size for space in symmetry.spaces()} == {
        2: None,
        3: 2,
        4: None,
    }
    permutations = symmetry.random(torch.Generator().manual_seed(0))
    state = model.state_dict()
    back = symmetry.permuted(symmetry.permuted(state, permutations), inverse(permutations))
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert change(model, x, symmetry) < 1e-8


def test_heads_that_share_keys_and_values_stay() -> None:
    """Queries of 4 heads, keys and values of 2: channels may move, all heads' alike."""

    def between(x: Tensor) -> Tensor:
        q, k, v = (part.reshape(4, 5, -1, 4).transpose(1, 2) for part in x.split([16, 8, 8], -1))
        return attended(q, k, v, enable_gqa=True)

    model = shaken(Between(between, 32, 80).double())
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert [(space.size, space.within) for space in symmetry.spaces()] == [(4, None), (4, None)]
    assert change(model, x, symmetry) < 1e-8


def test_tokens_that_see_those_before_them_stay() -> None:
    model = shaken(Between(lambda x: attended(*[x[..., None]] * 3, is_causal=True), 8, 8).double())
    x = torch.randn(4, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert symmetry.spaces() == []
    assert change(model, x, symmetry) < 1e-8


@pytest.mark.parametrize(
    ("between", "out"),
    [
        (lambda x: functional.avg_pool2d(parted(x), (2, 1), (2, 1)), 4),
        (lambda x: functional.adaptive_avg_pool1d(x, 4), 4),
        (lambda x: functional.conv2d(parted(x), torch.ones(3, 4, 1, 2, dtype=x.dtype)).transpose(0, 1), 3),
    ],
)
def test_an_image_without_an_axis_of_images(between: Any, out: int) -> None:
    model = shaken(Between(between, 8, out).double())
    x = torch.randn(4, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert symmetry.unknown == []
    assert symmetry.spaces() == []  # the units are places, or images
    assert change(model, x, symmetry) < 1e-8


@pytest.mark.parametrize(
    ("between", "sizes"),
    [
        (lambda x: torch.cat([x[:, -100:4], x[:, 4:]], 1), [4, 4]),
        (lambda x: torch.cat([x[:, 100:], x], 1), [8]),
        (lambda x: torch.cat([x[:, -5:100], x[:, :3]], 1), [3, 5]),
    ],
)
def test_a_slice_may_start_and_stop_outside(between: Any, sizes: list[int]) -> None:
    model = shaken(Net(between).double())
    x = torch.randn(4, 6, dtype=torch.float64)
    symmetry = find_symmetry(model, x)
    assert sorted(space.size for space in symmetry.spaces()) == sizes
    assert change(model, x, symmetry) < 1e-8


def test_an_unknown_operation_is_named() -> None:
    symmetry = find_symmetry(Net(lambda x: torch.special.entr(x.sigmoid())), torch.randn(2, 6))
    assert symmetry.unknown == ["special_entr"]


def test_tied_weights_have_the_same_axes() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[4].weight = model[2].weight
    x = torch.randn(2, 6, dtype=torch.float64)
    symmetry = find_symmetry(shaken(model.double()), x)
    (hidden,) = symmetry.spaces()  # in, between and out of the two: one
    for name in ("2.weight", "4.weight"):
        assert [list(axis.leaves()) for axis in symmetry.axes[name]] == [[hidden], [hidden]]
    assert change(model, x, symmetry) < 1e-8


# Spaces ---------------------------------------------------------------------------------------------------------------


def test_a_split_space_permutes_groups_and_what_is_inside() -> None:
    whole = Space(6)
    halves = split_product(whole, 2)
    assert halves is not None
    order = index_of(whole, {halves[0]: torch.tensor([1, 0]), halves[1]: torch.tensor([2, 0, 1])})
    assert order.tolist() == [5, 3, 4, 2, 0, 1]


def test_a_cut_space_permutes_each_piece() -> None:
    whole = Space(5)
    first, second = cut(whole, [2, 3])
    order = index_of(whole, {first: torch.tensor([1, 0]), second: torch.tensor([1, 2, 0])})
    assert order.tolist() == [1, 0, 3, 4, 2]


def test_a_space_within_another_has_an_order_for_each_of_its_entries() -> None:
    heads, channels = Space(2), Space(3)
    channels.within = heads
    whole = product([heads, channels])
    own = torch.tensor([[2, 0, 1], [0, 2, 1]])  # of head 0, of head 1
    assert index_of(whole, {heads: torch.tensor([1, 0]), channels: own}).tolist() == [3, 5, 4, 2, 0, 1]
    found = dict(places(whole))
    assert found[heads][0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found[channels].tolist() == [[[0], [1], [2]], [[3], [4], [5]]]


def test_made_one_with_something_finer_a_space_is_split_alike() -> None:
    coarse, fine = Space(12), product([Space(3), Space(4)])
    unify(coarse, fine)
    assert list(coarse.leaves()) == list(fine.leaves())
    joined = total([Space(5), Space(7)])
    unify(joined, coarse)  # 3 x 4 and 5 + 7 have nothing in common
    assert is_fixed(coarse)
    assert is_fixed(joined)


def test_fixing_one_fixes_all_that_are_one_with_it() -> None:
    a, b = Space(4), Space(4)
    unify(a, b)
    fix(a)
    assert is_fixed(b)
    assert index_of(b, {}).tolist() == [0, 1, 2, 3]


# Matching -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_weight_matching_finds_a_permutation_again(name: str) -> None:
    model = timm.create_model(name, num_classes=10, **SMALL[name])
    symmetry = find_symmetry(model, torch.randn(2, 3, 32, 32))
    draw = torch.Generator().manual_seed(0)
    state = model.state_dict()
    near = {
        key: v + 0.3 * v.std() * torch.randn(v.shape, generator=draw) if v.is_floating_point() and v.std() > 0 else v
        for key, v in state.items()
    }
    shuffled = symmetry.permuted(near, symmetry.random(draw))
    found, _ = match_weights(symmetry, shuffled, state)
    again = symmetry.permuted(shuffled, found)
    assert all(torch.equal(again[key], near[key]) for key in near)


def test_many_nets_come_into_one_frame_without_chains() -> None:
    model = timm.create_model("resnet18_cifar", num_classes=10, width=0.125)
    symmetry = find_symmetry(model, torch.randn(2, 3, 32, 32))
    draw = torch.Generator().manual_seed(0)

    def near(v: Tensor) -> Tensor:
        return v + 0.5 * v.std() * torch.randn(v.shape, generator=draw) if v.dim() > 1 else v

    states = [{key: near(v) for key, v in model.state_dict().items()} for _ in range(4)]
    shuffled = [symmetry.permuted(state, symmetry.random(draw)) for state in states]
    found = match_all(symmetry, [lambda state=state: state for state in shuffled])
    again = [symmetry.permuted(state, own) for state, own in zip(shuffled, found, strict=True)]
    for key in ("conv1.weight", "layer2.1.conv2.weight", "fc.weight"):
        for i in range(4):
            for j in range(4):
                assert float((again[i][key] * again[j][key]).sum()) == pytest.approx(
                    float((states[i][key] * states[j][key]).sum()), rel=1e-4
                )


def test_more_tries_are_never_worse() -> None:
    nets = [timm.create_model("vgg11_bn_cifar", num_classes=10, width=0.125) for _ in range(2)]
    symmetry = find_symmetry(nets[0], torch.randn(2, 3, 32, 32))
    a, b = (net.state_dict() for net in nets)
    reached = [match_weights(symmetry, a, b, seed=3, tries=tries)[1] for tries in (1, 2, 4)]
    assert reached == sorted(reached)
    found, similarity = match_weights(symmetry, a, b, seed=3, tries=4)
    moved = symmetry.permuted(a, found)
    assert similarity == pytest.approx(sum(float((moved[n] * b[n]).sum()) for n in symmetry.axes), rel=1e-5)


@pytest.mark.parametrize("name", ["vgg11_bn_cifar", "resnet18_cifar", "vgg11_cifar"])
def test_what_nets_are_matched_by_moves_with_the_permutation_and_not_with_the_scale(name: str) -> None:
    model = shaken(timm.create_model(name, num_classes=10, **SMALL.get(name, {"width": 0.25})))
    symmetry = find_symmetry(model, torch.randn(2, 3, 32, 32))
    plan = plan_layers(model, "fc" if name.startswith("resnet") else "head")
    state = model.state_dict()
    by = comparable(symmetry, plan, state)
    permutations = symmetry.random(torch.Generator().manual_seed(0))
    moved = comparable(symmetry, plan, symmetry.permuted(state, permutations))
    for key, tensor in symmetry.permuted(by, permutations).items():
        torch.testing.assert_close(moved[key], tensor, rtol=1e-4, atol=1e-5)
    first, second = [spec for spec in plan.specs if spec.weight][:2]
    factor = torch.rand(first.channels) + 0.5
    scaled = dict(state)
    if first.norm_weight is None:  # the unit's own scale; behind a ReLU nothing changes
        scaled[first.weight] = state[first.weight] * factor[:, None, None, None]
        scaled[first.bias] = state[first.bias] * factor
        scaled[second.weight] = state[second.weight] / factor[None, :, None, None]
    else:  # hidden by the norm
        scaled[first.weight] = state[first.weight] * factor[:, None, None, None]
        scaled[first.running_mean] = state[first.running_mean] * factor
        scaled[first.running_var] = (state[first.running_var] + 1e-5) * factor.square() - 1e-5
        if first.bias:
            scaled[first.bias] = state[first.bias] * factor
    for key, tensor in comparable(symmetry, plan, scaled).items():
        torch.testing.assert_close(tensor, by[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_activation_matching_finds_a_permutation_again(name: str) -> None:
    model = shaken(timm.create_model(name, num_classes=10, **SMALL[name]))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=draw)
    symmetry = find_symmetry(model, images)
    state = model.state_dict()
    near = {
        key: v + 0.02 * v.std() * torch.randn(v.shape, generator=draw) if v.dim() else v for key, v in state.items()
    }
    shuffled = symmetry.permuted(near, symmetry.random(draw))
    seen = [observe(symmetry, weights, images) for weights in (shuffled, state)]
    found, fixed = match_activations(symmetry, [lambda: shuffled, lambda: state], seen)
    again = symmetry.permuted(shuffled, compose(found, inverse(fixed)))
    wrong = sum(float((again[key] != near[key]).sum()) for key in near) / sum(v.numel() for v in near.values())
    assert wrong == 0


@pytest.mark.parametrize("name", SMALL)
def test_activations_alone_find_a_permutation_again(name: str) -> None:
    torch.manual_seed(0)
    model = shaken(timm.create_model(name, num_classes=10, **SMALL[name]))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=draw)
    symmetry = find_symmetry(model, images)
    state = model.state_dict()
    shuffled = symmetry.permuted(state, symmetry.random(draw))
    seen = [observe(symmetry, weights, images) for weights in (state, shuffled)]
    fixed, found = match_activations(symmetry, [dict, dict], seen)  # no weights to match by
    again = observe(symmetry, symmetry.permuted(shuffled, compose(found, inverse(fixed))), images)
    for key, value in seen[0].items():  # the weights themselves not where units are dead: those look alike
        torch.testing.assert_close(again[key], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_net_of_less_precision_is_observed_in_that_of_the_images(dtype: torch.dtype) -> None:
    model = timm.create_model("vgg11_bn_cifar", num_classes=10, width=0.125)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    symmetry = find_symmetry(model, images)
    low = {key: v.to(dtype) if v.is_floating_point() else v for key, v in model.state_dict().items()}
    high = {key: v.float() if v.is_floating_point() else v for key, v in low.items()}
    seen, wanted = observe(symmetry, low, images), observe(symmetry, high, images)
    assert all(torch.equal(seen[name], wanted[name]) for name in wanted)


def test_of_what_is_observed_some_places_are_kept() -> None:
    model = timm.create_model("vgg11_bn_cifar", num_classes=10, width=0.125)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    symmetry = find_symmetry(model, images)
    assert symmetry.program is not None
    args = [model.state_dict().get(str(spec.target), images) for spec in symmetry.program.graph_signature.input_specs]
    few, all_of_it = (Watcher(symmetry.program.graph_module, symmetry.watched, places) for places in (20, 10**6))
    with torch.no_grad():
        few.run(*args)
        all_of_it.run(*args)
    assert list(few.seen) == list(symmetry.watched)
    for name, value in few.seen.items():
        assert value.untyped_storage().nbytes() <= value.shape[0] * 20 * 4
        assert torch.equal(value, all_of_it.seen[name][:, :20])


def test_what_is_observed_moves_with_the_permutation() -> None:
    model = shaken(timm.create_model("vit_tiny_cifar", num_classes=10, width=0.67))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 32, 32, generator=draw)
    symmetry = find_symmetry(model, images)
    permutations = symmetry.random(draw)
    before = observe(symmetry, model.state_dict(), images)
    after = observe(symmetry, symmetry.permuted(model.state_dict(), permutations), images)
    moved = symmetry.of_activations().permuted(before, permutations)
    for name, value in after.items():
        torch.testing.assert_close(value, moved[name], atol=1e-4, rtol=1e-4)


def test_permutations_one_after_the_other() -> None:
    model = timm.create_model("vit_tiny_cifar", num_classes=10, width=0.67)
    symmetry = find_symmetry(model, torch.randn(2, 3, 32, 32))
    draw = torch.Generator().manual_seed(0)
    first, second = symmetry.random(draw), symmetry.random(draw)
    state = model.state_dict()
    twice = symmetry.permuted(symmetry.permuted(state, first), second)
    at_once = symmetry.permuted(state, compose(first, second))
    assert all(torch.equal(twice[key], at_once[key]) for key in state)
    undone = symmetry.permuted(symmetry.permuted(state, first), inverse(first))
    assert all(torch.equal(undone[key], state[key]) for key in state)


# Repair ---------------------------------------------------------------------------------------------------------------


def spread_of(model: nn.Module, state: dict[str, Tensor], layer: str, images: Tensor) -> Tensor:
    """Return the standard deviation of a layer's outputs, per channel."""
    model.load_state_dict(state)
    seen: list[Tensor] = []
    handle = (
        model.eval()
        .get_submodule(layer)
        .register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    )
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0].transpose(0, 1).flatten(1).std(1)


def test_repair_gives_the_spreads_of_the_teachers_back() -> None:
    models = [shaken(timm.create_model("vgg11_cifar", num_classes=10, width=0.25)) for _ in range(3)]
    states = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    average = {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}
    mended = repair(models[0], "head", average, states, images)
    last = [name for name, module in models[0].named_modules() if isinstance(module, nn.Conv2d)][-1]
    wanted = torch.stack([spread_of(models[0], state, last, images) for state in states]).mean(0)
    before, after = (spread_of(models[0], dict(state), last, images) for state in (average, mended))
    assert float((before / wanted).mean()) < 0.5
    torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg11_cifar", "vgg11_bn_cifar"])
def test_without_images_rows_get_their_length_back_or_norms_learn_that_they_are_shorter(name: str) -> None:
    model = timm.create_model(name, num_classes=10, width=0.25)
    plan = plan_layers(model, "head")
    draw = torch.Generator().manual_seed(0)
    states = [
        {key: torch.randn(v.shape, generator=draw) if v.dim() > 1 else v for key, v in model.state_dict().items()}
        for _ in range(4)
    ]
    average = {
        key: torch.stack([s[key] for s in states]).mean(0) if v.is_floating_point() else v
        for key, v in states[0].items()
    }
    mended = lengthened(plan, average, states)
    spec = plan.specs[3]
    if spec.running_var is None:
        length = mended[spec.weight].flatten(1).norm(dim=1)
        wanted = torch.stack([s[spec.weight].flatten(1).square().sum(1) for s in states]).mean(0).sqrt()
        torch.testing.assert_close(length, wanted)
    else:  # four rows at right angles: their mean has half the length
        assert float((mended[spec.running_var] / average[spec.running_var]).mean()) == pytest.approx(0.25, abs=0.02)
        assert torch.equal(mended[spec.weight], average[spec.weight])
    assert torch.equal(mended["head.weight"], average["head.weight"])
    same = lengthened(plan, states[0], [states[0]] * 3)
    for key, value in same.items():
        torch.testing.assert_close(value, states[0][key])
