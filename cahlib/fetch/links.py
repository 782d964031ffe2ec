"""From links to absolute URLs of images, or the reason why a link cannot be one.

URLs are parsed as in browsers (WHATWG's URL standard, by the parser ada). Their spelling is kept
where it is equivalent, since the URL is part of a pair's uid.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urljoin

import ada_url

from cahlib.core.records import DropReason
from cahlib.fetch.addresses import is_public, parse_ip

#: Files that are not photos.
_NOT_PHOTOS = (".svg", ".svgz", ".gif", ".ico", ".css", ".js")
_PHOTOS = (".jpg", ".png", ".jpeg", ".webp")
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_WEB = frozenset({"http", "https"})
#: The web's ports; requests to others look like a port scan.
WEB_PORTS = frozenset({None, 80, 443})

#: What most URLs look like; ada parses them the same (checked by test), in five times the time.
_ORDINARY = re.compile(
    r"https?://([a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z][a-z0-9-]*)(?:/[!\"$-\[\]-~]*)?"
)
#: Dot segments, backslashes, spaces and control characters, which change where a URL leads.
_AMBIGUOUS = re.compile(r"/(?:\.|%2e){1,2}(?=[/?]|\Z)|[\x00-\x20\\\x7f]", re.IGNORECASE)
_ORIGIN = re.compile(r"(https?:)//[A-Za-z0-9.:-]+(?=/|\Z)")

#: Parts that ada returns unchanged (checked by test), without dot segments and Punycode.
_UNCHANGED = re.compile(r"(https?)://((?:[a-z0-9-]+\.)+[a-z][a-z0-9-]*)(/[!$-&(-;=?-\[\]_a-z|~]*)")

#: A URL normalised by ada: user, host, port, path with query.
_PARTS = re.compile(
    r"(https?)://(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:]+)(?::([0-9]+))?([^#]*)(?:#.*)?", re.S
)

#: Removed within a URL, as in browsers.
_REMOVED = {ord(each): None for each in "\t\r\n"}
#: Spaces and control characters, stripped from a URL.
_STRIPPED = "".join(map(chr, range(33)))
#: Lone surrogates, by which Python also represents bytes that are not UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")

_HOST = re.compile(r"(?=.{4,253}\Z)(?:(?!-+\.)[a-z0-9_-]{1,63}\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])")
#: Domains outside the public web (RFC 6761, 6762, 7686 and 8375, ICANN's "internal").
_PRIVATE = (
    ".localhost", ".local", ".internal", ".intranet", ".lan", ".home", ".corp", ".private", ".test",
    ".invalid", ".example", ".onion", ".arpa", ".localdomain",
)  # fmt: skip


def join_url(base: str, url: str) -> str:
    """Return an absolute URL as in browsers; raise ValueError if it is not valid."""
    if not base:
        return str(ada_url.normalize_url(_bytes_escaped(url)))
    return str(ada_url.join_url(_bytes_escaped(base), _bytes_escaped(url)))


class UrlParts(NamedTuple):
    """The parts of a URL that a request needs."""

    scheme: str
    host: str  #: its DNS name, or an IP address, IPv6 in brackets
    port: int | None  #: None: the scheme's default
    target: str  #: path and query, as sent


def split_url(url: str) -> UrlParts | None:
    """Return the parts of an absolute http(s) URL, None for others."""
    plain = _UNCHANGED.fullmatch(url)
    if plain and "/." not in url and "/%2" not in url and "xn--" not in url:
        return UrlParts(plain[1], plain[2], None, plain[3])
    try:
        given = _PARTS.fullmatch(ada_url.normalize_url(_bytes_escaped(url)))
    except ValueError:
        return None
    if not given:
        return None
    return UrlParts(given[1], given[2], int(given[3]) if given[3] else None, given[4])


def _bytes_escaped(url: str) -> str:
    return url if url.isascii() else _SURROGATE.sub(_escape, url)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"


class BaseUrl(NamedTuple):
    """The base of a page's relative URLs."""

    url: str
    scheme: str  #: "http:" or "https:"; "" if the URL is unusual
    origin: str  #: scheme and host

    @classmethod
    def of(cls, page: str, written: str) -> BaseUrl:
        """Return the base of a page: its own URL, or that of its base element, as ``written``."""
        url = page
        if written:
            try:
                joined = join_url(page, written)
                url = joined if joined.startswith(("http://", "https://")) else page
            except ValueError:
                pass
        match = _ORIGIN.match(url)
        return cls(url, match[1], match[0]) if match else cls(url, "", "")


