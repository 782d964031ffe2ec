"""Stages that overlap: each generator runs ahead of its consumer on a thread of its own.

    with Flow() as flow:
        parcels = flow.ahead(scrape(), 2)
        for pair in flow.ahead(judge(parcels), 256): ...

Between two stages lies a bounded line, so a slow stage holds back the ones before it and memory
stays flat. An error in a stage comes out where its items are taken. Leaving the ``with`` early
makes every stage end at its next item by `Abandoned`, never by looking finished. It does not know
what flows.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Abandoned(Exception):
    """Raised inside the stages of a flow that was left early."""


class Line(Generic[T]):
    """What one stage has made and the next has not taken yet; iterate over it to take."""

    def __init__(self, source: Iterable[T], limit: int, changed: threading.Condition) -> None:
        self.limit = limit
        self._source = source
        self._items: deque[T] = deque()
        self._changed = changed
        self._closed = self._ended = False
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._make, daemon=True)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._closed)
            if self._closed:
                raise Abandoned
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Let the stage end at its next item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _make(self) -> None:
        try:
            for item in self._source:
                self._put(item)
        except BaseException as error:  # noqa: BLE001 - it is raised again at the consumer's end
            self._error = error
        finally:
            if hasattr(self._source, "close"):
                self._source.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self.limit or self._closed)
            if self._closed:
                raise Abandoned
            self._items.append(item)
            self._changed.notify_all()


class Flow:
    """The stages of one run; leaving its ``with`` ends them all and waits for their threads."""

    def __init__(self) -> None:
        # One condition for all lines: there are a handful of stages, and their items are coarse.
        self._changed = threading.Condition()
        self._lines: list[Line[Any]] = []
        self.closed = False

    def ahead(self, source: Iterable[T], limit: int) -> Line[T]:
        """Run an iterable on its own thread, at most ``limit`` items ahead of the consumer."""
        line = Line(source, limit, self._changed)
        self._lines.append(line)
        line.thread.start()
        return line

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *exc: object) -> None:
        # All are told before any is waited for: a stage may be waiting for the one before it.
        self.closed = True
        for line in self._lines:
            line.close()
        for line in self._lines:
            line.thread.join()
