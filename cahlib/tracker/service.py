"""What the routes work with: the lease_store, the numbers that are shown, and the clockwork."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from cahlib.ledger.database import Database, DatabaseUnavailable
from cahlib.tracker import standings, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.limits import Limits
from cahlib.tracker.models import Rules

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a tracker is served."""

    database: str  #: URL
    rules: Rules = Rules()
    limits: Limits = Limits()
    title: str = "Tracker"  #: the community's name, on its pages
    legacy: bool = True  #: clients of the old protocol are served
    filters: str = ""  #: the folder of the Bloom filters, "" for none
    admin: str = field(default="", repr=False)  #: the administrator's secret, "" for none
    tick: float = 15  #: seconds between two looks for leases that ran out
    live: float = 2  #: seconds between two looks for those who watch
    fresh: float = 2  #: seconds for which numbers are shown again before they are asked for anew


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The crawl at one moment, as it is shown."""

    counts: statistics.Counts
    workers: dict[str, int]  #: at work, by kind
    per_hour: float  #: shards, over the last hours
    day: list[dict[str, Any]]  #: the history of the last day
    ever: list[dict[str, Any]]  #: the history of all time
    time: float

    @property
    def pairs_per_hour(self) -> float:
        """Pairs, over the last hours."""
        return _pace(self.ever, "pairs", self.counts.pairs, self.time)

    @property
    def eta(self) -> float | None:
        """Seconds until all is done, at the pace of the last hours."""
        left = max(self.counts.total - self.counts.done - self.counts.failed, 0)
        return left / self.per_hour * 3600 if self.per_hour else None


class Cached(Generic[T]):
    """A value that is made anew when it is old; while one thread does, the others get the last."""

    def __init__(self, make: Callable[[], T], seconds: float) -> None:
        self._make, self._seconds = make, seconds
        self._lock = threading.Lock()
        self._value: tuple[float, T] | None = None

    def __call__(self) -> T:
        value = self._value
        if value and time.monotonic() - value[0] < self._seconds:
            return value[1]
        if value and not self._lock.acquire(blocking=False):
            return value[1]
        if not value:
            self._lock.acquire()
        try:
            if self._value and self._value is not value:  # made while we waited
                return self._value[1]
            self._value = (time.monotonic(), self._make())
            return self._value[1]
        finally:
            self._lock.release()


class Service:
    """A tracker behind its routes; one in each server process."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.clock = settings, clock
        self.database = Database(settings.database)
        self.lease_store = LeaseStore(self.database, settings.rules, clock=clock)
        self.state = Cached(self._state, settings.fresh)
        self.pairs_board = Cached(lambda: statistics.leaders(self.database), settings.fresh)
        self.parcel_board = Cached(
            lambda: statistics.leaders(self.database, by="scraped"), settings.fresh
        )
        self.contributors = Cached(
            lambda: standings.contributors(self.database, clock()), 5 * settings.fresh
        )
        self.latest = Cached(lambda: statistics.latest(self.database), settings.fresh)
        self.crawls = Cached(lambda: statistics.crawls(self.database), 30 * settings.fresh)
        self.stuck = Cached(lambda: statistics.stuck(self.database), settings.fresh)
        self.writes = Cached(
            lambda: statistics.write_health(self.database, clock()), settings.fresh
        )
        self._past = Cached(lambda: statistics.past(self.database, 0), 60)
        #: that serve the calls of workers; the database lets in fewer at once
        self.threads = ThreadPoolExecutor(16, thread_name_prefix="call")
        self.leasing: dict[str, object] = {}  #: by the secrets of workers that lease now
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._clockwork, daemon=True)

    def start(self) -> None:
        """Begin to look for leases that ran out, and to write the history."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and let go of the database."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.threads.shutdown()
        self.database.close()

    def _state(self) -> State:
        now, ever = self.clock(), self._past()
        counts = statistics.counts(self.database)
        return State(
            counts=counts,
            workers=statistics.at_work(self.database, now),
            per_hour=_pace(ever, "done", counts.done, now),
            day=[row for row in ever if row["time"] >= now - 86400],
            ever=ever,
            time=now,
        )

    def _clockwork(self) -> None:
        while True:
            try:
                self.lease_store.expire()
                statistics.record(self.database, self.clock())
            except DatabaseUnavailable as error:
                _log.warning("%s", error)
            if self._stop.wait(self.settings.tick):
                return


def of(request: Request) -> Service:
    """The service that a request is for."""
    service: Service = request.app.state.service
    return service


def shown_time(seconds: float | None) -> str:
    """A length of time for people, in its two largest units."""
    if seconds is None:
        return "unknown"
    minutes = int(seconds // 60)
    if minutes >= 2 * 1440:
        return f"{minutes // 1440} days {minutes % 1440 // 60} h"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _pace(history: list[dict[str, Any]], what: str, count: int, now: float) -> float:
    """Return what a count grows by an hour: since the first point of the last six hours."""
    recent = [row for row in history if row["time"] >= now - 6 * 3600]
    if not recent or now - recent[0]["time"] < 1:
        return 0.0
    return float(max(count - recent[0][what], 0) / (now - recent[0]["time"]) * 3600)