def link_drop_reason(url: str) -> DropReason | None:
    """Return the reason to drop a link by its scheme or file extension, or None."""
    if not url.startswith(("http", "/")):
        scheme = _SCHEME.match(url)
        if scheme and scheme[1].lower() not in _WEB:
            return DropReason.NOT_A_PICTURE_URL
    if url.endswith(_PHOTOS) and "?" not in url and "#" not in url:
        return None
    path = url.partition("?")[0].partition("#")[0]
    return (
        DropReason.NOT_A_PICTURE_URL if path.rstrip()[-5:].lower().endswith(_NOT_PHOTOS) else None
    )


def absolute_url(url: str, base: BaseUrl, most: int) -> str | DropReason:
    """Return a link's absolute URL without fragment, or the reason to drop it."""
    raw = url = url.partition("#")[0]
    joined = _join_simply(url, base)
    if answer := _check_ordinary(joined, most):
        return answer
    if not (url.isascii() and url.isprintable()) or " " in url:
        url = url.translate(_REMOVED).strip(_STRIPPED).replace(" ", "%20")
    if not url:
        return DropReason.BAD_URL
    if url != raw:
        joined = _join_simply(url, base)
        if answer := _check_ordinary(joined, most):
            return answer
    try:
        parsed = join_url("" if _SCHEME.match(url) and not base.scheme else base.url, url)
        written = _keep_spelling(joined or urljoin(base.url, url), parsed)
    except ValueError:
        return DropReason.BAD_URL
    given = _PARTS.fullmatch(parsed)
    if not given or "@" in parsed[: given.start(2)]:
        return DropReason.BAD_URL
    if (int(given[3]) if given[3] else None) not in WEB_PORTS:
        return DropReason.BAD_URL
    return DropReason.LONG_URL if len(written) > most else _host_drop_reason(given[2]) or written


def _check_ordinary(joined: str, most: int) -> str | DropReason | None:
    """Return the result for a URL of the usual form, None for others."""
    if not joined or "/." in joined or "/%2" in joined:
        return None
    match = _ORDINARY.fullmatch(joined)
    if match is None:
        return None
    return DropReason.LONG_URL if len(joined) > most else _host_drop_reason(match[1]) or joined


def _join_simply(url: str, base: BaseUrl) -> str:
    """Join a link of a usual form to its base without a parser; return "" for others."""
    if url.startswith(("http://", "https://")):
        return url
    if base.origin and url.startswith("/"):
        return (base.scheme if url.startswith("//") else base.origin) + url
    return ""


def _keep_spelling(joined: str, parsed: str) -> str:
    """Return a URL as written if it is equivalent to the parsed one, else the latter."""
    if _AMBIGUOUS.search(joined):
        return parsed
    if not joined.startswith(("http://", "https://")) or joined[7:9].startswith("/"):
        return parsed
    return joined if join_url("", joined) == parsed else parsed


@lru_cache(maxsize=20_000)
def _host_drop_reason(host: str) -> DropReason | None:
    """Return the reason to drop a host, by its name alone, or None."""
    if host[:1].isascii() and host[:1].isdigit() or ":" in host:
        if address := parse_ip(host):
            return None if is_public(str(address)) else DropReason.PRIVATE_HOST
    name = host.rstrip(".")
    if name.endswith(_PRIVATE) or "." not in name:
        return DropReason.PRIVATE_HOST
    return None if _HOST.fullmatch(name) else DropReason.BAD_URL
