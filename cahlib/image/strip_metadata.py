"""Remove from an image file what its pixels do not need: EXIF, XMP, IPTC, comments, thumbnails.

Nothing is encoded again. Information about colours stays (ICC profile, gamma, Adobe's marker), and
so does the orientation. Anything behind the end of the image is removed, and all frames of an
animation but the first, the only one that is validated and scored. The result has to be validated
by `cahlib.image.validate`; for damaged files it is undefined, or ValueError is raised.

Layouts: ITU-T T.81 annex B (JPEG), W3C PNG 3rd edition §5 and §11, RFC 9649 (WebP).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from zlib import crc32, decompressobj
from zlib import error as zlib_error

from cahlib.image import avif
from cahlib.image.colours import is_valid_profile
from cahlib.image.header import JPEG_FRAMES, JPEG_SEQUENTIAL, WEBP_EXIF_FLAG, find_webp_chunk
from cahlib.image.jpeg import AFTER_SCAN

_PROFILE = b"ICC_PROFILE\0"  # how such a segment of a JPEG begins

_PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_PALETTE = 3  # the colour type of a PNG
#: Ancillary chunks of a PNG that are kept: their length, or that by colour type, and whether they
#: must follow the palette.
_PNG_ANCILLARY: dict[bytes, tuple[int | dict[int, int], bool]] = {
    b"cICP": (4, False),
    b"iCCP": (0, False),
    b"sRGB": (1, False),
    b"gAMA": (4, False),
    b"cHRM": (32, False),
    b"pHYs": (9, False),
    b"sBIT": ({0: 1, 2: 3, 3: 3, 4: 2, 6: 4}, False),
    b"bKGD": ({0: 2, 2: 6, 3: 1, 4: 2, 6: 6}, True),
    b"tRNS": ({0: 2, 2: 6, 4: -1, 6: -1}, True),
}
_WEBP_KEPT = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP"})
_MAX_PROFILE = 1 << 20  # bytes of a PNG's profile, Pillow's limit

_ANIMATION, _XMP, _ICC = 0x02, 0x04, 0x20  # flags of VP8X, as `WEBP_EXIF_FLAG`


def strip_metadata(data: bytes, format: str, orientation: int) -> bytes:
    """Return a file without its metadata; ``format``: "jpg", "png", "webp" or "avif"."""
    try:
        if format == "jpg":
            return b"".join(_jpeg(data, orientation))
        if format == "avif":
            return avif.strip_avif(data)
        return b"".join(_png(data, orientation)) if format == "png" else _webp(data, orientation)
    except (struct.error, IndexError) as error:
        raise ValueError("the file is truncated") from error


def _jpeg(data: bytes, orientation: int) -> Iterator[bytes]:
    parts = list(_segments(data))
    headers = {data[start + 1]: data[start:end] for start, end, _ in parts}
    frames = [marker for marker in headers if marker in JPEG_FRAMES]
    if len(frames) != 1:
        raise ValueError("the file has no frame, or more than one")
    components = headers[frames[0]][9]
    profile = _has_valid_profile(
        [data[start + 4 : end] for start, end, _ in parts if data[start + 1] == 0xE2]
    )
    turned = orientation == 1
    yield data[:2]
    for start, end, following in parts:
        marker = data[start + 1]
        if not turned and marker != 0xE0:
            exif = b"Exif\0\0" + _exif(orientation)
            yield b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
            turned = True
        if marker == 0xDA and frames[0] in JPEG_SEQUENTIAL:
            # these three bytes have no meaning then, but libjpeg warns about other values
            yield data[start : end - 3] + b"\0\x3f\0"
        else:
            yield _stripped_segment(marker, data[start:end], components, profile)
        yield data[end:following].rstrip(b"\xff")
    yield b"\xff\xd9"  # a missing end marker says nothing about the pixels


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the start and end of each segment of a JPEG, and the end of the pixels after it."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data) and data[at + 1] != 0xD9:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # has no length
            at += 2
        else:
            following = end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
            if end > len(data) or end < at + 4:
                raise ValueError("a segment is truncated")
            if marker == 0xDA:
                found = AFTER_SCAN.search(data, end)
                following = found.start() if found else len(data)
            yield at, end, following
            at = following


def _stripped_segment(marker: int, segment: bytes, components: int, profile: bool) -> bytes:
    """Return what a segment of a JPEG says about its pixels or colours, or b"".

    Versions and codes that libjpeg does not know are replaced by how it interprets them.
    """
    name = segment[4:]
    if (
        marker == 0xE0
    ):  # JFIF: drop the thumbnail after the density; other APP0 segments are thumbnails
        whole = name.startswith(b"JFIF\0") and len(segment) >= 18
        return b"\xff\xe0\0\x10JFIF\0\1" + segment[10:16] + b"\0\0" if whole else b""
    if marker == 0xEE:
        whole = name.startswith(b"Adobe") and len(segment) >= 16
        code = segment[15] and (2 if components == 4 else 1) if whole else 0
        return b"\xff\xee\0\x0e" + segment[4:15] + bytes([code]) if whole else b""
    if marker == 0xE2:
        return segment if profile and name.startswith(_PROFILE) else b""
    return b"" if 0xE0 <= marker <= 0xEF or marker == 0xFE else segment


def _has_valid_profile(parts: list[bytes]) -> bool:
    """Return whether the parts of a JPEG's colour profile are complete and valid."""
    mine = sorted(part[len(_PROFILE) :] for part in parts if part.startswith(_PROFILE))
    numbers = [(part[0], part[1]) for part in mine if len(part) > 2]
    counted = numbers == [(number + 1, len(mine)) for number in range(len(mine))]
    return counted and is_valid_profile(b"".join(part[2:] for part in mine))


