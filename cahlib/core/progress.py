"""What a run tells those who watch it: Snapshots to a listener, which may be nobody."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cahlib.core.records import Stats

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A server that scrapes, at one moment; every value fits into JSON."""

    name: str
    location: str
    type: str
    #: "made", "ssh", "boot", "install", "start" and "up" on its way; then "idle", "works", "silent"
    #: (no sign of life for a while), "absent" (no worker answers), or the cloud's word: "off"
    state: str
    job: str  #: ids of the shards that it has, "" without
    rate: float  #: links a second
    seen: float | None  #: seconds since its last sign of life; None before the first
    cost: float  #: so far, with IPv4 and tax; a started hour counts whole
    version: str  #: of the cahlib that runs there, "" if unknown
    line: str  #: the last one of its log


class Passing(str):
    """A sentence that the next one replaces; where the nodes are drawn, it need not be printed."""


@dataclass(slots=True)
class SwarmStatus:
    """Where a swarm writes, from a thread of its own, what a run's snapshots tell of it."""

    nodes: tuple[NodeStatus, ...] = ()
    spent: float = 0
    hourly: float = 0
    currency: str = "EUR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a run at one moment."""

    elapsed: float  #: seconds since the run was launched
    shards: int  #: of the run
    done: int  #: shards in the dataset, by earlier launches too
    failed: int  #: shards given up after all attempts
    stats: Stats  #: of all shards, those in work included
    #: per second, over the last seconds: "links" tried, "images" fetched, "judged", "pairs" kept
    rates: Mapping[str, float]
    queues: Mapping[str, tuple[int, int]]  #: by name: how many wait, and how many may
    busy: float  #: share of the last seconds in which the model worked, 0 … 1
    finished: bool  #: the last snapshot of a run
    nodes: tuple[NodeStatus, ...] = ()  #: of the run's swarm
    spent: float = 0  #: what its servers have cost, those that are gone included
    hourly: float = 0  #: an hour of those that are there
    currency: str = "EUR"  #: of both, as the accounts pay
    offline: Sequence[float] = ()  #: of each scraper without network: for how many seconds
    #: the pairs scored last, newest first, as `cahlib.dataset.write.gallery.LatestPairs` shows them
    latest: Sequence[Mapping[str, Any]] = ()


def offline(told: Iterable[Any]) -> tuple[float, ...]:
    """For how long scrapers have had no network, from what they report; others are left out."""
    return tuple(seconds for each in told if (seconds := each.get("offline")))


def waiting(offline: Sequence[float]) -> str:
    """Which scrapers wait for the network, in words; "" if none does."""
    if not offline:
        return ""
    who = "a scraper has" if len(offline) == 1 else f"{len(offline)} scrapers have"
    return f"{who} had no network for {max(offline):.0f} s; the work goes on when it is back"


Listener = Callable[[Snapshot], None]


def nobody(snapshot: Snapshot) -> None:
    """A listener that does not listen."""


@contextmanager
def watched(
    snapshot: Callable[[float, bool], Snapshot],
    listener: Listener,
    *,
    tick: float,
    hours: float,
    stop: threading.Event,
) -> Iterator[None]:
    """Tell the listener every ``tick`` seconds how far the work is, and once more at its end.

    ``snapshot`` is given the seconds so far, and whether it is the last one; ``stop`` is set after
    so many ``hours``, if that is not 0. What goes wrong with the listener, as a closed terminal,
    ends nothing.
    """
    started, ended = time.monotonic(), threading.Event()
    limit = hours * 3600 or float("inf")

    def tell(finished: bool) -> float:
        elapsed = time.monotonic() - started
        try:
            listener(snapshot(elapsed, finished))
        except Exception:  # noqa: BLE001 - a run is worth more than the news of it
            _log.exception("The state of the run could not be told.")
        return elapsed

    def watch() -> None:
        while not ended.wait(tick):
            if tell(False) > limit:
                stop.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        tell(True)


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
