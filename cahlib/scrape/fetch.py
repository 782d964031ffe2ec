"""One address becomes the bytes it serves, or the reason why there are none.

Deadlines, sizes, redirects, owners' refusals and forbidden places are held here, for one answer
at a time. It does not look at the bytes beyond the first few, and knows no candidates.
"""

from __future__ import annotations

import asyncio
import errno
import math
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

import aiohttp
from aiohttp.client import _RequestContextManager
from yarl import URL

from cahlib import __version__
from cahlib.config import Download
from cahlib.errors import ConfigError, RunError
from cahlib.records import OptOut, Reason
from cahlib.scrape import addresses, optout
from cahlib.scrape.addresses import Net
from cahlib.scrape.anatomy import format_of
from cahlib.scrape.manners import Manners
from cahlib.scrape.owners import Owners, Text
from cahlib.scrape.urls import domain_of, parse

_MOST_BYTES = 64 << 20  # of all answers that are being read or used
_MOST_TEXT_SECONDS = 10.0  # for a small file such as robots.txt
#: Each TLS connection reads through a buffer of its own, asyncio's of 256 KiB: with this one, 256
#: connections need 65 MiB less, and no more CPU.
_TLS_BUFFER = 64 << 10
_IDLE = 3.0  # seconds that a connection is kept for its host's next image

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_TEXT_HOPS = 5  # RFC 9309, 2.3.1.2

_HEADERS = {
    "Accept": "image/jpeg,image/png,image/webp;q=0.9,image/*;q=0.5",
    "Accept-Encoding": "identity",
}

#: A second try is worth it after these; what a dead host or a refusal says, it says twice.
_TRANSIENT = frozenset({Reason.DISCONNECTED, Reason.HTTP_5XX, Reason.TOO_OFTEN})

#: What aiohttp raises and what it means; the first that fits counts.
_CAUSES: tuple[tuple[type[Exception], Reason], ...] = (
    (asyncio.TimeoutError, Reason.TIMEOUT),
    (aiohttp.ClientConnectorDNSError, Reason.DNS),
    (aiohttp.ClientSSLError, Reason.TLS),
    (ssl.SSLError, Reason.TLS),
    (aiohttp.ClientConnectorError, Reason.REFUSED),
    (aiohttp.ClientResponseError, Reason.BAD_HTTP),
    (aiohttp.InvalidURL, Reason.UNFETCHABLE),
    (aiohttp.ClientError, Reason.DISCONNECTED),
    (OSError, Reason.DISCONNECTED),
    (ValueError, Reason.UNFETCHABLE),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # else sets would hash all its bytes
class Served:
    """A whole answer with status 200 that begins like an image."""

    body: bytes
    robots: str  #: what its owner said by headers, as in `cahlib.records.Image`


class Memory:
    """The bytes that all answers together may hold; must be made in a running loop."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._beyond: Share | None = None
        self._freed = asyncio.Event()

    async def hold(self, share: Share, size: int) -> None:
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

    def release(self, share: Share) -> None:
        """Count a share out."""
        self._free += share.size
        share.size = 0
        if self._beyond is share:
            self._beyond = None
        self._freed.set()


class Share:
    """What one answer holds of the memory."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


def agent(options: Download) -> str:
    """The user agent: who we are, and where site owners reach us."""
    if not options.contact:
        return f"{optout.AGENT}/{__version__}"
    if not (options.contact.isascii() and options.contact.isprintable()):
        raise ConfigError("contact: only plain ASCII letters can be sent in a user agent.")
    return f"{optout.AGENT}/{__version__} (+{options.contact})"


@asynccontextmanager
async def session(options: Download, net: Net) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """The connections of a stream of images, and what they have in common."""
    SSLProtocol.max_size = _TLS_BUFFER  # type: ignore[attr-defined]
    resolver = addresses.Resolver(net)
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        socket_factory=addresses.socket_factory(net),
        use_dns_cache=False,  # the resolver has its own, which knows failures too
        ssl=net.tls or True,
        limit=0,  # who fetches is counted
        limit_per_host=options.per_host,  # for redirects, which have no turn of their own
        keepalive_timeout=_IDLE,
    )
    try:
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**_HEADERS, "User-Agent": agent(options)},
            auto_decompress=False,  # no bombs; and images come as they are
        ) as opened:
            yield opened
    finally:
        await resolver.close()


