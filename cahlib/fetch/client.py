"""Fetch the bytes behind one URL, or return the reason why there are none.

Deadlines, sizes, redirects, opt-outs and forbidden addresses are enforced here, for one response at
a time. Only the first few bytes are examined.
"""

from __future__ import annotations

import asyncio
import math
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
from aiohttp.client import _RequestContextManager
from yarl import URL

from cahlib import __version__
from cahlib.core.config import Download
from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason, OptOut
from cahlib.fetch import addresses, decoders, lenient_http, opt_outs, responses
from cahlib.fetch.connectivity import NoAnswerCause
from cahlib.fetch.host_policy import HostPolicies, SmallFile
from cahlib.fetch.limits import Deadline, MemoryBudget, MemoryShare
from cahlib.fetch.network import Network
from cahlib.fetch.politeness import Politeness
from cahlib.fetch.resolver import NetworkConfig, Resolver
from cahlib.fetch.urls import domain_of, parse_url
from cahlib.image.header import CAN_DECODE_AVIF, image_format

_MAX_BYTES = 64 << 20  # of all responses being read or used
_MAX_ANNOUNCED = 2**62  # bytes that a response may claim to have
_MAX_TEXT_SECONDS = 10.0  # for a small file such as robots.txt
#: Bytes of the read buffer that each TLS connection has, instead of asyncio's 256 KiB: 256
#: connections need 65 MiB less, and no more CPU.
_TLS_BUFFER = 64 << 10
_IDLE = 3.0  # seconds to keep a connection for its host's next image

_MAX_TEXT_HOPS = 5  # RFC 9309, 2.3.1.2

_HEADERS = {
    # AVIF last: servers that have another format send that
    "Accept": "image/jpeg,image/png,image/webp;q=0.9,"
    + "image/avif;q=0.8," * CAN_DECODE_AVIF
    + "image/*;q=0.5",
    "Accept-Encoding": "identity",
}

#: Worth a second attempt; a dead host or a refusal would fail the same way again.
_TRANSIENT = frozenset({DropReason.DISCONNECTED, DropReason.HTTP_5XX, DropReason.TOO_OFTEN})

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # else sets would hash all its bytes
class ImageResponse:
    """A complete response with status 200 that begins like an image."""

    body: bytes
    robots: str  #: opt-out headers, as in `cahlib.core.records.Image`


@dataclass(slots=True, kw_only=True)
class FetchTrace:
    """All that is known of fetching a URL, whatever came of it."""

    address: str  #: the URL
    place: str = ""  #: the URL that was requested last
    status: int | None = None  #: of the last response
    bytes: int | None = None  #: of its body, as announced or read to its end
    attempt: int = 0
    ms: int | None = None  #: milliseconds until it was fetched or given up
    begun: float = field(default_factory=time.monotonic)

    def begin_attempt(self) -> None:
        self.attempt += 1
        self.status = self.bytes = None

    def end(self) -> None:
        self.ms = round(1000 * (time.monotonic() - self.begun))


def user_agent(options: Download) -> str:
    """Return the user agent, with the contact for site owners; raise ConfigError."""
    if not options.contact:
        return f"{opt_outs.USER_AGENT_TOKEN}/{__version__}"
    if not (options.contact.isascii() and options.contact.isprintable()):
        raise ConfigError("contact: use printable ASCII only, as it is sent in the user agent.")
    return f"{opt_outs.USER_AGENT_TOKEN}/{__version__} (+{options.contact})"


@asynccontextmanager
async def open_session(
    options: Download, net: NetworkConfig, resolver: Resolver
) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """Open the HTTP session of a stream of images."""
    SSLProtocol.max_size = _TLS_BUFFER  # type: ignore[attr-defined]
    connector = lenient_http.LenientConnector(
        resolver=resolver,
        socket_factory=addresses.socket_factory(net.only),
        use_dns_cache=False,  # the resolver has its own, which caches failures too
        ssl=net.tls or True,
        limit=0,  # the workers are the limit
        limit_per_host=options.per_host,  # for redirects, which bypass the host queue
        keepalive_timeout=_IDLE,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={**_HEADERS, "User-Agent": user_agent(options)},
        auto_decompress=False,  # against decompression bombs, see `decoders`
        max_line_size=lenient_http.MAX_HEAD_BYTES,
        max_field_size=lenient_http.MAX_HEAD_BYTES,
        max_headers=lenient_http.MAX_HEAD_LINES,
    ) as opened:
        yield opened


