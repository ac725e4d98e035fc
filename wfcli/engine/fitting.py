"""Which generator serves these teachers: the one asked for, or else the universal one if it was made for such nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn.functional import cosine_similarity

from wfcli.core.architectures import Architecture, build_model, head_keys
from wfcli.core.generator import WeightFormer, fingerprint
from wfcli.core.generator_files import WEIGHTS, load_generator
from wfcli.core.plan import plan_layers
from wfcli.core.pretrained import list_pretrained
from wfcli.core.regime import Regime
from wfcli.core.sources import resolve_generator
from wfcli.engine.provenance import class_names
from wfcli.engine.teachers import Teachers, is_same_file
from wfcli.errors import GeneratorError, OutputError

DEFAULT_GENERATOR = "universal"
LEAST_LIKENESS = 0.5  # of every teacher to the base of a specialised generator


@dataclass(frozen=True)
class Loaded:
    """A generator in memory."""

    generator: WeightFormer
    name: str
    digest: str  # sha256 of its weights
    folder: Path
    revision: str | None = None  # its commit, of one from the Hub

    def record(self) -> dict[str, str]:
        """Return what the provenance of a student says of it."""
        pinned = {} if self.revision is None else {"revision": self.revision}
        return {"name": self.name, "sha256": self.digest, **pinned}


@dataclass(frozen=True)
class Fitted:
    """The generator for these teachers, or None for the soup; how they are related; what the user should know."""

    loaded: Loaded | None
    regime: Regime
    warning: str | None = None


def load_named(text: str) -> Loaded:
    """Load the generator that the user named.

    Raises:
        SourceError, CheckpointError, GeneratorError: it is not there, or damaged.
    """
    source = resolve_generator(text)
    generator, digest = load_generator(source.path, source.name)
    return Loaded(generator, source.name, digest, source.path, source.revision)


def check_generator_stays(output: Path, loaded: Loaded) -> None:
    """Make sure that writing `output` would not destroy the generator.

    Raises:
        OutputError: it is its weights.
    """
    if is_same_file(output, loaded.folder / WEIGHTS):
        what = f"is the weights of the generator {loaded.name}, which would be overwritten"
        raise OutputError(f"{output}: {what}", hint="choose another -o")


def fit_generator(
    asked: Loaded | None,
    arch: Architecture,
    teachers: Teachers,
    checked: Sequence[Mapping[str, Tensor]],
    relation: Regime,
) -> Fitted:
    """Find the generator for these teachers: the one `asked` for, the universal one, or none, with a warning.

    Raises:
        GeneratorError: a specialised generator of another architecture, base or set of classes.
    """
    views = [teachers.layout.timm_view(teacher) for teacher in checked]
    if asked is not None:
        problem = _misfit(asked, arch, teachers, views, relation)
        return Fitted(asked, relation, f"generator {asked.name}: {problem}" if problem else _untried(asked, arch))
    default = None
    if not relation.shared_base:
        names = [checkpoint.name for checkpoint in teachers.checkpoints]
        problem = f"{relation.sentence(names)}, and every generator here is for fine-tunes of one base"
    elif not any(entry.name == DEFAULT_GENERATOR and (entry.here or entry.hub) for entry in list_pretrained()):
        problem = f"there is no pretrained:{DEFAULT_GENERATOR} in this installation"
    else:
        default = load_named(f"pretrained:{DEFAULT_GENERATOR}")
        problem = _misfit(default, arch, teachers, views, relation)
    if default is not None and problem is None:
        return Fitted(default, relation, _untried(default, arch))
    return Fitted(None, relation, f"no generator fits, so the student is the soup: {problem}")


def _misfit(
    loaded: Loaded,
    arch: Architecture,
    teachers: Teachers,
    views: Sequence[Mapping[str, Tensor]],
    relation: Regime,
) -> str | None:
    """Say why a generator is out of its depth with these teachers, or None."""
    settings = loaded.generator.config
    if settings.frame is not None:
        _check_frame(loaded, arch, teachers, views)
    if not relation.shared_base and "independent" not in settings.relations:
        return f"it was trained on fine-tunes of one base, but {relation.sentence()}: expect a poor student"
    if relation.shared_base and "base" not in settings.relations:
        return f"it was trained on independent teachers, but {relation.sentence()}: expect a poor student"
    model = build_model(arch, teachers.num_classes, device="meta")
    norms = plan_layers(model, head_keys(arch)[0].removesuffix(".weight")).norms or {"none"}
    if not set(norms) <= set(settings.norms):
        return (
            f"it was trained on nets with {' and '.join(settings.norms)} norm, "
            f"{arch.label} has {' and '.join(sorted(norms))}"
        )
    return None


def _untried(loaded: Loaded, arch: Architecture) -> str | None:
    """Say that a generator was trained on other architectures alone; it may do well all the same."""
    settings = loaded.generator.config
    names = {label.partition("(")[0] for label in settings.trained_on}  # without arguments: width is no other net
    if settings.frame is not None or not names or arch.name in names:
        return None
    return (
        f"generator {loaded.name}: it was trained on {', '.join(settings.trained_on)}, never on {arch.name}: compare "
        "the student with the soup before you use it (wfcli eval with --teachers, or fuse --method soup)"
    )


def _check_frame(loaded: Loaded, arch: Architecture, teachers: Teachers, views: Sequence[Mapping[str, Tensor]]) -> None:
    frame = loaded.generator.config.frame
    assert frame is not None
    problems = []
    if teachers.num_classes != len(frame.class_names):
        problems.append(f"classes: got {teachers.num_classes}, expected {len(frame.class_names)}")
    for checkpoint in teachers.checkpoints:
        names = class_names(checkpoint)
        if names is not None and names != frame.class_names:
            problems.append(
                f"{checkpoint.name}: class names: got {_short(names)}, expected {_short(frame.class_names)}"
            )
    shapes = dict(teachers.layout.to_timm.values())
    if any(shapes.get(anchor) != frame.shapes[anchor] for anchor in frame.anchors):
        problems.append(f"architecture: got {arch.label}, expected {frame.architecture}")
    elif "base" in loaded.generator.config.relations:
        own = loaded.generator.fingerprint.cpu()
        for checkpoint, view in zip(teachers.checkpoints, views, strict=True):  # a mean would hide a stranger
            likeness = float(cosine_similarity(fingerprint(view, frame.anchors), own).mean())
            if likeness < LEAST_LIKENESS:
                problems.append(
                    f"{checkpoint.name}: base: not a fine-tune of {frame.base or 'its base'} "
                    f"(likeness of the weights: got {likeness:.2f}, expected above {LEAST_LIKENESS})"
                )
    if problems:
        raise GeneratorError(
            *(f"generator {loaded.name}: {problem}" for problem in problems),
            hint="a specialised generator serves only the base and classes it was trained for; "
            "leave --generator out for the universal one",
        )


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
