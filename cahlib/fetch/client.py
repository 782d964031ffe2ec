"""One address becomes the bytes it serves, or the reason why there are none.

Deadlines, sizes, redirects, owners' refusals and forbidden places are held here, for one answer
at a time. It does not look at the bytes beyond the first few, and knows no candidates.
"""

from __future__ import annotations

import asyncio
import math
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from aiohttp.client import _RequestContextManager
from yarl import URL

from cahlib import __version__
from cahlib.config import Download
from cahlib.errors import ConfigError
from cahlib.fetch import addresses, decoders, lenient_http, opt_outs, responses
from cahlib.fetch.addresses import NetworkConfig, Resolver
from cahlib.fetch.connectivity import NoAnswerCause
from cahlib.fetch.drop_reasons import exception_drop_reason, was_answered
from cahlib.fetch.host_policy import HostPolicies, SmallFile
from cahlib.fetch.network import Network
from cahlib.fetch.politeness import Politeness
from cahlib.fetch.urls import domain_of, parse_url
from cahlib.image.header import CAN_DECODE_AVIF, image_format
from cahlib.records import OptOut, Reason

_MOST_BYTES = 64 << 20  # of all answers that are being read or used
_MOST_TEXT_SECONDS = 10.0  # for a small file such as robots.txt
#: Each TLS connection reads through a buffer of its own, asyncio's of 256 KiB: with this one, 256
#: connections need 65 MiB less, and no more CPU.
_TLS_BUFFER = 64 << 10
_IDLE = 3.0  # seconds that a connection is kept for its host's next image

_MOST_TEXT_HOPS = 5  # RFC 9309, 2.3.1.2

_HEADERS = {
    # AVIF last: who has another form of the picture sends that
    "Accept": "image/jpeg,image/png,image/webp;q=0.9,"
    + "image/avif;q=0.8," * CAN_DECODE_AVIF
    + "image/*;q=0.5",
    "Accept-Encoding": "identity",
}

#: A second try is worth it after these; what a dead host or a refusal says, it says twice.
_TRANSIENT = frozenset({Reason.DISCONNECTED, Reason.HTTP_5XX, Reason.TOO_OFTEN})

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # else sets would hash all its bytes
class ImageResponse:
    """A whole answer with status 200 that begins like an image."""

    body: bytes
    robots: str  #: what its owner said by headers, as in `cahlib.records.Image`


class MemoryBudget:
    """The bytes that all answers together may hold; must be made in a running loop."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._beyond: MemoryShare | None = None
        self._freed = asyncio.Event()

    async def hold(self, share: MemoryShare, size: int) -> None:
        """Count some bytes in, as soon as there is room.

        One share may go beyond the limit, or else all of them could wait for each other.
        """
        while self._free < size and self._beyond not in (None, share):
            self._freed.clear()
            await self._freed.wait()
        if self._free < size:
            self._beyond = share
        self._free -= size
        share.size += size

    def release(self, share: MemoryShare) -> None:
        """Count a share out."""
        self._free += share.size
        share.size = 0
        if self._beyond is share:
            self._beyond = None
        self._freed.set()


class MemoryShare:
    """What one answer holds of the memory."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


def user_agent(options: Download) -> str:
    """The user agent: who we are, and where site owners reach us."""
    if not options.contact:
        return f"{opt_outs.USER_AGENT_TOKEN}/{__version__}"
    if not (options.contact.isascii() and options.contact.isprintable()):
        raise ConfigError("contact: only plain ASCII letters can be sent in a user agent.")
    return f"{opt_outs.USER_AGENT_TOKEN}/{__version__} (+{options.contact})"


@asynccontextmanager
async def open_session(
    options: Download, net: NetworkConfig, resolver: Resolver
) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """The connections of a stream of images, and what they have in common."""
    SSLProtocol.max_size = _TLS_BUFFER  # type: ignore[attr-defined]
    connector = lenient_http.LenientConnector(
        resolver=resolver,
        socket_factory=addresses.socket_factory(net),
        use_dns_cache=False,  # the resolver has its own, which knows failures too
        ssl=net.tls or True,
        limit=0,  # who fetches is counted
        limit_per_host=options.per_host,  # for redirects, which have no turn of their own
        keepalive_timeout=_IDLE,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={**_HEADERS, "User-Agent": user_agent(options)},
        auto_decompress=False,  # no bombs: see `cahlib.fetch.decoders`
        max_line_size=lenient_http.MAX_HEAD_BYTES,
        max_field_size=lenient_http.MAX_HEAD_BYTES,
        max_headers=lenient_http.MAX_HEAD_LINES,
    ) as opened:
        yield opened


