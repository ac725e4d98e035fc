"""Hostile datasets: parquet files and folders with images that are broken, bombs or none; labels out of range."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile import Target, files, mutate

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(it_ran) (w) file closefile showpage
%%EOF
"""
SIDE = 8


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def png(width: int, height: int, rows: int | None = None) -> bytes:
    """Return a gray PNG of zeros of any size, a thousandth of it in bytes; of its rows so many, if less than all."""
    packer = zlib.compressobj(1)
    line = bytes(width + 1)
    body = b"".join(packer.compress(line) for _ in range(height if rows is None else rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@cache
def large(kind: str) -> bytes:
    """Return an image of one colour that is small as a file and large as pixels."""
    from PIL import Image

    out = io.BytesIO()
    size = {"WEBP": (9_000, 9_000), "GIF": (12_000, 12_000), "TIFF": (12_000, 12_000), "JPEG": (9_000, 9_000)}[kind]
    options: dict[str, Any] = {"WEBP": {"lossless": True, "method": 0}, "TIFF": {"compression": "tiff_deflate"}}.get(
        kind, {}
    )
    Image.new("L" if kind != "WEBP" else "RGB", size).save(out, kind, **options)
    return out.getvalue()


def hostile_image(random: Random) -> bytes:
    """Return the bytes of an image that is none, half of one, or too much of one."""
    kind = random.randint(0, 11)
    whole = files.image(random.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA")), (8, 8))
    if kind <= 2:
        return mutate.bytestring(random, whole)
    if kind == 3:
        return whole[: random.randint(0, len(whole))]
    if kind == 4:  # dimensions that the header claims
        size = struct.pack(">II", *(random.choice((0, 1, 2**16, 2**20, 2**31 - 1, 2**31)) for _ in range(2)))
        return files.image()[:16] + size + files.image()[24:]
    if kind == 5:
        width, height = random.choice(((1, 60_000), (60_000, 1), (1, 1), (0, 5), (2, 100_000)))
        return png(width, height)
    if kind == 6 and random.random() < 0.2:
        return png(random.choice((9_000, 30_000)), 9_000, rows=random.choice((None, 1)))
    if kind == 7 and random.random() < 0.2:
        return large(random.choice(("WEBP", "GIF", "TIFF", "JPEG")))
    if kind == 8:
        return random.choice(
            (EPS, b"", b"\0", b"GIF89a", b"%PDF-1.7", b"<svg onload='x'/>", b"P6 99999999 99999999 255\n")
        )
    if kind == 9:
        return files.image("PNG", (8, 8), random.choice(("P", "1", "L", "RGBA", "LA", "I;16")))
    return files.image("TIFF", (8, 8), random.choice(("CMYK", "F", "I", "L"))) if kind == 10 else whole


def make_parquet(random: Random, folder: Path) -> None:
    """Write train and test files: wrong types, hostile images, labels out of range, strange descriptions."""
    (folder / "test-00000.parquet").write_bytes(files.parquet())
    data = _table(random) if random.random() < 0.75 else files.parquet(random.choice(("hub", "plain")))
    if random.random() < 0.35:
        data = mutate.bytestring(random, data)
    (folder / "train-00000.parquet").write_bytes(data)


def _table(random: Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = random.choice((0, 1, 6, 6, 40))
    struct_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [
        {"bytes": hostile_image(random) if random.random() < 0.2 else files.image(), "path": None} for _ in range(rows)
    ]
    if random.random() < 0.15:
        cells = [
            {"bytes": None, "path": random.choice(("/etc/passwd", "/dev/zero", "../x", "\0", "http://x/y.png"))}
        ] * rows
    images: Any = pa.array(cells, struct_type)
    if random.random() < 0.1:
        images = random.choice(
            (pa.nulls(rows), pa.array([b"x"] * rows), pa.array([[1]] * rows), pa.array(["a.png"] * rows))
        )
    labels = [number % 3 for number in range(rows)]
    kinds: list[Any] = [
        pa.int64(),
        pa.int8(),
        pa.uint64(),
        pa.float32(),
        pa.string(),
        pa.bool_(),
        pa.binary(),
        pa.null(),
    ]
    kind = random.choice(kinds)
    try:
        column: Any = pa.array(labels, pa.int64()).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        column = pa.nulls(rows, kind)
    if random.random() < 0.3 and rows:
        strange = random.choice((-1, 3, 99_999, 10**6, 2**63 - 1, -(2**63), None))
        column = pa.array([strange, *labels[1:]], pa.int64())
    elif random.random() < 0.1:
        column = pa.array([2**64 - 1] * rows, pa.uint64())
    columns = {"img": images, "label": column}
    if random.random() < 0.1:
        columns = {mutate.word(random).replace("\ud800", "x"): found for found in columns.values()}
    table = pa.table(columns)
    if random.random() < 0.5:
        described = mutate.tree(random, files.features())
        if random.random() < 0.1:
            described["info"] = {
                "features": {"img": {"_type": "Image"}, "label": {"num_classes": 10**9, "_type": "ClassLabel"}}
            }
        told = mutate.dumped(random, described) if random.random() < 0.3 else json.dumps(described).encode()
        table = table.replace_schema_metadata({"huggingface": told})
    out = io.BytesIO()
    pq.write_table(table, out, compression=random.choice(("snappy", "none", "gzip")))
    return out.getvalue()


def make_image_folder(random: Random, folder: Path) -> None:
    """Write train/CLASS/IMAGE and test/CLASS/IMAGE, some of them hostile."""
    for split in ("train", "test"):
        for name in files.CLASSES[:2]:
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                (folder / split / name / f"{number}.png").write_bytes(files.image())
    place = folder / "train" / files.CLASSES[0]
    for number in range(random.choice((1, 2))):
        suffix = random.choice((".png", ".jpg", ".webp", ".gif", ".tif", ".eps", ".bmp", ".txt", ".PNG"))
        (place / f"hostile-{number}{suffix}").write_bytes(hostile_image(random))
    _strange_things(random, place)


def make_unlabelled(random: Random, folder: Path) -> None:
    """Write images that stand in one folder, some of them hostile."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(files.image())
    for number in range(random.choice((1, 2, 5))):
        (folder / f"hostile-{number}{random.choice(('.png', '.jpg', '.eps', '.webp', '.tif'))}").write_bytes(
            hostile_image(random)
        )
    _strange_things(random, folder)


def _strange_things(random: Random, place: Path) -> None:
    """Put beside the images what is no image: pipes, devices, links, other descriptions of the folder."""
    kind = random.randint(0, 11)
    if kind == 0:
        os.mkfifo(place / "pipe.png")
    elif kind == 1:
        (place / "zero.png").symlink_to("/dev/zero")
    elif kind == 2:
        (place / "loop.png").symlink_to("loop.png")
    elif kind == 3:
        (place / "round").symlink_to(place)
    elif kind == 4:
        (place / "metadata.jsonl").write_text(
            json.dumps({"file_name": mutate.word(random), "x": mutate.value(random)}) + "\n"
        )
    elif kind == 5:
        (place / "metadata.csv").write_text(f"file_name,label\n{mutate.word(random)!r},1\n", "utf-8", "replace")
    elif kind == 6:
        (place / "folder.png").mkdir()


def read_labelled(folder: Path) -> None:
    """Load labels, names and images for training and for testing."""
    from wfcli.core.data import DataSpec, load_class_names, load_images, load_labels
    from wfcli.errors import Problems

    spec, problems = DataSpec(str(folder)), Problems()
    for split in ("train", "test"):
        with problems:
            labels = load_labels(spec, split)
            images = load_images(spec, split, SIDE)
            assert images.labels.tolist() == labels
            assert len(images.pixels) == len(labels)
            assert max(labels) < len(load_class_names(spec))
    problems.raise_all()


def read_unlabelled(folder: Path) -> None:
    """Load the images whatever they show."""
    from wfcli.core.data import check_unlabelled, load_unlabelled

    check_unlabelled(str(folder))
    assert len(load_unlabelled(str(folder), SIDE, limit=20))


def make_image(random: Random, folder: Path) -> None:
    """Write one hostile image."""
    (folder / "x.img").write_bytes(hostile_image(random))


def read_image(folder: Path) -> None:
    """Decode it as one of a dataset's, from memory and from a file."""
    import numpy as np

    from wfcli.core.decode import decode_all, native_side

    for encoded in ((folder / "x.img").read_bytes(), {"bytes": None, "path": str(folder / "x.img")}):
        side = native_side(encoded, SIDE)
        pixels = decode_all(lambda one=encoded: [[one]], np.array([0]), SIDE, side, "data x: train")  # type: ignore[misc]
        assert pixels.shape[:2] == (1, 3)


TARGETS = {
    "image": Target(make_image, read_image, 4),
    "parquet": Target(make_parquet, read_labelled, 0.15),
    "image folder": Target(make_image_folder, read_labelled, 0.1),
    "unlabelled": Target(make_unlabelled, read_unlabelled, 0.1),
}
