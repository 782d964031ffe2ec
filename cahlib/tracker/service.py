"""The state that routes share: the lease store, cached numbers, and background work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from cahlib.core.background import BackgroundLoop
from cahlib.ledger.database import Database, DatabaseUnavailable
from cahlib.tracker import standings, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.request_limits import RequestLimits

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerSettings:
    """The settings with which a tracker is served."""

    database: str  #: URL
    rules: TrackerRules = TrackerRules()
    limits: RequestLimits = RequestLimits()
    title: str = "Tracker"  #: the community's name, for the pages
    legacy: bool = True  #: whether clients of the legacy protocol are served
    filters: str = ""  #: the folder of Bloom filters, "" for none
    admin: str = field(default="", repr=False)  #: the administrator's secret, "" for none
    tick: float = 15  #: seconds between checks for expired leases
    live: float = 2  #: seconds between updates of event streams
    fresh: float = 2  #: seconds that numbers for display are cached


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawlState:
    """The state of the crawl at one moment, for display."""

    counts: statistics.CrawlCounts
    workers: dict[str, int]  #: active ones, by kind
    per_hour: float  #: shards, over the last hours
    day: list[dict[str, Any]]  #: the history of the last day
    ever: list[dict[str, Any]]  #: the history of all time
    time: float

    @property
    def pairs_per_hour(self) -> float:
        """Pairs per hour, over the last hours."""
        return _pace(self.ever, "pairs", self.counts.pairs, self.time)

    @property
    def eta(self) -> float | None:
        """Seconds until all shards are done, at the rate of the last hours."""
        left = max(self.counts.total - self.counts.done - self.counts.failed, 0)
        return left / self.per_hour * 3600 if self.per_hour else None


class Cached(Generic[_T]):
    """A cached value; while one thread renews it, the others get the last one."""

    def __init__(self, make: Callable[[], _T], seconds: float) -> None:
        self._make, self._seconds = make, seconds
        self._lock = threading.Lock()
        self._value: tuple[float, _T] | None = None

    def __call__(self) -> _T:
        value = self._value
        if value and time.monotonic() - value[0] < self._seconds:
            return value[1]
        if value and not self._lock.acquire(blocking=False):
            return value[1]
        if not value:
            self._lock.acquire()
        try:
            if self._value and self._value is not value:  # renewed while this thread waited
                return self._value[1]
            self._value = (time.monotonic(), self._make())
            return self._value[1]
        finally:
            self._lock.release()


class Service:
    """A tracker behind its routes; one per server process."""

    def __init__(
        self, settings: TrackerSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings, self.clock = settings, clock
        self.database = Database(settings.database)
        self.leases = LeaseStore(self.database, settings.rules, clock=clock)
        self.state = Cached(self._state, settings.fresh)
        self.pair_leaders = Cached(lambda: statistics.list_leaders(self.database), settings.fresh)
        self.parcel_leaders = Cached(
            lambda: statistics.list_leaders(self.database, by="scraped"), settings.fresh
        )
        self.contributors = Cached(
            lambda: standings.list_contributors(self.database, clock()), 5 * settings.fresh
        )
        self.latest = Cached(lambda: statistics.latest_finished(self.database), settings.fresh)
        self.crawls = Cached(lambda: statistics.crawl_range(self.database), 30 * settings.fresh)
        self.stuck = Cached(lambda: statistics.stuck_shards(self.database), settings.fresh)
        self.check_writable = Cached(
            lambda: statistics.check_writable(self.database, clock()), settings.fresh
        )
        self._history = Cached(lambda: statistics.history_since(self.database, 0), 60)
        #: for the calls of workers; the database admits fewer writers at once
        self.threads = ThreadPoolExecutor(16, thread_name_prefix="call")
        self.leasing: dict[
            str, object
        ] = {}  #: by the secrets of workers whose lease calls are in progress
        self._upkeep = BackgroundLoop(settings.tick, self._keep_up, at_once=True)

    def start(self) -> None:
        """Start expiring leases and recording history."""
        self._upkeep.start()

    def close(self) -> None:
        """Stop, and close the database."""
        self._upkeep.stop()
        self.threads.shutdown()
        self.database.close()

    def _state(self) -> CrawlState:
        now, ever = self.clock(), self._history()
        counts = statistics.crawl_counts(self.database)
        return CrawlState(
            counts=counts,
            workers=statistics.count_workers(self.database, now),
            per_hour=_pace(ever, "done", counts.done, now),
            day=[row for row in ever if row["time"] >= now - 86400],
            ever=ever,
            time=now,
        )

    def _keep_up(self) -> None:
        try:
            self.leases.expire()
            statistics.record_history(self.database, self.clock())
        except DatabaseUnavailable as error:
            _log.warning("%s", error)


def get_service(request: Request) -> Service:
    """Return the service that a request is for."""
    service: Service = request.app.state.service
    return service


def _pace(history: list[dict[str, Any]], what: str, count: int, now: float) -> float:
    """Return a count's growth per hour, from the first point of the last six hours."""
    recent = [row for row in history if row["time"] >= now - 6 * 3600]
    if not recent or now - recent[0]["time"] < 1:
        return 0.0
    return float(max(count - recent[0][what], 0) / (now - recent[0]["time"]) * 3600)
