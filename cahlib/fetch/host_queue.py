"""Whose turn it is: a queue in which no host has more than its share in work.

What comes while its host is at its limit waits behind its own host only; every other host goes
on. It does not know what it queues, and it is used by one thread.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class HostQueue(Generic[T]):
    """Items by host; at most ``per_host`` of one host are in work. Its length: what waits."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._in_work: Counter[str] = Counter()
        self._waiting: dict[str, deque[T]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in work; then nothing waits either."""
        return not self._in_work

    def add(self, host: str, item: T) -> bool:
        """Whether the item may start now; else it waits until `leave` gives it out."""
        if self._in_work[host] < self._per_host:
            self._in_work[host] += 1
            return True
        self._waiting.setdefault(host, deque()).append(item)
        self._length += 1
        return False

    def finish(self, host: str) -> T | None:
        """Take note that an item of a host is done; its next one, which may start now."""
        line = self._waiting.get(host)
        if line:
            self._length -= 1
            item = line.popleft()
            if not line:
                del self._waiting[host]
            return item
        self._in_work[host] -= 1
        if not self._in_work[host]:
            del self._in_work[host]
        return None
