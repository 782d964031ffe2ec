"""Where a link leads: the absolute address of an image, or why it cannot be one."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

from cahlib.records import Reason

#: Files that are no photos, and schemes that lead nowhere.
_NO_PICTURE = re.compile(r"[^?#]*\.(?:svgz?|gif|ico|css|js)(?:[?#].*)?", re.I | re.S)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_WEB = frozenset({"http", "https"})
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_HOST = re.compile(r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{2,63}")

#: Names that are not of the public web (RFC 6761, RFC 6762, RFC 7686, ICANN's "internal").
_PRIVATE = (
    ".localhost", ".local", ".internal", ".intranet", ".lan", ".home", ".corp", ".private", ".test",
    ".invalid", ".example", ".onion", ".arpa", ".localdomain",
)  # fmt: skip

#: The ports of the web; a crawl that tries others looks like a port scan.
_PORTS = frozenset({None, 80, 443})


def refuse(url: str) -> Reason | None:
    """Why an address cannot be a picture's, by its look alone; it may be relative."""
    scheme = _SCHEME.match(url)
    if scheme and scheme[1].lower() not in _WEB or _NO_PICTURE.fullmatch(url):
        return Reason.NOT_A_PICTURE_URL
    return None


def absolute(url: str, base: str, most: int) -> str | Reason:
    """An address made absolute on its page's base, without its fragment."""
    try:
        joined = url if url.startswith(("http://", "https://")) else urljoin(base, url)
        # urlsplit and browsers drop these within an address, and trim blanks
        joined = joined.translate(_DROPPED).strip().partition("#")[0].replace(" ", "%20")
        if len(joined) > most:
            return Reason.LONG_URL
        parts = urlsplit(joined)
        port = parts.port
    except ValueError:
        return Reason.BAD_URL
    if parts.scheme not in _WEB or parts.username is not None or port not in _PORTS:
        return Reason.BAD_URL
    if not parts.hostname or _CONTROL.search(joined):
        return Reason.BAD_URL
    reason = _host(parts.hostname)
    return joined if reason is None else reason


_DROPPED = {ord(each): None for each in "\t\r\n"}


@lru_cache(maxsize=4096)
def _host(host: str) -> Reason | None:
    """Why a host is none of the public web's, by its name alone."""
    if ":" in host or host.replace(".", "").isdigit():
        try:
            public = ipaddress.ip_address(host).is_global
        except ValueError:
            return Reason.BAD_URL
        return None if public else Reason.PRIVATE_HOST
    try:
        name = host.encode("idna").decode("ascii").lower().rstrip(".")
    except UnicodeError:
        return Reason.BAD_URL
    if name.endswith(_PRIVATE) or "." not in name:
        return Reason.PRIVATE_HOST
    return None if _HOST.fullmatch(name) else Reason.BAD_URL
