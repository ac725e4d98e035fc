"""Which generator serves these teachers: the one asked for if it belongs to them, else the universal one if it was made for such nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from wfcli.core.architectures import Architecture, build_model, head_keys
from wfcli.core.generator import WeightFormer, fingerprint
from wfcli.core.generator_files import load_generator
from wfcli.core.methods import soup_tensor
from wfcli.core.plan import plan_layers
from wfcli.core.regime import Regime, regime
from wfcli.core.sources import list_pretrained, resolve_generator
from wfcli.engine.hooks import Hooks
from wfcli.engine.provenance import known_classes
from wfcli.engine.teachers import Teachers
from wfcli.errors import GeneratorError

DEFAULT_GENERATOR = "universal"


@dataclass(frozen=True)
class Fitted:
    """A generator that serves these teachers, or none; and how the teachers are related, where that was asked."""

    generator: WeightFormer | None = None
    name: str | None = None
    digest: str | None = None
    regime: Regime | None = None


def fit_generator(
    wanted: str | None, arch: Architecture, teachers: Teachers, checked: Sequence[Mapping[str, Tensor]], hooks: Hooks
) -> Fitted:
    """Find the generator for these teachers; none (the soup) with a warning where none fits and none was asked for."""
    views = [teachers.layout.timm_view(teacher) for teacher in checked]
    head = head_keys(arch)
    body = [name for name in views[0] if name not in head]
    relation = regime(views, body)
    name, problem = wanted or f"pretrained:{DEFAULT_GENERATOR}", None
    if wanted is None and not relation.shared_base:
        problem = f"{relation.sentence([c.name for c in teachers.checkpoints])}, and every generator here is for fine-tunes of one base"
    elif wanted is None and DEFAULT_GENERATOR not in [entry.name for entry in list_pretrained()]:
        problem = f"there is no {name} in this installation"
    else:
        source = resolve_generator(name)
        generator, digest = load_generator(source.path, source.name)
        problem = _misfit(generator, source.name, arch, teachers, views, relation)
        if problem is not None and wanted is not None:
            hooks.warn(f"generator {source.name}: {problem}")
        if problem is None or wanted is not None:
            return Fitted(generator, source.name, digest, relation)
    hooks.warn(f"no generator fits, so the student is the soup: {problem}")
    return Fitted(regime=relation)


def _misfit(
    generator: WeightFormer,
    name: str,
    arch: Architecture,
    teachers: Teachers,
    views: Sequence[Mapping[str, Tensor]],
    relation: Regime,
) -> str | None:
    """Say why a generator is out of its depth with these teachers, or None.

    Raises:
        GeneratorError: a specialised generator of another architecture, base or set of classes.
    """
    settings = generator.config
    if settings.frame is not None:
        _check_frame(generator, name, arch, teachers, views)
    if not relation.shared_base:
        return f"it was trained on fine-tunes of one base, but {relation.sentence()}: expect a poor student"
    model = build_model(arch, teachers.num_classes, device="meta")
    norms = plan_layers(model, head_keys(arch)[0].removesuffix(".weight")).norms or {"none"}
    if not set(norms) <= set(settings.norms):
        return (
            f"it was trained on nets with {' and '.join(settings.norms)} norm, "
            f"{arch.label} has {' and '.join(sorted(norms))}"
        )
    return None


def _check_frame(
    generator: WeightFormer, name: str, arch: Architecture, teachers: Teachers, views: Sequence[Mapping[str, Tensor]]
) -> None:
    frame = generator.config.frame
    assert frame is not None
    problems = []
    if teachers.num_classes != len(frame.class_names):
        problems.append(f"classes: got {teachers.num_classes}, expected {len(frame.class_names)}")
    names = known_classes(teachers.checkpoints)
    if names and names != list(frame.class_names):
        problems.append(f"class names: got {_short(names)}, expected {_short(frame.class_names)}")
    shapes = {timm_name: shape for timm_name, shape in teachers.layout.to_timm.values()}
    if any(shapes.get(anchor) != frame.shapes[anchor] for anchor in frame.anchors):
        problems.append(f"architecture: got {arch.label}, expected {frame.architecture}")
    else:
        mean = {anchor: soup_tensor(view[anchor] for view in views) for anchor in frame.anchors}
        likeness = float(cosine_similarity(fingerprint(mean, frame.anchors), generator.fingerprint.cpu()).mean())
        if likeness < 0.5:
            problems.append(
                f"base: the teachers are not fine-tunes of {frame.base or 'its base'} "
                f"(likeness of the weights: got {likeness:.2f}, expected above 0.5)"
            )
    if problems:
        raise GeneratorError(
            *(f"generator {name}: {problem}" for problem in problems),
            hint="a specialised generator serves only the base and classes it was trained for; leave --generator out for the universal one",
        )


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