class Fetcher:
    """Fetches addresses through a session."""

    def __init__(self, client: aiohttp.ClientSession, options: Download, net: Net) -> None:
        self._client, self._options, self._net = client, options, net
        self._memory = Memory(_MOST_BYTES)
        self.owners = Owners(self.text, options.consent)
        self.manners = Manners(options)

    @asynccontextmanager
    async def fetch(self, address: str) -> AsyncIterator[Served | OptOut | Reason]:
        """What an address serves, within the deadline; its bytes count as held until the exit."""
        share = Share()
        try:
            yield await self._try(address, share)
        finally:
            self._memory.release(share)

    async def _try(self, address: str, share: Share) -> Served | OptOut | Reason:
        """Ask once, and a second time if the first failure may pass."""
        deadline = time.monotonic() + self._options.total_timeout
        result = await self._follow(address, share, deadline)
        if result in _TRANSIENT and not self.manners.closed(domain := domain_of(address)):
            late = result is Reason.TOO_OFTEN  # it answered in time, and wants us later
            left = math.inf if late else deadline - time.monotonic()
            pause = max(self._net.pause, self.manners.wait(domain, left))
            if late:
                deadline += pause
            if time.monotonic() + pause < deadline:
                self._memory.release(share)
                await asyncio.sleep(pause)
                result = await self._follow(address, share, deadline)
        return result

    async def _follow(
        self, address: str, share: Share, deadline: float
    ) -> Served | OptOut | Reason:
        """Go along redirects, each of which is checked like the first address."""
        place = address
        for hop in range(self._options.max_redirects + 1):
            url = parse(place)
            if isinstance(url, Reason):
                return Reason.BAD_REDIRECT if hop else url
            domain = domain_of(place)
            if hop and (reason := await self._polite(domain, deadline)):
                return reason
            since = time.monotonic()
            refused = await self.owners.refusal(url, address)
            deadline += time.monotonic() - since  # who waits for an owner's answer is not late
            if refused not in (None, Reason.LEFT_ALONE):
                self.manners.note(domain, refused)
            result = refused or await self._ask(url, domain, address, share, deadline)
            if not isinstance(result, str):
                astray = hop > 0 and result in (Reason.PRIVATE_ADDRESS, Reason.UNFETCHABLE)
                return Reason.BAD_REDIRECT if astray else result
            try:
                place = urljoin(place, result)
            except ValueError:
                break
        return Reason.BAD_REDIRECT

    async def _ask(
        self, url: URL, domain: str, address: str, share: Share, deadline: float
    ) -> Served | OptOut | str | Reason:
        """One request: the answer's bytes, where it points to, or why there is nothing."""
        status = 0
        result: Served | OptOut | str | Reason
        try:
            async with self._get(url, deadline) as answer:
                status = answer.status
                if status in (429, 503):
                    self.manners.pause(domain, answer.headers.get("Retry-After", ""))
                result = await self._read(answer, address, url, share)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            result = cause(error)
        self.manners.note(domain, result, status)
        return result

    async def text(self, address: str, most: int) -> Text | Reason:
        """A small file such as robots.txt, of which the first bytes are enough."""
        left = min(_MOST_TEXT_SECONDS, self._options.total_timeout)
        place = address
        for _ in range(_MOST_TEXT_HOPS + 1):
            url = parse(place)
            if isinstance(url, Reason):
                return Reason.BAD_REDIRECT
            domain = domain_of(place)
            if reason := await self._polite(domain, math.inf):
                return reason
            deadline = time.monotonic() + left
            result: Text | str | Reason
            try:
                async with self._get(url, deadline) as answer:
                    if answer.status in _REDIRECTS:
                        result = place = urljoin(place, answer.headers.get("Location", "#"))
                    else:
                        body = await _beginning(answer, most) if answer.status == 200 else b""
                        result = Text(answer.status, body)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
                result = cause(error)
            self.manners.hear(domain, result)
            if not isinstance(result, str):
                return result
            left = deadline - time.monotonic()
        return Reason.BAD_REDIRECT

    def _get(self, url: URL, deadline: float) -> _RequestContextManager:
        timeout = aiohttp.ClientTimeout(
            total=max(0.001, deadline - time.monotonic()),
            sock_connect=self._options.connect_timeout,
            sock_read=self._options.read_timeout,
        )
        target, host = self._target(url)
        return self._client.get(target, headers=host, timeout=timeout, allow_redirects=False)

    async def _read(
        self, answer: aiohttp.ClientResponse, address: str, url: URL, share: Share
    ) -> Served | OptOut | str | Reason:
        """What an answer holds, or where it points to."""
        said = [
            (name, readable(value))
            for name in optout.HEADERS
            for value in answer.headers.getall(name, ())
        ]
        if answer.status < 400 and (refused := optout.spoken(said, self._options.consent)):
            return OptOut(url=address, where=str(url), time=time.time(), **refused._asdict())
        if reason := refuse_status(answer.status):
            return reason
        if answer.status != 200:
            return answer.headers.get("Location", "#")
        body = await self._body(answer, share)
        return body if isinstance(body, Reason) else Served(body=body, robots=_noted(said))

    async def _polite(self, domain: str, deadline: float) -> Reason | None:
        """Wait until a domain may be asked, or say why it may not."""
        if self.manners.closed(domain):
            return Reason.LEFT_ALONE
        left = deadline - time.monotonic()
        wait = self.manners.wait(domain, left)
        if wait > left:
            return Reason.TIMEOUT
        if wait:
            await asyncio.sleep(wait)
        return None

    def _target(self, url: URL) -> tuple[URL, dict[str, str]]:
        """What is asked for; on a replayed web, where all lies in one place, with the true host."""
        if self._net.tls is False:
            url = url.with_scheme("http")
        if not self._net.only or not addresses.literal(url.raw_host or ""):
            return url, {}
        # A host that is an address would not be resolved, so it is asked for by another name.
        return url.with_host("address.replay"), {"Host": url.raw_authority}

    async def _body(self, answer: aiohttp.ClientResponse, share: Share) -> bytes | Reason:
        """The bytes, given up as soon as they are too many or begin like no image."""
        most = self._options.max_bytes
        if (answer.content_length or 0) > most:
            return Reason.TOO_MANY_BYTES
        start, chunks, size = b"", [], 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > most:
                return Reason.TOO_MANY_BYTES
            await self._memory.hold(share, len(chunk))
            chunks.append(chunk)
            if len(start) < 12:
                start += chunk[:12]
                if len(start) >= 12 and not format_of(start):
                    return Reason.NOT_AN_IMAGE
        return b"".join(chunks)


