"""What an address asks for: the URL as it is sent, and whose domain that is. It fetches nothing."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, urlsplit

from yarl import URL

from cahlib.records import Reason
from cahlib.scrape import addresses
from cahlib.scrape.links import PORTS
from cahlib.scrape.manners import registered

#: What a path or a query may hold without being escaped, "%" for what is escaped already.
_AS_IS = "%/?:@!$&'()*+,;=[]|\\^~"


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


@lru_cache(maxsize=5000)  # each link is asked about four times on its way
def domain_of(address: str) -> str:
    """The registered domain of the host that an address asks, "" if it asks none."""
    try:
        place = _place(urlsplit(address).netloc)
    except ValueError:
        return ""
    return "" if isinstance(place, Reason) else registered(place.raw_host or "")


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
