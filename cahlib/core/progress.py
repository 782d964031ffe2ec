"""Progress: the snapshots of a run that a listener receives."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cahlib.core.background import BackgroundLoop
from cahlib.core.records import Stats

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The state of a server that scrapes; every value is JSON-serializable."""

    name: str
    location: str
    type: str
    #: while starting "made", "ssh", "boot", "install", "start" and "up"; then "idle", "works",
    #: "silent" (no heartbeat for a while), "absent" (no worker answers), or the cloud's word: "off"
    state: str
    job: str  #: ids of the shards it works on, "" if none
    rate: float  #: links per second
    seen: float | None  #: seconds since its last heartbeat; None before the first
    cost: float  #: so far, with IPv4 and tax; a started hour counts as whole
    version: str  #: of the cahlib that runs there, "" if unknown
    line: str  #: the last line of its log


class Transient(str):
    """A message that the next one replaces; not printed where the nodes are shown."""


@dataclass(slots=True)
class SwarmStatus:
    """The part of a run's snapshots that its swarm updates, from its own thread."""

    nodes: tuple[NodeStatus, ...] = ()
    spent: float = 0
    hourly: float = 0
    currency: str = "EUR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of a run at one moment."""

    elapsed: float  #: seconds since the run was launched
    shards: int  #: of the run
    done: int  #: shards in the dataset, those of earlier launches included
    failed: int  #: shards given up after all attempts
    stats: Stats  #: of all shards, those in progress included
    #: per second, over the last seconds: "links" tried, "images" fetched, "judged", "pairs" kept
    rates: Mapping[str, float]
    queues: Mapping[str, tuple[int, int]]  #: by name: length and capacity
    busy: float  #: share of the last seconds in which the model worked, 0 … 1
    finished: bool  #: the last snapshot of a run
    nodes: tuple[NodeStatus, ...] = ()  #: of the run's swarm
    spent: float = 0  #: what its servers have cost, deleted ones included
    hourly: float = 0  #: what its servers cost per hour
    currency: str = "EUR"  #: of both, the accounts' currency
    offline: Sequence[float] = ()  #: of each scraper without network: for how many seconds
    #: the pairs scored last, newest first, as from `cahlib.dataset.write.gallery.LatestPairs`
    latest: Sequence[Mapping[str, Any]] = ()


def offline_seconds(reports: Iterable[Any]) -> tuple[float, ...]:
    """Return for how long each scraper without network has had none, from all their reports."""
    return tuple(seconds for each in reports if (seconds := each.get("offline")))


def describe_offline(offline: Sequence[float]) -> str:
    """Return in words which scrapers wait for the network; "" if none does."""
    if not offline:
        return ""
    who = "a scraper has" if len(offline) == 1 else f"{len(offline)} scrapers have"
    return f"{who} had no network for {max(offline):.0f} s; work resumes when it is back"


Listener = Callable[[Snapshot], None]


def ignore_progress(snapshot: Snapshot) -> None:
    """Do nothing; a listener."""


@contextmanager
def report_progress(
    snapshot: Callable[[float, bool], Snapshot],
    listener: Listener,
    *,
    tick: float,
    hours: float,
    stop: threading.Event,
) -> Iterator[None]:
    """Give the listener a snapshot every ``tick`` seconds, and a last one at the end.

    ``snapshot`` receives the seconds so far, and whether it is the last one. ``stop`` is set after
    ``hours``, unless that is 0. An error of the listener, such as a closed terminal, does not end
    the run.
    """
    started = time.monotonic()
    limit = hours * 3600 or float("inf")

    def report(finished: bool) -> float:
        elapsed = time.monotonic() - started
        try:
            listener(snapshot(elapsed, finished))
        except Exception:  # noqa: BLE001 - guards one listener: its error must not end the run
            _log.exception("The progress of the run could not be reported.")
        return elapsed

    def look() -> None:
        if report(False) > limit:
            stop.set()

    try:
        with BackgroundLoop(tick, look):
            yield
    finally:
        report(True)


class RateMeter:
    """Turns growing counts into rates over the last ``window`` seconds."""

    def __init__(self, *, window: float = 15, clock: Callable[[], float] = time.monotonic) -> None:
        self._window, self._clock = window, clock
        self._past: deque[tuple[float, Mapping[str, float]]] = deque()

    def rates(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Return the growth of each count per second."""
        now = self._clock()
        self._past.append((now, counts))
        while len(self._past) > 2 and self._past[0][0] < now - self._window:
            self._past.popleft()
        then, before = self._past[0]
        span = max(now - then, 1e-9)
        # a worker that dies takes its unfinished counts with it, so a count can also shrink
        return {name: max(count - before[name], 0) / span for name, count in counts.items()}
