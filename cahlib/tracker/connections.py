"""Connections with deadlines, so that silent or slow clients cost the others nothing.

uvicorn waits without limit for a request's head until the process may open no more files: about
1,000 silent connections stopped it, and each further one was a line in its log.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cahlib.tracker.request_limits import client_key

#: Limits of a request's head.
_HEAD_SECONDS, _HEAD_BYTES = 10.0, 64 << 10
#: Seconds for a body, plus those that it takes at this rate in bytes per second; a client has the
#: same seconds to read what is buffered of a response.
_BODY_SECONDS, _BODY_RATE = 30.0, 32 << 10
#: Most connections of one address without a request yet; beyond that, the oldest is closed.
_MAX_IDLE = 100
#: Connections that the system may queue.
_BACKLOG = 1024
#: The limit of open files to request, and those of them that are not connections.
_MAX_FILES, _OTHER_FILES = 1 << 16, _BACKLOG + 256
#: Log lines of one kind per minute.
_MAX_LINES = 20


class TimedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection with deadlines: for a request's head, its body, and reading the response."""

    app: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._inner, self.app = self.app, self._serve
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False  #: with a request whose head has arrived
        self._head = 0  #: bytes of the next head

    def connection_made(self, transport: Any) -> None:
        """Start waiting for a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all deadlines."""
        super().connection_lost(exc)
        self._stop_deadline()

    def shutdown(self) -> None:
        """Close with the server; a stream of events would never end by itself."""
        if self._busy and self.scope["path"] == "/live":
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Accept data, unless a head grows without end."""
        if not self._busy:
            if self._timer is None:  # kept alive, with another request
                self._expect_head()
            self._head += len(data)
            # with the end of a head, the start of a body may have arrived
            if self._head > _HEAD_BYTES + _BODY_RATE and b"\r\n\r\n" not in data:
                self.cut()
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """Start the deadline for reading the response."""
        super().pause_writing()
        self._start_deadline(_BODY_SECONDS, self.cut)

    def resume_writing(self) -> None:
        """Stop the deadline."""
        super().resume_writing()
        self._stop_deadline()

    def cut(self) -> None:
        """Close the connection now."""
        self._stop_deadline()
        self.transport.abort()

    def _start_deadline(self, seconds: float, act: Callable[[], None]) -> None:
        self._stop_deadline()
        self._timer = self.loop.call_later(seconds, act)

    def _expect_head(self) -> None:
        self._start_deadline(_HEAD_SECONDS, self.cut)
        address = self.client[0] if self.client else ""
        proxies = self.config.forwarded_allow_ips if self.config.proxy_headers else ""
        _idle.add(self, "" if address in proxies else client_key(address), len(self.connections))

    def _stop_deadline(self) -> None:
        _idle.remove(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request whose head has arrived."""
        started, taken, self._busy = self.loop.time(), 0, True

        def late() -> None:
            left = started + _BODY_SECONDS + taken / _BODY_RATE - self.loop.time()
            self._start_deadline(left, late) if left > 0 else self.cut()

        async def received() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if not message.get("more_body"):
                self._stop_deadline()
            return message

        self._start_deadline(_BODY_SECONDS, late)
        try:
            await self._inner(scope, received, send)
        finally:
            self._busy, self._head = False, 0
            self._stop_deadline()


class IdleConnections:
    """Connections of a process that have sent no request yet; the oldest are closed for others."""

    def __init__(self) -> None:
        self._all: OrderedDict[TimedConnection, str] = OrderedDict()
        self._by_address: defaultdict[str, OrderedDict[TimedConnection, None]] = defaultdict(
            OrderedDict
        )

    def add(self, connection: TimedConnection, address: str, connected: int) -> None:
        """Add a connection of an address, "" for a proxy's, given the number of all connections."""
        self._all[connection] = address
        self._by_address[address][connection] = None
        if address and len(self._by_address[address]) > _MAX_IDLE:
            next(iter(self._by_address[address])).cut()
        elif connected > _room():
            next(iter(self._all)).cut()

    def remove(self, connection: TimedConnection) -> None:
        """Remove a connection that has sent a request, or is gone."""
        address = self._all.pop(connection, None)
        if address is not None:
            del self._by_address[address][connection]
            if not self._by_address[address]:
                del self._by_address[address]


_idle = IdleConnections()


@cache
def _room() -> int:
    """Raise the process's limit of open files; return how many may be connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - _OTHER_FILES, _MAX_IDLE)


class LogThrottle(logging.Filter):
    """A log filter that passes a few lines of a kind per minute and counts the others."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this line is written."""
        kind, now = (record.name, record.lineno), self._clock()
        since, lines = self._seen.get(kind, (now, 0))
        if now - since >= 60:
            if lines > _MAX_LINES:
                suppressed = f"{record.getMessage()} ({lines - _MAX_LINES:,} more like it before)"
                record.msg, record.args = suppressed, None
            since, lines = now, 0
        self._seen[kind] = since, lines + 1
        return lines < _MAX_LINES


def uvicorn_options() -> dict[str, Any]:
    """Return the options that make uvicorn listen this way."""
    _room()  # before uvicorn listens
    logs = deepcopy(LOGGING_CONFIG)
    throttle = {"()": LogThrottle}
    logs["filters"] = {"throttle": throttle}
    for handler in logs["handlers"].values():
        handler["filters"] = ["throttle"]
    # messages of asyncio and this package take the same way
    logs["root"] = {"handlers": ["default"], "level": "WARNING"}
    return {"http": TimedConnection, "ws": "none", "backlog": _BACKLOG, "log_config": logs}
