"""The bridge from async to ordinary code: an async generator, run on a thread and loop of its own.

Notebooks, Dask's workers and the tracker have a running loop already, in which `asyncio.run` would
fail; here it runs beside theirs. Errors cross, and leaving early closes the async side and waits
for its thread. It does not know what crosses.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds between two ticks.
_TICK = 1.0


def do_nothing() -> None:
    """What happens at a tick where nobody asked for more."""


def iterate_in_thread(
    make: Callable[[], AsyncGenerator[T, None]],
    *,
    ahead: int,
    tick: Callable[[], None] = do_nothing,
) -> Iterator[T]:
    """The items of ``make()``, of which at most ``ahead`` wait for the consumer.

    While the consumer waits or takes, ``tick`` is called in its thread about once a second; what
    it raises ends the iteration.
    """
    crossing = _Crossing(make, ahead)
    crossing.thread.start()
    due = time.monotonic() + _TICK
    try:
        while not isinstance(item := crossing.take(max(0.0, due - time.monotonic())), _End):
            if (now := time.monotonic()) >= due:
                tick()
                due = now + _TICK
            if not isinstance(item, _Late):
                yield item
    finally:
        crossing.close()
    if item.error is not None:
        raise item.error


class _Late:
    """Stands for an item that has not come in time."""


class _End:
    """Stands behind the last item."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Crossing(Generic[T]):
    """An async generator at work on a thread, and the queue between it and its consumer."""

    def __init__(self, make: Callable[[], AsyncGenerator[T, None]], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._begun = threading.Event()
        self._closed = False
        self._full = False  # the async side may be waiting for room
        self.thread = threading.Thread(target=self._run, name="cahlib-bridge", daemon=True)

    def take(self, timeout: float) -> T | _End | _Late:
        """The next item, the end, or _Late after ``timeout`` seconds."""
        try:
            item = self._items.get(timeout=timeout)
        except queue.Empty:
            return _Late()
        if self._full:  # asked for each item, the loop would be woken as often
            self._full = False
            self._call(self._room.set)
        return item

    def close(self) -> None:
        """End the async side wherever it is, and wait for its thread."""
        self._closed = True
        self._begun.wait()
        self._call(self._task.cancel)
        self.thread.join()

    def _call(self, act: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._carry())
        except asyncio.CancelledError as caught:
            if not self._closed:  # else fewer items would look like all of them
                error = RuntimeError("the work was cancelled from within")
                error.__cause__ = caught
        except BaseException as caught:  # noqa: BLE001 - it is raised again at the consumer's end
            error = caught
        self._items.put(_End(error))

    async def _carry(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._begun.set()
        items = self._make()
        try:
            async for item in items:
                while self._items.qsize() >= self._ahead:
                    self._room.clear()
                    self._full = True
                    if self._items.qsize() >= self._ahead:  # else one was taken meanwhile
                        await self._room.wait()
                self._items.put(item)
        finally:
            await items.aclose()
