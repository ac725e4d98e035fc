"""What the cards of students and zoos say: the metadata that the Hub reads, and the text for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wfcli.core.architectures import Layout, input_config
from wfcli.core.bounded import read_json
from wfcli.core.checkpoint import Checkpoint
from wfcli.core.forms import ANYTHING, misfit
from wfcli.core.hub_cards import TASK, Measured
from wfcli.core.paths import is_there
from wfcli.core.zoo import FILE, Zoo
from wfcli.engine.again import SEVERAL, finetune_command, train_teachers_command
from wfcli.engine.recipe import as_toml
from wfcli.errors import WfError

HUB_NAME = re.compile(r"(?:hf:)?([\w-][\w.-]*/[\w.-]+)")
GENERATOR = {"library_name": "wfcli", "tags": ["wfcli", "model-merging", "weightformer"]}
METRICS = (("accuracy", "top-1", "top1"), ("nll", "negative log-likelihood", "nll"), ("ece", "ECE", "ece"))
AGAIN = ("## Make it again", "")
SMALL = "_cifar"  # wfcli's own nets end so
FINETUNED = {"architecture": ANYTHING, "data": ANYTHING, "sources": ANYTHING, "recipe": {"steps": float, "*": ANYTHING}}
FIGURE = (float, None)  # null: not finite
COMPARISON = {
    "data": str,
    "split": str,
    "rows": [{"kind": str, "name": str, **dict.fromkeys(("top1", "nll", "ece"), FIGURE)}],
}


def student_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metadata of a student: library, tags, the models and datasets of the Hub that it is made from."""
    made = checkpoint.provenance or {}
    origins = [*_sources(made), *([made["base"]] if "base" in made else [])]
    bases = sorted({_repository(source) for source in origins if "revision" in source})
    verb = made.get("verb")
    relation = "merge" if verb == "fuse" else "finetune"
    method = str(made.get("method") or verb)
    merged = ["model-merging"] if verb == "fuse" else []
    return {
        "library_name": "timm",
        "pipeline_tag": TASK,
        "tags": ["wfcli", *merged, method],
        "base_model": bases,
        "base_model_relation": relation if bases else None,
        "datasets": _datasets(made),
    }


def student_text(repo: str, checkpoint: Checkpoint, layout: Layout, measured: Measured | None) -> str:
    """Write the text of a student's card: what it is, how to load it, what it is made from and how to make it again."""
    made = checkpoint.provenance or {}
    wants = input_config(layout.arch)
    small = [f"import wfcli.core.small_models  # registers {layout.arch.timm_name} with timm"]
    classes = made.get("classes") or []
    lines = [
        f"# {repo.partition('/')[2]}",
        "",
        f"A {layout.arch.label} of {layout.num_classes} classes, made by `wfcli {made.get('verb')}`{_how(made)}.",
        "",
        "```python",
        "import timm",
        *(small if layout.arch.timm_name.endswith(SMALL) else []),
        "",
        f'model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()',
        "```",
        "",
        *([_own_net(layout), ""] if layout.arch.timm_name.endswith(SMALL) else []),
        f"Images: {wants.size} x {wants.size} pixels, mean {wants.mean}, std {wants.std}.",
        *([f"Classes: {', '.join(map(str, classes))}."] if 0 < len(classes) <= 20 else []),
        "",
        *_results(measured),
        "## Made from",
        "",
        *(_source_line(source) for source in _sources(made)),
        *([_source_line(made["base"]) + ", the base"] if "base" in made else []),
        *(_source_line(source) + ", a teacher" for source in made.get("teachers") or []),
        "",
        *_again(made, checkpoint.path.name.removesuffix(".index.json")),
    ]
    return "\n".join(lines) + "\n"


def read_metrics(file: Path, checkpoint: Checkpoint) -> Measured:
    """Read what a student reached from the JSON that `wfcli eval` or `wfcli fuse` has printed.

    Raises:
        WfError: it is no such JSON, or is about other students.
    """
    hint = "give the output of: wfcli eval STUDENT --data D --json"
    try:
        found = read_json(file)
    except OSError as error:
        raise WfError(f"{file}: cannot be read ({error.strerror})", hint=hint) from error
    except ValueError as error:
        raise WfError(f"{file}: is not the JSON of wfcli eval or wfcli fuse ({error})", hint=hint) from error
    digest, table = (found.get("digest"), found.get("comparison", found)) if isinstance(found, dict) else (None, found)
    if table is None:
        raise WfError(f"{file}: compares nothing: that fuse had no --data", hint=hint)
    if problem := misfit(table, COMPARISON):
        raise WfError(f"{file}: is not the JSON of wfcli eval or wfcli fuse: {problem}", hint=hint)
    rows = [row for row in table["rows"] if row["kind"] == "checkpoint"]
    named = [row for row in rows if row["name"].rpartition("/")[2] == checkpoint.path.name]
    data, split = table["data"], table["split"]
    if digest is not None and digest != checkpoint.digest():
        got = f"sha256 {str(digest)[:12]}, {checkpoint.name} has {checkpoint.digest()[:12]}"
        raise WfError(f"{file}: is about another student: {got}", hint=hint)
    if len(named) != 1:
        names = ", ".join(str(row["name"]) for row in rows) or "none"
        raise WfError(f"{file}: expected one row of {checkpoint.path.name}, got {len(named)} of: {names}", hint=hint)
    told = tuple((kind, title, float(named[0][key])) for kind, title, key in METRICS if named[0][key] is not None)
    return Measured(dataset_name(data.partition(" (classes ")[0]), split, told)


