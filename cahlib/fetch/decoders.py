"""Content codings (gzip, deflate, br, zstd), undone piece by piece and never beyond a limit.

Nobody is asked for them; servers that use them all the same are read as browsers read them.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import brotli  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Codings of one answer; honest ones have one.
_MOST = 3

#: First bytes of what was packed without a word about it; br has none.
_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x78\x01": "deflate",
    b"\x78\x5e": "deflate",
    b"\x78\x9c": "deflate",
    b"\x78\xda": "deflate",
}

#: What zstd may use as its window (RFC 8878): 8 MiB, as browsers allow.
_WINDOW: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 23}


class DecodingError(ValueError):
    """The bytes are not what their coding says."""


class Decoder(Protocol):
    """Undoes one coding."""

    @property
    def is_complete(self) -> bool:
        """Whether the end was there."""

    def feed(self, data: bytes, most: int) -> bytes:
        """Return what some bytes hold, at most so many; raise Undecodable."""


class _Zlib:
    """Undoes gzip, of one member or several, and deflate with or without zlib's head."""

    def __init__(self, bits: int) -> None:
        self._bits, self._begun = bits, False
        self._undone = zlib.decompressobj(bits)

    @property
    def is_complete(self) -> bool:
        return self._undone.eof

    def feed(self, data: bytes, most: int) -> bytes:
        found = b""
        while data and len(found) < most:
            if self._undone.eof:
                if self._bits != 31 or not data.startswith(b"\x1f\x8b"):
                    break  # what stands behind the end is nothing
                self._undone = zlib.decompressobj(31)
            try:
                found += self._undone.decompress(data, most - len(found))
            except zlib.error as error:
                if self._begun or self._bits != 15:
                    raise DecodingError(str(error)) from error
                self._bits = -15  # raw deflate, as some servers understand the word
                self._undone = zlib.decompressobj(-15)
                continue
            self._begun = True
            data = self._undone.unconsumed_tail or self._undone.unused_data
        return found


class _Brotli:
    """Undoes br."""

    def __init__(self) -> None:
        self._undone = brotli.Decompressor()

    @property
    def is_complete(self) -> bool:
        return bool(self._undone.is_finished())

    def feed(self, data: bytes, most: int) -> bytes:
        found = b""
        try:
            while len(found) < most and not self._undone.is_finished():
                piece = self._undone.process(data, output_buffer_limit=most - len(found))
                found, data = found + piece, b""
                if not piece and self._undone.can_accept_more_data():
                    break
        except brotli.error as error:
            raise DecodingError(str(error)) from error
        return found[:most]


class _Zstd:
    """Undoes zstd, of one frame or several."""

    def __init__(self) -> None:
        self._undone: Any = zstd.ZstdDecompressor(options=_WINDOW)

    @property
    def is_complete(self) -> bool:
        return bool(self._undone.eof)

    def feed(self, data: bytes, most: int) -> bytes:
        found = b""
        try:
            while len(found) < most:
                if self._undone.eof:
                    if not (data := data or self._undone.unused_data):
                        break
                    self._undone = zstd.ZstdDecompressor(options=_WINDOW)
                piece = self._undone.decompress(data, most - len(found))
                found, data = found + piece, b""
                if not piece and not self._undone.eof:
                    break
        except zstd.ZstdError as error:
            raise DecodingError(str(error)) from error
        return found


_DECODERS: Mapping[str, Callable[[], Decoder]] = {
    "gzip": lambda: _Zlib(31),
    "x-gzip": lambda: _Zlib(31),
    "deflate": lambda: _Zlib(15),
    "br": _Brotli,
    "zstd": _Zstd,
}


class Decoders:
    """Undoes all codings of one answer; unknown words change nothing."""

    def __init__(self, codings: Iterable[str]) -> None:
        named = [each.strip().lower() for coding in codings for each in coding.split(",")]
        known = [each for each in named if each in _DECODERS]
        if len(known) > _MOST:
            raise DecodingError("packed too often")
        self._steps: list[Decoder] = [_DECODERS[each]() for each in reversed(known)]

    def __bool__(self) -> bool:
        return bool(self._steps)

    @property
    def is_complete(self) -> bool:
        """Whether each coding's end was there."""
        return all(step.is_complete for step in self._steps)

    def feed(self, data: bytes, most: int) -> bytes:
        """Return what some bytes hold, at most so many at each step; raise Undecodable."""
        for step in self._steps:
            data = step.feed(data, most)
        return data


def decode_body(body: bytes, codings: Iterable[str], most: int, *, cut: bool = False) -> bytes:
    """Return a small file's first bytes without its codings, be they named or not.

    ``cut`` says that only the beginning of the file is there. A text that is not packed at all
    though its headers say so is taken as it is; raise Undecodable for all else that cannot be read.
    """
    named = list(codings)
    try:
        decoders = Decoders(named)
        found = decoders.feed(body, most) if decoders else body
        if decoders and body and not (decoders.is_complete or cut or len(found) >= most):
            raise DecodingError("breaks off")
    except DecodingError:
        if b"\0" in body or not _is_text(body):
            raise
        return body[:most]
    magic = next((coding for start, coding in _MAGIC.items() if found.startswith(start)), None)
    if magic and magic not in named and not _is_text(found):
        return decode_body(found, [magic], most, cut=cut)
    return found[:most]


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True
