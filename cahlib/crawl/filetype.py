"""Check by its first bytes that a file is a WAT file, and name what it is instead."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from cahlib.core.errors import ShardError
from cahlib.crawl.source import CrawlFile

GZIP_MAGIC = b"\x1f\x8b\x08"

#: Other kinds of files by their first bytes.
_KINDS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd, which cahlib does not read; compress it with gzip",
    b"WARC/": "not compressed; compress each of its records with gzip",
    b"<": "a web page, not a WAT file",
}
#: Other files of a crawl by their record types. A WAT file has "metadata" in JSON.
_RECORD_TYPES = {
    "WARC": {b"request", b"response", b"resource", b"revisit", b"continuation"},
    "WET": {b"conversion"},
}
#: Bytes inflated at most: in real files the second record, which shows the kind, lies within the
#: first 2 kB.
_MAX_INFLATED = 1 << 16


class NotWatError(ShardError):
    """The file is not a WAT file."""


class OtherRecordTypeError(NotWatError):
    """The file is a WARC or WET file."""


def check_wat(source: CrawlFile) -> int:
    """Return a file's length in bytes; raise NotWatError if it does not begin like a WAT file."""
    head, size = source.head()
    heads = ((header_field(each, b"WARC-Type").lower(), each) for each in _headers(_inflated(head)))
    first, header = next((each for each in heads if each[0] != b"warcinfo"), (b"", b""))
    for kind, known in _RECORD_TYPES.items():
        if first in known and b"/json" not in header_field(header, b"Content-Type"):
            raise OtherRecordTypeError(
                f"{source.url} is a {kind} file, not a WAT file; use the file of that name in the "
                "crawl's wat folder, which ends in .warc.wat.gz."
            )
    if not head.startswith(GZIP_MAGIC):
        kinds = ((word, each) for word, each in _KINDS.items() if head.lstrip().startswith(word))
        _, kind = next(kinds, (b"", "not a gzip file, so not a WAT file" if head else "empty"))
        raise NotWatError(f"{source.url} is {kind}.")
    return size


def header_field(head: bytes, name: bytes) -> bytes:
    """Return a field of a record's header, its name in any case; b"" if it is missing."""
    # Common Crawl's spelling first: a tenth of the time of a case-insensitive pattern
    at = head.find(b"\n" + name + b":")
    if at >= 0:
        return head[at + len(name) + 2 :].partition(b"\n")[0].strip()
    match = re.search(rb"\n%s[ \t]*:([^\n]*)" % re.escape(name), head, re.IGNORECASE)
    return match[1].strip() if match else b""


def header_end(data: bytes, at: int) -> int:
    """Return where the content of a record begins; files from other tools have bare line feeds."""
    end = data.find(b"\r\n\r\n", at)
    bare = data.find(b"\n\n", at, end if end >= 0 else len(data))
    if bare >= 0:
        return bare + 2
    return end + 4 if end >= 0 else at


def _inflated(packed: bytes) -> bytes:
    """Return the beginning of a file, inflated as far as possible if it is gzip."""
    if not packed.startswith(GZIP_MAGIC):
        return packed
    data = b""
    while packed.startswith(GZIP_MAGIC) and len(data) < _MAX_INFLATED:
        inflate = zlib.decompressobj(wbits=31)
        try:
            data += inflate.decompress(packed, _MAX_INFLATED)
        except zlib.error:
            break
        packed = inflate.unused_data
    return data


def _headers(data: bytes) -> Iterator[bytes]:
    """Yield the headers of the records that begin in ``data``."""
    at = 0
    while data.startswith(b"WARC/", at):
        begin = header_end(data, at)
        yield data[at:begin] if begin > at else data[at:]
        length = header_field(data[at:begin], b"Content-Length")
        if not length.isdigit() or len(length) > 9:
            return
        at = begin + int(length)
        while data.startswith((b"\r", b"\n"), at):
            at += 1
