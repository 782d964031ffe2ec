"""Read the header of an image file: its format by content, its size and its orientation.

Nothing is decoded, so damage to the pixels is not noticed.

Layouts: ITU-T T.81 annex B (JPEG), W3C PNG 3rd edition §5, RFC 9649 (WebP), Exif 2.32 §4.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import features

from cahlib.core.records import DropReason
from cahlib.image import avif

#: Whether this Pillow decodes AVIF, as from 11.3 on; otherwise such a file is not an image.
CAN_DECODE_AVIF = "avif" in features.modules and bool(features.check("avif"))

#: No camera or editor writes more; each scan of a malicious file costs a pass over all pixels.
_MAX_SCANS = 64

#: JPEG's frame markers, and those of frames whose scans contain whole components.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})

#: The EXIF flag of VP8X (RFC 9649, 2.7.1).
WEBP_EXIF_FLAG = 0x08


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """The header of an image file."""

    format: str  #: "jpg", "png", "webp" or "avif"
    width: int  #: pixels, before the orientation is applied
    height: int
    orientation: int = 1  #: of EXIF, 1 to 8


def image_format(start: bytes) -> str | None:
    """Return the format that the first 12 bytes of a file show, None for any other."""
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    if CAN_DECODE_AVIF and start[4:8] == b"ftyp" and start[8:12] in avif.AVIF_BRANDS:
        return "avif"
    return None


def read_header(data: bytes) -> ImageHeader | DropReason:
    """Return a file's header; NOT_AN_IMAGE for another format, BROKEN_IMAGE if truncated."""
    format = image_format(data)
    if format is None:
        return DropReason.NOT_AN_IMAGE
    try:
        found = {"jpg": _jpeg, "png": _png, "webp": _webp, "avif": _avif}[format](data)
    except (struct.error, IndexError, ValueError):  # the file is shorter than announced
        return DropReason.BROKEN_IMAGE
    return found or DropReason.BROKEN_IMAGE


def _jpeg(data: bytes) -> ImageHeader | None:
    size, parts, orientation = None, 0, 1
    for marker, start, end in _segments(data):
        if marker == 0xDA:  # the first scan, where the pixels begin
            if size is None:
                return None
            # if the first has all components, decoders read no other
            if data[start + 4] != parts and data.count(b"\xff\xda", start) > _MAX_SCANS:
                return None
            break
        if marker in JPEG_FRAMES:
            size = struct.unpack_from(">HH", data, start + 5)
            parts = data[start + 9] if marker in JPEG_SEQUENTIAL else 0
        if marker == 0xE1 and data.startswith(b"Exif\0\0", start + 4):
            orientation = _orientation(data[start + 4 : end])
    else:
        return None
    return ImageHeader(format="jpg", width=size[1], height=size[0], orientation=orientation)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, start and end of each segment of a JPEG; skip what is between them."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # has no length
            at += 2
        elif marker == 0xD9:
            return
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            end = at + 2 + length
            if length < 2 or end > len(data):
                return
            yield marker, at, end
            at = end


def _orientation(exif: bytes) -> int:
    """Return tag 0x0112 of the first directory, 1 if it is absent or invalid."""
    tiff = exif.removeprefix(b"Exif\0\0")  # JPEG's prefix, which other formats sometimes have
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(min(entries, 500)):
            tag, kind, count, value = struct.unpack_from(
                order + "HHIH", tiff, directory + 2 + 12 * entry
            )
            if tag == 0x0112:
                return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png(data: bytes) -> ImageHeader | None:
    at, name, orientation = 8, b"", 1
    while name != b"IEND" and len(data) - at >= 12:  # a missing IEND is harmless
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return None
        if name == b"eXIf":
            orientation = _orientation(data[at + 8 : end - 4])
        at = end
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return ImageHeader(format="png", width=width, height=height, orientation=orientation)


def _webp(data: bytes) -> ImageHeader | None:
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        return None
    kind, orientation = data[12:16], 1
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        if data[20] & WEBP_EXIF_FLAG:
            orientation = _orientation(find_webp_chunk(data, b"EXIF", 8 + length))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return ImageHeader(format="webp", width=width, height=height, orientation=orientation)


def _avif(data: bytes) -> ImageHeader:
    width, height, orientation = avif.read_avif_header(data)
    return ImageHeader(format="avif", width=width, height=height, orientation=orientation)


def find_webp_chunk(data: bytes, wanted: bytes, end: int) -> bytes:
    """Return the content of a WebP's first chunk of this name, b"" if there is none."""
    at = 12
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        if name == wanted:
            return data[at + 8 : min(at + 8 + length, end)]
        at += 8 + length + length % 2
    return b""
