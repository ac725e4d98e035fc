"""A generator on disk: config.json, model.safetensors and its card README.md, as `PyTorchModelHubMixin` knows them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from wfcli.core.checkpoint import open_checkpoint, save_state
from wfcli.core.generator import WeightFormer
from wfcli.core.generator_config import FORMAT, config_from_dict
from wfcli.core.outputs import atomic_path, write_json
from wfcli.errors import CheckpointError, GeneratorError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
RESUME = "resume.pt"  # of a training that goes on, until all the others are in their places


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
    """
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise GeneratorError(
            f"{name}: no readable {CONFIG} ({error.strerror})",
            hint="a generator is a folder written by wfcli train-generator",
        ) from error
    except ValueError as error:
        raise _no_generator(name, error) from error
    try:
        weights = open_checkpoint(folder / WEIGHTS, f"{name}/{WEIGHTS}")
    except CheckpointError as error:
        raise GeneratorError(*error.problems, hint=error.hint) from error
    own = (weights.provenance or {}).get("config")
    if own is not None and (folder / RESUME).exists():  # a training that was killed had begun to write its own
        raw = own
    try:
        got = raw.get("format")
        if got != FORMAT:
            raise GeneratorError(
                f"{name}: {CONFIG}: got format {got!r}, expected {FORMAT}",
                hint="update wfcli, or train the generator again",
            )
        generator = WeightFormer(config_from_dict(raw))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _no_generator(name, error) from error
    expected = {key: tuple(tensor.shape) for key, tensor in generator.state_dict().items()}
    found = {key: spec.shape for key, spec in weights.specs.items()}
    problems = [
        f"{name}: {WEIGHTS}: {key}: got {found.get(key, 'nothing')}, expected {expected.get(key, 'nothing')}"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]
    if not problems and own is not None and own != raw:
        other = ", ".join(sorted(key for key in {*own, *raw} if own.get(key) != raw.get(key)))
        problems = [f"{name}: {CONFIG}: another {other} than {WEIGHTS} was written with"]
    if problems:
        raise GeneratorError(*problems[:10], hint=f"{CONFIG} and {WEIGHTS} are of two different generators")
    generator.load_state_dict(dict(weights))
    return generator.eval(), weights.digest()


def _no_generator(name: str, error: Exception) -> GeneratorError:
    return GeneratorError(
        f"{name}: {CONFIG} does not describe a generator: {error}",
        hint="get the generator again, or train it again with wfcli train-generator",
    )
