"""From half a WAT file to the pages in it, with their links.

A WAT file is one gzip member a record (WARC 1.0, https://iipc.github.io/warc-specifications). A
member belongs to the half of the file in which it begins, so that both halves together give every
record once. It does not know which links are worth anything.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from html import unescape
from itertools import chain
from typing import Any

import msgspec
from isal import isal_zlib

from cahlib.crawl.filetype import GZIP_MAGIC, NotWatError, check_wat, header_end, header_field
from cahlib.crawl.source import CrawlFile, SleepFunction
from cahlib.fetch.connectivity import Outages
from cahlib.records import Evidence, Reason, Shard, Stage, Tally

#: It finds the magic number in less than half of the time that bytes.find takes.
_NEXT = re.compile(re.escape(GZIP_MAGIC))
#: A member begins within so many bytes of any place; a file of one huge member is all first half.
_WINDOW = 16 << 20
#: Enough of a member to inflate its first letters.
_BEGINNING = 4096
#: The most that a member may hold, packed and inflated: real ones hold less than a tenth of it.
_MOST = 32 << 20
#: Magic numbers within a member; real ones have one by chance in 16 MiB.
_MOST_CHANCES = 100


#: Until June 2019 values stand in a WAT as in the page's source, with these in place of characters
#: (https://github.com/commoncrawl/ia-web-commons/issues/14). Its files are named by their day.
_ENTITY = re.compile(r"&(?:amp|quot|lt|gt|apos|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")
_DAY = re.compile(r"CC-MAIN-([0-9]{8})")
_PLAIN_SINCE = "20190615"


class Link(msgspec.Struct, gc=False):
    """A link of a page as the WAT tells it."""

    path: str = ""
    url: str = ""
    alt: str = ""


class Meta(msgspec.Struct, gc=False):
    """A meta element of a page's head."""

    name: str = ""
    property: str = ""
    content: str = ""
    equiv: str = msgspec.field(name="http-equiv", default="")


class _Head(msgspec.Struct, gc=False):
    base: str = msgspec.field(name="Base", default="")
    metas: list[Meta] = msgspec.field(name="Metas", default_factory=list)


class _Html(msgspec.Struct, gc=False):
    head: _Head = msgspec.field(name="Head", default_factory=_Head)
    links: list[Link] = msgspec.field(name="Links", default_factory=list)


class _Response(msgspec.Struct, gc=False):
    html: _Html = msgspec.field(name="HTML-Metadata", default_factory=_Html)
    headers: dict[str, Any] = msgspec.field(name="Headers", default_factory=dict)


class _Payload(msgspec.Struct, gc=False):
    response: _Response = msgspec.field(name="HTTP-Response-Metadata", default_factory=_Response)


class _Envelope(msgspec.Struct, gc=False):
    payload: _Payload = msgspec.field(name="Payload-Metadata", default_factory=_Payload)


class _Record(msgspec.Struct, gc=False):
    envelope: _Envelope = msgspec.field(name="Envelope", default_factory=_Envelope)


class Page(msgspec.Struct, gc=False):
    """A page that may show images."""

    url: str
    base: str  #: its base element's address as it stands there, "" if it has none
    links: list[Link]
    metas: list[Meta]
    headers: dict[str, Any] = {}  #: of its answer; those that were repeated are lists


_decode = msgspec.json.Decoder(_Record).decode


