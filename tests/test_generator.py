"""The generator: its floor is the soup, its symmetries hold, its files come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wfcli.core.generator import CrossState, WeightFormer, _mix, fingerprint
from wfcli.core.generator_config import Frame, WeightFormerConfig, config_from_dict
from wfcli.core.generator_files import load_generator, save_generator
from wfcli.core.methods import soup
from wfcli.core.pieces import PIECE
from wfcli.core.plan import LayerPlan, plan_layers
from wfcli.core.tokens import to_tokens
from wfcli.errors import GeneratorError


class Small(nn.Module):
    """Two convolutions with batch norm, a layer norm, a head; and a tensor without channel structure."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, 4, 4))
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3)
        self.bn2 = nn.BatchNorm2d(6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, classes)


def fine_tunes(count: int, spread: float = 0.1, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return `count` state dicts around one base; the batch norms' buffers and counters differ too."""
    torch.manual_seed(seed)
    base = Small()
    base.bn1.running_var.uniform_(0.5, 2)
    states = []
    for number in range(count):
        state = {
            n: t + spread * torch.randn_like(t) if t.is_floating_point() else t + number
            for n, t in base.state_dict().items()
        }
        states.append({n: t.abs() + 0.1 if n.endswith("running_var") else t for n, t in state.items()})
    return states


@pytest.fixture
def plan() -> LayerPlan:
    with torch.device("meta"):
        return plan_layers(Small(), "head")


def trained(preset: str = "universal", seed: int = 1, **options: object) -> WeightFormer:
    """Return a generator with every parameter off zero, as training would leave it."""
    torch.manual_seed(seed)
    generator = WeightFormer(WeightFormerConfig(preset=preset, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in (generator.logits, generator.scales, generator.centres):
            layer.weight.normal_(0, 0.5)
            layer.bias.normal_(0, 0.5)
        for parameter in [*generator.decode_rows.parameters(), *generator.prior.parameters()]:
            parameter.normal_(0, 0.1)
    return generator.eval()


def run(generator: WeightFormer, plan: LayerPlan, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(generator.generate(plan, states))


# Settings that keep to mixing: what holds for one holds for all.
MIXING = pytest.mark.parametrize(
    "options",
    [{}, {"attention": "full"}, {"attention": "full", "mask": True}, {"flow": False}],
    ids=["cross", "full", "masked", "no flow"],
)
PAPER = {"preset": "weightformer", "raw_widths": (27, 72, 6), "attention": "full", "mask": True}


@pytest.mark.parametrize("options", [{}, {"flow": False}, PAPER], ids=["universal", "no flow", "weightformer"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_an_untrained_generator_gives_the_soup(plan: LayerPlan, count: int, options: dict[str, object]) -> None:
    states = fine_tunes(count)
    student = run(WeightFormer(WeightFormerConfig(**options)).eval(), plan, states)  # type: ignore[arg-type]
    expected = soup(states)
    assert student.keys() == expected.keys()
    for name, tensor in student.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        assert tensor.dtype == expected[name].dtype


@pytest.mark.parametrize("flow", [True, False])
def test_it_tells_what_weight_the_teachers_got(plan: LayerPlan, flow: bool) -> None:
    states = fine_tunes(3)

    def state_of(generator: WeightFormer, of: list[dict[str, Tensor]]) -> CrossState:
        state = generator.start(3)
        with torch.no_grad():
            list(generator.generate(plan, of, state=state))
        return state

    def weights(generator: WeightFormer, of: list[dict[str, Tensor]]) -> list[float]:
        return state_of(generator, of).weights()

    assert weights(WeightFormer(WeightFormerConfig()).eval(), states) == pytest.approx([1 / 3] * 3)
    found = weights(trained(flow=flow), states)
    assert sum(found) == pytest.approx(1)
    assert max(found) - min(found) > 0.01
    assert weights(trained(flow=flow), states[::-1]) == pytest.approx(found[::-1], abs=1e-5)
    layers = state_of(trained(flow=flow), states).layers()
    assert list(layers) == [spec.name for spec in plan.specs]
    assert all(sum(shares) == pytest.approx(1) for shares in layers.values())
    assert len({tuple(shares) for shares in layers.values()}) > 1
    channels = [to_tokens(spec, states).affines.shape[2] for spec in plan.specs]
    total = [sum(n * shares[t] for n, shares in zip(channels, layers.values(), strict=True)) for t in range(3)]
    assert [part / sum(channels) for part in total] == pytest.approx(found, abs=1e-5)


def test_a_trained_generator_does_not_give_the_soup(plan: LayerPlan) -> None:
    states = fine_tunes(3)
    student, expected = run(trained(), plan, states), soup(states)
    moved = [name for name in student if not torch.allclose(student[name].float(), expected[name].float(), atol=1e-3)]
    assert {"conv1.weight", "bn1.weight", "bn1.running_var", "head.weight", "head.bias"} <= set(moved)


@pytest.mark.parametrize("options", [{}, {"flow": False}, PAPER], ids=["universal", "no flow", "weightformer"])
@pytest.mark.parametrize("count", [2, 5])
def test_the_order_of_the_teachers_does_not_matter(plan: LayerPlan, count: int, options: dict[str, object]) -> None:
    states = fine_tunes(count)
    generator = trained(**options)  # type: ignore[arg-type]
    one, other = run(generator, plan, states), run(generator, plan, states[::-1])
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)


@MIXING
def test_copies_of_one_teacher_give_it_back(plan: LayerPlan, options: dict[str, object]) -> None:
    (state,) = fine_tunes(1)
    student = run(trained(**options), plan, [state, dict(state), dict(state)])  # type: ignore[arg-type]
    for name in state:
        torch.testing.assert_close(student[name], state[name], rtol=1e-5, atol=1e-6)


@MIXING
def test_permuting_the_channels_of_all_teachers_permutes_the_student(
    plan: LayerPlan, options: dict[str, object]
) -> None:
    states = fine_tunes(3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))

    def permuted(state: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {n: t[order] if n.startswith(("conv1.", "bn1.")) and t.dim() else t for n, t in state.items()}
        return {**moved, "conv2.weight": state["conv2.weight"][:, order]}

    generator = trained(**options)
    expected = permuted(run(generator, plan, states))
    found = run(generator, plan, [permuted(state) for state in states])
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_only_with_flow_does_a_layer_hear_of_the_one_before(plan: LayerPlan) -> None:
    states = fine_tunes(3)
    others = [{n: t * 1.5 if n == "conv1.weight" and number == 1 else t for n, t in state.items()}
              for number, state in enumerate(states)]  # fmt: skip
    for flow in (True, False):
        generator = trained(flow=flow)
        one, other = run(generator, plan, states), run(generator, plan, others)
        assert torch.equal(one["conv2.weight"], other["conv2.weight"]) != flow
        assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_a_mask_that_is_open_alike_everywhere_changes_nothing(plan: LayerPlan) -> None:
    states = fine_tunes(3)
    masked = trained(attention="full", mask=True)
    plain = WeightFormer(WeightFormerConfig(attention="full")).eval()
    plain.load_state_dict({name: t for name, t in masked.state_dict().items() if ".mask." not in name})
    moved = run(masked, plan, states)["conv1.weight"]
    with torch.no_grad():
        for block in masked.blocks:
            block.mask.weight.zero_()
            block.mask.bias.zero_()
    expected = run(plain, plan, states)["conv1.weight"]
    torch.testing.assert_close(run(masked, plan, states)["conv1.weight"], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(moved, expected, rtol=1e-5, atol=1e-6)


def test_one_factor_on_a_layer_of_all_teachers_scales_the_student(plan: LayerPlan) -> None:
    states = fine_tunes(3)
    scaled = [{**state, "head.weight": 8 * state["head.weight"]} for state in states]
    one, other = run(trained(), plan, states), run(trained(), plan, scaled)
    torch.testing.assert_close(8 * one["head.weight"], other["head.weight"], rtol=1e-4, atol=1e-4)


def test_any_number_of_classes(plan: LayerPlan) -> None:
    with torch.device("meta"):
        wide = plan_layers(Small(classes=23), "head")
    torch.manual_seed(0)
    states = [Small(classes=23).state_dict() for _ in range(2)]
    assert run(trained(), wide, states)["head.weight"].shape == (23, 6)


def test_half_precision_teachers_are_computed_in_float32(plan: LayerPlan) -> None:
    states = fine_tunes(3)
    halves = [{n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()} for state in states]
    widened = [{n: t.float() if t.is_floating_point() else t for n, t in state.items()} for state in halves]
    one, other = run(trained(), plan, halves), run(trained(), plan, widened)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_the_prior_shifts_the_student_and_keeps_variances_positive(plan: LayerPlan) -> None:
    states = fine_tunes(2)
    shapes = {"conv1.weight": (8, 3, 3, 3), "bn1.running_var": (8,), "position": (1, 3, 4, 4)}
    frame = Frame("small", ("a", "b"), shapes, ("conv1.weight",), "base")
    generator = WeightFormer(WeightFormerConfig(preset="specialised", frame=frame)).eval()
    with torch.no_grad():
        generator.prior["conv1/weight"].fill_(0.25)
        generator.prior["bn1/running_var"].fill_(-50.0)
        generator.prior["position"][0, 1] = 1.0
    student, expected = run(generator, plan, states), soup(states)
    torch.testing.assert_close(student["conv1.weight"], expected["conv1.weight"] + 0.25)
    assert (student["bn1.running_var"] > 0).all()
    moved = student["position"] - expected["position"]
    torch.testing.assert_close(moved, torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4))


def test_a_fingerprint_tells_bases_apart() -> None:
    anchors = ("conv1.weight", "conv2.weight")
    one, other, stranger = (fingerprint(s, anchors) for s in (*fine_tunes(2, 0.02), fine_tunes(1, seed=9)[0]))
    assert (one * other).sum(1).mean() > 0.8
    assert (one * stranger).sum(1).mean() < 0.5


@pytest.mark.parametrize(("columns", "spread"), [(False, 1.0), (True, 1.0), (True, 30.0)])
def test_a_layer_is_mixed_alike_at_once_and_in_pieces(columns: bool, spread: float) -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(3, 7, 6, PIECE // 60, generator=draw)
    row = spread * torch.randn(3, 7, generator=draw)
    column = spread * torch.randn(3, 6, generator=draw) if columns else None
    scale = torch.rand(7, generator=draw)
    at_once = _mix(weight, row.clone().requires_grad_(), column, scale)
    assert at_once.requires_grad
    torch.testing.assert_close(_mix(weight, row, column, scale), at_once.detach(), rtol=1e-5, atol=1e-6)


def test_a_generator_needs_two_teachers(plan: LayerPlan) -> None:
    with pytest.raises(ValueError, match="at least two teachers"):
        list(trained().generate(plan, fine_tunes(1)))


def test_files_come_back_equal_and_with_equal_bytes(tmp_path, plan: LayerPlan) -> None:
    frame = Frame("small", ("a", "b"), {"head.bias": (5,)}, ("conv1.weight",), "base")
    generator = trained("specialised", frame=frame, norms=("batch",))
    digest = save_generator(tmp_path / "g", generator, "# card\n")
    assert save_generator(tmp_path / "h", generator, "# card\n") == digest
    loaded, found = load_generator(tmp_path / "g", "g")
    assert found == digest
    assert loaded.config == generator.config
    one, other = run(generator, plan, fine_tunes(3)), run(loaded, plan, fine_tunes(3))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_hub_mixin_reads_and_writes_the_same_files(tmp_path, plan: LayerPlan) -> None:
    generator = trained("weightformer", raw_widths=(27,), norms=("batch", "layer"))
    save_generator(tmp_path / "ours", generator, "# card\n")
    loaded = WeightFormer.from_pretrained(tmp_path / "ours")
    assert loaded.config == generator.config
    loaded.save_pretrained(tmp_path / "theirs")
    again, _ = load_generator(tmp_path / "theirs", "theirs")
    one, other = run(generator, plan, fine_tunes(3)), run(again, plan, fine_tunes(3))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_newer_format_is_refused(tmp_path) -> None:
    save_generator(tmp_path, trained(), "# card\n")
    config = (tmp_path / "config.json").read_text().replace('"format": 1', '"format": 2')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(GeneratorError, match="config.json: got format 2, expected 1") as caught:
        load_generator(tmp_path, "mine")
    assert "update wfcli" in (caught.value.hint or "")


def test_weights_of_another_generator_are_refused(tmp_path) -> None:
    save_generator(tmp_path / "a", trained(), "# card\n")
    save_generator(tmp_path / "b", trained(width=16), "# card\n")
    (tmp_path / "b/model.safetensors").rename(tmp_path / "a/model.safetensors")
    with pytest.raises(GeneratorError, match=r"norm_channels.bias: got \(16,\), expected \(32,\)") as caught:
        load_generator(tmp_path / "a", "mine")
    assert "two different generators" in (caught.value.hint or "")


def test_a_folder_without_a_generator(tmp_path) -> None:
    with pytest.raises(GeneratorError, match="no readable config.json") as caught:
        load_generator(tmp_path, "mine")
    assert "train-generator" in (caught.value.hint or "")


def test_config_survives_json() -> None:
    import json
    from dataclasses import asdict

    config = WeightFormerConfig(
        raw_widths=(3, 4), frame=Frame("a", ("x",), {"w": (1, 2)}, ("w",), "b"), norms=("batch",)
    )
    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config
