"""What a file is by its first bytes: a WAT file, or something that is easily taken for one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from cahlib.crawl.source import CrawlFile
from cahlib.errors import ShardError

GZIP_MAGIC = b"\x1f\x8b\x08"

#: Other files by their first bytes.
_KINDS = {
    b"\x28\xb5\x2f\xfd": "packed with zstd, which cahlib does not read; pack it with gzip",
    b"WARC/": "not packed; pack each of its records with gzip",
    b"<": "a web page, not a WAT file",
}
#: Other files of a crawl, by the type of their records. A WAT file has "metadata" in JSON.
_RECORDS = {
    "WARC": {b"request", b"response", b"resource", b"revisit", b"continuation"},
    "WET": {b"conversion"},
}
#: The most that is inflated of a file's beginning: in real files the second record tells its kind,
#: and lies within the first 2 kB.
_LOOKED = 1 << 16


class NotWatError(ShardError):
    """The file is not a WAT file."""


class OtherRecordTypeError(NotWatError):
    """The file is a WARC or WET file."""


def check_wat(source: CrawlFile) -> int:
    """Return the length of a file; raise NotWatError if by its beginning it is not a WAT file."""
    head, size = source.head()
    heads = ((header_field(each, b"WARC-Type").lower(), each) for each in _heads(_inflated(head)))
    first, told = next((each for each in heads if each[0] != b"warcinfo"), (b"", b""))
    for kind, known in _RECORDS.items():
        if first in known and b"/json" not in header_field(told, b"Content-Type"):
            raise OtherRecordTypeError(
                f"{source.url} is a {kind} file, not a WAT file; give the file of that name in the "
                "crawl's folder wat, which ends in .warc.wat.gz."
            )
    if not head.startswith(GZIP_MAGIC):
        kinds = ((word, each) for word, each in _KINDS.items() if head.lstrip().startswith(word))
        _, kind = next(kinds, (b"", "not a gzip file, so no WAT file" if head else "empty"))
        raise NotWatError(f"{source.url} is {kind}.")
    return size


def header_field(head: bytes, name: bytes) -> bytes:
    """Return a field of a record's head, whose name may be in any case; b"" if it is not there."""
    # as Common Crawl spells it: a tenth of the time of a pattern that ignores case
    at = head.find(b"\n" + name + b":")
    if at >= 0:
        return head[at + len(name) + 2 :].partition(b"\n")[0].strip()
    match = re.search(rb"\n%s[ \t]*:([^\n]*)" % re.escape(name), head, re.IGNORECASE)
    return match[1].strip() if match else b""


def header_end(data: bytes, at: int) -> int:
    """Return where the contents of a record begin; files from other hands have bare line feeds."""
    end = data.find(b"\r\n\r\n", at)
    bare = data.find(b"\n\n", at, end if end >= 0 else len(data))
    if bare >= 0:
        return bare + 2
    return end + 4 if end >= 0 else at


def _inflated(packed: bytes) -> bytes:
    """Return the beginning of a file inflated, as far as it can be read; as it is if not packed."""
    if not packed.startswith(GZIP_MAGIC):
        return packed
    data = b""
    while packed.startswith(GZIP_MAGIC) and len(data) < _LOOKED:
        inflate = zlib.decompressobj(wbits=31)
        try:
            data += inflate.decompress(packed, _LOOKED)
        except zlib.error:
            break
        packed = inflate.unused_data
    return data


def _heads(data: bytes) -> Iterator[bytes]:
    """Yield the heads of the records that begin in some bytes."""
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