class Deadline:
    """When an answer comes too late."""

    __slots__ = ("_at", "_seconds", "begun")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self._at - time.monotonic()

    def renew(self) -> None:
        """Give all the time again."""
        self.begun = time.monotonic()  #: since when it runs
        self._at = self.begun + self._seconds

    def extend(self, seconds: float) -> None:
        """Give more time."""
        self._at += seconds


class Fetcher:
    """Fetches addresses through a session."""

    def __init__(
        self, client: aiohttp.ClientSession, options: Download, net: NetworkConfig, network: Network
    ) -> None:
        self._client, self._options, self._net = client, options, net
        self._network = network
        self._memory = MemoryBudget(_MOST_BYTES)
        self.host_policies = HostPolicies(self.fetch_small_file, options.consent)
        self.politeness = Politeness(options)

    @asynccontextmanager
    async def fetch(self, address: str) -> AsyncIterator[ImageResponse | OptOut | Reason]:
        """What an address serves, within the deadline; its bytes count as held until the exit."""
        share = MemoryShare()
        try:
            yield await self._try(address, share)
        finally:
            self._memory.release(share)

    async def _try(self, address: str, share: MemoryShare) -> ImageResponse | OptOut | Reason:
        """Ask once, and a second time if the first failure may pass."""
        deadline = Deadline(self._options.total_timeout)
        result = await self._follow(address, share, deadline)
        if result in _TRANSIENT and not self.politeness.is_skipped(domain := domain_of(address)):
            if self._network.hosts.stood_still_since(deadline.begun):
                deadline.renew()
            late = result is Reason.TOO_OFTEN  # it answered in time, and wants us later
            left = math.inf if late else deadline.left
            pause = max(self._net.pause, self.politeness.reserve(domain, left))
            if late:
                deadline.extend(pause)
            if pause < deadline.left:
                self._memory.release(share)
                await asyncio.sleep(pause)
                result = await self._follow(address, share, deadline)
        return result

    async def _follow(
        self, address: str, share: MemoryShare, deadline: Deadline
    ) -> ImageResponse | OptOut | Reason:
        """Go along redirects, each of which is checked like the first address."""
        place = address
        for hop in range(self._options.max_redirects + 1):
            url = parse_url(place)
            if isinstance(url, Reason):
                return Reason.BAD_REDIRECT if hop else url
            domain = domain_of(place)
            if hop and (reason := await self._polite(domain, deadline.left)):
                return reason
            since = time.monotonic()
            refused = await self.host_policies.refusal(url, address)
            deadline.extend(time.monotonic() - since)  # who waits for an owner is not late
            if refused not in (None, Reason.LEFT_ALONE):
                self.politeness.record_result(domain, refused)
            result = refused or await self._ask(url, place, address, share, deadline)
            if not isinstance(result, str):
                astray = hop > 0 and result in (Reason.PRIVATE_ADDRESS, Reason.UNFETCHABLE)
                return Reason.BAD_REDIRECT if astray else result
            place = result
        return Reason.BAD_REDIRECT

    async def _ask(
        self, url: URL, place: str, address: str, share: MemoryShare, deadline: Deadline
    ) -> ImageResponse | OptOut | str | Reason:
        """One request: the answer's bytes, where it points to, or why there is nothing."""
        status, domain = 0, domain_of(place)

        async def read(answer: aiohttp.ClientResponse) -> ImageResponse | OptOut | str | Reason:
            nonlocal status
            status = answer.status
            if status in (429, 503):
                self.politeness.honour_retry_after(domain, answer.headers.get("Retry-After", ""))
            self._memory.release(share)  # of a try that was broken off
            return await self._read(answer, address, url, place, share)

        result = await self._request(url, domain, deadline, read)
        self.politeness.record_result(domain, result, status)
        if self.politeness.is_skipped(domain):
            self._network.forget(domain)
        return result

    async def fetch_small_file(self, address: str, most: int) -> SmallFile | Reason:
        """A small file such as robots.txt, of which the first bytes are enough."""
        deadline = Deadline(min(_MOST_TEXT_SECONDS, self._options.total_timeout))
        place = address

        async def read(answer: aiohttp.ClientResponse) -> SmallFile | str | Reason:
            if (to := responses.redirect_target(answer, place)) is not None:
                return to
            if answer.status // 100 != 2:
                return SmallFile(answer.status, b"")
            return await _beginning(answer, most)

        for _ in range(_MOST_TEXT_HOPS + 1):
            url = parse_url(place)
            if isinstance(url, Reason):
                return Reason.BAD_REDIRECT
            domain, since = domain_of(place), time.monotonic()
            if reason := await self._polite(domain, math.inf):
                return reason
            deadline.extend(time.monotonic() - since)
            result = await self._request(url, domain, deadline, read)
            self.politeness.record_contact(domain, result)
            if not isinstance(result, str):
                return result
            place = result
        return Reason.BAD_REDIRECT

    async def _request(
        self,
        url: URL,
        domain: str,
        deadline: Deadline,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
    ) -> T | Reason:
        """Send a request and read its answer; again after each outage that lost it."""
        host, port, doubted = url.raw_host or "", url.port or 0, False
        while True:
            if await self._network.wait_ready():
                deadline.renew()
            with self._network.hosts.track_request() as begun:
                try:
                    async with self._get(url, deadline.left) as answer:
                        self._network.record_answer(begun, domain, host, port)
                        return await read(answer)
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
                    reason, answered = exception_drop_reason(error), was_answered(error)
                    at_once = not isinstance(error, asyncio.TimeoutError)
            if answered:
                self._network.hosts.record_answer(begun)
            if answered is not False:
                return reason
            verdict = await self._network.no_answer_cause(
                deadline.begun, host, port, at_once=at_once
            )
            if verdict is NoAnswerCause.HOST_DEAD or (
                doubted and verdict is NoAnswerCause.TRANSIENT
            ):
                return reason
            doubted = doubted or verdict is NoAnswerCause.TRANSIENT
            if refused := await self._polite(domain, math.inf):
                return refused
            deadline.renew()

    def _get(self, url: URL, left: float) -> _RequestContextManager:
        timeout = aiohttp.ClientTimeout(
            total=max(0.001, left),
            sock_connect=self._options.connect_timeout,
            sock_read=self._options.read_timeout,
        )
        target, host = self._target(url)
        return self._client.get(target, headers=host, timeout=timeout, allow_redirects=False)

    async def _read(
        self, answer: aiohttp.ClientResponse, address: str, url: URL, place: str, share: MemoryShare
    ) -> ImageResponse | OptOut | str | Reason:
        """What an answer holds, or where it points to."""
        said = responses.opt_out_headers(answer)
        if answer.status < 400 and (refused := opt_outs.parse_headers(said, self._options.consent)):
            return OptOut(url=address, where=str(url), time=time.time(), **refused._asdict())
        if reason := responses.response_drop_reason(answer):
            return reason
        if (to := responses.redirect_target(answer, place)) is not None:
            return to
        body = await self._body(answer, share)
        return (
            body
            if isinstance(body, Reason)
            else ImageResponse(body=body, robots=responses.format_opt_out_headers(said))
        )

    async def _polite(self, domain: str, left: float) -> Reason | None:
        """Wait until a domain may be asked, or say why it may not."""
        if self.politeness.is_skipped(domain):
            return Reason.LEFT_ALONE
        wait = self.politeness.reserve(domain, left)
        if wait > left:
            return Reason.TIMEOUT
        if wait:
            await asyncio.sleep(wait)
        return None

    def _target(self, url: URL) -> tuple[URL, dict[str, str]]:
        """What is asked for; on a replayed web, where all lies in one place, with the true host."""
        if self._net.tls is False:
            url = url.with_scheme("http")
        if not self._net.only or not addresses.parse_ip(url.raw_host or ""):
            return url, {}
        # A host that is an address would not be resolved, so it is asked for by another name.
        return url.with_host("address.replay"), {"Host": url.raw_authority}

    async def _body(self, answer: aiohttp.ClientResponse, share: MemoryShare) -> bytes | Reason:
        """The bytes, given up as soon as they are too many or begin like no image."""
        most = self._options.max_bytes
        if (answer.content_length or 0) > most:
            return Reason.TOO_MANY_BYTES
        start, chunks, size, came = b"", [], 0, 0
        try:
            packed = decoders.Decoders(answer.headers.getall("Content-Encoding", ()))
            async for chunk in answer.content.iter_any():
                came += len(chunk)
                if packed and not (came == len(chunk) and image_format(chunk[:12])):
                    chunk = packed.feed(chunk, most + 1 - size)
                else:
                    packed = decoders.Decoders(())  # in spite of what its head says
                size += len(chunk)
                if max(size, came) > most:
                    return Reason.TOO_MANY_BYTES
                await self._memory.hold(share, len(chunk))
                chunks.append(chunk)
                if len(start) < 12:
                    start += chunk[:12]
                    if len(start) >= 12 and not image_format(start):
                        return Reason.NOT_AN_IMAGE
        except decoders.DecodingError:
            return Reason.NOT_AN_IMAGE
        return b"".join(chunks)


async def _beginning(answer: aiohttp.ClientResponse, most: int) -> SmallFile | Reason:
    """The first bytes of a small file, without codings; the rest is not waited for."""
    if answer.status in (204, 205):
        return SmallFile(answer.status, b"")
    if not responses.is_complete(answer):
        return Reason.HTTP_OTHER
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) >= most:
            break
    try:
        codings = answer.headers.getall("Content-Encoding", ())
        found = decoders.decode_body(body[:most], codings, most, cut=len(body) >= most)
    except decoders.DecodingError:
        return Reason.BAD_HTTP
    return SmallFile(200, found)