def _exif(orientation: int) -> bytes:
    """Return EXIF with the orientation and nothing else."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def _png(data: bytes, orientation: int) -> Iterator[bytes]:
    yield data[:8]
    at, name, before = 8, b"", dict[bytes, int]()  # the lengths of the chunks kept so far
    while name != b"IEND":
        if len(data) - at < len(_IEND) and b"IDAT" in before:
            data = data[:at] + _IEND  # a missing IEND says nothing about the pixels
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        at += 12 + length
        if name not in _PNG_CRITICAL and (name not in _PNG_ANCILLARY or name in before):
            continue
        (checksum,) = struct.unpack_from(">I", chunk, 8 + length)
        whole = crc32(memoryview(chunk)[4:-4]) == checksum
        if name in _PNG_CRITICAL and not whole:
            raise ValueError("a chunk of the picture is damaged")
        if name == b"IHDR":
            kind = chunk[17]
        if name in _PNG_CRITICAL or (whole and _is_valid_chunk(name, chunk[8:-4], kind, before)):
            yield chunk
            before[name] = length
        if name == b"IHDR" and orientation != 1:
            part = b"eXIf" + _exif(orientation)
            yield struct.pack(">I", len(part) - 4) + part + struct.pack(">I", crc32(part))


def _is_valid_chunk(name: bytes, content: bytes, kind: int, before: dict[bytes, int]) -> bool:
    """Return whether an ancillary chunk of a PNG is valid and in place; others break decoders."""
    lengths, behind_palette = _PNG_ANCILLARY[name]
    palette = before.get(b"PLTE", 0) // 3
    if b"IDAT" in before or (not behind_palette and palette and name != b"pHYs"):
        return False
    if kind == _PALETTE and behind_palette and not palette:
        return False
    if name == b"tRNS" and kind == _PALETTE:
        return 0 < len(content) <= palette
    if name == b"iCCP":
        return _is_valid_iccp(content)
    if name == b"sRGB" and content > b"\x03":
        return False
    return len(content) == (lengths[kind] if isinstance(lengths, dict) else lengths)


def _is_valid_iccp(content: bytes) -> bool:
    """Return whether a PNG's iCCP has a name and a valid profile, complete and not too large."""
    name, _, packed = content.partition(b"\0")
    if not 1 <= len(name) <= 79 or packed[:1] != b"\0":
        return False
    inflating = decompressobj()
    try:
        profile = inflating.decompress(packed[1:], _MAX_PROFILE)
    except zlib_error:
        return False
    return inflating.eof and is_valid_profile(profile)


def _webp(data: bytes, orientation: int) -> bytes:
    end = 8 + int(struct.unpack_from("<I", data, 4)[0])
    kept, at, exif, canvas, profile = [b"WEBP"], 12, b"", b"", False
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        following = at + 8 + length + length % 2
        chunk = data[at : min(following, end)]
        if name == b"VP8X":
            profile = bool(chunk[8] & _ICC) and is_valid_profile(
                find_webp_chunk(data, b"ICCP", end)
            )
            flags = chunk[8] & ~(WEBP_EXIF_FLAG | _XMP | _ANIMATION | (0 if profile else _ICC))
            canvas = chunk[12:18] if chunk[8] & _ANIMATION else b""
            if orientation != 1:
                flags |= WEBP_EXIF_FLAG
                tiff = _exif(orientation)
                exif = struct.pack("<4sI", b"EXIF", len(tiff)) + tiff
            chunk = chunk[:8] + bytes([flags]) + chunk[9:]
        if name == b"ANMF":  # the first frame: its position and size, and after 16 bytes its chunks
            if chunk[8:20] != bytes(6) + canvas:
                raise ValueError("the first frame is not the whole picture")
            at, end = at + 24, min(following, end)
            continue
        if name in _WEBP_KEPT and (name != b"ICCP" or profile):
            kept.append(chunk + bytes(len(chunk) % 2))
        at = following
    body = b"".join(kept) + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body
