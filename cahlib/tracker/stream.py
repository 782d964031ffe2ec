"""The live feed: one look at the crawl for all who watch, sent to each as server-sent events.

Neither a thread nor a query is anybody's own, so 1,000 open pages cost what one does, and the
bytes that are sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from cahlib.tracker.database import DatabaseAway
from cahlib.tracker.limits import sender

#: What is shown now: values by name, and the latest finished shards, each with a "key".
Look: TypeAlias = Callable[[], tuple[dict[str, Any], Sequence[dict[str, Any]]]]

#: Seconds without news after which a sign of life is sent: proxies close what is silent.
_SILENCE = 20

_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep it until it has enough
]


class Stream:
    """All who watch, as one ASGI application."""

    def __init__(self, look: Look, *, each: int) -> None:
        """``each``: streams of one address; 0 = any number."""
        self._look, self._each = look, each
        self._waiting: set[asyncio.Future[bytes]] = set()
        self._watching: Counter[str] = Counter()
        self._known: set[str] = set()  #: keys of what was sent
        self._whole = b""  #: for who comes now; b"" if nobody has looked for a while
        self._values: dict[str, Any] = {}

    async def run(self, seconds: float) -> None:
        """Look every few seconds, if anybody watches, and send what is new."""
        spoken = time.monotonic()
        while True:
            await asyncio.sleep(seconds)
            if not self._watching:
                self._whole = b""
                continue
            try:
                news = self._news(*await asyncio.to_thread(self._look))
            except DatabaseAway:
                continue
            if not news and time.monotonic() - spoken > _SILENCE:
                news = b":\n\n"
            if news:
                spoken = time.monotonic()
                self._send(news)

    def _news(self, values: dict[str, Any], items: Sequence[dict[str, Any]]) -> bytes:
        fresh = [each for each in items if each["key"] not in self._known]
        same = values == self._values and not fresh
        self._known, self._values = {each["key"] for each in items}, values
        first, self._whole = not self._whole, _event(values, items)
        if first:  # nobody has had anything yet
            return self._whole
        return b"" if same else _event(values, fresh)

    def _send(self, news: bytes) -> None:
        for each in self._waiting:
            if not each.done():
                each.set_result(news)
        self._waiting.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one who watches, until he goes."""
        address = sender(scope["client"][0] if scope.get("client") else "")
        if b"text/event-stream" not in dict(scope["headers"]).get(b"accept", b""):
            raise HTTPException(406, "This is a stream of events: accept text/event-stream.")
        if self._each and self._watching[address] >= self._each:
            raise HTTPException(503, "You watch on too many pages already.", {"Retry-After": "60"})
        self._watching[address] += 1
        turn: asyncio.Future[bytes] | None = None

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if turn and not turn.done():
                turn.set_result(b"")

        gone = asyncio.create_task(until_gone())
        # not all at once, when a tracker comes back
        news = b"retry: %d\n\n" % random.randint(3000, 15_000) + self._whole
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
