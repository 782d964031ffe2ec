"""Read the pages of half a WAT file, with their links.

A WAT file has one gzip member per record (WARC 1.0, https://iipc.github.io/warc-specifications). A
member belongs to the half of the file in which it begins, so that the two halves together give
every record once.
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

from cahlib.core.records import DropReason, Evidence, Shard, Stage, Stats
from cahlib.crawl.filetype import GZIP_MAGIC, NotWatError, check_wat, header_end, header_field
from cahlib.crawl.source import CrawlFile, SleepFunction
from cahlib.fetch.connectivity import Outages

#: Finds the magic number in less than half the time of bytes.find.
_MAGIC_PATTERN = re.compile(re.escape(GZIP_MAGIC))
#: A member begins within this many bytes of any offset; one huge member is all first half.
_WINDOW = 16 << 20
#: Enough of a member to inflate its first characters.
_MEMBER_HEAD = 4096
#: Largest member, compressed and inflated: real ones have less than a tenth of it.
_MAX_MEMBER = 32 << 20
#: Magic numbers within a member; by chance there is one in 16 MiB.
_MAX_MAGICS = 100

#: Until June 2019, WAT files keep the entities of the page's source
#: (https://github.com/commoncrawl/ia-web-commons/issues/14). File names contain the date.
_ENTITY = re.compile(r"&(?:amp|quot|lt|gt|apos|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")
_DAY = re.compile(r"CC-MAIN-([0-9]{8})")
_DECODED_SINCE = "20190615"


#: The paths of links from tables; those of the second kind have no column of texts.
TABLE_LINK, BARE_LINK = "table", "bare"


class Link(msgspec.Struct, gc=False):
    """A link of a page, as in the WAT."""

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
    base: str  #: the URL of its base element, unchanged, "" if it has none
    links: list[Link]
    metas: list[Meta]
    headers: dict[str, Any] = {}  #: of the HTTP response; repeated ones are lists
    extra: dict[str, Any] = {}  #: of a table's row: the columns to carry along


_decode = msgspec.json.Decoder(_Record).decode


def read_pages(
    shard: Shard,
    stats: Stats,
    *,
    contact: str = "",
    sleep: SleepFunction = time.sleep,
    outages: Outages | None = None,
    evidence: Evidence | None = None,
) -> Iterator[Page]:
    """Yield the pages of a shard; those without an image are counted, but not yielded.

    A damaged record affects only itself. Raise ShardError if the file is missing, not a WAT file or
    cannot be fetched, and RunError if the server bans this address. While there is no network, wait
    and record it in ``outages``. ``stats`` and ``evidence`` are the shard's own.
    """
    source = CrawlFile(shard.url, contact=contact, sleep=sleep, outages=outages)
    day = _DAY.search(shard.url)
    escaped = day is not None and day[1] < _DECODED_SINCE
    start, end, size = _half_range(source, shard.half)

    def cut() -> None:
        if evidence and end == size:
            evidence.cut = size

    for member in _members(source.chunks(start, end), stats, cut):
        for address, body in _records(member, stats):
            if page := _page(address, body, stats):
                yield _decode_entities(page) if escaped else page
    broken = stats.dropped[DropReason.BROKEN_MEMBER] + stats.dropped[DropReason.BROKEN_RECORD]
    if shard.half == 0 and 0 < stats.entered[Stage.READ] == broken:
        raise NotWatError(f"{shard.url} has no complete record; it is damaged, or not a WAT file.")


def _half_range(source: CrawlFile, half: int) -> tuple[int, int, int]:
    """Return where a half begins and ends, and the length of its file."""
    size = check_wat(source)
    border = _first_record(source, size // 2, size)
    return (0, border, size) if half == 0 else (border, size, size)


def _first_record(source: CrawlFile, middle: int, size: int) -> int:
    """Return where the first record at or after the middle begins."""
    data, looked = b"", 0
    last = min(size, middle + _WINDOW)
    for piece in chain(source.chunks(middle, last), [b""]):
        data += piece
        while (at := data.find(GZIP_MAGIC, looked)) >= 0:
            if piece and at + _MEMBER_HEAD > len(data):
                break
            if _begins_record(data[at : at + _MEMBER_HEAD]):
                return middle + at
            looked = at + 1
    return size


def _begins_record(data: bytes) -> bool:
    """Return whether a member with a record begins here, and not three bytes by chance."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data, 5) == b"WARC/"
    except zlib.error:
        return False


def _members(pieces: Iterable[bytes], stats: Stats, cut: Callable[[], None]) -> Iterator[bytes]:
    """Yield the inflated members of a range of a file; count damaged ones.

    ``cut`` is called if the range ends before its last member does.
    """
    rest = b""
    for piece in chain(pieces, [b""]):
        data, at = rest + piece, 0
        broken: int | None = None  # where the trailing damage begins
        while at < len(data):
            member, following = _member(data, at, whole=not piece)
            if member is None and following == at:
                break  # more bytes are needed
            if member is None:
                stats.entered[Stage.READ] += 1
                stats.dropped[DropReason.BROKEN_MEMBER] += 1
                broken = at if broken is None else broken
            else:
                broken = None
                yield member
            at = following
        rest = data[at:]
    if broken is not None and _is_incomplete(data, broken):
        cut()