def read_pages(
    shard: Shard,
    tally: Tally,
    *,
    contact: str = "",
    sleep: SleepFunction = time.sleep,
    outages: Outages | None = None,
    evidence: Evidence | None = None,
) -> Iterator[Page]:
    """The pages of a shard; those without an image are counted, but not given.

    What cannot be read costs no more than itself. Raises ShardError if the file is none or no WAT
    file or cannot be fetched, and RunError if the server bans us; times without network are waited
    out, and noted in ``outages``. ``tally`` and ``evidence`` are the shard's own.
    """
    source = CrawlFile(shard.url, contact=contact, sleep=sleep, outages=outages)
    day = _DAY.search(shard.url)
    escaped = day is not None and day[1] < _PLAIN_SINCE
    start, end, size = _extent(source, shard.half)

    def cut() -> None:
        if evidence and end == size:
            evidence.cut = size

    for member in _members(source.chunks(start, end), tally, cut):
        for address, body in _records(member, tally):
            if page := _page(address, body, tally):
                yield _unescaped(page) if escaped else page
    broken = tally.lost[Reason.BROKEN_MEMBER] + tally.lost[Reason.BROKEN_RECORD]
    if shard.half == 0 and 0 < tally.entered[Stage.READ] == broken:
        raise NotWatError(f"{shard.url} holds no whole record; it is damaged, or no WAT file.")


