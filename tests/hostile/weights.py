"""Hostile checkpoints, shards, generators and zoos."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile import Target, files, mutate

DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "I64", "U8", "BOOL", "C64", "f32", "", "F32 ")


def make_safetensors(random: Random, folder: Path) -> None:
    """Spoil the header, the length or the body of x.safetensors."""
    (folder / "x.safetensors").write_bytes(
        hostile_safetensors(random, random.choice(("state", "state", "state", "net")))
    )


def hostile_safetensors(random: Random, which: str) -> bytes:
    """Return the bytes of a hostile file."""
    fields, body = files.safetensors(which)
    kind = random.randint(0, 9)
    if kind <= 3:
        fields = _relaid(random, json.loads(json.dumps(fields)))
    elif kind <= 7:
        fields = mutate.tree(random, fields)
    header = mutate.dumped(random, fields)
    if random.random() < 0.1:
        body = random.choice((body[: random.randint(0, len(body))], body + b"\0" * random.randint(1, 9), b""))
    length = None
    if random.random() < 0.05:
        length = random.choice((0, 1, 2**20, 100_000_000, 100_000_001, 2**31, 2**63, 2**64 - 1, len(header) + 1))
    data = files.packed(header, body, length)
    return mutate.bytestring(random, data) if kind == 9 else data


def _relaid(random: Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Change shapes, types and places of tensors, so that they overlap, leave holes, are huge or nothing."""
    names = [name for name in fields if name != "__metadata__"]
    one, other = random.choice(names), random.choice(names)
    spec = fields[one]
    change = random.randint(0, 9)
    if change == 0:
        spec["data_offsets"] = fields[other]["data_offsets"]
    elif change == 1:
        shift = random.choice((-8, -1, 1, 4, 2**40))
        spec["data_offsets"] = [end + shift for end in spec["data_offsets"]]
    elif change == 2:  # huge and yet of no bytes
        spec.update(shape=[0, *(random.choice((2**31, 2**62, 2**64, 7)) for _ in range(random.randint(1, 3)))])
        spec["data_offsets"] = [spec["data_offsets"][0]] * 2
    elif change == 3:
        spec["shape"] = [random.choice((10**300, 2**40, 3, 10**18)) for _ in range(random.choice((1, 4, 3000)))]
    elif change == 4:
        spec["dtype"] = random.choice(DTYPES)
    elif change == 5:
        spec["shape"] = random.choice(
            ([1] * 3000, [], [-1], [0], [2**63], [1.0], [True], "12", [[1]], list(reversed(spec["shape"])))
        )
    elif change == 6:
        fields[mutate.word(random)] = fields.pop(one)
    elif change == 7:
        fields.update({f"{number}.{mutate.word(random)}": spec for number in range(random.choice((1, 30, 3000)))})
    elif change == 8:
        fields.update({f"{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(2000)})
    else:
        del fields[one]
    return fields


def read_checkpoint(folder: Path) -> None:
    """Open x.safetensors, compare it with a net, read every tensor whole and in pieces."""
    from wfcli.core.architectures import find_architecture, match_layout
    from wfcli.core.checkpoint import open_checkpoint
    from wfcli.errors import ArchitectureError

    checkpoint = open_checkpoint(folder / "x.safetensors")
    _read_all(checkpoint)
    assert checkpoint.provenance is None or isinstance(checkpoint.provenance, dict)
    with suppress(ArchitectureError):  # most are of no net
        match_layout(find_architecture(files.ARCH["name"], files.ARCH["args"]), checkpoint.specs, checkpoint.name)


def _read_all(checkpoint: Any) -> None:
    for key in checkpoint:
        whole = checkpoint[key]
        assert tuple(whole.shape) == checkpoint.specs[key].shape
        for _ in checkpoint.pieces(key):
            pass
    assert len(checkpoint.digest()) == 64


def make_provenance(random: Random, folder: Path) -> None:
    """Write a sound net whose header tells strange things of it."""
    fields, body = files.safetensors("net")
    told = mutate.dumped(random, mutate.tree(random, files.PROVENANCE)).decode("utf-8", "replace")
    metadata: Any = {"format": "pt", "wfcli": told}
    if random.random() < 0.05:
        metadata = mutate.tree(random, metadata)
    header = json.dumps({**fields, "__metadata__": metadata}).encode()
    (folder / "x.safetensors").write_bytes(files.packed(header, body))
    (folder / "metrics.json").write_bytes(mutate.dumped(random, mutate.tree(random, files.METRICS)))


def read_provenance(folder: Path) -> None:
    """Inspect the file, print its recipe, take its architecture, pack it for the Hub."""
    from tests.hostile.texts import attempt, shown
    from wfcli import report
    from wfcli.engine.inspect import InspectConfig, inspect
    from wfcli.engine.own_architecture import architecture_of
    from wfcli.engine.push import PushConfig, push
    from wfcli.engine.recipe import read_recipes
    from wfcli.engine.teachers import open_teachers

    source = str(folder / "x.safetensors")
    result = inspect(InspectConfig((source,)))
    shown(report.inspected(result))
    shown(report.as_json(result))
    for step in (
        lambda: report.recipes_shown({"recipes": read_recipes([source])}),
        lambda: open_teachers([source], architecture_of([source]).architecture, minimum=1) and None,
        lambda: report.pushed(push(PushConfig(source, "hf:owner/name", dry_run=True))),
        lambda: push(PushConfig(source, "hf:owner/name", dry_run=True, metrics=folder / "metrics.json")) and None,
    ):
        attempt(step)


def make_shards(random: Random, folder: Path) -> None:
    """Write two shards and their index, and spoil them: missing, linked, leading elsewhere, of another kind."""
    fields, body = files.safetensors("state")
    names = sorted(name for name in fields if name != "__metadata__")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    data = files.packed(json.dumps(fields).encode(), body)
    index = {"metadata": {"total_size": len(body)}, "weight_map": {n: shards[i % 2] for i, n in enumerate(names)}}
    for shard in shards:
        (folder / shard).write_bytes(data)
    kind = random.randint(0, 7)
    if kind <= 3:
        index = mutate.tree(random, index)
    elif kind == 4:
        (folder / shards[0]).write_bytes(hostile_safetensors(random, "state"))
    elif kind == 5:
        _replace_by_another_kind(random, folder, shards[0], data)
    elif kind == 6:
        for name in names[: random.choice((1, 3))]:
            index["weight_map"][name] = mutate.word(random)
    (folder / "model.safetensors.index.json").write_bytes(mutate.dumped(random, index))
    if kind == 7 and random.random() < 0.5:
        _replace_by_another_kind(random, folder, "model.safetensors.index.json", b"{}")


def _replace_by_another_kind(random: Random, folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.unlink()
    kind = random.randint(0, 6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(random.choice(("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", "/etc", "/proc/kmsg")))
    elif kind == 3:
        path.symlink_to(name)  # itself
    elif kind == 4:
        (folder / "elsewhere").mkdir()
        (folder / "elsewhere" / name).write_bytes(data)
        path.symlink_to(folder / "elsewhere" / name)
    elif kind == 5:
        path.write_bytes(data)
        path.chmod(0)


def read_shards(folder: Path) -> None:
    """Open the folder and read all that is in it."""
    from wfcli.core.checkpoint import open_checkpoint

    _read_all(open_checkpoint(folder))


def make_generator(random: Random, folder: Path) -> None:
    """Spoil the config of a generator, now and then its weights or its card."""
    config, weights, card = files.generator()
    kind = random.randint(0, 9)
    (folder / "config.json").write_bytes(mutate.dumped(random, mutate.tree(random, config) if kind < 8 else config))
    (folder / "model.safetensors").write_bytes(mutate.bytestring(random, weights) if kind == 8 else weights)
    (folder / "README.md").write_bytes(mutate.lines(random, card.decode()) if kind == 9 else card)


def read_generator(folder: Path) -> None:
    """Load it and pack it for the Hub."""
    from wfcli.core.generator_files import load_generator
    from wfcli.engine.push import PushConfig, push

    generator, digest = load_generator(folder, "generator")
    assert len(digest) == 64
    assert generator.config.width >= 1
    push(PushConfig(str(folder), "hf:owner/name", dry_run=True))


def make_zoo(random: Random, folder: Path) -> None:
    """Spoil zoo.json, now and then a teacher."""
    written, teacher = files.zoo()
    for entry in written["teachers"]:
        (folder / entry["file"]).write_bytes(teacher if random.random() < 0.95 else hostile_safetensors(random, "net"))
    (folder / "zoo.json").write_bytes(mutate.dumped(random, mutate.tree(random, written)))


def read_zoo(folder: Path) -> None:
    """Read it as trainings do, and pack it for the Hub."""
    from tests.hostile.texts import shown
    from wfcli import report
    from wfcli.core.zoo import read_zoo, zoo_to_json
    from wfcli.engine.push import PushConfig, push

    json.dumps(zoo_to_json(read_zoo(folder)))
    shown(report.pushed(push(PushConfig(str(folder), "hf:owner/name", dry_run=True))))


TARGETS = {
    "safetensors": Target(
        make_safetensors, read_checkpoint, 8, lambda folder: ["inspect", str(folder / "x.safetensors"), "--weights"]
    ),
    "provenance": Target(
        make_provenance, read_provenance, 2, lambda folder: ["inspect", str(folder / "x.safetensors")]
    ),
    "shards": Target(make_shards, read_shards, 6, lambda folder: ["inspect", str(folder)]),
    "generator": Target(
        make_generator, read_generator, 4, lambda folder: ["push", str(folder), "hf:owner/name", "--dry-run"]
    ),
    "zoo": Target(make_zoo, read_zoo, 2, lambda folder: ["push", str(folder), "hf:owner/name", "--dry-run", "--json"]),
}
