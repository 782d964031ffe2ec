"""Where a link leads: the absolute address of an image, or why it cannot be one."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from cahlib.records import Reason
from cahlib.scrape.addresses import literal, public

#: Files that are no photos.
_NO_PICTURE = (".svg", ".svgz", ".gif", ".ico", ".css", ".js")
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_WEB = frozenset({"http", "https"})
#: The ports of the web; a crawl that tries others looks like a port scan.
PORTS = frozenset({None, 80, 443})

#: What most addresses look like; the long way would change nothing in them (checked by test).
_ORDINARY = re.compile(r"https?://([a-z0-9-]+(?:\.[a-z0-9-]+)+)(?:/[!\"$-~]*)?")
_ORIGIN = re.compile(r"(https?:)//[A-Za-z0-9.:-]+(?=/|\Z)")

_CONTROL = re.compile(r"[\x00-\x20\x7f]")
#: urlsplit and browsers drop these within an address.
_DROPPED = {ord(each): None for each in "\t\r\n"}

_HOST = re.compile(
    r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])"
)
#: Names that are not of the public web (RFC 6761, 6762, 7686 and 8375, ICANN's "internal").
_PRIVATE = (
    ".localhost", ".local", ".internal", ".intranet", ".lan", ".home", ".corp", ".private", ".test",
    ".invalid", ".example", ".onion", ".arpa", ".localdomain",
)  # fmt: skip


class Base(NamedTuple):
    """What the relative addresses of a page are relative to."""

    url: str
    scheme: str  #: "http:" or "https:"; "" if the address is an odd one
    origin: str  #: scheme and host

    @classmethod
    def of(cls, page: str, written: str) -> Base:
        """A page's base: its own address, or what its base element says, as it is ``written``."""
        try:
            url = urljoin(page, written.strip()) if written else page
        except ValueError:
            url = page
        match = _ORIGIN.match(url)
        return cls(url, match[1], match[0]) if match else cls(url, "", "")


def refuse(url: str) -> Reason | None:
    """Why an address, which may be relative, cannot be a picture's by its mere look."""
    if not url.startswith(("http", "/")):
        scheme = _SCHEME.match(url)
        if scheme and scheme[1].lower() not in _WEB:
            return Reason.NOT_A_PICTURE_URL
    path = url
    if "?" in url or "#" in url:
        path = url.partition("?")[0].partition("#")[0]
    return Reason.NOT_A_PICTURE_URL if path.rstrip()[-5:].lower().endswith(_NO_PICTURE) else None


def absolute(url: str, base: Base, most: int) -> str | Reason:
    """An address made absolute, without its fragment and with its blanks escaped."""
    url = url.partition("#")[0]
    if not (url.isascii() and url.isprintable()) or " " in url:
        url = url.translate(_DROPPED).strip().replace(" ", "%20")
    if not url:
        return Reason.BAD_URL
    try:
        joined = _joined(url, base)
        if len(joined) > most:
            return Reason.LONG_URL
        if match := _ORDINARY.fullmatch(joined):
            return _host(match[1]) or joined
        return _checked(joined)
    except ValueError:
        return Reason.BAD_URL


def _joined(url: str, base: Base) -> str:
    """What urljoin answers, but for its tidying; that takes 10 µs, and most links need it not."""
    if url.startswith(("http://", "https://")):
        return url
    if base.origin and url.startswith("/") and "/." not in url:
        return (base.scheme if url.startswith("//") else base.origin) + url
    return urljoin(base.url, url)


def _checked(url: str) -> str | Reason:
    """An absolute address as it is, or why it is none of the web's; raises ValueError as well."""
    parts = urlsplit(url)
    if parts.scheme not in _WEB or parts.username is not None or parts.port not in PORTS:
        return Reason.BAD_URL
    if not parts.hostname or _CONTROL.search(url):
        return Reason.BAD_URL
    return _host(parts.hostname) or url


@lru_cache(maxsize=20_000)
def _host(host: str) -> Reason | None:
    """Why a host is none of the public web's, by its name alone."""
    if host[:1].isascii() and host[:1].isdigit() or ":" in host:
        if address := literal(host):
            return None if public(str(address)) else Reason.PRIVATE_HOST
    try:
        name = host.encode("idna").decode("ascii").lower().rstrip(".")
    except UnicodeError:
        return Reason.BAD_URL
    if name.endswith(_PRIVATE) or "." not in name:
        return Reason.PRIVATE_HOST
    return None if _HOST.fullmatch(name) else Reason.BAD_URL