def zoo_metadata(zoo: Zoo) -> dict[str, Any]:
    """Return the metadata of a zoo: library, tags, the base and the dataset where they are of the Hub."""
    base = zoo.base if zoo.base and "revision" in zoo.base else None
    return {
        "library_name": "wfcli",
        "tags": ["wfcli", "model-merging", "zoo"],
        "base_model": None if base is None else [_repository(base)],
        "base_model_relation": None if base is None else "finetune",
        "datasets": hub_datasets([zoo.data.source]),
    }


def zoo_text(repo: str, zoo: Zoo) -> str:
    """Write the text of a zoo's card."""
    arch = zoo.architecture
    options = "".join(f" --arch-arg {name}={value}" for name, value in arch.args)
    base = "their own random starts" if zoo.base is None else f"{zoo.base['name']} (sha256 {zoo.base['sha256']})"
    again = train_teachers_command(zoo)
    told = f"The {FILE} of an earlier wfcli does not say all options; the recipes of the teachers stand in it."
    lines = [
        f"# {repo.partition('/')[2]}",
        "",
        f"A zoo of `wfcli train-teachers`: {len(zoo.teachers)} teachers of one architecture, {arch.label},",
        f"and {len(zoo.class_names)} classes of {dataset_name(zoo.data.source)}.",
        f"They start from {base}; shares of the images: {zoo.shares['kind']}.",
        "",
        "```",
        f"wfcli fuse 'hf:{repo}:*.safetensors' --arch {arch.name}{options} -o student.safetensors",
        f"wfcli pull hf:{repo} --all -o zoo",
        "```",
        "",
        "| teacher | images | validation top-1 % | sha256 |",
        "|---|---:|---:|---|",
        *(
            f"| {one.file} | {sum(one.class_counts):,} | {100 * one.top1:.2f} | {one.sha256[:12]} |"
            for one in zoo.teachers
        ),
        "",
        *AGAIN,
        *(["```", again, "```"] if again else [told]),
    ]
    return "\n".join(lines) + "\n"


def _sources(made: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return made.get("sources") or []


def _repository(source: Mapping[str, Any]) -> str:
    return SEVERAL.sub("", str(source["name"])).partition(":")[0].partition("@")[0]


def _source_line(source: Mapping[str, Any]) -> str:
    commit = f", commit {source['revision']}" if "revision" in source else ""
    return f"- {source.get('name')}{commit}, sha256 {source.get('sha256')}"


def _datasets(made: Mapping[str, Any]) -> list[str]:
    """Return the datasets of the Hub that are on record; local ones stand there by their base names."""
    data, recipe = made.get("data"), made.get("recipe")
    named: Sequence[Any] = [data["source"]] if data else []
    if recipe:
        named = [*named, recipe.get("data"), recipe.get("unlabelled")]
    found = [HUB_NAME.fullmatch(name) for name in named if isinstance(name, str)]
    return list(dict.fromkeys(name[1] for name in found if name is not None))


def hub_datasets(sources: Iterable[str]) -> list[str]:
    """Return the datasets of the Hub among what was given as data, each once."""
    return list(dict.fromkeys(name for source in sources if (name := _on_hub(source)) is not None))


def dataset_name(source: str) -> str:
    """Name a dataset: of a folder on this machine, its base name."""
    return _on_hub(source) or Path(source).name or source


def _on_hub(source: str) -> str | None:
    found = HUB_NAME.fullmatch(source)
    return found[1] if found is not None and not is_there(source) else None


def _how(made: Mapping[str, Any]) -> str:
    generator = made.get("generator")
    by = f" with the generator {generator['name']} (sha256 {generator['sha256']})" if generator else ""
    return (f", method `{made['method']}`" if made.get("method") else "") + by


def _own_net(layout: Layout) -> str:
    return f"`{layout.arch.timm_name}` is a net of wfcli's: it loads where wfcli is installed and imported as above."


def _results(measured: Measured | None) -> list[str]:
    if measured is None:
        return []
    rows = [f"| {title} | {value:.4f} |" for _, title, value in measured.metrics]
    return [f"## Results on {measured.dataset}, {measured.split} split", "", "| | |", "|---|---:|", *rows, ""]


def _again(made: Mapping[str, Any], file: str) -> list[str]:
    """Say how to make the file again: by its recipe, by a command, or by what is on record."""
    if made.get("verb") == "fuse" and isinstance(made.get("recipe"), dict):
        return [*AGAIN, "`recipe.toml`:", "", "```toml", as_toml(made), "```", "", "```",
                f"wfcli fuse --recipe recipe.toml -o {file}", "```"]  # fmt: skip
    if made.get("verb") == "finetune" and made.get("sources") and misfit(made, FINETUNED) is None:
        return [*AGAIN, "```", finetune_command(made, file), "```"]
    record = {key: made[key] for key in ("verb", "architecture", "data", "share", "recipe", "seed") if key in made}
    lines = json.dumps(record, indent=2, ensure_ascii=False).splitlines()
    return [*AGAIN, f"`wfcli {made.get('verb')}` on the above, with", "", "```json", *lines, "```"]
