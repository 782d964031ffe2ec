"""Prefetching: each stage of a pipeline is a generator that runs ahead on its own thread.

    with Pipeline() as pipeline:
        parcels = pipeline.prefetch(scrape(), 2)
        for pair in pipeline.prefetch(judge(parcels), 256): ...

Stages are connected by bounded queues, so a slow stage holds back the ones before it and memory
stays flat. A full queue is filled again once it is half empty: thread switches cost more than the
items. A stage's error is raised in its consumer. Leaving the ``with`` early ends every stage
at its next item by raising `Abandoned`, so that it never looks finished.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from cahlib.core.background import capture

_T = TypeVar("_T")


class Abandoned(Exception):
    """Raised inside the stages of a pipeline that was left early."""


class StageQueue(Generic[_T]):
    """The items that one stage has produced and the next has not consumed; iterate to consume."""

    def __init__(self, source: Iterable[_T], limit: int) -> None:
        self.limit = limit
        self._source = source
        self._items: deque[_T] = deque()
        self._changed = threading.Condition()
        self._closed = self._ended = False
        self._outcome: Future[None] = Future()
        self.thread = threading.Thread(target=self._make, daemon=True)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._closed)
            if self._closed:
                raise Abandoned
            if self._items:
                item = self._items.popleft()
                if len(self._items) <= self.limit // 2:
                    self._changed.notify_all()
                return item
        self._outcome.result()
        raise StopIteration

    def close(self) -> None:
        """Make the stage end at its next item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _make(self) -> None:
        self._outcome = capture(self._put_all)
        try:
            if hasattr(self._source, "close"):
                self._source.close()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put_all(self) -> None:
        for item in self._source:
            self._put(item)

    def _put(self, item: _T) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self.limit or self._closed)
            if self._closed:
                raise Abandoned
            self._items.append(item)
            self._changed.notify_all()


class Pipeline:
    """The stages of one run; leaving the ``with`` ends them all and waits for their threads."""

    def __init__(self) -> None:
        self._queues: list[StageQueue[Any]] = []
        self._named: dict[str, StageQueue[Any]] = {}
        self.closed = False

    def prefetch(self, source: Iterable[_T], limit: int, name: str = "") -> StageQueue[_T]:
        """Run an iterable on its own thread, at most ``limit`` items ahead of the consumer."""
        queue = StageQueue(source, limit)
        self._queues.append(queue)
        if name:
            self._named[name] = queue
        queue.thread.start()
        return queue

    def queue_sizes(self) -> dict[str, tuple[int, int]]:
        """Return length and capacity of the queues that have a name."""
        return {name: (len(queue), queue.limit) for name, queue in self._named.copy().items()}

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        # all are closed before any is joined: a stage may be waiting for the one before it
        self.closed = True
        for queue in self._queues:
            queue.close()
        for queue in self._queues:
            queue.thread.join()
