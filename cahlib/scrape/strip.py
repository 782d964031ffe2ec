"""Takes out of an image file what its pixels do not need: EXIF, XMP, IPTC, comments, thumbnails.

Nothing is encoded again. What says how colours are shown stays (ICC profile, gamma, Adobe's
marker), and so does the orientation, alone. What stands behind the end of the image goes too, and
of an animation all but its first frame, which alone is proven and judged.
It takes files that `cahlib.scrape.gate` has proven; others raise ValueError, or come out anyhow.

Layouts: ITU-T T.81 annex B (JPEG), W3C PNG 3rd edition §5 and §11, RFC 9649 (WebP).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from zlib import crc32

from cahlib.scrape.anatomy import EXIF

_PNG_KEPT = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    | {b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs"}
)
_WEBP_KEPT = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP"})

#: A marker that is none of a scan's own, which are stuffed zeros and restarts.
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_ANIMATION, _XMP = 0x02, 0x04  # VP8X's flags, as `EXIF`


def stripped(data: bytes, format: str, orientation: int) -> bytes:
    """The file without its metadata; ``format``: "jpg", "png" or "webp"."""
    try:
        if format == "jpg":
            return b"".join(_jpeg(data, orientation))
        return b"".join(_png(data, orientation)) if format == "png" else _webp(data, orientation)
    except (struct.error, IndexError) as error:
        raise ValueError("the file is not whole") from error


def _jpeg(data: bytes, orientation: int) -> Iterator[bytes]:
    yield data[:2]
    at, turned = 2, orientation == 1
    while (at := data.index(b"\xff", at)) >= 0:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            yield data[at : at + 2]
            return
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # stands alone
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not turned and marker != 0xE0:
            exif = b"Exif\0\0" + _exif(orientation)
            yield b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
            turned = True
        yield _kept(marker, data[at:end])
        if marker == 0xDA:
            start, end = end, _scan_end(data, end)
            yield data[start:end]
        at = end


def _kept(marker: int, segment: bytes) -> bytes:
    """What of a segment of a JPEG has to do with its pixels or colours."""
    name = segment[4:]
    if marker == 0xE0:  # JFIF, whose thumbnail stands behind the density; others have nothing else
        whole = name.startswith(b"JFIF\0") and len(segment) >= 18
        return b"\xff\xe0\0\x10" + segment[4:16] + b"\0\0" if whole else b""
    if marker == 0xEE:
        whole = name.startswith(b"Adobe") and len(segment) >= 16
        return b"\xff\xee\0\x0e" + segment[4:16] if whole else b""
    if marker == 0xE2:
        return segment if name.startswith(b"ICC_PROFILE\0") else b""
    return b"" if 0xE0 <= marker <= 0xEF or marker == 0xFE else segment


def _scan_end(data: bytes, at: int) -> int:
    """Where the coded pixels that begin at a place end: at the next marker of another kind."""
    if end := _AFTER_SCAN.search(data, at):
        return end.start()
    raise ValueError("the pixels have no end")


def _exif(orientation: int) -> bytes:
    """EXIF that says how the picture is turned, and nothing else."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def _png(data: bytes, orientation: int) -> Iterator[bytes]:
    yield data[:8]
    at, name = 8, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        if name in _PNG_KEPT:
            yield data[at : at + 12 + length]
        if name == b"IHDR" and orientation != 1:
            part = b"eXIf" + _exif(orientation)
            yield struct.pack(">I", len(part) - 4) + part + struct.pack(">I", crc32(part))
        at += 12 + length


def _webp(data: bytes, orientation: int) -> bytes:
    end = 8 + int(struct.unpack_from("<I", data, 4)[0])
    kept, at, exif, canvas = [b"WEBP"], 12, b"", b""
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        following = at + 8 + length + length % 2
        chunk = data[at : min(following, end)]
        if name == b"VP8X":
            flags = chunk[8] & ~(EXIF | _XMP | _ANIMATION)
            canvas = chunk[12:18] if chunk[8] & _ANIMATION else b""
            if orientation != 1:
                flags |= EXIF
                tiff = _exif(orientation)
                exif = struct.pack("<4sI", b"EXIF", len(tiff)) + tiff
            chunk = chunk[:8] + bytes([flags]) + chunk[9:]
        if name == b"ANMF":  # the first frame: its place and size, and behind 16 bytes its chunks
            if chunk[8:20] != bytes(6) + canvas:
                raise ValueError("the first frame is not the whole picture")
            at, end = at + 24, min(following, end)
            continue
        if name in _WEBP_KEPT:
            kept.append(chunk + bytes(len(chunk) % 2))
        at = following
    body = b"".join(kept) + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body