def _member(data: bytes, at: int, *, whole: bool) -> tuple[bytes | None, int]:
    """Return the member at an offset, inflated, and the offset of the next.

    None with a later offset means a damaged member; None with the same offset means that more bytes
    are needed, unless ``whole``: there are none.
    """
    inflate, parts, left, end = isal_zlib.decompressobj(wbits=31), [], _MAX_MEMBER, at
    for _ in range(_MAX_MAGICS):
        # A member ends at the magic number of the next; if these three bytes occur by chance within
        # a member, it continues behind them.
        begin, end = end, _next_magic(data, end)
        if end == len(data) and not whole and end - at < _MAX_MEMBER:
            return None, at
        try:
            parts.append(inflate.decompress(memoryview(data)[begin:end], left))
        except isal_zlib.error:  # type: ignore[misc] # its stub declares an instance
            return None, _next_magic(data, at)
        left -= len(parts[-1])
        if inflate.eof:
            # other bytes than padding behind it are a member whose beginning is damaged
            return b"".join(parts), end - len(inflate.unused_data.lstrip(b"\0"))
        if end == len(data) or left <= 0:
            return None, _next_magic(data, at)
    return None, end


def _is_incomplete(data: bytes, at: int) -> bool:
    """Return whether a member is sound up to the end of the data, but incomplete."""
    inflate = isal_zlib.decompressobj(wbits=31)
    try:
        inflate.decompress(memoryview(data)[at:], _MAX_MEMBER)
    except isal_zlib.error:  # type: ignore[misc] # as above
        return False
    return not (inflate.eof or inflate.unconsumed_tail)


def _next_magic(data: bytes, at: int) -> int:
    """Return the next offset at which a member may begin, or the end."""
    match = _MAGIC_PATTERN.search(data, at + len(GZIP_MAGIC))
    return match.start() if match else len(data)


def _records(data: bytes, stats: Stats) -> Iterator[tuple[str, bytes]]:
    """Yield the target URL and content of each record of a member that describes a page."""
    at = 0
    while at < len(data):
        stats.entered[Stage.READ] += 1
        begin = header_end(data, at)
        head = data[at:begin]
        length = header_field(head, b"Content-Length")
        # Python refuses to parse 5,000 digits
        if not length.isdigit() or len(length) > 18 or not head.startswith(b"WARC/"):
            stats.dropped[DropReason.BROKEN_RECORD] += 1
            return
        end, following = _record_end(data, begin + int(length))
        if data.find(b'"HTML-Metadata"', begin, end) >= 0:
            address = header_field(head, b"WARC-Target-URI").strip(b"<>")
            yield address.decode("utf-8", "replace"), data[begin:end]
        else:
            whole = data[max(begin, end - 9) : end].rstrip().endswith(b"}")
            broken = not whole and b"/json" in head
            stats.dropped[DropReason.BROKEN_RECORD if broken else DropReason.NOT_A_PAGE] += 1
        at = following


def _record_end(data: bytes, end: int) -> tuple[int, int]:
    """Return where a record ends by its length, and where the next begins.

    If the length does not lead to a record, the record takes the rest of its member.
    """
    following = end + 4 if data.startswith(b"\r\n\r\n", end) else end
    while data.startswith((b"\r", b"\n"), following):
        following += 1
    if following < len(data) and not data.startswith(b"WARC/", following):
        return len(data), len(data)
    return end, following


def _page(address: str, raw: bytes, stats: Stats) -> Page | None:
    """Return a page, or None if it shows no image or cannot be parsed."""
    # links come last in a record, so search from the end
    if raw.rfind(b"IMG@") < 0 and b"og:image" not in raw:
        stats.left[Stage.READ] += 1
        return None
    try:
        response = _decode(raw).envelope.payload.response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            response = _parse_leniently(json.loads(raw.decode("utf-8", "replace")))
        except (ValueError, RecursionError):
            stats.dropped[DropReason.BROKEN_RECORD] += 1
            return None
    stats.left[Stage.READ] += 1
    head, links = response.html.head, response.html.links
    return Page(
        url=address, base=head.base, links=links, metas=head.metas, headers=response.headers
    )


def _decode_entities(page: Page) -> Page:
    """Return a page of an old crawl with its entities decoded."""
    page.base = _unescape(page.base)
    for link in page.links:
        link.url, link.alt = _unescape(link.url), _unescape(link.alt)
    for meta in page.metas:
        meta.content = _unescape(meta.content)
    return page


def _unescape(text: str) -> str:
    return _ENTITY.sub(lambda match: unescape(match[0]), text)


def _parse_leniently(record: Any) -> _Response:
    """Parse a record in which values have unexpected types."""
    response = record
    for name in ("Envelope", "Payload-Metadata", "HTTP-Response-Metadata"):
        response = _dict(response).get(name)
    html = _dict(_dict(response).get("HTML-Metadata"))
    head = _dict(html.get("Head"))
    return _Response(
        html=_Html(
            head=_Head(base=_text(head.get("Base")), metas=_structs(Meta, head.get("Metas"))),
            links=_structs(Link, html.get("Links")),
        ),
        headers=_dict(_dict(response).get("Headers")),
    )


def _structs(kind: Any, values: Any) -> list[Any]:
    names = kind.__struct_encode_fields__  # in the order of its fields
    rows = (row for row in (values if isinstance(values, list) else ()) if isinstance(row, dict))
    return [kind(*(_text(row.get(name)) for name in names)) for row in rows]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Return a text without lone surrogates, which cannot be encoded."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
