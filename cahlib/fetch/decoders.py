"""Decode content codings (gzip, deflate, br, zstd) chunk by chunk, up to a limit.

They are never requested; servers that use them anyway are read the way browsers do.
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

#: Codings of one response; honest ones have one.
_MAX_CODINGS = 3

#: First bytes of undeclared codings; br has none.
_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x78\x01": "deflate",
    b"\x78\x5e": "deflate",
    b"\x78\x9c": "deflate",
    b"\x78\xda": "deflate",
}

#: zstd's largest window (RFC 8878): 8 MiB, as in browsers.
_WINDOW: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 23}


class DecodingError(ValueError):
    """The bytes do not match their coding."""


class Decoder(Protocol):
    """Decodes one coding."""

    @property
    def is_complete(self) -> bool:
        """Return whether the end has been read."""

    def feed(self, data: bytes, most: int) -> bytes:
        """Return decoded bytes, at most ``most``; raise DecodingError."""


class _Zlib:
    """Decodes gzip with one or more members, and deflate with or without a zlib header."""

    def __init__(self, bits: int) -> None:
        self._bits, self._started = bits, False
        self._decoder = zlib.decompressobj(bits)

    @property
    def is_complete(self) -> bool:
        return self._decoder.eof

    def feed(self, data: bytes, most: int) -> bytes:
        found = b""
        while data and len(found) < most:
            if self._decoder.eof:
                if self._bits != 31 or not data.startswith(b"\x1f\x8b"):
                    break  # ignore what follows the end
                self._decoder = zlib.decompressobj(31)
            try:
                found += self._decoder.decompress(data, most - len(found))
            except zlib.error as error:
                if self._started or self._bits != 15:
                    raise DecodingError(str(error)) from error
                self._bits = -15  # raw deflate, which some servers send
                self._decoder = zlib.decompressobj(-15)
                continue
            self._started = True
            data = self._decoder.unconsumed_tail or self._decoder.unused_data
        return found


class _Brotli:
    """Decodes br."""

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()

    @property
    def is_complete(self) -> bool:
        return bool(self._decoder.is_finished())

    def feed(self, data: bytes, most: int) -> bytes:
        found = b""
        try:
            while len(found) < most and not self._decoder.is_finished():
                piece = self._decoder.process(data, output_buffer_limit=most - len(found))
                found, data = found + piece, b""
                if not piece and self._decoder.can_accept_more_data():
                    break
        except brotli.error as error:
            raise DecodingError(str(error)) from error
        return found[:most]


class _Zstd:
    """Decodes zstd with one or more frames."""

    def __init__(self) -> None:
        self._decoder: Any = zstd.ZstdDecompressor(options=_WINDOW)

    @property
    def is_complete(self) -> bool:
        return bool(self._decoder.eof)

    def feed(self, data: bytes, most: int) -> bytes:
        found = b""
        try:
            while len(found) < most:
                if self._decoder.eof:
                    if not (data := data or self._decoder.unused_data):
                        break
                    self._decoder = zstd.ZstdDecompressor(options=_WINDOW)
                piece = self._decoder.decompress(data, most - len(found))
                found, data = found + piece, b""
                if not piece and not self._decoder.eof:
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
    """Decodes all codings of one response, ignoring unknown ones."""

    def __init__(self, codings: Iterable[str]) -> None:
        named = [each.strip().lower() for coding in codings for each in coding.split(",")]
        known = [each for each in named if each in _DECODERS]
        if len(known) > _MAX_CODINGS:
            raise DecodingError("too many codings")
        self._steps: list[Decoder] = [_DECODERS[each]() for each in reversed(known)]

    def __bool__(self) -> bool:
        return bool(self._steps)

    @property
    def is_complete(self) -> bool:
        """Return whether the end of each coding has been read."""
        return all(step.is_complete for step in self._steps)

    def feed(self, data: bytes, most: int) -> bytes:
        """Return decoded bytes, at most ``most`` at each step; raise DecodingError."""
        for step in self._steps:
            data = step.feed(data, most)
        return data


def decode_body(body: bytes, codings: Iterable[str], most: int, *, cut: bool = False) -> bytes:
    """Return a small file's first bytes, decoded, whether the codings are declared or not.

    ``cut``: only the beginning of the file is given. A text that is not encoded, contrary to its
    headers, is returned unchanged; raise DecodingError for anything else that cannot be decoded.
    """
    named = list(codings)
    try:
        decoders = Decoders(named)
        found = decoders.feed(body, most) if decoders else body
        if decoders and body and not (decoders.is_complete or cut or len(found) >= most):
            raise DecodingError("the data ends early")
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
