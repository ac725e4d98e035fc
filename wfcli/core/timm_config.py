"""config.json as timm's repositories have it: written for weights of ours, and read for the architecture of any."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wfcli.core.architecture_names import ArchArg, Architecture, find_architecture
from wfcli.core.architectures import SHAPELESS_ARGS, InputConfig, build_model, input_config
from wfcli.core.bounded import read_json
from wfcli.core.forms import ANYTHING, misfit
from wfcli.core.layouts import tables
from wfcli.errors import ArchitectureError

# What timm knows of its own weights of the same net is not said of ours.
OTHERS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "description",
          "test_input_size", "test_pool_size", "test_crop_pct")  # fmt: skip
# How images are prepared here: the shorter side to the net's size, and the middle of it.
PREPARED = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
CONFIG = "config.json"
HINT = "give --arch and --arch-arg"
MOST_CONFIG = 1 << 22  # bytes: labels of 20,000 classes, with their descriptions
FORM = {
    "architecture": str,
    "model_args?": ({"*": ANYTHING}, None),
    "pretrained_cfg?": ({"tag?": (str, None), "*": ANYTHING}, None),
    "tag?": (str, None),
}


def timm_config(arch: Architecture, num_classes: int, label_names: Sequence[str] | None) -> dict[str, Any]:
    """Return the config.json with which ``timm.create_model("hf-hub:...")`` builds the net: timm's own writer's."""
    from timm.models._hub import save_config_for_hf

    wants = input_config(arch)
    seen = {"input_size": [_channels(arch), wants.size, wants.size], "mean": list(wants.mean), "std": list(wants.std)}
    model = build_model(arch, num_classes, device="meta")
    with TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        save_config_for_hf(model, str(file), model_config={"label_names": list(label_names)} if label_names else None)
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config["architecture"] = arch.timm_name.partition(".")[0]
    known = {key: value for key, value in config["pretrained_cfg"].items() if key not in OTHERS}
    config["pretrained_cfg"] = {**known, **seen, **PREPARED}
    # The writer names all that the net was built with; what is usual is left out, older timm does not know it all.
    config.pop("model_args", None)
    if args := {key: value for key, value in arch.args if key not in SHAPELESS_ARGS}:
        config["model_args"] = args
    return config


def architecture_in(file: Path, what: str) -> tuple[Architecture, str | None] | None:
    """Read the architecture from a config.json, as `read_architecture` does from what is in it.

    Raises:
        ArchitectureError: it is not JSON, or names a net that cannot be built.
    """
    try:
        config = read_json(file, MOST_CONFIG)
    except OSError as error:
        raise ArchitectureError(f"{what}: cannot be read ({error.strerror})", hint=HINT) from error
    except ValueError as error:
        raise ArchitectureError(f"{what}: is not JSON ({error})", hint=HINT) from error
    return read_architecture(config, what)


def label_names_in(file: Path, num_classes: int) -> tuple[str, ...] | None:
    """Return the names of the classes in a config.json, in the order of the head; None where it has none for it.

    Names that cannot be those of the head, by their number or because one stands twice, are nobody's classes: others
    write such files, and the weights beside them may be sound all the same.
    """
    try:
        config = read_json(file, MOST_CONFIG)
    except (OSError, ValueError):
        return None
    for table in (config, config.get("pretrained_cfg") if isinstance(config, Mapping) else None):
        names = table.get("label_names") if isinstance(table, Mapping) else None
        if (
            isinstance(names, list)
            and all(isinstance(name, str) and name for name in names)
            and len(set(names)) == len(names) == num_classes
        ):
            return tuple(names)
    return None


def read_architecture(config: Any, what: str) -> tuple[Architecture, str | None] | None:
    """Return the architecture that a config.json names, and a warning where its images are prepared otherwise.

    None: it is no config of timm's. `what` is what errors call the file.

    Raises:
        ArchitectureError: it names a net that cannot be built.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("architecture"), str):
        return None
    if problem := misfit(config, FORM):
        raise ArchitectureError(f"{what}: {problem}", hint=HINT)
    try:
        plain = find_architecture(config["architecture"], _plain_args(config, what))
        wanted = _prepared(config)
        for arch in _candidates(plain, config):
            if wanted is None or input_config(arch) == wanted:
                return arch, None
    except ArchitectureError as error:
        raise ArchitectureError(*(f"{what}: {problem}" for problem in error.problems), hint=HINT) from error
    got = input_config(plain)
    told = f"mean {wanted.mean}, std {wanted.std}, {wanted.size} pixels" if wanted else ""
    return plain, f"{what}: says {told}; images are prepared with mean {got.mean}, std {got.std}, {got.size} pixels"


def _plain_args(config: Mapping[str, Any], what: str) -> dict[str, ArchArg]:
    """Return the arguments of the net without those that say what is usual."""
    name, args = config["architecture"], dict(config.get("model_args") or {})
    args.pop("num_classes", None)  # read from the head
    size = args.get("img_size")
    if isinstance(size, list) and size and size.count(size[0]) == len(size):
        args["img_size"] = size[0]
    if args.get("img_size") is not None and args["img_size"] == input_config(find_architecture(name)).size:
        del args["img_size"]
    if args.get("in_chans") == 3:
        del args["in_chans"]
    if "global_pool" in args and args["global_pool"] == _usual_pool(find_architecture(name)):
        del args["global_pool"]
    args = {key: value for key, value in args.items() if value is not None}
    if wrong := [key for key, value in args.items() if not isinstance(value, str | int | float | bool)]:
        got = {key: reprlib.repr(args[key]) for key in wrong}
        raise ArchitectureError(*(f"model_args: {key}: got {text}, expected one value" for key, text in got.items()))
    return args


def _usual_pool(arch: Architecture) -> str | None:
    pool = getattr(build_model(arch, 1, device="meta"), "global_pool", None)
    return pool if isinstance(pool, str) else getattr(pool, "pool_type", None)


def _prepared(config: Mapping[str, Any]) -> InputConfig | None:
    """Return how the config wants images prepared, where it says so."""
    said = config.get("pretrained_cfg") or config
    try:
        (r, g, b), (dr, dg, db) = (map(float, said[key]) for key in ("mean", "std"))
        return InputConfig(int(said["input_size"][-1]), (r, g, b), (dr, dg, db))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None


def _candidates(plain: Architecture, config: Mapping[str, Any]) -> Iterator[Architecture]:
    """Yield the names of one net whose weights saw other normalisations: timm's, torchvision's, timm's with the tag."""
    yield plain
    for alias in tables().aliases.values():
        if alias.timm_name == plain.timm_name:
            yield find_architecture(alias.name, dict(plain.args))
    tag = (config.get("pretrained_cfg") or config).get("tag")
    if tag:
        try:
            yield find_architecture(f"{plain.name}.{tag}", dict(plain.args))
        except ArchitectureError:
            return  # a tag of weights that this timm does not know


def _channels(arch: Architecture) -> int:
    return int(dict(arch.args).get("in_chans", 3))
