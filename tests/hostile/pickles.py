"""Hostile files of torch.save: pickles that want to run code, to nest, to swell; archives that are bombs or broken."""

from __future__ import annotations

import io
import struct
import zipfile
from functools import cache
from pathlib import Path
from random import Random

from tests.hostile import Target, files, mutate

CALLS = (
    "posix system", "os system", "builtins exec", "builtins eval", "subprocess Popen", "builtins bytearray",
    "builtins getattr", "torch Tensor", "torch FloatTensor", "torch.nn.parameter Parameter", "_codecs encode",
    "collections OrderedDict", "torch Size", "collections Counter", "builtins set", "torch device",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._tensor _rebuild_from_type_v2", "torch._utils _rebuild_wrapper_subclass",
    "torch._utils _rebuild_sparse_tensor", "torch FloatStorage", "torch.storage UntypedStorage",
    "torch.serialization _get_layout", "numpy.core.multiarray scalar", "runpy run_path",
)  # fmt: skip
ARGUMENTS = ("touch it_ran", "latin1", "idna", "weight", "state_dict", "import os", "sparse_coo")


def text(word: str) -> bytes:
    """Return the operation that puts a text on the stack."""
    data = word.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Return the operation that puts a whole number on the stack."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def call(name: str, *arguments: bytes) -> bytes:
    """Return the operations that call something by its name."""
    module, _, attribute = name.partition(" ")
    return f"c{module}\n{attribute}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def program(operations: bytes) -> bytes:
    """Make a pickle of operations that leave one object."""
    return b"\x80\x02" + operations + b"."


def tuples(depth: int) -> bytes:
    """Put a tuple of two of a tuple of two ... on the stack: 2 ** depth leaves in a few hundred bytes."""
    return number(1) + b"".join(_pair(level) for level in range(depth))


def _pair(level: int) -> bytes:
    place = b"r" + struct.pack("<I", level)  # LONG_BINPUT, then LONG_BINGET of the same: a pair of it
    return place + b"j" + struct.pack("<I", level) + b"\x86"


def hostile_program(random: Random) -> bytes:
    """Return a pickle that is not meant well."""
    kind = random.randint(0, 11)
    if kind <= 1:
        arguments = [_operand(random) for _ in range(random.randint(0, 3))]
        return program(b"}" + text("weight") + call(random.choice(CALLS), *arguments) + b"s")
    if kind == 2:
        return program(call("builtins bytearray", number(random.choice((10, 10**9, 2**33, 2**62)))))
    if kind == 3:  # keys whose hash takes for ever
        return program(b"}" + tuples(random.choice((3, 30, 60))) + number(1) + b"s")
    if kind == 4:  # wrappers within wrappers, each holding the same twice
        return program(wrappers(random.choice((2, 30, 200))))
    if kind == 5:  # a dict in itself
        return program(b"}q\x00" + text("state_dict") + b"h\x00s")
    if kind == 6:  # attributes that hide methods
        hidden = random.choice(("get", "items", "keys", "__len__", "_metadata"))
        return program(call("collections OrderedDict") + b"}" + text(hidden) + number(3) + b"sb")
    if kind == 7:
        depth = random.choice((10, 1000, 100_000))
        return program(random.choice((b"(" * depth, b"]" * depth + b"a" * (depth - 1), b"}" + b"N" * depth)))
    if kind == 8:
        return program(
            b"}"
            + text("a")
            + call("_codecs encode", text("\xfc" * random.choice((10, 3000))), text(random.choice(ARGUMENTS)))
            + b"s"
        )
    if kind == 9:
        return program(
            b"("
            + b"".join(_operand(random) for _ in range(random.choice((1, 20, 2000))))
            + random.choice((b"l", b"d", b"t"))
        )
    operations = b"}(NKl]t)R.abjhqu0eXs\x85\x86\x87\x88\x89\x8a\x8c\x94\x81QcP2I"
    return program(bytes(random.choice(operations) for _ in range(random.randint(1, 60))))


def wrappers(depth: int) -> bytes:
    """Return a dict of two wrappers that both hold the next dict, which does too: 2 ** depth ways to the end."""
    operations = b"}"
    for level in range(depth):
        kept = b"r" + struct.pack("<I", level) + b"0"
        fetched = b"j" + struct.pack("<I", level)
        operations += kept + b"}" + text("state_dict") + fetched + b"s" + text("model") + fetched + b"s"
    return operations