def _extent(source: CrawlFile, half: int) -> tuple[int, int, int]:
    """Where a half begins and ends, and its file."""
    size = check_wat(source)
    border = _border(source, size // 2, size)
    return (0, border, size) if half == 0 else (border, size, size)


def _border(source: CrawlFile, middle: int, size: int) -> int:
    """Where the first record at or after the middle begins."""
    data, looked = b"", 0
    last = min(size, middle + _WINDOW)
    for piece in chain(source.chunks(middle, last), [b""]):
        data += piece
        while (at := data.find(GZIP_MAGIC, looked)) >= 0:
            if piece and at + _BEGINNING > len(data):
                break
            if _begins_record(data[at : at + _BEGINNING]):
                return middle + at
            looked = at + 1
    return size


def _begins_record(data: bytes) -> bool:
    """Whether these bytes are the beginning of a member with a record, not three by chance."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data, 5) == b"WARC/"
    except zlib.error:
        return False


def _members(pieces: Iterable[bytes], tally: Tally, cut: Callable[[], None]) -> Iterator[bytes]:
    """The inflated members of a stretch of a file; damaged ones are counted.

    ``cut`` is called if the stretch ends before its last member does.
    """
    rest = b""
    for piece in chain(pieces, [b""]):
        data, at = rest + piece, 0
        broken: int | None = None  # where what is damaged begins, up to the end
        while at < len(data):
            member, following = _member(data, at, whole=not piece)
            if member is None and following == at:
                break  # more bytes are needed
            if member is None:
                tally.entered[Stage.READ] += 1
                tally.lost[Reason.BROKEN_MEMBER] += 1
                broken = at if broken is None else broken
            else:
                broken = None
                yield member
            at = following
        rest = data[at:]
    if broken is not None and _goes_on(data, broken):
        cut()


def _member(data: bytes, at: int, *, whole: bool) -> tuple[bytes | None, int]:
    """The member at a place, inflated, and the place of the next.

    None with a further place is a damaged member; None with the same place needs more bytes,
    unless the ``whole`` of them is there.
    """
    inflate, parts, left, end = isal_zlib.decompressobj(wbits=31), [], _MOST, at
    for _ in range(_MOST_CHANCES):
        # Members follow each other, so one ends where the next has its magic number; these three
        # bytes also turn up by chance within a member: then it goes on behind them.
        begin, end = end, _next(data, end)
        if end == len(data) and not whole and end - at < _MOST:
            return None, at
        try:
            parts.append(inflate.decompress(memoryview(data)[begin:end], left))
        except isal_zlib.error:  # type: ignore[misc] # its stub takes it for an instance
            return None, _next(data, at)
        left -= len(parts[-1])
        if inflate.eof:
            # what follows it and is no padding was a member, before its first bytes were damaged
            return b"".join(parts), end - len(inflate.unused_data.lstrip(b"\0"))
        if end == len(data) or left <= 0:
            return None, _next(data, at)
    return None, end


def _goes_on(data: bytes, at: int) -> bool:
    """Return whether a member is whole as far as the data go, and they end before it does."""
    inflate = isal_zlib.decompressobj(wbits=31)
    try:
        inflate.decompress(memoryview(data)[at:], _MOST)
    except isal_zlib.error:  # type: ignore[misc] # as above
        return False
    return not (inflate.eof or inflate.unconsumed_tail)


def _next(data: bytes, at: int) -> int:
    """The next place behind this one where a member may begin, else the end."""
    match = _NEXT.search(data, at + len(GZIP_MAGIC))
    return match.start() if match else len(data)


def _records(data: bytes, tally: Tally) -> Iterator[tuple[str, bytes]]:
    """Target and contents of each record of a member that tells of a page."""
    at = 0
    while at < len(data):
        tally.entered[Stage.READ] += 1
        begin = header_end(data, at)
        head = data[at:begin]
        length = header_field(head, b"Content-Length")
        # Python makes no number of 5,000 digits
        if not length.isdigit() or len(length) > 18 or not head.startswith(b"WARC/"):
            tally.lost[Reason.BROKEN_RECORD] += 1
            return
        end, following = _end(data, begin + int(length))
        if data.find(b'"HTML-Metadata"', begin, end) >= 0:
            address = header_field(head, b"WARC-Target-URI").strip(b"<>")
            yield address.decode("utf-8", "replace"), data[begin:end]
        else:
            whole = data[max(begin, end - 9) : end].rstrip().endswith(b"}")
            broken = not whole and b"/json" in head
            tally.lost[Reason.BROKEN_RECORD if broken else Reason.NOT_A_PAGE] += 1
        at = following


def _end(data: bytes, end: int) -> tuple[int, int]:
    """Where a record ends by its length, and where the next begins.

    A length that leads to no record is not believed: the record then takes all of its member.
    """
    following = end + 4 if data.startswith(b"\r\n\r\n", end) else end
    while data.startswith((b"\r", b"\n"), following):
        following += 1
    if following < len(data) and not data.startswith(b"WARC/", following):
        return len(data), len(data)
    return end, following


def _page(address: str, raw: bytes, tally: Tally) -> Page | None:
    """A page, or None if it shows no image or cannot be read."""
    # the links stand behind all else of a page, so that the last image is the first to be found
    if raw.rfind(b"IMG@") < 0 and b"og:image" not in raw:
        tally.left[Stage.READ] += 1
        return None
    try:
        response = _decode(raw).envelope.payload.response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            response = _tolerant(json.loads(raw.decode("utf-8", "replace")))
        except (ValueError, RecursionError):
            tally.lost[Reason.BROKEN_RECORD] += 1
            return None
    tally.left[Stage.READ] += 1
    head, links = response.html.head, response.html.links
    return Page(
        url=address, base=head.base, links=links, metas=head.metas, headers=response.headers
    )


def _unescaped(page: Page) -> Page:
    """A page of an old crawl as newer ones have it."""
    page.base = _characters(page.base)
    for link in page.links:
        link.url, link.alt = _characters(link.url), _characters(link.alt)
    for meta in page.metas:
        meta.content = _characters(meta.content)
    return page


def _characters(text: str) -> str:
    return _ENTITY.sub(lambda match: unescape(match[0]), text)


def _tolerant(record: Any) -> _Response:
    """The same from a record in which something is of another type than it should be."""
    response = record
    for name in ("Envelope", "Payload-Metadata", "HTTP-Response-Metadata"):
        response = _dict(response).get(name)
    html = _dict(_dict(response).get("HTML-Metadata"))
    head = _dict(html.get("Head"))
    return _Response(
        html=_Html(
            head=_Head(base=_text(head.get("Base")), metas=_each(Meta, head.get("Metas"))),
            links=_each(Link, html.get("Links")),
        ),
        headers=_dict(_dict(response).get("Headers")),
    )


def _each(kind: Any, values: Any) -> list[Any]:
    names = kind.__struct_encode_fields__  # in the order of its fields
    rows = (row for row in (values if isinstance(values, list) else ()) if isinstance(row, dict))
    return [kind(*(_text(row.get(name)) for name in names)) for row in rows]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """A text without lone surrogates, which no encoding can write."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
