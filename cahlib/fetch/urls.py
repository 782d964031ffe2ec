"""What an address asks for: the URL as it is sent, and whose domain that is. It fetches nothing."""

from __future__ import annotations

import re
from functools import lru_cache

from yarl import URL

from cahlib.fetch.addresses import is_public, parse_ip
from cahlib.fetch.links import WEB_PORTS, split_url
from cahlib.fetch.politeness import registered_domain
from cahlib.fetch.robots import normalize_path, resolve_dots
from cahlib.records import Reason

#: Most addresses are spelled so that the long way would change nothing in them (checked by test).
_COMMON = re.compile(
    r"https?://[a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/(?!\.)[\w.?:@!$&()*+,;=\[\]|~-]*)+(?<!\?)",
    re.ASCII,
)
#: And most hosts are named as DNS has them.
_COMMON_HOST = re.compile(r"https?://((?:[a-z0-9-]+\.)+[a-z]+)/")


def parse_url(address: str) -> URL | Reason:
    """What is asked for, as by browsers: without credentials and fragment, escapes as they are.

    yarl alone would undo some escapes, and there are servers that sign the exact address.
    """
    parts = split_url(address)
    if parts is None or parts.port not in WEB_PORTS:
        return Reason.UNFETCHABLE
    given = parse_ip(parts.host)
    if given and not is_public(str(given)):
        return Reason.PRIVATE_ADDRESS
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
    """An address in the one spelling of all those that ask for the same; others as they are."""
    if _COMMON.fullmatch(address):
        return address
    asked = parse_url(address)
    if isinstance(asked, Reason):
        return address
    host = (asked.host_subcomponent or "").rstrip(".")
    port = f":{asked.explicit_port}" if asked.explicit_port else ""
    return f"{asked.scheme}://{host}{port}{normalize_path(resolve_dots(asked.raw_path_qs))}"


@lru_cache(maxsize=5000)  # each link is asked about four times on its way
def domain_of(address: str) -> str:
    """The registered domain of the host that an address asks, "" if it asks none."""
    host = host_of(address)
    return registered_domain(host) if host else ""


def host_of(address: str) -> str:
    """The host that an address asks, by the name that DNS has for it, "" if it asks none."""
    if common := _COMMON_HOST.match(address):
        return common[1]
    asked = parse_url(address)
    return "" if isinstance(asked, Reason) else (asked.raw_host or "").rstrip(".")
