"""Open the teachers of a run and make sure that they belong together: all problems at once, from headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wfcli.core.architectures import Architecture, Layout, head_keys, match_layout
from wfcli.core.checkpoint import Checkpoint, open_checkpoint
from wfcli.core.digests import digests_beside
from wfcli.core.downloads import check_downloads
from wfcli.core.paths import is_there
from wfcli.core.shards import index_of, is_shard_of
from wfcli.core.sources import SPELLINGS, Source, resolve_sources
from wfcli.core.start import load_torch
from wfcli.engine.labels import take_labels
from wfcli.engine.provenance import class_names
from wfcli.errors import ArchitectureError, CheckpointError, OutputError, Problems, WfError

UNREAD = "0" * 64  # digest of a file that was not read to its end yet


@dataclass(frozen=True)
class Teachers:
    """Checkpoints of one architecture, one layout and one number of classes, each of them once."""

    checkpoints: list[Checkpoint]
    layout: Layout  # of the tensors that all of them have
    sources: list[Source]  # of the checkpoints, in the same order

    @property
    def num_classes(self) -> int:
        """Number of classes C, read from the head."""
        return self.layout.num_classes

    def provenance(self, *, late: bool = False) -> list[dict[str, Any]]:
        """Return name, sha256 and, from the Hub, the commit of every teacher, for the student's provenance."""
        records = [source_record(*pair, late=late) for pair in zip(self.sources, self.checkpoints, strict=True)]
        count = Counter(record["name"] for record in records)
        return [
            {**record, "name": f"{record['name']} ({record['sha256'][:8]})"} if count[record["name"]] > 1 else record
            for record in records
        ]


def source_record(source: Source, checkpoint: Checkpoint, *, late: bool = False) -> dict[str, Any]:
    """Return how the provenance of a file names a checkpoint it was made from: by its base name, without folders.

    `late`: nothing is read for it, a digest that was not taken yet is `UNREAD`.
    """
    digest = checkpoint.known_digest or UNREAD if late else checkpoint.digest()
    record: dict[str, Any] = {"name": source.base_name, "sha256": digest}
    if source.revision is not None:
        record["revision"] = source.revision
    return record


def open_teachers(
    texts: Sequence[str],
    arch: Architecture,
    *,
    minimum: int = 2,
    same_classes: bool = True,
    most: float = math.inf,
) -> Teachers:
    """Resolve, open and check teachers: enough of them, each once, all of `arch`, in one layout, with the same classes.

    Reads headers and, where these fit, the files once for their digests (two names for the same bytes are one teacher);
    but if they have more than `most` bytes in all, that is left to the caller.

    Raises:
        SourceError, CheckpointError, ArchitectureError: everything that is wrong, one line a problem.
    """
    problems = Problems()
    sources = resolve_sources(texts, "teacher", problems)
    if not problems.errors and len(sources) < minimum:
        problems.errors.append(_too_few(sources, minimum))
    found: list[tuple[Source, Checkpoint]] = []
    for source in sources:
        with problems:
            found.append((source, open_checkpoint(source.path, source.name)))
    opened = [checkpoint for _, checkpoint in found]
    twice = _find_same_files(opened)
    now = not problems.errors and not twice and sum(checkpoint.size for checkpoint in opened) <= most
    with digests_beside(opened if now else ()) as wait:
        layouts, mismatches = _match_layouts(opened, arch)
        problems.errors += mismatches
        for source, checkpoint in found:
            if checkpoint.name in layouts:
                with problems:
                    take_labels(source, checkpoint, layouts[checkpoint.name].num_classes)
        problems.errors += _compare_layouts(layouts, arch, same_classes)
        problems.errors += (_compare_classes(opened) if same_classes else []) + twice
        problems.raise_all()  # without the time it takes to read the files
        load_torch()  # all that follows needs it: meanwhile the files are read
        wait()
    if now:
        check_bytes(opened)
    return Teachers(opened, _common_layout(list(layouts.values())), sources)


def check_not_overwritten(output: Path, checkpoints: Iterable[Checkpoint], *, sharded: bool = False) -> None:
    """Make sure that writing `output` would not destroy what it is made from.

    `sharded`: it may be written as shards. Those that are there, and their index, go whatever takes their place.

    Raises:
        OutputError: it is a file of one of the checkpoints.
    """
    hint, sharded = "choose another -o", sharded or is_there(index_of(output))
    for checkpoint in checkpoints:
        for file in (checkpoint.path, *checkpoint.files):
            if is_same_file(file, output) or (sharded and is_same_file(file, index_of(output))):
                what = f"is the checkpoint {checkpoint.name} itself, which would be overwritten"
                raise OutputError(f"{output}: {what}", hint=hint)
            if sharded and is_shard_of(output, file.name) and is_same_file(file.parent, output.parent):
                what = f"its shards would take the place of {file.name}, of the checkpoint {checkpoint.name}"
                raise OutputError(f"{output}: {what}", hint=hint)


def is_same_file(one: Path, other: Path) -> bool:
    """Tell whether two names, links too, lead to one file that is there."""
    return is_there(one) and is_there(other) and one.samefile(other)


def _too_few(sources: Sequence[Source], minimum: int) -> CheckpointError:
    got = f"only {len(sources)}: {', '.join(source.name for source in sources)}" if sources else "none"
    return CheckpointError(
        f"expected at least {minimum} teacher{'s' if minimum > 1 else ''}, got {got}",
        hint=f"name more, each {SPELLINGS}",
    )


