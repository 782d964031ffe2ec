"""Decode a JPEG with libjpeg's warnings as errors, so that every pixel is known to come from data.

Pillow hides these warnings: a file that was cut, or overwritten, and ends with an end mark is half
a picture to it, and the rest grey. simplejpeg raises the first warning. It says nothing where

- scans are missing altogether: their headers tell (`_check_scans`);
- pixels are coded arithmetically: bytes put behind each scan show whether the decoder ran out of
  data there (`_check_ends`).

Bytes that fill the space before a marker are harmless, and some encoders write them. What looks
like pixels there is what a decoder leaves over that lost its way, and is refused. So are ratios of
colours that simplejpeg does not know, which no common encoder writes.

Layout: ITU-T T.81 annexes B, F and G.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from cahlib.scrape.anatomy import FRAMES, SEQUENTIAL

#: A marker that is not one of a scan's own, which are stuffed zeros and restarts.
AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_ARITHMETIC = range(0xC9, 0xD0)
_SPARE = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_BUFFERED = 9  # bytes that libjpeg has read ahead, and the last one that is needed
_TRIES = 12  # decodings without padding: one for each marker that it can stand before
_SPILL = 0.01  # of the pixels: an arithmetic coder may leave out the zeros that end a scan

Pixels = NDArray[np.uint8]


def prove(data: bytes) -> None:
    """Raise ValueError if not all pixels of a file are there, or OSError if no reader loads it.

    ``data`` is a file as `cahlib.scrape.strip` leaves it. Every bit is read, and little computed.
    """
    decode(data, "L", (1, 1))
    if _head(data)[0][1] in _ARITHMETIC:
        with JpegImageFile(BytesIO(data)) as image:  # as readers do: Pillow fails beyond 64 KiB
            image.load()


def decode(data: bytes, mode: str, size: tuple[int, int]) -> Pixels:
    """Return the pixels in "L" or "RGB", scaled down by 1, 2, 4 or 8 to at least ``size``.

    Raise ValueError if not all of them are there.
    """
    frame, first = _head(data)
    if frame[1] in _ARITHMETIC or frame[1] not in SEQUENTIAL or data[first + 4] != frame[9]:
        scans = list(_scans(data, first))
        _check_scans(frame, [header for header, _ in scans])
    pixels = _strictly(data, mode, _scaled(frame, size))
    if frame[1] in _ARITHMETIC:
        _check_ends(data, [end for _, end in scans])
    return pixels


def _head(data: bytes) -> tuple[bytes, int]:
    """Return the frame's header from its marker on, and where the first scan begins."""
    at, frame = 2, b""
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] in FRAMES:
            frame = data[at:end]
        at = end
    return frame, at


def _scans(data: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Yield of each scan its header and where its pixels end."""
    while data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            header = data[at + 4 : end]
            found = AFTER_SCAN.search(data, end)
            if not found:
                raise ValueError("the pixels have no end")
            end = found.start()
            yield header, end
        at = end


def _check_scans(frame: bytes, scans: list[bytes]) -> None:
    """Raise ValueError unless the scans hold each coefficient of each component to its last bit."""
    missing = {
        frame[at]: ([1] if frame[1] in SEQUENTIAL else [1] * 64) for at in range(10, len(frame), 3)
    }
    for header in scans:
        count = header[0]
        first, last, bits = header[1 + 2 * count : 4 + 2 * count]
        for component in header[1 : 1 + 2 * count : 2]:
            left = missing[component]
            if frame[1] in SEQUENTIAL:
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


def _strictly(data: bytes, mode: str, least: tuple[int, int]) -> Pixels:
    """Decode with warnings as errors; padding is taken out, since only the first is told."""
    for _ in range(_TRIES):
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
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
            data = _without_padding(data, int(told[1]), int(told[2], 16))
    raise ValueError("there is padding everywhere")


def _without_padding(data: bytes, length: int, marker: int) -> bytes:
    """Take that many bytes out before each such marker, where they are padding.

    Before restarts of any number: an encoder that pads one of them pads all.
    """
    kind = b"[\xd0-\xd7]" if 0xD0 <= marker <= 0xD7 else re.escape(bytes([marker]))
    # all the same byte, and no more of them than the decoder did not need
    padding = rb"(?s)(.)\1{%d,%d}(?=\xff+%s)" % (length - 1, length - 1 + _BUFFERED, kind)
    kept, at = [], 0
    for found in re.finditer(padding, data):
        if data[found.start() - 1 : found.start()] != found[1]:
            kept.append(data[at : found.end() - length])
            at = found.end()
    if not at:
        raise ValueError("pixels are left over")
    return b"".join([*kept, data[at:]])


def _check_ends(data: bytes, ends: list[int]) -> None:
    """Raise ValueError if what stands behind the ends of the scans shows in the picture."""
    one, other = (_plainly(b"".join(_prolonged(data, ends, filling))) for filling in (0, 0xAA))
    if (one != other).any(axis=2).mean() > _SPILL:
        raise ValueError("the pixels end early")


def _prolonged(data: bytes, ends: list[int], filling: int) -> Iterator[bytes]:
    at = 0
    for end in ends:
        yield data[at:end].rstrip(data[end - 1 : end])  # padding may have been taken for pixels
        yield bytes([filling]) * 4096
        at = end
    yield data[at:]


def _plainly(data: bytes) -> Pixels:
    """Decode with Pillow, which does not warn."""
    with JpegImageFile(BytesIO(data)) as image:
        image.decodermaxblock = len(data)
        return np.asarray(image.convert("RGB"))
