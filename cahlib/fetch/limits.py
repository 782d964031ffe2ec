"""The memory and the time that requests may take."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass


class MemoryBudget:
    """The bytes that all responses together may use; create it in a running loop."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._beyond: MemoryShare | None = None
        self._freed = asyncio.Event()

    async def reserve(self, share: MemoryShare, size: int) -> None:
        """Add bytes to a share as soon as there is room.

        One share may exceed the limit, or else all of them could wait for each other.
        """
        while self._free < size and self._beyond not in (None, share):
            self._freed.clear()
            await self._freed.wait()
        if self._free < size:
            self._beyond = share
        self._free -= size
        share.size += size

    def release(self, share: MemoryShare) -> None:
        """Free the bytes of a share."""
        self._free += share.size
        share.size = 0
        if self._beyond is share:
            self._beyond = None
        self._freed.set()


@dataclass(slots=True, eq=False)
class MemoryShare:
    """The bytes that one response uses."""

    size: int = 0


class Deadline:
    """The time by which a response must be complete."""

    __slots__ = ("_at", "_seconds", "begun")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._at - time.monotonic()

    def renew(self) -> None:
        """Start over."""
        self.begun = time.monotonic()  #: when it was started
        self._at = self.begun + self._seconds

    def extend(self, seconds: float) -> None:
        """Add seconds."""
        self._at += seconds
