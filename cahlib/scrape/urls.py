"""What an address asks for: the URL as it is sent, and whose domain that is. It fetches nothing."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote, urlsplit

from yarl import URL

from cahlib.records import Reason
from cahlib.scrape import addresses
from cahlib.scrape.links import PORTS
from cahlib.scrape.manners import registered
from cahlib.scrape.robots import normal, tidied

#: What a path or a query may hold without being escaped, "%" for what is escaped already.
_AS_IS = "%/?:@!$&'()*+,;=[]|\\^~"

#: Most addresses are spelled so that the long way would change nothing in them (checked by test).
_COMMON = re.compile(
    r"https?://[a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/(?!\.)[\w.?:@!$&'()*+,;=\[\]|^~-]*)+(?<!\?)",
    re.ASCII,
)
#: And most hosts are named as DNS has them.
_COMMON_HOST = re.compile(r"https?://((?:[a-z0-9-]+\.)+[a-z]+)/")


def parse(address: str) -> URL | Reason:
    """What is asked for: without credentials and fragment, its escapes left as they are.

    yarl alone would undo some escapes, and there are servers that sign the exact address.
    """
    try:
        parts = urlsplit(address)
        path, query = (quote(text, _AS_IS, errors="surrogateescape") for text in parts[2:4])
    except ValueError:
        return Reason.UNFETCHABLE
    if parts.scheme not in ("http", "https"):
        return Reason.UNFETCHABLE
    place = _place(parts.netloc)
    if isinstance(place, Reason):
        return place
    return URL.build(
        scheme=parts.scheme,
        host=place.host_subcomponent or "",
        port=place.explicit_port,
        path=path or "/",
        query_string=query,
        encoded=True,
    )


def spelled(address: str) -> str:
    """An address in the one spelling of all those that ask for the same; others as they are."""
    if _COMMON.fullmatch(address):
        return address
    asked = parse(address)
    if isinstance(asked, Reason):
        return address
    host = (asked.host_subcomponent or "").rstrip(".")
    port = f":{asked.explicit_port}" if asked.explicit_port else ""
    return f"{asked.scheme}://{host}{port}{normal(tidied(asked.raw_path_qs))}"


@lru_cache(maxsize=5000)  # each link is asked about four times on its way
def domain_of(address: str) -> str:
    """The registered domain of the host that an address asks, "" if it asks none."""
    host = host_of(address)
    return registered(host) if host else ""


def host_of(address: str) -> str:
    """The host that an address asks, by the name that DNS has for it, "" if it asks none."""
    if common := _COMMON_HOST.match(address):
        return common[1]
    try:
        place = _place(urlsplit(address).netloc)
    except ValueError:
        return ""
    return "" if isinstance(place, Reason) else (place.raw_host or "").rstrip(".")


@lru_cache(maxsize=20_000)
def _place(authority: str) -> URL | Reason:
    """The host and port that are asked, without credentials, or why they are not."""
    try:
        place = URL(f"http://{authority.rpartition('@')[2]}")
    except ValueError:
        return Reason.UNFETCHABLE
    if not place.raw_host or place.explicit_port not in PORTS:
        return Reason.UNFETCHABLE
    literal = addresses.literal(place.raw_host)
    if literal and not addresses.public(str(literal)):
        return Reason.PRIVATE_ADDRESS
    return place
