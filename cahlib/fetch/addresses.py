"""Which addresses may be asked, and how host names become such addresses.

Private and other special addresses are refused twice: when a name resolves, and when a socket is
made, for a name that is an address never comes to the resolver. It does not know URLs or HTTP.

A name's IPv4 and IPv6 addresses are asked for together and tried by turns (RFC 8305, which aiohttp
does), so that either family may be dead: on the host's side, on the way, or on this machine.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import zip_longest
from typing import Any, TypeAlias

import aiodns
from aiohttp.abc import AbstractResolver, ResolveResult

from cahlib.config import Download
from cahlib.errors import ConfigError
from cahlib.fetch.connectivity import NoAnswerCause, Outages
from cahlib.fetch.outage_monitor import OutageMonitor, OutageTimings

#: IANA's special-purpose IPv4 addresses, and multicast.
_CLOSED_4 = [
    IPv4Network(block)
    for block in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
        "192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
        "224.0.0.0/4 240.0.0.0/4"
    ).split()
]

#: IPv6 is public in this one block only, so that ::ffff:0:0/96, fc00::/7, fe80::/10, 64:ff9b::/96
#: (NAT64) and the rest are out; and in it not what is special, 6to4 (2002::/16) with its IPv4
#: address inside above all.
_OPEN_6 = IPv6Network("2000::/3")
_CLOSED_6 = [
    IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]

#: Seconds for which an answer holds, and a failure.
_KNOWN, _UNKNOWN = 300, 60

_MOST_NAMES = 50_000  # remembered: more than a shard has hosts, about 20 MB
_MOST_ADDRESSES = 4  # of a host that are tried

#: Seconds for which the answer about one family is waited for when the other's is there.
_SECOND_FAMILY = 0.5

_AT_ONCE = 1.0  # seconds within which a look-up fails that was refused or not sent

#: Addresses that nobody has, one of each family (RFC 5737, RFC 3849).
_DOCUMENTED = "192.0.2.1", "2001:db8::1"

#: What a name server says of a name that has no such address; all else is no answer.
_NONE_SUCH = frozenset(
    {
        aiodns.error.ARES_ENODATA,
        aiodns.error.ARES_ENOTFOUND,
        aiodns.error.ARES_EBADNAME,
        aiodns.error.ARES_EBADQUERY,
        aiodns.error.ARES_EBADSTR,
    }
)

Address: TypeAlias = IPv4Address | IPv6Address

#: From a host name to its addresses; raises OSError if there are none.
Lookup: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]


class NotPublicError(OSError):
    """The host has no address that may be asked."""


class NoAddressError(OSError):
    """The name does not resolve."""


class NoAnswerError(NoAddressError):
    """No name server says whether the name has addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The network as the scraper sees it."""

    lookup: Lookup | None = None  #: instead of name servers
    servers: tuple[str, ...] = ()  #: name servers, as IP:PORT; none: those of this machine
    #: host and port to which every name resolves, and the only place that is then connected to
    only: tuple[str, int] | None = None
    #: whom https trusts (True: the authorities this machine knows); False: https is asked as http
    tls: ssl.SSLContext | bool = True
    pause: float = 1.0  #: seconds before a second try
    patience: OutageTimings = OutageTimings()
    outages: Outages = field(default_factory=Outages)


def network_config(options: Download) -> NetworkConfig:
    """The real network, or the one place that ``replay`` names; raises ConfigError for nonsense."""
    outages = Outages(options.offline_minutes * 60)
    if not options.replay:
        return NetworkConfig(outages=outages)
    host, _, port = options.replay.rpartition(":")
    try:
        number = int(port)
        if not 0 < number < 65_536:
            raise ValueError("no such port")
        infos = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"replay: {options.replay!r} is no place to connect to; give HOST:PORT, for example "
            "127.0.0.1:8000."
        ) from error
    return NetworkConfig(only=(str(infos[0][4][0]), number), tls=False, outages=outages)


@lru_cache(maxsize=10_000)
def is_public(address: str) -> bool:
    """Whether an address, in its usual spelling, belongs to the public internet."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in block for block in _CLOSED_4)
    return parsed in _OPEN_6 and not any(parsed in block for block in _CLOSED_6)


