"""Where a link leads: the absolute address of an image, or why it cannot be one.

Addresses mean what they mean to browsers (WHATWG's URL standard, by the parser ada). Where the way
they are written means the same, it is kept, since the address is part of a pair's name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urljoin

import ada_url

from cahlib.fetch.addresses import is_public, parse_ip
from cahlib.records import Reason

#: Files that are no photos.
_NO_PICTURE = (".svg", ".svgz", ".gif", ".ico", ".css", ".js")
_PICTURE = (".jpg", ".png", ".jpeg", ".webp")
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_WEB = frozenset({"http", "https"})
#: The ports of the web; a crawl that tries others looks like a port scan.
WEB_PORTS = frozenset({None, 80, 443})

#: What most addresses look like; ada asks for the same by them (checked by test), in five times the
#: time.
_ORDINARY = re.compile(
    r"https?://([a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z][a-z0-9-]*)(?:/[!\"$-\[\]-~]*)?"
)
#: What changes where an address seems to lead: steps, backslashes, blanks and control characters.
_ODD = re.compile(r"/(?:\.|%2e){1,2}(?=[/?]|\Z)|[\x00-\x20\\\x7f]", re.IGNORECASE)
_ORIGIN = re.compile(r"(https?:)//[A-Za-z0-9.:-]+(?=/|\Z)")

#: Whose parts ada gives as they stand (checked by test), without steps and names in Punycode.
_PLAIN = re.compile(r"(https?)://((?:[a-z0-9-]+\.)+[a-z][a-z0-9-]*)(/[!$-&(-;=?-\[\]_a-z|~]*)")

#: An address as ada gives it: user, host, port, path with query.
_GIVEN = re.compile(
    r"(https?)://(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:]+)(?::([0-9]+))?([^#]*)(?:#.*)?", re.S
)

#: Dropped within an address, as browsers do.
_DROPPED = {ord(each): None for each in "\t\r\n"}
#: Blanks and control characters, which are none of an address's ends.
_ENDS = "".join(map(chr, range(33)))
#: Bytes that are not UTF-8, as Python gives them, and lone surrogates.
_SURROGATE = re.compile("[\ud800-\udfff]")

_HOST = re.compile(r"(?=.{4,253}\Z)(?:(?!-+\.)[a-z0-9_-]{1,63}\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])")
#: Names that are not of the public web (RFC 6761, 6762, 7686 and 8375, ICANN's "internal").
_PRIVATE = (
    ".localhost", ".local", ".internal", ".intranet", ".lan", ".home", ".corp", ".private", ".test",
    ".invalid", ".example", ".onion", ".arpa", ".localdomain",
)  # fmt: skip


def join_url(base: str, url: str) -> str:
    """Return an absolute address as browsers have it; raise ValueError if it is not one."""
    if not base:
        return str(ada_url.normalize_url(_bytes_escaped(url)))
    return str(ada_url.join_url(_bytes_escaped(base), _bytes_escaped(url)))


class UrlParts(NamedTuple):
    """What an address asks for."""

    scheme: str
    host: str  #: as DNS has it, or an IP address, IPv6 in brackets
    port: int | None  #: None: the scheme's own
    target: str  #: path and query as they are sent


def split_url(url: str) -> UrlParts | None:
    """Return what an absolute address asks for, None if it is not one of the web."""
    plain = _PLAIN.fullmatch(url)
    if plain and "/." not in url and "/%2" not in url and "xn--" not in url:
        return UrlParts(plain[1], plain[2], None, plain[3])
    try:
        given = _GIVEN.fullmatch(ada_url.normalize_url(_bytes_escaped(url)))
    except ValueError:
        return None
    return (
        UrlParts(given[1], given[2], int(given[3]) if given[3] else None, given[4])
        if given
        else None
    )


def _bytes_escaped(url: str) -> str:
    if url.isascii():
        return url
    return _SURROGATE.sub(_escape, url)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"


class BaseUrl(NamedTuple):
    """What the relative addresses of a page are relative to."""

    url: str
    scheme: str  #: "http:" or "https:"; "" if the address is an odd one
    origin: str  #: scheme and host

    @classmethod
    def of(cls, page: str, written: str) -> BaseUrl:
        """A page's base: its own address, or what its base element says, as it is ``written``."""
        url = page
        if written:
            try:
                joined = join_url(page, written)
                url = joined if joined.startswith(("http://", "https://")) else page
            except ValueError:
                pass
        match = _ORIGIN.match(url)
        return cls(url, match[1], match[0]) if match else cls(url, "", "")


