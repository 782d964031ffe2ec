"""Resolve host names to public IP addresses, on the network that the settings describe.

A name's IPv4 and IPv6 addresses are requested together and tried in turn (RFC 8305, which aiohttp
implements), so that either family may fail: on the host's side, on the way, or on this machine.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeAlias

import aiodns
from aiohttp.abc import AbstractResolver, ResolveResult

from cahlib.core.config import Download
from cahlib.core.errors import ConfigError
from cahlib.fetch.addresses import NotPublicError, is_public, record_types, resolve_result
from cahlib.fetch.connectivity import NoAnswerCause, Outages
from cahlib.fetch.outage_monitor import OutageMonitor, OutageTimings

#: Seconds for which an answer and a failure are cached.
_CACHE_SECONDS, _FAILURE_SECONDS = 300, 60
_MAX_NAMES = 50_000  # cached: more hosts than a shard has, about 20 MB
_MAX_ADDRESSES = 4  # tried per host
#: Seconds to wait for the second address family once the first has answered.
_SECOND_FAMILY = 0.5
#: Errors by which a name server says that there is no such address; others are no answer.
_NO_SUCH_ADDRESS = frozenset({
    aiodns.error.ARES_ENODATA, aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_EBADNAME,
    aiodns.error.ARES_EBADQUERY, aiodns.error.ARES_EBADSTR,
})  # fmt: skip

#: From a host name to its addresses; raises OSError if there are none.
Lookup: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]


class NoAddressError(OSError):
    """The name has no address."""


class NoAnswerError(NoAddressError):
    """No name server answers whether the name has addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The network that a scraper uses."""

    lookup: Lookup | None = None  #: replaces name servers
    servers: tuple[str, ...] = ()  #: name servers as IP:PORT; empty: this machine's
    #: IP and port that every name resolves to, the only connections allowed then
    only: tuple[str, int] | None = None
    #: trusted authorities (True: this machine's); False: https URLs are fetched by http
    tls: ssl.SSLContext | bool = True
    pause: float = 1.0  #: seconds before a second attempt
    timings: OutageTimings = OutageTimings()
    outages: Outages = field(default_factory=Outages)


def network_config(options: Download) -> NetworkConfig:
    """Return the real network, or the server that ``replay`` names; raise ConfigError."""
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
            f"replay: {options.replay!r} is not a server; use HOST:PORT, such as 127.0.0.1:8000."
        ) from error
    return NetworkConfig(only=(str(infos[0][4][0]), number), tls=False, outages=outages)


class Resolver(AbstractResolver):
    """Resolves host names to public addresses, with a cache and one query per name at a time.

    A name that no name server answers for during an outage waits and is queried again after it.
    """

    def __init__(self, net: NetworkConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._net, self._clock = net, clock
        self._servers: NameServers | None = None
        self._cache: dict[str, tuple[float, asyncio.Task[list[str]]]] = {}
        self._last_resolved: str | None = None  # the last name that resolved
        self.hosts: OutageMonitor | None = None  #: outages of hosts also affect names
        self.watch = OutageMonitor(
            "name servers",
            self._answers,
            timings=net.timings,
            outages=net.outages,
            back=self.reset,
        )

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return at most four addresses; raise NoAddressError or NotPublicError."""
        if self._net.only:
            address, port = self._net.only
            return [resolve_result(host, address, port)]
        return self._results(host, port, await asyncio.shield(self._cached(host)))

    async def resolve_now(self, host: str, port: int) -> list[ResolveResult]:
        """Resolve like `resolve`, for probes: any cached result will do, and no outage is awaited.

        Otherwise a lookup during an outage of hosts would wait for its end, and the end for the
        lookup.
        """
        if self._net.only:
            return await self.resolve(host, port)
        _, task = self._cache.get(host, (0.0, None))
        if task and task.done() and not task.cancelled() and not task.exception():
            return self._results(host, port, task.result())
        return self._results(host, port, _public_addresses(await self._lookup(host)))

    def _results(self, host: str, port: int, addresses: Sequence[str]) -> list[ResolveResult]:
        if not addresses:
            raise NotPublicError(f"{host} is not public")
        return [resolve_result(host, address, port) for address in addresses]

    async def met_outage(self, host: str, begun: float) -> bool:
        """Return whether an outage since ``begun`` may have affected a name; wait for its end."""
        _, task = self._cache.get(host, (0.0, None))
        if task and not task.done():
            await asyncio.wait({task})
        return await self.watch.met_outage(begun)

    def has_failed(self, host: str) -> bool:
        """Return whether the last lookup of a name found no address."""
        _, task = self._cache.get(host, (0.0, None))
        return bool(task and task.done() and not task.cancelled() and task.exception())

    async def reset(self) -> None:
        """Start over with the name servers and routes that this machine has now."""
        servers, self._servers = self._servers, None
        if servers:
            await servers.close()

    async def close(self) -> None:
        """Cancel all lookups."""
        tasks = [task for _, task in self._cache.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.reset()

    def _cached(self, host: str) -> asyncio.Task[list[str]]:
        now = self._clock()
        since, task = self._cache.get(host, (0.0, None))
        if task and (
            not task.done()
            or now - since < (_FAILURE_SECONDS if task.exception() else _CACHE_SECONDS)
        ):
            return task
        if len(self._cache) >= _MAX_NAMES:
            self._forget()
        task = asyncio.create_task(self._resolve(host))
        self._cache[host] = now, task
        return task

    def _forget(self) -> None:
        """Drop the older half of the cache."""
        for host, (_, task) in list(self._cache.items())[: _MAX_NAMES // 2]:
            if task.done():
                task.exception()
                del self._cache[host]

    async def _resolve(self, host: str) -> list[str]:
        doubted = False
        while True:
            await self.watch.wait_online()
            with self.watch.track_request() as begun:
                try:
                    found = await self._lookup(host)
                    self._last_resolved = host
                    break
                except NoAnswerError:
                    pass
                except NoAddressError:
                    self.watch.record_answer(begun)
                    raise
            verdict = await self._no_answer_cause(begun)
            if verdict is NoAnswerCause.HOST_DEAD or (
                doubted and verdict is NoAnswerCause.TRANSIENT
            ):
                raise NoAddressError(f"{host} does not resolve")
            doubted = doubted or verdict is NoAnswerCause.TRANSIENT
        self.watch.record_answer(begun)
        return _public_addresses(found)

    async def _no_answer_cause(self, begun: float) -> NoAnswerCause:
        """Return why no name server resolves a name, after the end of an outage.

        A lookup survives no outage, however short: c-ares may have sent all its packets in it.
        Where the usual latency was 100 ms, cuts of 1 to 3 s cost 64 of 480 links. A local name
        server still answers from its cache when it is cut off from all others, so hosts must have
        answered too.
        """
        verdict = await self.watch.no_answer_cause(begun, at_once=True)
        if self.hosts and verdict is not NoAnswerCause.OUTAGE:
            verdict = await self.hosts.no_answer_cause(begun, at_once=True)
        return verdict

    @property
    def _lookup(self) -> Lookup:
        if self._net.lookup:
            return self._net.lookup
        self._servers = self._servers or NameServers(self._net.servers)
        return self._servers

    async def _answers(self) -> bool:
        """Return whether name servers answer, for the last resolved name or else the root.

        A name is not used again after a probe without an answer: its own servers may be down.
        """
        name, self._last_resolved = self._last_resolved or ".", None
        if await self.name_exists(name) is None:
            return False
        self._last_resolved = self._last_resolved or name
        return True

    async def name_exists(self, name: str) -> bool | None:
        """Return whether a name has addresses, uncached; None if no name server answers."""
        # A channel of its own, since each channel caches answers.
        fresh = NameServers(self._net.servers, timeout=self._net.timings.probe / 3)
        try:
            await (self._net.lookup or fresh)(name)
        except NoAddressError as error:
            return None if isinstance(error, NoAnswerError) else False
        finally:
            await fresh.close()
        return True


class NameServers:
    """A `Lookup` that queries name servers: this machine's, or those given as IP:PORT.

    It uses c-ares, so that dead names block no others: 4,000 names, one in twenty without an
    answer, took 8 s at 256 in flight; getaddrinfo on 64 threads took 16 s, on aiohttp's default
    136 s. c-ares waits five times the usual latency for an answer, 0.25 s at least, and twice as
    long at each further try. With two tries, names whose answer took 2 s were lost; with four, not
    even those that took 5 s.
    """

    def __init__(self, servers: Sequence[str] = (), *, timeout: float = 2.0) -> None:
        """``timeout``: seconds for a first answer, until it is known what is usual."""
        self._resolver = aiodns.DNSResolver(servers or None, timeout=timeout, tries=4)
        self._record_types = record_types()

    async def __call__(self, host: str) -> list[str]:
        queries = [self._resolver.query_dns(host, kind) for kind in self._record_types]
        try:
            if len(queries) == 1:  # half the cost of `wait`
                with suppress(aiodns.error.DNSError):
                    await queries[0]
            else:
                _, late = await asyncio.wait(queries, return_when=asyncio.FIRST_COMPLETED)
                there = any(_addresses_in(each) for each in queries if each.done())
                if late:
                    await asyncio.wait(late, timeout=_SECOND_FAMILY if there else None)
        finally:
            for each in queries:
                each.cancel()
        answers = [each for each in queries if each.done() and not each.cancelled()]
        found = zip_longest(
            *map(_addresses_in, answers)
        )  # alternate families, so that neither is cut off
        if addresses := [address for row in found for address in row if address]:
            return addresses
        said = {error.args[0] for each in answers if (error := each.exception())}
        if said <= _NO_SUCH_ADDRESS or aiodns.error.ARES_ENOTFOUND in said:
            raise NoAddressError(f"{host} has no address")
        raise NoAnswerError(f"{host} does not resolve")

    async def close(self) -> None:
        """Cancel all queries."""
        await self._resolver.close()


def _public_addresses(found: Sequence[str]) -> list[str]:
    """Return the addresses of a host to try."""
    return [each for each in found if is_public(each)][:_MAX_ADDRESSES]


def _addresses_in(answer: asyncio.Future[Any]) -> list[str]:
    """Return the addresses in an answer, none for a failure."""
    if answer.cancelled() or answer.exception():
        return []
    return [each.data.addr for each in answer.result().answer if hasattr(each.data, "addr")]