def _operand(random: Random) -> bytes:
    kind = random.randint(0, 5)
    if kind == 0:
        return number(random.choice((0, 1, -1, 3, 2**31 - 1, 2**40, 2**63, 2**100)))
    if kind == 1:
        return text(random.choice((*ARGUMENTS, mutate.word(random))))
    return random.choice((b"N", b"\x88", b"]", b"}", b")", b"}" + text("a") + number(1) + b"s", tuples(4)))


@cache
def archive() -> tuple[str, dict[str, bytes]]:
    """Return the folder and the records of a valid file."""
    with zipfile.ZipFile(io.BytesIO(files.pickled("zip"))) as found:
        records = {name: found.read(name) for name in found.namelist()}
    return next(iter(records)).partition("/")[0], records


def zipped(records: dict[str, bytes], compressed: str = "") -> bytes:
    """Write an archive; the record called `compressed` is deflated."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as writing:
        for name, data in records.items():
            method = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            writing.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


@cache
def bomb(record: str, size: int = 1 << 30) -> bytes:
    """Return an archive of a few megabytes, one record of which is a gigabyte of zeros."""
    _, records = archive()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as writing:
        for name, data in records.items():
            with writing.open(name, "w") as file:
                for _ in range(size >> 20 if name.endswith(record) else 0):
                    file.write(bytes(1 << 20))
                file.write(data)
    return out.getvalue()


def make_pickle(random: Random, folder: Path) -> None:
    """Write a hostile .pt, .pth or .bin file."""
    name = f"x{random.choice(('.pt', '.pt', '.pth', '.bin'))}"
    (folder / name).write_bytes(_hostile_file(random))


def _hostile_file(random: Random) -> bytes:
    top, records = archive()
    kind = random.randint(0, 9)
    if kind == 0:
        return mutate.bytestring(random, files.pickled(random.choice(("zip", "legacy", "wrapped", "parameters"))))
    if kind <= 2:  # numbers within the pickle of a sound file
        return zipped({**records, f"{top}/data.pkl": _renumbered(random, records[f"{top}/data.pkl"])})
    if kind == 3:
        return mutate.bytestring(random, hostile_program(random))
    if kind == 4:
        return _legacy(random)
    if kind == 5:
        return _spoilt_archive(random, top, records)
    return zipped({**records, f"{top}/data.pkl": hostile_program(random)}, random.choice(("", "", f"{top}/data.pkl")))


def _renumbered(random: Random, data: bytes) -> bytes:
    """Change sizes, strides, offsets and keys of storages."""
    places = [at for at, byte in enumerate(data) if byte == 0x4B]  # BININT1
    for at in random.sample(places, min(len(places), random.choice((1, 2, 4)))):
        value = random.choice((0, 1, 255, 2**16, 2**30, 2**31 - 1, -1, 2**40, 2**62))
        data = data[:at] + number(value) + data[at + 2 :]
    return data


def _legacy(random: Random) -> bytes:
    """Spoil the fourth of the pickles in a row that the old format is."""
    data = files.pickled("legacy")
    if random.random() < 0.5:
        return _renumbered(random, data)
    begin = data.index(b"ccollections\nOrderedDict") if b"ccollections\nOrderedDict" in data else 40
    return data[: begin - 2] + hostile_program(random) + data[begin:]


def _spoilt_archive(random: Random, top: str, records: dict[str, bytes]) -> bytes:
    kind = random.randint(0, 6)
    if kind == 0:
        return zipped(records, random.choice(list(records)))
    if kind == 1:
        return zipped({name: data for name, data in records.items() if random.random() < 0.8})
    if kind == 2:
        return zipped({**records, f"{top}/../../escaped": b"x", "/escaped": b"x", f"{top}/data.pkl ": b"N."})
    if kind == 3:
        return zipped({**records, f"{top}/byteorder": random.choice((b"big", b"middle", b"", b"\xff"))})
    if kind == 4:
        return zipped({**records, f"{top}/version": random.choice((b"99999", b"x", b""))})
    if kind == 5:
        return zipped({**records, **{f"{top}/data/{n}": b"" for n in range(random.choice((5, 3000)))}})
    return (
        bomb(random.choice(("data.pkl", "byteorder", "data/0")))
        if random.random() < 0.1
        else zipped({top: b"", **records})
    )


def read_pickle(folder: Path) -> None:
    """Open it and read all that is in it."""
    from tests.hostile.weights import _read_all
    from wfcli.core.checkpoint import open_checkpoint

    _read_all(open_checkpoint(next(folder.glob("x.*"))))


TARGETS = {"pickle": Target(make_pickle, read_pickle, 8, lambda folder: ["inspect", str(next(folder.glob("x.*")))])}
