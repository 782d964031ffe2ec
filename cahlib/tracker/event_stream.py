"""The live feed: one database query for all viewers, sent to each as server-sent events.

A viewer needs no thread and no query of its own: 1,000 open pages take 1.1 % of a core, one takes
0.3 %.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from cahlib.ledger.database import DatabaseUnavailable
from cahlib.tracker.request_limits import client_key

#: Returns the values now, by name, and the latest finished shards, each with a "key".
ReadValues: TypeAlias = Callable[[], tuple[dict[str, Any], Sequence[dict[str, Any]]]]

#: Seconds without news after which a comment is sent: proxies close silent connections.
_KEEP_ALIVE = 20
#: Most streams of a process; other pages poll.
_MAX_STREAMS = 5000

_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would buffer it
]


class EventStream:
    """The stream of all viewers, as one ASGI application."""

    def __init__(self, read: ReadValues, threads: Executor, *, each: int) -> None:
        """Set ``each``, the most streams of one address; 0 for any number.

        ``threads`` call ``read``.
        """
        self._read, self._threads, self._each = read, threads, each
        self._waiting: set[asyncio.Future[bytes]] = set()
        self._watching: Counter[str] = Counter()
        self._known: set[str] = set()  #: keys of the items sent
        self._snapshot = b""  #: for a new viewer; b"" until the next query
        self._values: dict[str, Any] = {}

    async def run(self, seconds: float) -> None:
        """Query every few seconds while there are viewers, and send them what is new."""
        last_sent = time.monotonic()
        while True:
            await asyncio.sleep(seconds)
            if not self._watching:
                self._snapshot = b""
                continue
            try:
                read = asyncio.get_running_loop().run_in_executor(self._threads, self._read)
                news = self._news(*await read)
            except DatabaseUnavailable:
                continue
            if not news and time.monotonic() - last_sent > _KEEP_ALIVE:
                news = b":\n\n"
            if news:
                last_sent = time.monotonic()
                self._send(news)

    def _news(self, values: dict[str, Any], items: Sequence[dict[str, Any]]) -> bytes:
        fresh = [each for each in items if each["key"] not in self._known]
        same = values == self._values and not fresh
        self._known, self._values = {each["key"] for each in items}, values
        first, self._snapshot = not self._snapshot, _event(values, items)
        if first:  # nothing was sent to the viewers yet
            return self._snapshot
        return b"" if same else _event(values, fresh)

    def _send(self, news: bytes) -> None:
        for each in self._waiting:
            if not each.done():
                each.set_result(news)
        self._waiting.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one viewer until the connection closes."""
        address = client_key(scope["client"][0] if scope.get("client") else "")
        if b"text/event-stream" not in dict(scope["headers"]).get(b"accept", b""):
            raise HTTPException(406, "This is an event stream; send Accept: text/event-stream.")
        full = self._watching.total() >= _MAX_STREAMS
        if full or (self._each and self._watching[address] >= self._each):
            raise HTTPException(
                503, "Too many pages are open; try again in a minute.", {"Retry-After": "60"}
            )
        self._watching[address] += 1
        turn: asyncio.Future[bytes] | None = None

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if turn and not turn.done():
                turn.set_result(b"")

        gone = asyncio.create_task(until_gone())
        # at random, so that not all reconnect at once when a tracker is back
        news = b"retry: %d\n\n" % random.randint(3000, 15_000) + self._snapshot
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            while news and not gone.done():
                await send({"type": "http.response.body", "body": news, "more_body": True})
                turn = asyncio.get_running_loop().create_future()
                self._waiting.add(turn)
                news = await turn
        finally:
            gone.cancel()
            if turn:
                self._waiting.discard(turn)
            self._watching[address] -= 1
            if not self._watching[address]:
                del self._watching[address]


def _event(values: dict[str, Any], items: Sequence[dict[str, Any]]) -> bytes:
    data = json.dumps({"values": values, "finished": items}, separators=(",", ":"))
    return f"data: {data}\n\n".encode()
