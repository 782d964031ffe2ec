"""Run an async generator on a thread with its own event loop, and iterate over it from sync code.

Notebooks, Dask's workers and the tracker already have a running loop, in which `asyncio.run` would
fail. Errors propagate, and leaving early closes the generator and waits for its thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from cahlib.core.background import capture

_T = TypeVar("_T")

#: Seconds between ticks.
_TICK = 1.0


def iterate_in_thread(
    make: Callable[[], AsyncGenerator[_T, None]],
    *,
    ahead: int,
    tick: Callable[[], object] = lambda: None,
) -> Iterator[_T]:
    """Yield the items of ``make()``, of which at most ``ahead`` are buffered.

    ``tick`` is called in the consumer's thread about once per second; an exception from it ends the
    iteration.
    """
    running = _GeneratorThread(make, ahead)
    running.thread.start()
    due = time.monotonic() + _TICK
    try:
        while not isinstance(item := running.take(max(0.0, due - time.monotonic())), _End):
            if (now := time.monotonic()) >= due:
                tick()
                due = now + _TICK
            if not isinstance(item, _Late):
                yield item
    finally:
        running.close()
    if item.error is not None:
        raise item.error


class _Late:
    """Marks an item that did not arrive in time."""


class _End:
    """Marks the end, behind the last item."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _GeneratorThread(Generic[_T]):
    """An async generator running on a thread, and the queue between it and its consumer."""

    def __init__(self, make: Callable[[], AsyncGenerator[_T, None]], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._items: queue.SimpleQueue[_T | _End] = queue.SimpleQueue()
        self._started = threading.Event()
        self._closed = False
        self._full = False  # the generator may be waiting for room
        self.thread = threading.Thread(target=self._run, name="cahlib-bridge", daemon=True)

    def take(self, timeout: float) -> _T | _End | _Late:
        """Return the next item, the end, or _Late after ``timeout`` seconds."""
        try:
            item = self._items.get(timeout=timeout)
        except queue.Empty:
            return _Late()
        if self._full:  # waking the loop for each item would be costly
            self._full = False
            self._call(self._room.set)
        return item

    def close(self) -> None:
        """Cancel the generator and wait for its thread."""
        self._closed = True
        self._started.wait()
        self._call(self._task.cancel)
        self.thread.join()

    def _call(self, act: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        error = capture(lambda: asyncio.run(self._iterate())).exception()
        if isinstance(error, asyncio.CancelledError):
            cause, error = error, None
            if not self._closed:  # otherwise missing items would go unnoticed
                error = RuntimeError("the generator was cancelled from within")
                error.__cause__ = cause
        self._items.put(_End(error))

    async def _iterate(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._started.set()
        items = self._make()
        try:
            async for item in items:
                while self._items.qsize() >= self._ahead:
                    self._room.clear()
                    self._full = True
                    if self._items.qsize() >= self._ahead:  # unless one was taken meanwhile
                        await self._room.wait()
                self._items.put(item)
        finally:
            await items.aclose()
