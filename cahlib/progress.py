"""What a run tells those who watch it: Snapshots to a listener, which may be nobody."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahlib.records import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a run at one moment."""

    elapsed: float  #: seconds since the run was launched
    shards: int  #: of the run
    done: int  #: shards in the dataset, by earlier launches too
    failed: int  #: shards given up after all attempts
    tally: Tally  #: of all shards, those in work included
    #: per second, over the last seconds: "links" tried, "images" fetched, "judged", "pairs" kept
    rates: Mapping[str, float]
    queues: Mapping[str, tuple[int, int]]  #: by name: how many wait, and how many may
    busy: float  #: share of the last seconds in which the model worked, 0 … 1
    finished: bool  #: the last snapshot of a run
    #: pairs that were judged last, the newest first, as `cahlib.curate.gallery.Latest` shows them
    latest: Sequence[Mapping[str, Any]] = ()


Listener = Callable[[Snapshot], None]


def nobody(snapshot: Snapshot) -> None:
    """A listener that does not listen."""


class Speedometer:
    """Turns counts that grow into rates over the last ``window`` seconds."""

    def __init__(self, *, window: float = 15, clock: Callable[[], float] = time.monotonic) -> None:
        self._window, self._clock = window, clock
        self._past: deque[tuple[float, Mapping[str, float]]] = deque()

    def rates(self, counts: Mapping[str, float]) -> dict[str, float]:
        """What each count grew by per second."""
        now = self._clock()
        self._past.append((now, counts))
        while len(self._past) > 2 and self._past[0][0] < now - self._window:
            self._past.popleft()
        then, before = self._past[0]
        span = max(now - then, 1e-9)
        # A worker that dies takes its unfinished counts with it, so a count can also shrink.
        return {name: max(count - before[name], 0) / span for name, count in counts.items()}