class Fetcher:
    """Fetches URLs through a session."""

    def __init__(
        self, client: aiohttp.ClientSession, options: Download, net: NetworkConfig, network: Network
    ) -> None:
        self._client, self._options, self._net = client, options, net
        self._network = network
        self._memory = MemoryBudget(_MAX_BYTES)
        self.host_policies = HostPolicies(self.fetch_small_file, options.consent)
        self.politeness = Politeness(options)

    @asynccontextmanager
    async def fetch(self, trace: FetchTrace) -> AsyncIterator[ImageResponse | OptOut | DropReason]:
        """Fetch a URL within the deadline; its bytes count as used until the context exits."""
        share = MemoryShare()
        try:
            result = await self._fetch_with_retry(trace, share)
            trace.end()
            yield result
        finally:
            self._memory.release(share)

    async def _fetch_with_retry(
        self, trace: FetchTrace, share: MemoryShare
    ) -> ImageResponse | OptOut | DropReason:
        """Fetch a URL, with a second attempt after a transient failure."""
        deadline = Deadline(self._options.total_timeout)
        result = await self._follow(trace, share, deadline)
        domain = domain_of(trace.address)
        if result in _TRANSIENT and not self.politeness.is_skipped(domain):
            if self._network.hosts.stood_still_since(deadline.begun):
                deadline.renew()
            late = result is DropReason.TOO_OFTEN  # it answered in time, and asks for a pause
            left = math.inf if late else deadline.left
            pause = max(self._net.pause, self.politeness.reserve(domain, left))
            if late:
                deadline.extend(pause)
            if pause < deadline.left:
                self._memory.release(share)
                await asyncio.sleep(pause)
                result = await self._follow(trace, share, deadline)
        return result

    async def _follow(
        self, trace: FetchTrace, share: MemoryShare, deadline: Deadline
    ) -> ImageResponse | OptOut | DropReason:
        """Follow redirects, checking each like the first URL."""
        trace.begin_attempt()
        place = trace.address
        for hop in range(self._options.max_redirects + 1):
            trace.place = place
            url = parse_url(place)
            if isinstance(url, DropReason):
                return DropReason.BAD_REDIRECT if hop else url
            domain = domain_of(place)
            if hop and (reason := await self._wait_turn(domain, deadline.left)):
                return reason
            since = time.monotonic()
            refused = await self.host_policies.refusal(url, trace.address)
            deadline.extend(time.monotonic() - since)  # robots.txt does not count toward it
            if refused not in (None, DropReason.LEFT_ALONE):
                self.politeness.record_result(domain, refused)
            result = refused or await self._request_image(url, place, trace, share, deadline)
            if not isinstance(result, str):
                astray = hop > 0 and result in (DropReason.PRIVATE_ADDRESS, DropReason.UNFETCHABLE)
                return DropReason.BAD_REDIRECT if astray else result
            place = result
        return DropReason.BAD_REDIRECT

    async def _request_image(
        self, url: URL, place: str, trace: FetchTrace, share: MemoryShare, deadline: Deadline
    ) -> ImageResponse | OptOut | str | DropReason:
        """Send one request; return its body, its redirect target, or why there is neither."""
        status, domain = 0, domain_of(place)

        async def read(answer: aiohttp.ClientResponse) -> ImageResponse | OptOut | str | DropReason:
            nonlocal status
            trace.status = status = answer.status
            if status in (429, 503):
                self.politeness.honour_retry_after(domain, answer.headers.get("Retry-After", ""))
            self._memory.release(share)  # of an interrupted attempt
            return await self._read(answer, trace, url, place, share)

        result = await self._request(url, domain, deadline, read)
        self.politeness.record_result(domain, result, status)
        if self.politeness.is_skipped(domain):
            self._network.forget(domain)
        return result

    async def fetch_small_file(self, address: str, most: int) -> SmallFile | DropReason:
        """Fetch the first ``most`` bytes of a small file such as robots.txt."""
        deadline = Deadline(min(_MAX_TEXT_SECONDS, self._options.total_timeout))
        place = address

        async def read(answer: aiohttp.ClientResponse) -> SmallFile | str | DropReason:
            if (to := responses.redirect_target(answer, place)) is not None:
                return to
            if answer.status // 100 != 2:
                return SmallFile(answer.status, b"")
            return await _read_start(answer, most)

        for _ in range(_MAX_TEXT_HOPS + 1):
            url = parse_url(place)
            if isinstance(url, DropReason):
                return DropReason.BAD_REDIRECT
            domain, since = domain_of(place), time.monotonic()
            if reason := await self._wait_turn(domain, math.inf):
                return reason
            deadline.extend(time.monotonic() - since)
            result = await self._request(url, domain, deadline, read)
            self.politeness.record_contact(domain, result)
            if not isinstance(result, str):
                return result
            place = result
        return DropReason.BAD_REDIRECT

    async def _request(
        self,
        url: URL,
        domain: str,
        deadline: Deadline,
        read: Callable[[aiohttp.ClientResponse], Awaitable[_T]],
    ) -> _T | DropReason:
        """Send a request and read its response; repeat it after an outage."""
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
                    reason, answered = (
                        responses.exception_drop_reason(error),
                        responses.was_answered(error),
                    )
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
                # a name may be looked up for longer than a request may take
                return DropReason.DNS if self._network.resolver.has_failed(host) else reason
            doubted = doubted or verdict is NoAnswerCause.TRANSIENT
            if refused := await self._wait_turn(domain, math.inf):
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
        self,
        answer: aiohttp.ClientResponse,
        trace: FetchTrace,
        url: URL,
        place: str,
        share: MemoryShare,
    ) -> ImageResponse | OptOut | str | DropReason:
        """Return a response's image, redirect target, opt-out, or the reason to drop it."""
        said = responses.opt_out_headers(answer)
        if answer.status < 400 and (refused := opt_outs.parse_headers(said, self._options.consent)):
            where = str(url)
            return OptOut(url=trace.address, where=where, time=time.time(), **refused._asdict())
        if reason := responses.response_drop_reason(answer):
            return reason
        if (to := responses.redirect_target(answer, place)) is not None:
            return to
        body = await self._body(answer, share, trace)
        return (
            body
            if isinstance(body, DropReason)
            else ImageResponse(body=body, robots=responses.format_opt_out_headers(said))
        )

    async def _wait_turn(self, domain: str, left: float) -> DropReason | None:
        """Wait until a request to a domain is allowed, or return why it is not."""
        if self.politeness.is_skipped(domain):
            return DropReason.LEFT_ALONE
        wait = self.politeness.reserve(domain, left)
        if wait > left:
            return DropReason.TIMEOUT
        if wait:
            await asyncio.sleep(wait)
        return None

    def _target(self, url: URL) -> tuple[URL, dict[str, str]]:
        """Return the URL to request, and for a replayed web the real Host header."""
        if self._net.tls is False:
            url = url.with_scheme("http")
        if not self._net.only or not addresses.parse_ip(url.raw_host or ""):
            return url, {}
        # A host that is an IP address would bypass the resolver, so it gets a name.
        return url.with_host("address.replay"), {"Host": url.raw_authority}

    async def _body(
        self, answer: aiohttp.ClientResponse, share: MemoryShare, trace: FetchTrace
    ) -> bytes | DropReason:
        """Read the body; stop as soon as it is too long or does not begin like an image."""
        most = self._options.max_bytes
        if (answer.content_length or 0) > most:
            trace.bytes = min(answer.content_length or 0, _MAX_ANNOUNCED)
            return DropReason.TOO_MANY_BYTES
        start, chunks, size, came = b"", [], 0, 0
        try:
            packed = decoders.Decoders(answer.headers.getall("Content-Encoding", ()))
            async for chunk in answer.content.iter_any():
                came += len(chunk)
                if packed and not (came == len(chunk) and image_format(chunk[:12])):
                    chunk = packed.feed(chunk, most + 1 - size)
                else:
                    packed = decoders.Decoders(())  # not encoded, whatever its headers say
                size += len(chunk)
                if max(size, came) > most:
                    return DropReason.TOO_MANY_BYTES
                await self._memory.reserve(share, len(chunk))
                chunks.append(chunk)
                if len(start) < 12:
                    start += chunk[:12]
                    if len(start) >= 12 and not image_format(start):
                        return DropReason.NOT_AN_IMAGE
        except decoders.DecodingError:
            return DropReason.NOT_AN_IMAGE
        trace.bytes = came
        return b"".join(chunks)


async def _read_start(answer: aiohttp.ClientResponse, most: int) -> SmallFile | DropReason:
    """Read the first bytes of a small file, decoded, without waiting for the rest."""
    if answer.status in (204, 205):
        return SmallFile(answer.status, b"")
    if not responses.is_complete(answer):
        return DropReason.HTTP_OTHER
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) >= most:
            break
    try:
        codings = answer.headers.getall("Content-Encoding", ())
        found = decoders.decode_body(body[:most], codings, most, cut=len(body) >= most)
    except decoders.DecodingError:
        return DropReason.BAD_HTTP
    return SmallFile(200, found)
