"""A CPU worker of a tracker: scrapes shards and uploads the parcels to the tracker's storage."""

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
from cahlib.core.run_directory import RunDirectory
from cahlib.crawl.tables.slices import Slices
from cahlib.engine.protocol import Engine
from cahlib.ledger.remote import RemoteLedger
from cahlib.parcel import parcel as parcels
from cahlib.parcel import storage
from cahlib.run.failures import FailureHandler
from cahlib.run.open_run import open_run_directory
from cahlib.run.scrape import scrape_and_upload
from cahlib.run.scrapers import open_local_scrapers, scraper_server


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResult:
    """The result of a worker's run."""

    parcels: int  #: delivered
    stopped: bool  #: early; the tracker may have more


def work_for_tracker(
    job: Job,
    listener: Listener = ignore_progress,
    *,
    stop: threading.Event | None = None,
    tick: float = 1.0,
) -> WorkerResult:
    """Scrape until the tracker has no more shards, ``stop`` is set, or the job's hours are over.

    Raise ConfigError if there is no tracker or it has no upload URL, RunError if this machine
    cannot continue; unfinished shards are released.
    """
    require_contact(job)
    stop = stop or threading.Event()
    folder = job.output.folder
    with (
        open_run_directory(job, role="cpu", stop=stop, refused=storage.delete_upload) as ledger,
        folder_errors(folder),
    ):
        assert isinstance(ledger, RemoteLedger)
        if "://" not in ledger.upload_url:
            raise ConfigError(
                f"tracker: {job.place.tracker} accepts no parcels; its administrator enables them "
                "with `cah tracker serve --upload URL`."
            )
        return _WorkerRun(job, ledger, stop).run(listener, tick)


class _WorkerRun:
    """The shards that are being scraped."""

    def __init__(self, job: Job, ledger: RemoteLedger, stop: threading.Event) -> None:
        self._job, self._ledger, self._stop = job, ledger, stop
        run = RunDirectory(job.output.folder)
        self._folder = run.parcels
        self._slices = Slices(run.slices, job.download.contact)
        self._failures = FailureHandler(ledger, job.output.folder, attempts=1)
        self._leased: dict[str, Shard] = {}
        self._delivered = 0
        self._stats = ledger.stats()

    def run(self, listener: Listener, tick: float) -> WorkerResult:
        parcels.remove_leftovers(self._folder, self._ledger.in_state("done"))
        with (
            scraper_server(self._job) as server,
            open_local_scrapers(self._job, stop=self._stop, server=server) as (scrapers, _),
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
                    shard := self._ledger.lease(room)
                ):
                    self._submit(scrapers, shard)
                if not scrapers and not self._ledger.has_more():
                    break
                if finished := scrapers.take(timeout=tick):
                    self._take(*finished, slots=scrapers.slots)
            while finished := scrapers.take(timeout=0):  # its parcel is uploaded already
                self._take(*finished, slots=scrapers.slots)
        left = self._stop.is_set() and self._ledger.has_more()
        return WorkerResult(parcels=self._delivered, stopped=left)

    def _submit(self, scrapers: Engine, shard: Shard) -> None:
        if not (crawl := self._slices.cut(shard, self._job.crawl, self._failures.failed)):
            return
        self._leased[shard.id] = shard
        seconds = self._job.place.shard_minutes * 60
        settings = (crawl, self._job.download)
        places = (self._folder, self._ledger.upload_url)
        scrapers.submit(shard.id, scrape_and_upload, shard, settings, *places, limit=seconds)

    def _take(self, id: str, result: object, *, slots: int) -> None:
        shard = self._leased.pop(id)
        self._slices.drop(shard)
        if isinstance(result, list):  # the result of `scrape_and_upload`, as sent by a process
            self._failures.scraped(shard)
            stats = Stats.from_dict(result[1])
            self._ledger.deliver(shard, result[0], stats)
            self._stats += stats
            self._delivered += 1
        elif isinstance(result, RunError | ConfigError):
            raise result  # not the shard's fault: the next one would fail as well
        elif isinstance(result, Exception):
            self._failures.failed(shard, result, slots=slots)

    def _snapshot(
        self, scrapers: Engine, speed: RateMeter, elapsed: float, finished: bool
    ) -> Snapshot:
        told = scrapers.reports()
        stats = sum(map(Stats.from_dict, told), self._stats)
        links, images = stats.done(Stage.FETCH), stats.left[Stage.FETCH]
        return Snapshot(
            elapsed=elapsed,
            shards=self._delivered + len(self._leased),
            done=self._delivered,
            failed=0,
            stats=stats,
            rates=speed.rates({"links": links, "images": images, "judged": 0, "pairs": 0}),
            queues={},
            busy=0,
            finished=finished,
            offline=offline_seconds(told),
        )
