"""How large an encoded image claims to be, before a pixel of it is decoded: a few hundred bytes may claim gigabytes.

Of JPEG and WebP, which torchvision decodes; Pillow tells the size of all others itself.
"""

from __future__ import annotations

MOST_PIXELS = 50_000_000  # 7,000 x 7,000; as floats 600 MB
MOST_RATIO = 100  # of the sides: the shorter one is brought to what a net wants, the other in proportion
MOST_SCANS = 100  # of a progressive JPEG, each of which goes over all pixels; ten are usual


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels; None where it is neither JPEG nor WebP, or its header is damaged.

    Raises:
        ValueError: it would take hours to decode.
    """
    if data[:2] == b"\xff\xd8":
        if _has_many_scans(data):
            raise ValueError(f"a JPEG of more than {MOST_SCANS} scans")
        return _jpeg_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def png_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG; None where it is none."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def check_size(width: int, height: int) -> None:
    """Refuse an image that is too large, or too long, to be brought to the size that a net wants.

    Raises:
        ValueError: it is one.
    """
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels, expected {MOST_PIXELS:,} at most")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels, expected no side {MOST_RATIO} times the other")


def _has_many_scans(data: bytes) -> bool:
    """Go from marker to marker as a decoder does, to the end of the image: what lies behind it is not decoded."""
    at, scans = 2, 0
    while scans <= MOST_SCANS:
        at = data.find(b"\xff", at)
        marker = data[at + 1] if 0 <= at < len(data) - 1 else 0xD9
        if marker == 0xD9:
            return False
        scans += marker == 0xDA
        if marker == 0xFF:  # filled up
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these have no length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # filled up
            at += 1
            continue
        if marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # without a length, and none of them stands before the size
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if len(data) < 30:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None
