"""A CPU volunteer: scrapes a tracker's shards and brings the parcels where the tracker says."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

from cahlib.core.config import Job
from cahlib.core.errors import ConfigError, RunError, folder_errors
from cahlib.core.progress import (
    Listener,
    RateMeter,
    Snapshot,
    ignore_progress,
    offline_seconds,
    report_progress,
)
from cahlib.core.records import Shard, Stage, Stats
from cahlib.core.requirements import require_contact
from cahlib.crawl.tables.slices import Slices
from cahlib.engine import local
from cahlib.ledger.remote import Shared
from cahlib.parcel import parcel as parcels
from cahlib.parcel import storage
from cahlib.run.failures import Failures
from cahlib.run.run_directory import open_run_directory
from cahlib.run.scrape import scrape_and_upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """How a volunteer's work ended."""

    parcels: int  #: that were brought
    stopped: bool  #: early: the tracker may have more


def volunteer(
    job: Job,
    listener: Listener = ignore_progress,
    *,
    stop: threading.Event | None = None,
    tick: float = 1.0,
) -> Brought:
    """Scrape until the tracker has no more, or ``stop``, or the job's hours are over.

    Raises ConfigError if there is no tracker, or it names no place for parcels, RunError when this
    machine cannot go on; what it has leased is given back.
    """
    require_contact(job)
    stop = stop or threading.Event()
    folder = job.output.folder
    with (
        open_run_directory(job, role="cpu", stop=stop, refused=storage.delete_upload) as shared,
        folder_errors(folder),
    ):
        assert isinstance(shared, Shared)
        if "://" not in shared.upload:
            raise ConfigError(
                f"tracker: {job.place.tracker} names no place for parcels; its administrator sets "
                "one with --upload."
            )
        return _Scraping(job, shared, stop).through(listener, tick)


class _Scraping:
    """The shards in work."""

    def __init__(self, job: Job, shared: Shared, stop: threading.Event) -> None:
        self._job, self._shared, self._stop = job, shared, stop
        self._folder = job.output.folder / "run" / "parcels"
        self._slices = Slices(job.output.folder / "run" / "links", job.download.contact)
        self._failures = Failures(shared, job.output.folder, attempts=1)
        self._leased: dict[str, Shard] = {}
        self._brought = 0
        self._stats = shared.stats()

    def through(self, listener: Listener, tick: float) -> Brought:
        parcels.remove_leftovers(self._folder, self._shared.in_state("done"))
        with (
            local.local_engine(self._job.place.scrapers) as scrapers,
            report_progress(
                partial(self._snapshot, scrapers, RateMeter()),
                listener,
                tick=tick,
                hours=self._job.place.hours,
                stop=self._stop,
            ),
        ):
            while not self._stop.is_set():
                while (room := scrapers.slots - len(scrapers)) > 0 and (
                    shard := self._shared.lease(room)
                ):
                    self._submit(scrapers, shard)
                if not scrapers and not self._shared.more():
                    break
                if finished := scrapers.take(timeout=tick):
                    self._take(*finished, slots=scrapers.slots)
        left = self._stop.is_set() and self._shared.more()
        return Brought(parcels=self._brought, stopped=left)

    def _submit(self, scrapers: local.LocalEngine, shard: Shard) -> None:
        if not (crawl := self._slices.cut(shard, self._job.crawl, self._failures.failed)):
            return
        self._leased[shard.id] = shard
        seconds = self._job.place.shard_minutes * 60
        settings = (crawl, self._job.download)
        places = (self._folder, self._shared.upload)
        scrapers.submit(shard.id, scrape_and_upload, shard, settings, *places, limit=seconds)

    def _take(self, id: str, result: object, *, slots: int) -> None:
        shard = self._leased.pop(id)
        self._slices.drop(shard)
        if isinstance(result, list):  # what `scrape_and_upload` gives, as it comes from a worker
            self._failures.scraped(shard)
            stats = Stats.from_dict(result[1])
            self._shared.deliver(shard, result[0], stats)
            self._stats += stats
            self._brought += 1
        elif isinstance(result, RunError | ConfigError):
            raise result  # no shard's fault: the next one would end as this one did
        elif isinstance(result, Exception):
            self._failures.failed(shard, result, slots=slots)

    def _snapshot(
        self, scrapers: local.LocalEngine, speed: RateMeter, elapsed: float, finished: bool
    ) -> Snapshot:
        told = scrapers.reports()
        stats = sum(map(Stats.from_dict, told), self._stats)
        links, images = stats.done(Stage.FETCH), stats.left[Stage.FETCH]
        return Snapshot(
            elapsed=elapsed,
            shards=self._brought + len(self._leased),
            done=self._brought,
            failed=0,
            stats=stats,
            rates=speed.rates({"links": links, "images": images, "judged": 0, "pairs": 0}),
            queues={},
            busy=0,
            finished=finished,
            offline=offline_seconds(told),
        )