def link_drop_reason(url: str) -> Reason | None:
    """Why an address, which may be relative, cannot be a picture's by its mere look."""
    if not url.startswith(("http", "/")):
        scheme = _SCHEME.match(url)
        if scheme and scheme[1].lower() not in _WEB:
            return Reason.NOT_A_PICTURE_URL
    if url.endswith(_PICTURE) and "?" not in url and "#" not in url:
        return None
    path = url.partition("?")[0].partition("#")[0]
    return Reason.NOT_A_PICTURE_URL if path.rstrip()[-5:].lower().endswith(_NO_PICTURE) else None


def absolute_url(url: str, base: BaseUrl, most: int) -> str | Reason:
    """An address made absolute, without its fragment and with its blanks escaped."""
    raw = url = url.partition("#")[0]
    joined = _joined(url, base)
    if answer := _ordinary(joined, most):
        return answer
    if not (url.isascii() and url.isprintable()) or " " in url:
        url = url.translate(_DROPPED).strip(_ENDS).replace(" ", "%20")
    if not url:
        return Reason.BAD_URL
    if url != raw:
        joined = _joined(url, base)
        if answer := _ordinary(joined, most):
            return answer
    try:
        asked = join_url("" if _SCHEME.match(url) and not base.scheme else base.url, url)
        written = _written(joined or urljoin(base.url, url), asked)
    except ValueError:
        return Reason.BAD_URL
    given = _GIVEN.fullmatch(asked)
    if not given or "@" in asked[: given.start(2)]:
        return Reason.BAD_URL
    if (int(given[3]) if given[3] else None) not in WEB_PORTS:
        return Reason.BAD_URL
    return Reason.LONG_URL if len(written) > most else _host(given[2]) or written


def _ordinary(joined: str, most: int) -> str | Reason | None:
    """The answer about an address that looks as most do, None about others."""
    if not joined or "/." in joined or "/%2" in joined:
        return None
    match = _ORDINARY.fullmatch(joined)
    if match is None:
        return None
    return Reason.LONG_URL if len(joined) > most else _host(match[1]) or joined


def _joined(url: str, base: BaseUrl) -> str:
    """What most addresses are joined to without a parser; "" for the others."""
    if url.startswith(("http://", "https://")):
        return url
    if base.origin and url.startswith("/"):
        return (base.scheme if url.startswith("//") else base.origin) + url
    return ""


def _written(joined: str, asked: str) -> str:
    """An address as it is written, if that is one whose parts are where they seem to be."""
    if _ODD.search(joined):
        return asked
    if not joined.startswith(("http://", "https://")) or joined[7:9].startswith("/"):
        return asked
    return joined if join_url("", joined) == asked else asked


@lru_cache(maxsize=20_000)
def _host(host: str) -> Reason | None:
    """Why a host is none of the public web's, by its name alone."""
    if host[:1].isascii() and host[:1].isdigit() or ":" in host:
        if address := parse_ip(host):
            return None if is_public(str(address)) else Reason.PRIVATE_HOST
    name = host.rstrip(".")
    if name.endswith(_PRIVATE) or "." not in name:
        return Reason.PRIVATE_HOST
    return None if _HOST.fullmatch(name) else Reason.BAD_URL