def _find_same_files(checkpoints: Sequence[Checkpoint]) -> list[WfError]:
    seen: set[Path] = set()
    problems = []
    for checkpoint in checkpoints:
        path = checkpoint.path.resolve()
        if path in seen:
            problems.append(f"{checkpoint.name}: the same file twice")
        seen.add(path)
    return [CheckpointError(*problems, hint="give every teacher once")] if problems else []


def check_bytes(checkpoints: Sequence[Checkpoint], base: Checkpoint | None = None) -> None:
    """Refuse the same bytes under another name. The digests stand in the provenance too: no time is lost.

    Raises:
        CheckpointError: two names for one teacher; a base that is one of them; a download that is damaged.
    """
    first: dict[str, Checkpoint] = {}
    problems = []
    check_downloads([*checkpoints, *([base] if base else [])])
    for checkpoint in checkpoints:
        digest = checkpoint.digest()
        other = first.setdefault(digest, checkpoint)
        if other is not checkpoint:
            problems.append(f"{checkpoint.name}: the same bytes as {other.name} (sha256 {digest[:12]}...)")
    if problems:
        raise CheckpointError(*problems, hint="give every teacher once")
    if base is not None and base.digest() in first:
        raise CheckpointError(
            f"--base {base.name}: it is the teacher {first[base.digest()].name} itself",
            hint="give the checkpoint that all of them were fine-tuned from, or leave this teacher out",
        )


def _match_layouts(checkpoints: Sequence[Checkpoint], arch: Architecture) -> tuple[dict[str, Layout], list[WfError]]:
    """Return the layouts of the checkpoints that fit the architecture, by name, and the errors of the rest.

    Checkpoints with the very same wrong tensors are told about once.
    """
    layouts: dict[str, Layout] = {}
    errors: list[WfError] = []
    told: dict[frozenset[tuple[str, tuple[int, ...]]], tuple[str, str | None]] = {}
    for checkpoint in checkpoints:
        shapes = frozenset((key, spec.shape) for key, spec in checkpoint.specs.items())
        if shapes in told:
            first, hint = told[shapes]
            errors.append(ArchitectureError(f"{checkpoint.name}: the same tensors as {first}", hint=hint))
            continue
        try:
            layouts[checkpoint.name] = match_layout(arch, checkpoint.specs, checkpoint.name)
        except ArchitectureError as error:
            told[shapes] = checkpoint.name, error.hint
            errors.append(error)
    return layouts, errors


def _compare_layouts(layouts: dict[str, Layout], arch: Architecture, same_classes: bool) -> list[WfError]:
    """Compare number of classes and naming of the tensors with what most of the teachers have."""
    if len(layouts) < 2:
        return []
    errors: list[WfError] = []
    classes = Counter(layout.num_classes for layout in layouts.values()).most_common(1)[0][0]
    naming = Counter(_naming(layout) for layout in layouts.values()).most_common(1)[0][0]
    usual = [
        name
        for name, layout in layouts.items()
        if _naming(layout) == naming and (not same_classes or layout.num_classes == classes)
    ]
    model = (usual or list(layouts))[0]
    for name, layout in layouts.items():
        if same_classes and layout.num_classes != classes:
            head, _ = layout.to_file[head_keys(arch)[0]]
            errors.append(
                CheckpointError(
                    f"{name}: {head}: got {layout.num_classes} classes, expected {classes} as in {model}",
                    hint="teachers share their classes: leave out those of other classes,"
                    " or join their heads with fuse --heads",
                )
            )
        if _naming(layout) != naming:
            errors.append(
                CheckpointError(
                    f"{name}: got tensors named as in {layout.name}, expected {layouts[model].name} as in {model}",
                    hint="teachers share one layout: load and save the others with the same library and version",
                )
            )
    return errors


def _compare_classes(checkpoints: Sequence[Checkpoint]) -> list[WfError]:
    """Compare the class names with those of most of the teachers, where their provenance says which they know."""
    known = {checkpoint.name: names for checkpoint in checkpoints if (names := class_names(checkpoint))}
    if len(set(known.values())) < 2:
        return []
    usual = Counter(known.values()).most_common(1)[0][0]
    model = next(name for name, names in known.items() if names == usual)
    problems = []
    for name, names in known.items():
        other = [number for number, (got, want) in enumerate(zip(names, usual, strict=False)) if got != want]
        if len(names) == len(usual) and other:  # another number shows in the head
            more = f", and {len(other) - 1} more differ" if len(other) > 1 else ""
            first = f"class {other[0]}: got {names[other[0]]}, expected {usual[other[0]]} as in {model}"
            problems.append(f"{name}: {first}{more}")
    hint = "one output stands for one class: leave out teachers of other classes, or of another order of them"
    if any(checkpoint.labels for checkpoint in checkpoints):
        hint += "; where config.json on the Hub only spells them otherwise, fuse what wfcli pull -o DIR writes"
    return [CheckpointError(*problems, hint=hint)] if problems else []


def _naming(layout: Layout) -> frozenset[str]:
    return frozenset(key for key in layout.files if not key.endswith("num_batches_tracked"))


def _common_layout(layouts: Sequence[Layout]) -> Layout:
    """Return the layout of the tensors that all teachers have: only counters of batch norms may be missing in some."""
    first = layouts[0]
    files = {key: shape for key, shape in first.files.items() if all(key in layout.files for layout in layouts)}
    return replace(first, files=files, to_timm={key: first.to_timm[key] for key in files})
