"""Tell IP addresses that are public, to which connections are allowed, from all others.

Private and other special addresses are refused twice: when a name resolves, and when a socket is
created, since a host that is an address is never resolved.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeAlias

from aiohttp.abc import ResolveResult

#: IANA's special-purpose IPv4 addresses, and multicast.
_SPECIAL_4 = [
    IPv4Network(block)
    for block in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
        "192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
        "224.0.0.0/4 240.0.0.0/4"
    ).split()
]

#: IPv6 is public in this one block only, which excludes ::ffff:0:0/96, fc00::/7, fe80::/10,
#: 64:ff9b::/96 (NAT64) and the rest; special blocks inside it are excluded too, above all 6to4
#: (2002::/16), which embeds an IPv4 address.
_GLOBAL_6 = IPv6Network("2000::/3")
_SPECIAL_6 = [
    IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]

#: Unassigned addresses for documentation, one of each family (RFC 5737, RFC 3849).
_EXAMPLES = "192.0.2.1", "2001:db8::1"


Address: TypeAlias = IPv4Address | IPv6Address


class NotPublicError(OSError):
    """The host has no public address."""


@lru_cache(maxsize=10_000)
def is_public(address: str) -> bool:
    """Return whether an address, in canonical form, belongs to the public internet."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in block for block in _SPECIAL_4)
    return parsed in _GLOBAL_6 and not any(parsed in block for block in _SPECIAL_6)


@lru_cache(maxsize=10_000)
def parse_ip(host: str) -> Address | None:
    """Return the IP address that a host is, in any form (127.1, 0x7f000001, [::1]), or None."""
    bare = host.strip("[]").rstrip(".")
    try:
        return ip_address(bare)
    except ValueError:
        pass
    if bare[-1:].isalnum() and bare[:1].isdigit():
        try:
            return IPv4Address(socket.inet_aton(bare))
        except OSError:
            pass
    return None


def socket_factory(only: tuple[str, int] | None) -> Callable[[Any], socket.socket]:
    """Return a factory of sockets to ``only``, or else to public addresses (NotPublicError)."""

    def make(info: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, (host, port, *_) = info
        if (host, port) != only if only else not is_public(host):
            raise NotPublicError(f"{host} is not public")
        return socket.socket(family, kind, protocol)

    return make


def record_types() -> tuple[str, ...]:
    """Return the DNS record types of addresses this machine can route, preferred first.

    Nothing is sent. IPv4 is always included, as nearly every host has it. IPv6 comes first
    (RFC 6724) if this machine has a public address of that family.
    """
    four, six = (_local_address(address) for address in _EXAMPLES)
    if four and not six:
        return ("A",)
    return ("AAAA", "A") if is_public(six) else ("A", "AAAA")


def has_route(address: str) -> bool:
    """Return whether this machine has a route to an address; nothing is sent."""
    return bool(_local_address(address))


def _local_address(target: str) -> str:
    """Return the local address for connections to ``target``; "" without a route."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as unused:
            unused.connect((target, 443))
            return str(unused.getsockname()[0])
    except OSError:
        return ""


def resolve_result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=family,
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_NUMERICHOST,
    )
