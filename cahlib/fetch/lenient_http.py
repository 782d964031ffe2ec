"""Heads of answers as browsers take them, brought into the form that aiohttp's parser wants.

What a head says twice in the same words, in odd lines or in an old form is no reason to refuse an
image. Where its two readings would differ in where the body ends, nothing is guessed: the parser
sees the head as it came. Since other readers on the way may have read an odd head in another way,
its connection is never used again.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

#: Bytes of a head, as browsers have it, and lines.
MAX_HEAD_BYTES, MAX_HEAD_LINES = 256 << 10, 5000

#: Where a head ends; lines end with or without a carriage return.
_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(
    rb"[\s\S]{0,4}?(?:HTTP/(\d)\.(\d)|ICY)[ \t]+(\d{3})(?!\d)[^\r\n]*", re.IGNORECASE
)
#: How what may become a status line begins.
_BEGINNING = re.compile(rb"[\s\S]{0,4}?(?:HTTP/|ICY )|[\s\S]{0,9}\Z", re.IGNORECASE)
_NAME = re.compile(rb"[!#-'*+.0-9A-Z^-z|~-]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_INTERIM = re.compile(rb"[^\r\n]{0,12}[ \t]1(?!01)\d\d(?!\d)")
_FRAMED = re.compile(rb"\n((?:content-length|transfer-encoding)[^\r\n]*)")
_OTHER = rb"(?:(?!content-length|transfer-encoding)[!#-'*+.0-9A-Z^-z|~-]+: [ -~]*\r\n)*"
#: What most heads look like: a single line says where the body ends, and nothing is to be changed.
_REGULAR = re.compile(
    rb"HTTP/1\.1 [2-5]\d\d [ -~]*\r\n%bcontent-length: \d{1,18}\r\n%b\r\n" % (_OTHER, _OTHER),
    re.IGNORECASE,
)
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


def is_regular(data: bytes) -> bool:
    """Return whether some bytes begin with a whole head in which nothing is to be changed."""
    return _REGULAR.match(data) is not None


def normalize_head(head: bytes) -> bytes | None:
    """Return a head, with its empty line, in regular form; None if it must stay as it is."""
    first, *rest = re.split(rb"\r?\n", head.rstrip(b"\r\n"))
    status = _STATUS.fullmatch(first)
    if not status:
        return None
    old = status[1] is None or (status[1], status[2]) < (b"1", b"1")
    fields: list[tuple[bytes, bytes]] = []
    for line in rest:
        if line[:1] in (b" ", b"\t") and fields:  # RFC 9112, 5.2: a line that goes on
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
    """Return the line that says where the body ends; None where that is not sure."""
    lengths, codings = set[bytes](), set[bytes]()
    for name, value in fields:
        if (lower := name.lower()) == b"content-length":
            lengths.update(each.strip() for each in value.split(b",") if each.strip())
        elif lower == b"transfer-encoding":
            codings.update(each.strip().lower() for each in value.split(b","))
    if b"chunked" in codings:  # RFC 9112, 6.3: it overrides a length, but for old servers
        sure = not old and codings <= {b"chunked", b"identity", b""}
        return [b"Transfer-Encoding: chunked"] if sure else None
    if len({each.lstrip(b"0") for each in lengths}) > 1:
        return None
    if not all(map(_LENGTH.fullmatch, lengths)):
        return None
    return [b"Content-Length: " + each for each in list(lengths)[:1]]


class LenientHandler(ResponseHandler):
    """Gives aiohttp's parser each head as a whole, in regular form."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._head: bytearray | None = None  #: of an answer that is waited for
        self._searched = 0

    def set_response_params(self, **params: Any) -> None:
        self._head, self._searched = bytearray(), 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Wait for a whole head, and then hand on all that comes."""
        waiting = self._head
        if waiting is None or not data:
            super().data_received(data)
            return
        if not waiting and is_regular(data):  # is not copied
            self._head = None
            super().data_received(data)
            return
        waiting += data
        end = _END.search(waiting, max(0, self._searched - 3))
        self._searched = len(waiting)
        if not end:
            if self._searched <= MAX_HEAD_BYTES and _BEGINNING.match(waiting[:16]):
                self._reschedule_timeout()
                return
            super().data_received(self._as_it_is())
            return
        head, rest = bytes(waiting[: end.end()]), bytes(waiting[end.end() :])
        self._head, self._searched = None, 0
        regular = normalize_head(head) if head.count(b"\n") <= MAX_HEAD_LINES else None
        if regular is None or _framed(head) != _framed(regular):
            self.force_close()
        if _INTERIM.match(head):
            self._head = bytearray()
            self.data_received(rest)
        else:
            super().data_received((regular or head) + rest)

    def eof_received(self) -> None:
        if self._head:
            super().data_received(self._as_it_is())
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head:
            super().data_received(self._as_it_is())
        super().connection_lost(exc)

    def _as_it_is(self) -> bytes:
        """Give up reading a head."""
        data, self._head = bytes(self._head or b""), None
        return data


def _framed(head: bytes) -> list[bytes]:
    """Return the lines that say where the body ends."""
    return _FRAMED.findall(head.lower())


class LenientConnector(aiohttp.TCPConnector):
    """Connections whose answers are read by `LenientHandler`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._factory = partial(LenientHandler, loop=self._loop)  # type: ignore[assignment]