@lru_cache(maxsize=10_000)
def parse_ip(host: str) -> Address | None:
    """The address that a URL's host is, in any spelling (127.1, 0x7f000001, [::1]), else None."""
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


def socket_factory(net: NetworkConfig) -> Callable[[Any], socket.socket]:
    """Makes sockets for addresses that may be connected to; raises NotPublic for others."""

    def make(info: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, (host, port, *_) = info
        if (host, port) != net.only if net.only else not is_public(host):
            raise NotPublicError(f"{host} is not public")
        return socket.socket(family, kind, protocol)

    return make


class Resolver(AbstractResolver):
    """Public addresses of host names, each name asked for once in a while and by one asker.

    What no name server answers in an outage is asked again after it, and meanwhile waits.
    """

    def __init__(self, net: NetworkConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._net, self._clock = net, clock
        self._servers: NameServers | None = None
        self._asked: dict[str, tuple[float, asyncio.Task[list[str]]]] = {}
        self._resolved: str | None = None  # the name that resolved last
        self.hosts: OutageMonitor | None = None  #: whose outages are also those of names
        self.watch = OutageMonitor(
            "name servers",
            self._answers,
            patience=net.patience,
            outages=net.outages,
            back=self.renew,
        )

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """At most four addresses; raises NoAddress or NotPublic."""
        if self._net.only:
            address, port = self._net.only
            return [resolve_result(host, address, port)]
        return self._results(host, port, await asyncio.shield(self._ask(host)))

    async def resolve_now(self, host: str, port: int) -> list[ResolveResult]:
        """As `resolve`, for probes: what was known lately will do, and no outage is waited for.

        Else a name that is asked for in an outage of hosts would wait for its end, and the end for
        the name.
        """
        if self._net.only:
            return await self.resolve(host, port)
        _, task = self._asked.get(host, (0.0, None))
        if task and task.done() and not task.cancelled() and not task.exception():
            return self._results(host, port, task.result())
        return self._results(host, port, _open(await self._lookup(host)))

    def _results(self, host: str, port: int, addresses: Sequence[str]) -> list[ResolveResult]:
        if not addresses:
            raise NotPublicError(f"{host} is not public")
        return [resolve_result(host, address, port) for address in addresses]

    async def met_outage(self, host: str, begun: float) -> bool:
        """Return whether a name may have been silent in an outage since then, when it is over."""
        _, task = self._asked.get(host, (0.0, None))
        if task and not task.done():
            await asyncio.wait({task})
        return await self.watch.met_outage(begun)

    async def renew(self) -> None:
        """Begin anew with the name servers and the routes that this machine has now."""
        servers, self._servers = self._servers, None
        if servers:
            await servers.close()

    async def close(self) -> None:
        """End what is being looked up."""
        tasks = [task for _, task in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.renew()

    def _ask(self, host: str) -> asyncio.Task[list[str]]:
        now = self._clock()
        since, task = self._asked.get(host, (0.0, None))
        if task and (not task.done() or now - since < (_UNKNOWN if task.exception() else _KNOWN)):
            return task
        if len(self._asked) >= _MOST_NAMES:
            self._forget()
        task = asyncio.create_task(self._public(host))
        self._asked[host] = now, task
        return task

    def _forget(self) -> None:
        """Drop the older half of what is known."""
        for host, (_, task) in list(self._asked.items())[: _MOST_NAMES // 2]:
            if task.done():
                task.exception()
                del self._asked[host]

    async def _public(self, host: str) -> list[str]:
        doubted = False
        while True:
            await self.watch.wait_online()
            with self.watch.track_request() as begun:
                try:
                    found = await self._lookup(host)
                    self._resolved = host
                    break
                except NoAnswerError:
                    pass
                except NoAddressError:
                    self.watch.record_answer(begun)
                    raise
            verdict = await self._lost(begun)
            if verdict is NoAnswerCause.HOST_DEAD or (
                doubted and verdict is NoAnswerCause.TRANSIENT
            ):
                raise NoAddressError(f"{host} does not resolve")
            doubted = doubted or verdict is NoAnswerCause.TRANSIENT
        self.watch.record_answer(begun)
        return _open(found)

    async def _lost(self, begun: float) -> NoAnswerCause:
        """Return why no name server knows a name; an outage is over then.

        One on this machine or in this house still answers what it knows when it is cut off from
        all others, so hosts have to be heard too.
        """
        at_once = time.monotonic() - begun < _AT_ONCE
        verdict = await self.watch.no_answer_cause(begun, at_once=at_once)
        if self.hosts and verdict is not NoAnswerCause.OUTAGE:
            verdict = await self.hosts.no_answer_cause(begun, at_once=at_once)
        return verdict

    @property
    def _lookup(self) -> Lookup:
        if self._net.lookup:
            return self._net.lookup
        self._servers = self._servers or NameServers(self._net.servers)
        return self._servers

    async def _answers(self) -> bool:
        """Whether name servers answer: about a name that they know, else about the root."""
        return await self.name_exists(self._resolved or ".") is not None

    async def name_exists(self, name: str) -> bool | None:
        """Return whether a name has addresses, asked anew; None: no name server says."""
        # Another channel than for all other names, since each remembers what it was told.
        fresh = NameServers(self._net.servers, timeout=self._net.patience.probe / 3)
        try:
            await (self._net.lookup or fresh)(name)
        except NoAddressError as error:
            return None if isinstance(error, NoAnswerError) else False
        finally:
            await fresh.close()
        return True


class NameServers:
    """A `Lookup` that asks name servers: those of this machine, or those given as IP:PORT.

    Through c-ares, because dead names block nobody: 4,000 names, one in twenty without an answer,
    took 2.3 s at 256 in flight; getaddrinfo on 64 threads took 16 s, on aiohttp's default 136 s.
    """

    def __init__(self, servers: Sequence[str] = (), *, timeout: float = 2.0) -> None:
        self._resolver = aiodns.DNSResolver(servers or None, timeout=timeout, tries=2)
        self._kinds = record_types()

    async def __call__(self, host: str) -> list[str]:
        asked = [self._resolver.query_dns(host, kind) for kind in self._kinds]
        try:
            if len(asked) == 1:  # at half the cost of waiting for several
                with suppress(aiodns.error.DNSError):
                    await asked[0]
            else:
                _, late = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                there = any(_found(each) for each in asked if each.done())
                if late:
                    await asyncio.wait(late, timeout=_SECOND_FAMILY if there else None)
        finally:
            for each in asked:
                each.cancel()
        answers = [each for each in asked if each.done() and not each.cancelled()]
        found = zip_longest(*map(_found, answers))  # of each family one, so that none is left out
        if addresses := [address for row in found for address in row if address]:
            return addresses
        said = {error.args[0] for each in answers if (error := each.exception())}
        if said <= _NONE_SUCH or aiodns.error.ARES_ENOTFOUND in said:
            raise NoAddressError(f"{host} has no address")
        raise NoAnswerError(f"{host} does not resolve")

    async def close(self) -> None:
        """Give up what is being asked."""
        await self._resolver.close()


def record_types() -> tuple[str, ...]:
    """Which kinds of address this machine can route, the better one first; nothing is sent.

    IPv4 is always asked for: nearly every host has it. IPv6 comes first (RFC 6724) where this
    machine has a public address of that family.
    """
    four, six = (_source(address) for address in _DOCUMENTED)
    if four and not six:
        return ("A",)
    return ("AAAA", "A") if is_public(six) else ("A", "AAAA")


def has_route(address: str) -> bool:
    """Whether this machine has a route to an address; nothing is sent."""
    return bool(_source(address))


def _source(target: str) -> str:
    """The address from which this machine would ask another; "" without a route."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as unused:
            unused.connect((target, 443))
            return str(unused.getsockname()[0])
    except OSError:
        return ""


def _open(found: Sequence[str]) -> list[str]:
    """Those of a host's addresses that are tried."""
    return [each for each in found if is_public(each)][:_MOST_ADDRESSES]


def _found(answer: asyncio.Future[Any]) -> list[str]:
    """The addresses in an answer, none in a failure."""
    if answer.cancelled() or answer.exception():
        return []
    return [each.data.addr for each in answer.result().answer if hasattr(each.data, "addr")]


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
