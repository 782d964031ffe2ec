"""The network below a stream of images: who answers, and what waits while nobody does.

Name servers and hosts are watched apart, for hosts that are known answer although name servers are
silent. A probe of hosts opens connections to some that answered before, and asks them nothing; no
other place is ever probed. It does not know what is asked for.
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

_MAX_KNOWN = 256  # hosts that answered, of as many domains, which take turns in being probed
_PROBED = 3  # at once

#: Seconds between two requests that were waiting, see `cahlib.fetch.images`.
_PACE = 0.004


class Network:
    """Says when requests may be sent, and which of them are to be sent again."""

    def __init__(self, net: NetworkConfig) -> None:
        self._net = net
        self.resolver = Resolver(net)
        self.hosts = OutageMonitor(
            "hosts",
            self._answers,
            patience=net.patience,
            outages=net.outages,
            back=self.resolver.reset,
        )
        self.resolver.hosts = self.hosts
        self._known: dict[str, tuple[str, int]] = {}  # by domain: a host, and its port
        self._doubtful: tuple[str, int] | None = None  # one that did not answer
        self._resuming = asyncio.Lock()

    async def wait_ready(self) -> bool:
        """Wait while nobody can be asked; returns whether that was necessary."""
        waited = False
        while await self.hosts.wait_online() or await self.resolver.watch.wait_online():
            waited = True
        if waited:
            async with self._resuming:
                await asyncio.sleep(_PACE)
        return waited

    def record_answer(self, begun: float, domain: str, host: str, port: int) -> None:
        """Note a host that answered what was sent at ``begun``."""
        self.hosts.record_answer(begun)
        self._net.outages.last_answer = time.monotonic()
        if domain not in self._known:
            self._known[domain] = host, port
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]

    def forget(self, domain: str) -> None:
        """Note that a domain is left alone from now on: by probes too."""
        self._known.pop(domain, None)

    async def no_answer_cause(
        self, begun: float, host: str, port: int, *, at_once: bool
    ) -> NoAnswerCause:
        """Return why a request was not answered; an outage is over then."""
        self._doubtful = host, port
        verdict = await self.hosts.no_answer_cause(begun, at_once=at_once)
        return NoAnswerCause.OUTAGE if await self.resolver.met_outage(host, begun) else verdict

    async def _answers(self) -> bool:
        """Whether one of those who answered before still does, or the crawl's host.

        If none has for as long as an outage may last, it may be they who are silent: one host that
        lives, and drops us later, would have its shard given back again and again.
        """
        if self._net.outages.is_overdue() and await self._names_answer():
            self._known.clear()
            self._net.outages.crawl = None
            return True
        places = [(domain, place) for domain, place in islice(self._known.items(), _PROBED)]
        for domain, place in places:  # next time it is the turn of others
            del self._known[domain]
            self._known[domain] = place
        asked = [place for _, place in places]
        if self._net.outages.crawl:
            asked.append(self._net.outages.crawl)
        answered = await _any(self._connects(*place) for place in asked)
        return await self._routed() if answered is None else answered

    async def _names_answer(self) -> bool:
        """Whether name servers can be asked beyond this house, and honestly.

        They are asked for what none of them can have kept. A network that wants a login first
        finds any name, even one that there cannot be.
        """
        if self._net.only:
            return False
        token, domain = secrets.token_hex(8), next(iter(self._known), "")
        beyond = await self.resolver.name_exists(f"{token}.{domain}.") is not None
        return beyond and await self.resolver.name_exists(f"{token}.") is False

    async def _connects(self, host: str, port: int) -> bool | None:
        """Whether a host takes a connection, or refuses it itself; None: it must not be asked."""
        try:
            found = await self._addresses(host, port)
        except NotPublicError:
            return None
        except NoAddressError:
            return False
        return await _any(map(self._connects_at, found))  # at once: one family may be dead

    async def _connects_at(self, place: ResolveResult) -> bool | None:
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

    async def _routed(self) -> bool:
        """Whether there is a way to who did not answer, where nobody has answered yet."""
        if not self._doubtful:
            return True
        try:
            found = await self._addresses(*self._doubtful)
        except (NoAddressError, NotPublicError):
            return True
        return any(addresses.has_route(each["host"]) for each in found)

    async def _addresses(self, host: str, port: int) -> list[ResolveResult]:
        if address := addresses.parse_ip(host):
            return [addresses.resolve_result(host, str(address), port)]
        return await self.resolver.resolve_now(host, port)


async def _any(questions: Iterable[Coroutine[Any, Any, bool | None]]) -> bool | None:
    """Whether one of these is true, as soon as one is; None if none of them is true or false."""
    asked = [asyncio.create_task(each) for each in questions]
    found = None
    try:
        for each in asyncio.as_completed(asked):
            answer = await each
            if answer:
                return True
            found = found if answer is None else answer
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return found


@asynccontextmanager
async def watch_network(net: NetworkConfig) -> AsyncIterator[Network]:
    """The network, with all that keeps an eye on it."""
    network = Network(net)
    tasks = [asyncio.create_task(each.run()) for each in (network.hosts, network.resolver.watch)]
    try:
        yield network
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await network.resolver.close()
