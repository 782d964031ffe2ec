"""Decode a JPEG with libjpeg's warnings as errors, so that every pixel is known to come from data.

Pillow hides these warnings: a file that was cut, or overwritten, and ends with an end mark is half
a picture to it, and the rest grey. simplejpeg raises the first warning. It says nothing where scans
are missing altogether: their headers tell.

Bytes that fill the space before a marker are harmless, and some encoders write them. What looks
like pixels there is what a decoder leaves over that lost its way, and is refused; up to three bytes
before the end mark are harmless if the pixels end as an encoder ends them, with set bits. What
cannot be proven, and is not found on the web, is refused too: arithmetic coding, whose decoders
notice no damage and which no browser shows, and ratios of colours that simplejpeg does not know.

Layout: ITU-T T.81 annexes B, F and G.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cahlib.image.header import JPEG_FRAMES, JPEG_SEQUENTIAL

#: A marker that is not one of a scan's own, which are stuffed zeros and restarts.
AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_ARITHMETIC = range(0xC9, 0xD0)
_SPARE = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_BUFFERED = 9  # bytes that libjpeg has read ahead, and the last one that is needed
_TELLING = 4  # bytes: fewer may be the same by chance
_LOOSE = 3  # bytes of any kind before the end mark
_EOI = b"\xff\xd9"
_END = re.compile(rb"\xff+\xd9\Z")
_TRIES = 12  # decodings without padding: one for each marker that it can stand before

_Pixels = NDArray[np.uint8]


def decode_jpeg(data: bytes, mode: str = "L", size: tuple[int, int] = (1, 1)) -> _Pixels:
    """Return the pixels in "L" or "RGB", scaled down by 1, 2, 4 or 8 to at least ``size``.

    ``data`` is a file as `strip_metadata` leaves it. Raise ValueError if not all of its pixels
    are there. At the least size every bit is read, and little is computed.
    """
    frame, first = _head(data)
    if frame[1] in _ARITHMETIC:
        raise ValueError("arithmetic coding cannot be proven")
    if frame[1] not in JPEG_SEQUENTIAL or data[first + 4] != frame[9]:
        _check_scans(frame, _scans(data, first))
    return _strictly(data, mode, _scaled(frame, size))


def _head(data: bytes) -> tuple[bytes, int]:
    """Return the frame's header from its marker on, and where the first scan begins."""
    at, frame = 2, b""
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] in JPEG_FRAMES:
            frame = data[at:end]
        at = end
    return frame, at


def _scans(data: bytes, at: int) -> Iterator[bytes]:
    """Yield the header of each scan."""
    while data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            yield data[at + 4 : end]
            found = AFTER_SCAN.search(data, end)
            if not found:
                raise ValueError("the pixels have no end")
            end = found.start()
        at = end


def _check_scans(frame: bytes, scans: Iterator[bytes]) -> None:
    """Raise ValueError unless the scans hold each coefficient of each component to its last bit."""
    missing = {
        frame[at]: ([1] if frame[1] in JPEG_SEQUENTIAL else [1] * 64)
        for at in range(10, len(frame), 3)
    }
    for header in scans:
        count = header[0]
        first, last, bits = header[1 + 2 * count : 4 + 2 * count]
        for component in header[1 : 1 + 2 * count : 2]:
            left = missing[component]
            if frame[1] in JPEG_SEQUENTIAL:
                left[0] = 0
            elif last < 64:
                left[first : last + 1] = [bits & 15] * (last + 1 - first)
    if any(any(left) for left in missing.values()):
        raise ValueError("scans are missing")


def _scaled(frame: bytes, size: tuple[int, int]) -> tuple[int, int]:
    """Return the least width and height that libjpeg scales to fast, each at least as wanted."""
    height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (5, 7))
    factor = next(
        (f for f in (8, 4, 2) if -(-width // f) >= size[0] and -(-height // f) >= size[1]), 1
    )
    return -(-width // factor), -(-height // factor)


def _strictly(data: bytes, mode: str, least: tuple[int, int]) -> _Pixels:
    """Decode with warnings as errors; padding is taken out, since only the first is told."""
    for _ in range(_TRIES):
        try:
            pixels: _Pixels = simplejpeg.decode_jpeg(
                data,
                "GRAY" if mode == "L" else mode,
                min_width=least[0],
                min_height=least[1],
                strict=True,
            )
            return pixels[:, :, 0] if mode == "L" else pixels
        except ValueError as error:
            if not (told := _SPARE.search(str(error))):
                raise
            length, marker = int(told[1]), int(told[2], 16)
            shorter = _without_padding(data, length, marker)
            if not shorter and marker == 0xD9 and length <= _LOOSE:
                shorter = _without_loose(data)
            if not shorter:
                raise
            data = shorter
    raise ValueError("there is padding everywhere")


def _without_padding(data: bytes, length: int, marker: int) -> bytes:
    """Take that many bytes out before each such marker; return b"" if they are not padding.

    Before restarts of any number: an encoder that pads one of them pads all.
    """
    kind = b"[\xd0-\xd7]" if 0xD0 <= marker <= 0xD7 else re.escape(bytes([marker]))
    # all the same byte, and no more of them than the decoder did not need
    padding = rb"(?s)(.)\1{%d,%d}(?=\xff+%s)" % (length - 1, length - 1 + _BUFFERED, kind)
    kept, at = [], 0
    for found in re.finditer(padding, data):
        if data[found.start() - 1 : found.start()] == found[1]:
            continue
        if len(found[0]) >= _TELLING or found[1] in (b"\0", b"\xff"):
            kept.append(data[at : found.end() - length])
            at = found.end()
    return b"".join([*kept, data[at:]]) if at else b""


def _without_loose(data: bytes) -> bytes:
    """Take the few bytes out that a scan does not need at its end; return b"" if it seems damaged.

    A decoder that lost its way seldom stops so near to the end, and at three places in four the
    bits of its last byte that it did not read are not all set: 6 of 30,000 files with random damage
    pass, beside the 4,000 in which libjpeg notices nothing.
    """
    end = _END.sub(b"", data)
    loose = next(
        (n for n in range(_LOOSE + 1, 0, -1) if _checksum(end[:-n] + _EOI, 1) is not None), 0
    )
    if not 0 < loose <= _LOOSE:
        return b""
    whole, last = end[:-loose], end[-loose - 1]
    if whole.endswith(b"\xff\0"):  # a byte of set bits
        return whole + _EOI
    changed = bytes([last | (last + 1)]).replace(b"\xff", b"\xff\0")  # its last 0 is 1
    before, after = (_checksum(each + _EOI, 0) for each in (whole, whole[:-1] + changed))
    return b"" if before == after else whole + _EOI


def _checksum(data: bytes, least: int) -> int | None:
    """Return a checksum of the pixels in the file's own colours, None if libjpeg warns.

    A side of at ``least`` 0 pixels is the file's own, of 1 the smallest.
    """
    try:
        kind = simplejpeg.decode_jpeg_header(data)[2]
        space = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(kind, "RGB")
        pixels = simplejpeg.decode_jpeg(data, space, min_width=least, min_height=least, strict=True)
    except ValueError:
        return None
    return zlib.crc32(pixels)
