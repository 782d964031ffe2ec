"""Middleware before every route that limits rate, size and content type; it reads no body."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeAlias

_Scope: TypeAlias = MutableMapping[str, Any]
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
_App: TypeAlias = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

#: Most bytes of a body, of a completion (up to 100,000 pairs), and of a Bloom filter call (a list).
MAX_BODY, MAX_COMPLETION, MAX_FILTER_BODY = 1 << 20, 4 << 20, 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Requests per second of each server process in the long run; 0 for any number."""

    address: float = 50
    worker: float = 10
    newcomers: float = 0.5  #: registrations from one address
    streams: int = 50  #: event streams of one address; other pages poll


class TokenBuckets:
    """Token buckets by key, with a rate and a burst; the keys idle longest are forgotten."""

    def __init__(
        self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: object) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        if not self._rate:
            return 0
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.pop(key, (self._burst, now))
            tokens = min(tokens + (now - then) * self._rate, self._burst)
            has_token = tokens >= 1
            self._buckets[key] = (tokens - 1 if has_token else tokens, now)
            if len(self._buckets) > 100_000:
                self._buckets.popitem(last=False)
            return 0 if has_token else (1 - tokens) / self._rate


class RequestFilter:
    """ASGI middleware that rejects what no route should see."""

    def __init__(self, app: _App, *, limits: RequestLimits) -> None:
        self._app = app
        self._addresses = TokenBuckets(limits.address, 8 * limits.address)
        self._workers = TokenBuckets(limits.worker, 8 * limits.worker)
        self._newcomers = TokenBuckets(limits.newcomers, 200 * limits.newcomers)

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["method"] == "HEAD":  # the server omits the body
            scope = {**scope, "method": "GET"}
        headers = {name: value for name, value in scope["headers"]}
        seconds = self._wait(scope, headers)
        if seconds:
            text = "Too many requests; wait a little."
            await _drain(receive)
            return await _refuse(scope, send, 429, text, wait=seconds)
        max_bytes = _max_body(scope["path"])
        length = headers.get(b"content-length", b"0")
        too_large = f"The body is larger than {max_bytes >> 20} MiB."
        if not length.isdigit() or int(length) > max_bytes:
            await _drain(receive)
            return await _refuse(scope, send, 413, too_large)
        if _has_wrong_type(scope, headers):
            await _drain(receive)
            return await _refuse(scope, send, 415, "Send the body as application/json.")
        taken = 0

        async def counted() -> _Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return {"type": "http.disconnect"} if taken > max_bytes else message

        async def unless_too_large(message: _Message) -> None:
            if taken <= max_bytes:
                await send(message)

        await self._app(scope, counted, unless_too_large)
        if taken > max_bytes:
            await _drain(receive)
            await _refuse(scope, send, 413, too_large)

    def _wait(self, scope: _Scope, headers: dict[bytes, bytes]) -> float:
        address = client_key(scope["client"][0] if scope.get("client") else "")
        if scope["path"] in ("/healthz", "/readyz"):
            return 0
        if scope["path"] in ("/v1/workers", "/api/new") and (wait := self._newcomers.wait(address)):
            return wait
        secret = headers.get(b"authorization")
        if secret and (wait := self._workers.wait(hash(secret))):
            return wait
        return self._addresses.wait(address)


def _max_body(path: str) -> int:
    if path in ("/add/", "/deduplicate/"):
        return MAX_FILTER_BODY
    return MAX_COMPLETION if path.endswith("/complete") else MAX_BODY


def client_key(address: str) -> str:
    """Return the key that requests are counted by: an IPv6 connection has a whole /64."""
    try:
        found = ip_address(address)
    except ValueError:
        return address  # some proxies send other text
    if not isinstance(found, IPv6Address):
        return address
    return str(found.ipv4_mapped or int(found) >> 64)


async def _drain(receive: _Receive) -> None:
    """Read the rest of a request, up to a limit: a client that is cut off misses the response."""
    left = MAX_FILTER_BODY
    while left > 0:
        message = await receive()
        if not message.get("more_body"):
            return
        left -= len(message["body"])


def _has_wrong_type(scope: _Scope, headers: dict[bytes, bytes]) -> bool:
    if scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
        return False
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    return kind != b"application/json"


async def _refuse(scope: _Scope, send: _Send, status: int, text: str, *, wait: float = 0) -> None:
    is_api = scope["path"].startswith("/v1/")
    body = json.dumps({"detail": text}).encode() if is_api else text.encode()
    kind = b"application/json" if is_api else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # there may be more of the request than was read
    if wait:
        headers.append((b"retry-after", str(int(wait) + 1).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
