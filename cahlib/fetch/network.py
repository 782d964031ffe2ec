"""Watch whether name servers and hosts answer, and hold requests back during outages.

Name servers and hosts are watched separately, since cached hosts still answer while name servers do
not. A probe only opens connections to hosts that answered before, and never to others.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

from aiohttp.abc import ResolveResult

from cahlib.fetch import addresses
from cahlib.fetch.addresses import NotPublicError
from cahlib.fetch.connectivity import NoAnswerCause
from cahlib.fetch.outage_monitor import OutageMonitor
from cahlib.fetch.resolver import NetworkConfig, NoAddressError, Resolver

_MAX_KNOWN = 256  # hosts that answered, one per domain; probes rotate through them
_PROBED = 3  # at the same time

#: Seconds between the first requests of connections, and between those that resume.
PACE = 0.004


class Network:
    """Tells when requests can be sent, and which of them to repeat."""

    def __init__(self, net: NetworkConfig) -> None:
        self._net = net
        self.resolver = Resolver(net)
        self.hosts = OutageMonitor(
            "hosts",
            self._answers,
            timings=net.timings,
            outages=net.outages,
            back=self.resolver.reset,
        )
        self.resolver.hosts = self.hosts
        self._known: dict[str, tuple[str, int]] = {}  # a host and its port, by domain
        self._unanswered: tuple[str, int] | None = None  # a host that did not answer
        self._resume_lock = asyncio.Lock()

    async def wait_ready(self) -> bool:
        """Wait for the end of an outage; return whether there was one."""
        waited = False
        while await self.hosts.wait_online() or await self.resolver.watch.wait_online():
            waited = True
        if waited:
            async with self._resume_lock:
                await asyncio.sleep(PACE)
        return waited

    def record_answer(self, begun: float, domain: str, host: str, port: int) -> None:
        """Record that a host answered a request sent at ``begun``."""
        self.hosts.record_answer(begun)
        self._net.outages.last_answer = time.monotonic()
        if domain not in self._known:
            self._known[domain] = host, port
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]

    def forget(self, domain: str) -> None:
        """Exclude a domain from probes, since it is skipped from now on."""
        self._known.pop(domain, None)

    async def no_answer_cause(
        self, begun: float, host: str, port: int, *, at_once: bool
    ) -> NoAnswerCause:
        """Return why a request got no answer, after the end of an outage."""
        self._unanswered = host, port
        verdict = await self.hosts.no_answer_cause(begun, at_once=at_once)
        return NoAnswerCause.OUTAGE if await self.resolver.met_outage(host, begun) else verdict

    async def _answers(self) -> bool:
        """Return whether a host that answered before still does, or the crawl's host.

        If none has for as long as an outage may last, those hosts may be down: otherwise a host
        that once answered and later blocks us would postpone its shard again and again.
        """
        if self._net.outages.is_overdue() and await self._names_answer():
            self._known.clear()
            self._net.outages.crawl = None
            return True
        places = [(domain, place) for domain, place in islice(self._known.items(), _PROBED)]
        for domain, place in places:  # others come first next time
            del self._known[domain]
            self._known[domain] = place
        targets = [place for _, place in places]
        if self._net.outages.crawl:
            targets.append(self._net.outages.crawl)
        answered = await _any(self._accepts_connection(*place) for place in targets)
        return await self._has_route() if answered is None else answered

    async def _names_answer(self) -> bool:
        """Return whether name servers outside the local network answer, and correctly.

        Random names are queried, which no cache has. A network that requires a login first resolves
        any name, even one that cannot exist.
        """
        if self._net.only:
            return False
        token, domain = secrets.token_hex(8), next(iter(self._known), "")
        beyond = await self.resolver.name_exists(f"{token}.{domain}.") is not None
        return beyond and await self.resolver.name_exists(f"{token}.") is False

    async def _accepts_connection(self, host: str, port: int) -> bool | None:
        """Return whether a host accepts or refuses a connection; None if it is not public."""
        try:
            found = await self._addresses(host, port)
        except NotPublicError:
            return None
        except NoAddressError:
            return False
        return await _any(map(self._accepts_at, found))  # in parallel: one family may be down

    async def _accepts_at(self, place: ResolveResult) -> bool | None:
        at = place["host"], place["port"]
        info = place["family"], socket.SOCK_STREAM, place["proto"], "", at
        try:
            with addresses.socket_factory(self._net.only)(info) as connection:
                connection.setblocking(False)
                await asyncio.get_running_loop().sock_connect(connection, at)
        except NotPublicError:
            return None
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    async def _has_route(self) -> bool:
        """Return whether there is a route to the doubtful host, when none has answered yet."""
        if not self._unanswered:
            return True
        try:
            found = await self._addresses(*self._unanswered)
        except (NoAddressError, NotPublicError):
            return True
        return any(addresses.has_route(each["host"]) for each in found)

    async def _addresses(self, host: str, port: int) -> list[ResolveResult]:
        if address := addresses.parse_ip(host):
            return [addresses.resolve_result(host, str(address), port)]
        return await self.resolver.resolve_now(host, port)


async def _any(results: Iterable[Coroutine[Any, Any, bool | None]]) -> bool | None:
    """Return True as soon as one result is; else False, or None if all results are None."""
    tasks = [asyncio.create_task(each) for each in results]
    found = None
    try:
        for each in asyncio.as_completed(tasks):
            answer = await each
            if answer:
                return True
            found = found if answer is None else answer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


@asynccontextmanager
async def watch_network(net: NetworkConfig) -> AsyncIterator[Network]:
    """Open the network, with the tasks that monitor it."""
    network = Network(net)
    tasks = [asyncio.create_task(each.run()) for each in (network.hosts, network.resolver.watch)]
    try:
        yield network
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await network.resolver.close()
