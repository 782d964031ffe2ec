"""A queue that limits how many items of each host are in progress.

An item whose host is at its limit waits behind that host only; other hosts are not held up. For use
by one thread.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class HostQueue(Generic[_T]):
    """Items by host, at most ``per_host`` of each in progress; its length is what waits."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._in_progress: Counter[str] = Counter()
        self._waiting: dict[str, deque[_T]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is in progress; then nothing waits either."""
        return not self._in_progress

    def add(self, host: str, item: _T) -> bool:
        """Return whether the item may start now; otherwise `finish` returns it later."""
        if self._in_progress[host] < self._per_host:
            self._in_progress[host] += 1
            return True
        self._waiting.setdefault(host, deque()).append(item)
        self._length += 1
        return False

    def finish(self, host: str) -> _T | None:
        """Record that an item of a host is done; return the host's next one to start, if any."""
        line = self._waiting.get(host)
        if line:
            self._length -= 1
            item = line.popleft()
            if not line:
                del self._waiting[host]
            return item
        self._in_progress[host] -= 1
        if not self._in_progress[host]:
            del self._in_progress[host]
        return None
