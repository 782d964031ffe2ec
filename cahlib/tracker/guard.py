"""How the tracker listens: connections that say nothing, or too slowly, cost the others nothing.

uvicorn waits for ever for a request's head, until all files that a process may open are taken:
about 1,000 silent connections stopped it, and each further one was a line in its log.
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

from cahlib.tracker.limits import sender

#: Seconds for a request's head, and bytes of it.
_HEAD_SECONDS, _HEAD_BYTES = 10.0, 64 << 10
#: A body comes in so many seconds, and as many more as it takes at this many bytes a second; who
#: reads an answer makes room for more of it in as many seconds.
_BODY_SECONDS, _BODY_RATE = 30.0, 32 << 10
#: Connections of one address that have asked nothing yet: beyond it, the oldest is closed.
_EACH = 100
#: Connections that the system may have for us before we look at them.
_BACKLOG = 1024
#: Most files to ask the system for; and those that are no connections.
_FILES, _OTHER_FILES = 1 << 16, _BACKLOG + 256
#: Lines of one kind that the log takes in a minute.
_LINES = 20


class Guarded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection with deadlines: for a request's head, its body, and room for the answer."""

    app: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._inner, self.app = self.app, self._serve
        self._alarm: asyncio.TimerHandle | None = None
        self._busy = False  #: with a request whose head is here
        self._head = 0  #: bytes of the next one's

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._await_nothing()

    def shutdown(self) -> None:
        """End when the server does; a stream of events would never end by itself."""
        if self._busy and self.scope["path"] == "/live":
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is a head without an end."""
        if not self._busy:
            if self._alarm is None:  # it was kept alive, and says more
                self._await_head()
            self._head += len(data)
            # with the end of a head, the beginning of a body may have come
            if self._head > _HEAD_BYTES + _BODY_RATE and b"\r\n\r\n" not in data:
                self.cut()
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """Wait for whoever reads the answer."""
        super().pause_writing()
        self._await(_BODY_SECONDS, self.cut)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._await_nothing()

    def cut(self) -> None:
        """End the connection now."""
        self._await_nothing()
        self.transport.abort()

    def _await(self, seconds: float, act: Callable[[], None]) -> None:
        self._await_nothing()
        self._alarm = self.loop.call_later(seconds, act)

    def _await_head(self) -> None:
        self._await(_HEAD_SECONDS, self.cut)
        address = self.client[0] if self.client else ""
        proxies = self.config.forwarded_allow_ips if self.config.proxy_headers else ""
        _silent.add(self, "" if address in proxies else sender(address), len(self.connections))

    def _await_nothing(self) -> None:
        _silent.remove(self)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request whose head is here."""
        started, taken, self._busy = self.loop.time(), 0, True

        def late() -> None:
            left = started + _BODY_SECONDS + taken / _BODY_RATE - self.loop.time()
            self._await(left, late) if left > 0 else self.cut()

        async def received() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if not message.get("more_body"):
                self._await_nothing()
            return message

        self._await(_BODY_SECONDS, late)
        try:
            await self._inner(scope, received, send)
        finally:
            self._busy, self._head = False, 0
            self._await_nothing()


class Silent:
    """The connections of a process that have asked nothing yet; the oldest make way for others."""

    def __init__(self) -> None:
        self._every: OrderedDict[Guarded, str] = OrderedDict()
        self._of: defaultdict[str, OrderedDict[Guarded, None]] = defaultdict(OrderedDict)

    def add(self, connection: Guarded, address: str, connected: int) -> None:
        """Take one in, of an address or of a proxy (""), where so many are connected in all."""
        self._every[connection] = address
        self._of[address][connection] = None
        if address and len(self._of[address]) > _EACH:
            next(iter(self._of[address])).cut()
        elif connected > _room():
            next(iter(self._every)).cut()

    def remove(self, connection: Guarded) -> None:
        """Forget one that has asked, or is gone."""
        address = self._every.pop(connection, None)
        if address is not None:
            del self._of[address][connection]
            if not self._of[address]:
                del self._of[address]


_silent = Silent()


@cache
def _room() -> int:
    """Have the system let this process open more files; how many may be connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - _OTHER_FILES, _EACH)


class Throttle(logging.Filter):
    """Lets a few lines of a kind through in a minute, and says how many it has kept back."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is written."""
        kind, now = (record.name, record.lineno), self._clock()
        since, lines = self._seen.get(kind, (now, 0))
        if now - since >= 60:
            if lines > _LINES:
                kept_back = f"{record.getMessage()} ({lines - _LINES:,} more like it before)"
                record.msg, record.args = kept_back, None
            since, lines = now, 0
        self._seen[kind] = since, lines + 1
        return lines < _LINES


def options() -> dict[str, Any]:
    """Return what uvicorn has to be told, so that it listens like this."""
    _room()  # before it listens
    logs = deepcopy(LOGGING_CONFIG)
    throttle = {"()": Throttle}
    logs["filters"] = {"throttle": throttle}
    for handler in logs["handlers"].values():
        handler["filters"] = ["throttle"]
    # what asyncio and this package have to say goes the same way
    logs["root"] = {"handlers": ["default"], "level": "WARNING"}
    return {"http": Guarded, "ws": "none", "backlog": _BACKLOG, "log_config": logs}
