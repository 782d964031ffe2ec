"""Normalise URLs as they are sent in requests, and find their hosts and domains."""

from __future__ import annotations

import re
from functools import lru_cache

from yarl import URL

from cahlib.core.records import DropReason
from cahlib.fetch.addresses import is_public, parse_ip
from cahlib.fetch.links import WEB_PORTS, split_url
from cahlib.fetch.politeness import registered_domain
from cahlib.fetch.robots import normalize_path, resolve_dots

#: Most URLs, which normalisation would not change (checked by test).
_COMMON = re.compile(
    r"https?://[a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/(?!\.)[\w.?:@!$&()*+,;=\[\]|~-]*)+(?<!\?)",
    re.ASCII,
)
#: Most hosts, which already have their DNS form.
_COMMON_HOST = re.compile(r"https?://((?:[a-z0-9-]+\.)+[a-z]+)/")


def parse_url(address: str) -> URL | DropReason:
    """Return the URL to request, as in browsers: without credentials and fragment.

    Escapes are kept: yarl would decode some of them, and some servers sign the exact URL.
    """
    parts = split_url(address)
    if parts is None or parts.port not in WEB_PORTS:
        return DropReason.UNFETCHABLE
    given = parse_ip(parts.host)
    if given and not is_public(str(given)):
        return DropReason.PRIVATE_ADDRESS
    path, mark, query = parts.target.partition("?")
    return URL.build(
        scheme=parts.scheme,
        host=parts.host,
        port=parts.port,
        path=path,
        query_string=query,
        encoded=True,
    )


def normalize_url(address: str) -> str:
    """Return the canonical form of equivalent URLs; invalid ones unchanged."""
    if _COMMON.fullmatch(address):
        return address
    parsed = parse_url(address)
    if isinstance(parsed, DropReason):
        return address
    host = (parsed.host_subcomponent or "").rstrip(".")
    port = f":{parsed.explicit_port}" if parsed.explicit_port else ""
    return f"{parsed.scheme}://{host}{port}{normalize_path(resolve_dots(parsed.raw_path_qs))}"


@lru_cache(maxsize=5000)  # called four times per link
def domain_of(address: str) -> str:
    """Return the registered domain of a URL's host, "" for an invalid URL."""
    host = host_of(address)
    return registered_domain(host) if host else ""


def host_of(address: str) -> str:
    """Return the host of a URL in DNS form, "" for an invalid URL."""
    if common := _COMMON_HOST.match(address):
        return common[1]
    parsed = parse_url(address)
    return "" if isinstance(parsed, DropReason) else (parsed.raw_host or "").rstrip(".")