async def _beginning(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The first bytes of an answer; the rest is not waited for."""
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) >= most:
            break
    return body[:most]


def _noted(said: list[tuple[str, str]]) -> str:
    """What an owner said by headers, a line each."""
    return "\n".join(
        optout.quoted(value if name == optout.HEADERS[0] else f"{name.lower()}: {value}")
        for name, value in said
    )


def refuse_status(status: int) -> Reason | None:
    """Why an answer of this status holds neither an image nor another address."""
    if status == 200 or status in _REDIRECTS:
        return None
    if status == 429:
        return Reason.TOO_OFTEN
    return {4: Reason.HTTP_4XX, 5: Reason.HTTP_5XX}.get(status // 100, Reason.HTTP_OTHER)


def cause(error: Exception) -> Reason:
    """The reason that stands behind an exception; RunError where it is this machine's fault."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, addresses.NotPublic):
        return Reason.PRIVATE_ADDRESS
    if isinstance(inner, OSError) and inner.errno in (errno.EMFILE, errno.ENFILE):
        raise RunError(
            "This process has no more open files; give fewer connections, or raise the limit "
            "(ulimit -n)."
        ) from error
    return next(reason for kind, reason in _CAUSES if isinstance(error, kind))


def readable(header: str) -> str:
    """A header's text, which aiohttp gives with surrogates for what is not UTF-8."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
