"""Rewrite response headers that browsers accept into the form that aiohttp's parser accepts.

Repeated values, malformed lines or an old HTTP version are no reason to reject an image. If two
interpretations differ in where the body ends, the parser gets the header unchanged. Since proxies
may have interpreted an irregular header differently, its connection is never reused.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

#: Bytes of a header section, as in browsers, and lines.
MAX_HEAD_BYTES, MAX_HEAD_LINES = 256 << 10, 5000

#: The end of the headers; lines end with or without a carriage return.
_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(
    rb"[\s\S]{0,4}?(?:HTTP/(\d)\.(\d)|ICY)[ \t]+(\d{3})(?!\d)[^\r\n]*", re.IGNORECASE
)
#: The beginning of a possible status line.
_STATUS_START = re.compile(rb"[\s\S]{0,4}?(?:HTTP/|ICY )|[\s\S]{0,9}\Z", re.IGNORECASE)
_NAME = re.compile(rb"[!#-'*+.0-9A-Z^-z|~-]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_INTERIM = re.compile(rb"[^\r\n]{0,12}[ \t]1(?!01)\d\d(?!\d)")
_FRAMING_LINE = re.compile(rb"\n((?:content-length|transfer-encoding)[^\r\n]*)")
_OTHER = rb"(?:(?!content-length|transfer-encoding)[!#-'*+.0-9A-Z^-z|~-]+: [ -~]*\r\n)*"
#: What most headers look like: one line defines where the body ends, and nothing needs changing.
_REGULAR = re.compile(
    rb"HTTP/1\.1 [2-5]\d\d [ -~]*\r\n%bcontent-length: \d{1,18}\r\n%b\r\n" % (_OTHER, _OTHER),
    re.IGNORECASE,
)
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


def is_regular(data: bytes) -> bool:
    """Return whether data begins with complete headers in which nothing needs changing."""
    return _REGULAR.match(data) is not None


def normalize_head(head: bytes) -> bytes | None:
    """Return headers, with the empty line, in regular form; None if they must not change."""
    first, *rest = re.split(rb"\r?\n", head.rstrip(b"\r\n"))
    status = _STATUS.fullmatch(first)
    if not status:
        return None
    old = status[1] is None or (status[1], status[2]) < (b"1", b"1")
    fields: list[tuple[bytes, bytes]] = []
    for line in rest:
        if line[:1] in (b" ", b"\t") and fields:  # RFC 9112, 5.2: a folded line
            name, value = fields[-1]
            fields[-1] = name, value + b" " + line.strip()
            continue
        name, colon, value = line.partition(b":")
        if colon and _NAME.fullmatch(name := name.strip()):
            fields.append((name, value.strip(b" \t")))
    framing = _framing(fields, old)
    if framing is None:
        return None
    lines = [b"HTTP/1.%d %s OK" % (not old, status[3])]
    lines += [
        name + b": " + _CONTROL.sub(b"", value)
        for name, value in fields
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    return b"\r\n".join([*lines, *framing, b"", b""])


def _framing(fields: list[tuple[bytes, bytes]], old: bool) -> list[bytes] | None:
    """Return the line that defines where the body ends; None if that is ambiguous."""
    lengths, codings = set[bytes](), set[bytes]()
    for name, value in fields:
        if (lower := name.lower()) == b"content-length":
            lengths.update(each.strip() for each in value.split(b",") if each.strip())
        elif lower == b"transfer-encoding":
            codings.update(each.strip().lower() for each in value.split(b","))
    if b"chunked" in codings:  # RFC 9112, 6.3: it overrides a length, except for old servers
        sure = not old and codings <= {b"chunked", b"identity", b""}
        return [b"Transfer-Encoding: chunked"] if sure else None
    if len({each.lstrip(b"0") for each in lengths}) > 1:
        return None
    if not all(map(_LENGTH.fullmatch, lengths)):
        return None
    return [b"Content-Length: " + each for each in list(lengths)[:1]]


class LenientHandler(ResponseHandler):
    """Passes headers to aiohttp's parser as a whole, in regular form."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._pending: bytearray | None = None  #: of an expected response
        self._searched = 0

    def set_response_params(self, **params: Any) -> None:
        self._pending, self._searched = bytearray(), 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Buffer data until the headers are complete, then pass all of it on."""
        buffer = self._pending
        if buffer is None or not data:
            super().data_received(data)
            return
        if not buffer and is_regular(data):  # without a copy
            self._pending = None
            super().data_received(data)
            return
        buffer += data
        end = _END.search(buffer, max(0, self._searched - 3))
        self._searched = len(buffer)
        if not end:
            if self._searched <= MAX_HEAD_BYTES and _STATUS_START.match(buffer[:16]):
                self._reschedule_timeout()
                return
            super().data_received(self._take_buffer())
            return
        head, rest = bytes(buffer[: end.end()]), bytes(buffer[end.end() :])
        self._pending, self._searched = None, 0
        regular = normalize_head(head) if head.count(b"\n") <= MAX_HEAD_LINES else None
        if regular is None or _framing_lines(head) != _framing_lines(regular):
            self.force_close()
        if _INTERIM.match(head):
            self._pending = bytearray()
            self.data_received(rest)
        else:
            super().data_received((regular or head) + rest)

    def eof_received(self) -> None:
        if self._pending:
            super().data_received(self._take_buffer())
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._pending:
            super().data_received(self._take_buffer())
        super().connection_lost(exc)

    def _take_buffer(self) -> bytes:
        """Return the buffered data unchanged, and stop buffering."""
        data, self._pending = bytes(self._pending or b""), None
        return data


def _framing_lines(head: bytes) -> list[bytes]:
    """Return the lines that define where the body ends."""
    return _FRAMING_LINE.findall(head.lower())


class LenientConnector(aiohttp.TCPConnector):
    """Connections whose responses are read by `LenientHandler`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._factory = partial(LenientHandler, loop=self._loop)  # type: ignore[assignment]
