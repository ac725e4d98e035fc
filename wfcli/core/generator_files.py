"""A generator on disk: config.json, model.safetensors and its card README.md, as `PyTorchModelHubMixin` knows them."""

from __future__ import annotations

import reprlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wfcli.core.bounded import read_json
from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.downloads import check_downloads
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import FORMAT, WeightFormerConfig, config_from_dict
from wfcli.core.outputs import atomic_path, write_json
from wfcli.errors import CheckpointError, GeneratorError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
RESUME = "resume.pt"  # of a training that goes on, until all the others are in their places
MOST_CONFIG = 1 << 20  # bytes; that of a deep net's prior has 50,000


def save_generator(folder: Path, generator: WeightFormer, card: str) -> str:
    """Write a generator's three files, each complete or not there; return the sha256 of its weights.

    The weights come last and hold the config too: where the writer is killed before, they say what they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    write_json(folder / CONFIG, asdict(generator.config))
    state = {name: tensor.detach().cpu() for name, tensor in generator.state_dict().items()}
    made = {"kind": "generator", "preset": generator.config.preset, "config": asdict(generator.config)}
    return save_state(folder / WEIGHTS, state, made)


def load_generator(folder: Path, name: str) -> tuple[WeightFormer, str]:
    """Read a generator and return it in eval mode with the sha256 of its weights.

    Raises:
        GeneratorError: a file is missing or damaged, the format is of a newer wfcli, or weights and config do not fit.
        CheckpointError: the weights are not what the Hub says, which they are from.
    """
    raw = _read_config(folder, name)
    try:
        weights = open_checkpoint(folder / WEIGHTS, f"{name}/{WEIGHTS}")
    except CheckpointError as error:
        raise GeneratorError(*error.problems, hint=error.hint) from error
    check_downloads([weights])
    own = (weights.provenance or {}).get("config")
    if own is not None and (folder / RESUME).exists():  # a training that was killed had begun to write its own
        raw = own
    config, expected = _describe(raw, name)
    found = {key: spec.shape for key, spec in weights.specs.items()}
    problems = [
        f"{name}: {WEIGHTS}: {key}: got {found.get(key, 'nothing')}, expected {expected.get(key, 'nothing')}"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]
    if not problems and isinstance(own, dict) and own != raw:
        other = ", ".join(sorted(key for key in {*own, *raw} if own.get(key) != raw.get(key)))
        problems = [f"{name}: {CONFIG}: another {other} than {WEIGHTS} was written with"]
    if problems:
        raise GeneratorError(*problems[:10], hint=f"{CONFIG} and {WEIGHTS} are of two different generators")
    generator = WeightFormer(config)
    generator.load_state_dict(dict(weights))
    return generator.eval(), weights.digest()


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        raw = read_json(folder / CONFIG, MOST_CONFIG)
    except OSError as error:
        raise GeneratorError(
            f"{name}: no readable {CONFIG} ({error.strerror})",
            hint="a generator is a folder written by wfcli train-generator",
        ) from error
    except ValueError as error:
        raise _no_generator(name, error) from error
    if not isinstance(raw, dict):
        raise _no_generator(name, f"got {type(raw).__name__}, expected an object")
    return raw


def _describe(raw: dict[str, Any], name: str) -> tuple[WeightFormerConfig, dict[str, tuple[int, ...]]]:
    """Return the config, and the shape of every tensor, from a generator that takes no memory: sizes are claims."""
    got = raw.get("format") if isinstance(raw, dict) else None
    if got != FORMAT:
        raise GeneratorError(
            f"{name}: {CONFIG}: got format {reprlib.repr(got)}, expected {FORMAT}",
            hint="update wfcli, or train the generator again",
        )
    try:
        config = config_from_dict(raw)
        with torch.device("meta"):
            empty = WeightFormer(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _no_generator(name, error) from error
    return config, {key: tuple(tensor.shape) for key, tensor in empty.state_dict().items()}


def _no_generator(name: str, error: object) -> GeneratorError:
    return GeneratorError(
        f"{name}: {CONFIG} does not describe a generator: {error}",
        hint="get the generator again, or train it again with wfcli train-generator",
    )
