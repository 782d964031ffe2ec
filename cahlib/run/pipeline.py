"""One run, from a Job to its dataset: the pipeline of scraping, judging, writing and uploading.

    shards ─► scraped ─► opened ─► judged ─► written ─► finished
              engine     disk      model     disk       upload, ledger

Each arrow is a bounded queue (`cahlib.core.prefetch`). A shard counts once it is committed to the
dataset and the ledger; a crash before that repeats the shard, with the same result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, TypeAlias

from cahlib import __version__
from cahlib.core import status
from cahlib.core.background import capture
from cahlib.core.config import Job
from cahlib.core.errors import ConfigError, RunError, ShardError, folder_errors
from cahlib.core.prefetch import Abandoned, Pipeline
from cahlib.core.progress import (
    Listener,
    RateMeter,
    Snapshot,
    SwarmStatus,
    ignore_progress,
    offline_seconds,
    report_progress,
)
from cahlib.core.rates import RateRecorder
from cahlib.core.records import Image, Judged, Parcel, Shard, Stage, Stats
from cahlib.core.run_directory import RunDirectory
from cahlib.crawl.shards import list_shards
from cahlib.dataset.description import commit_shards, describe_continued
from cahlib.dataset.maintain.purge import withdraw_pairs
from cahlib.dataset.manifest import ShardManifest, read_manifest, read_manifests
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.show.summary import summarize
from cahlib.dataset.storage.upload import Uploader, check_destination, upload_pages
from cahlib.dataset.tar_index import add_tar
from cahlib.dataset.write.columns import TAKEN
from cahlib.dataset.write.duplicate_index import load_duplicate_index
from cahlib.dataset.write.gallery import LatestPairs
from cahlib.dataset.write.shard_writer import DatasetSpec, ScoredParcel, read_uids, write_shard
from cahlib.fetch.dead_domains import DeadDomains
from cahlib.image.perceptual_hash import NearIndex
from cahlib.ledger.protocol import COMMITTED, Ledger
from cahlib.model.known_harm import drop_known_harm, load_known_harm
from cahlib.model.scorer import Scorer, load_scorer
from cahlib.parcel import parcel as parcels
from cahlib.parcel import storage
from cahlib.run.failures import FailureHandler
from cahlib.run.open_run import check_settings, open_run_directory
from cahlib.run.result import RunResult
from cahlib.run.resume import find_faults, resume
from cahlib.run.retry_plan import RETRY, FailedLinks
from cahlib.run.scrape import scrape
from cahlib.run.scrapers import Engine, EngineFactory, open_scrapers, with_thumbs

#: Capacities of the queues: parcels on disk, scored images in memory, manifests.
_PARCELS, _JUDGED, _COMMITTED = 2, 256, 2

#: Seconds until a ledger without shards is asked again, unless a job ends before.
_LEASE_INTERVAL = 0.5


def run(
    job: Job,
    listener: Listener = ignore_progress,
    *,
    stop: threading.Event | None = None,
    tick: float = 1.0,
    role: str = "hybrid",
    scraping: EngineFactory = open_scrapers,
) -> RunResult:
    """Work through the job's shards, those of earlier launches excepted.

    ``stop`` ends the run early and cleanly: the shard being judged is finished, parcels are kept
    for the next launch. ``listener`` gets a Snapshot every ``tick`` seconds, and one at the end.
    With a tracker, ``role`` "gpu" judges what others scraped; "retry" does the retries that the
    ledger has. ``scraping`` opens the engine. Raise ConfigError before anything is started,
    RunError if the run cannot continue.
    """
    folder, home = job.output.folder, RunDirectory(job.output.folder)
    if job.output.url:
        check_destination(job.output.url, job.output.folder)
    check_settings(job)
    harmful = load_known_harm(job.judge.harm_looks, "harm_looks", job.judge.harm_distance)
    stop = stop or threading.Event()
    with (
        open_run_directory(job, role=role, stop=stop, resume=resume) as ledger,
        status.record_status(home.status, listener, stopping=stop.is_set) as listener,
        folder_errors(folder),
    ):
        ledger.retries = role == RETRY
        if not ledger.retries:
            listed = partial(list_shards, job.crawl, contact=job.download.contact, taken=TAKEN)
            ledger.fill(lambda known: listed(known=known))
        # a killed launch may have left some between "done" and their removal
        parcels.remove_leftovers(home.parcels, ledger.in_state("done"))
        if ledger.has_more() or ledger.in_state(COMMITTED):
            work = _Work(job, ledger, stop, scraping, harmful)
            limits = {"tick": tick, "hours": job.place.hours}
            with report_progress(work.snapshot, listener, stop=stop, **limits):
                work.through()
        ledger.withdraw_claimed(lambda lost: withdraw_pairs(folder, lost, job.output.url))
        write_pages(folder, job.values())
        if job.output.url:
            upload_pages(folder, job.output.url)
        found = summarize(folder)
        return RunResult(
            folder=folder,
            shards=ledger.counts(),
            stats=found.stats,  # not the ledger's: purges change the manifests alone
            errors=tuple(ledger.errors()),
            warnings=tuple(found.warnings()),
            stopped=stop.is_set() and (ledger.has_more() or bool(ledger.in_state(COMMITTED))),
            faults=tuple(find_faults(job, ledger)),
        )


#: The images of a parcel, or why it has none.
_Opened: TypeAlias = tuple[ScoredParcel, Future[Iterable[Image]]]

#: A judged image, the error that ends its shard, or None at the shard's end.
_Step: TypeAlias = tuple[ScoredParcel, Judged | Exception | None]


class _Work:
    """The stages of one launch, and their counts."""

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        stop: threading.Event,
        scraping: EngineFactory,
        harmful: NearIndex | None,
    ) -> None:
        self._job, self._ledger, self._stop, self._scraping = job, ledger, stop, scraping
        self._harmful = harmful
        self._folder = job.output.folder
        self._parcels = RunDirectory(self._folder).parcels
        self._failures = FailureHandler(ledger, self._folder, attempts=job.place.attempts)
        self._slices = FailedLinks(self._folder, job)
        self._away = self._parcels  #: where the scrapers write them
        self._ours = describe_continued(job)
        self._committed = ledger.stats()  #: of the shards in the dataset
        self._in_work: dict[str, ScoredParcel] = {}  #: by shard id, from parcel to manifest
        self._counting = threading.Lock()  #: a shard is always in exactly one of these two
        self._told: Callable[[], list[Any]] = list  #: what running scrapers report
        self._worked: Callable[[], float] = float  #: seconds that the model has worked
        self._queues: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self._swarm_status, self._speed = SwarmStatus(), RateMeter()
        self._meter, self._latest = RateRecorder(job), LatestPairs()

    def through(self) -> None:
        """Process all shards, or as many as possible before the stop."""
        try:
            with Uploader(self._job.output, self._finish) as uploads:
                for shard in self._ledger.in_state(COMMITTED):
                    if left := read_manifest(self._folder, shard.id):
                        uploads.add(left)
                if self._ledger.has_more():
                    self._stages(uploads)
        finally:  # of scrapers that were terminated; a disk may be full of them
            parcels.remove_leftovers(self._parcels)

    def _stages(self, uploads: Uploader) -> None:
        """Scrape, judge and write what the ledger has.

        Here, the model is imported and loaded while the first shards are scraped, which begins
        first. Servers cost money and leased shards are kept from others, so for them it must be
        there before.
        """
        # by a thread, which no Ctrl-C interrupts: libraries take that for a model that is broken
        with Pipeline() as beside:
            load = partial(beside.prefetch, map(load_scorer, [self._job.judge]), 1)
            early = next(load()) if self._job.place.is_costly else None
            whole = self._ledger.in_state(COMMITTED, "done")
            self._known = load_duplicate_index(self._job.output, whole, seen=self._ledger.has_pair)
            manifests = read_manifests(self._folder, damaged="skip")
            self._dead_domains = DeadDomains(
                each.silent for each in manifests if not self._ledger.retries
            )
            opening = self._scraping(self._job, stop=self._stop, swarm_status=self._swarm_status)
            with opening as (scrapers, self._away), Pipeline() as pipeline:
                self._told = scrapers.reports
                self._queues = pipeline.queue_sizes
                waiting = self._scrape(scrapers, pipeline)
                scraped = pipeline.prefetch(waiting, _PARCELS, "parcels")
                opened = pipeline.prefetch(self._open(scraped), 1)
                loaded = early or next(load())
                self._worked = loaded.worked
                judged = pipeline.prefetch(self._judge(opened, loaded), _JUDGED, "judged")
                written = self._write(judged, self._spec(loaded))
                for each in pipeline.prefetch(written, _COMMITTED, "committed"):
                    uploads.add(each)

    def _scrape(self, scrapers: Engine, pipeline: Pipeline) -> Iterator[ScoredParcel]:
        """Lease shards, have them scraped, yield their parcels as they arrive."""
        leased: dict[str, Shard] = {}
        due = 0.0  # of the next question for shards
        while not (self._stop.is_set() or pipeline.closed):
            # twice the slots: no scraper waits for us, and no more parcels than that pile up
            while (room := 2 * scrapers.slots - len(scrapers)) > 0 and time.monotonic() >= due:
                if not (shard := self._ledger.lease(room)):
                    due = time.monotonic() + _LEASE_INTERVAL
                    break
                if left := parcels.find_parcel(self._parcels, shard):  # by an earlier launch
                    yield self._begin(left)
                    continue
                leased[shard.id] = shard
                self._submit(scrapers, shard)
            if not scrapers and not self._ledger.has_more():
                return
            if finished := scrapers.take(timeout=0.2):
                due = 0.0
                shard, result = leased.pop(finished[0]), finished[1]
                self._slices.drop(shard)
                if isinstance(result, Parcel):
                    self._failures.scraped(shard)
                    yield self._begin(result)
                elif isinstance(result, RunError | ConfigError):
                    raise result
                else:
                    self._failures.failed(shard, result, slots=scrapers.slots)

    def _begin(self, parcel: Parcel) -> ScoredParcel:
        outcomes = parcels.unpack_outcomes(parcel) if self._job.download.outcomes else ()
        begun = ScoredParcel(parcel=parcel, outcomes=outcomes)
        return self._in_work.setdefault(parcel.shard.id, begun)

    def _submit(self, scrapers: Engine, shard: Shard) -> None:
        seconds = self._job.place.shard_minutes * 60
        if brought := self._ledger.get_parcel(shard):
            fetching = storage.download_parcel, shard, brought, self._away
            scrapers.submit(shard.id, *fetching, limit=seconds)
            return
        if not (crawl := self._slices.cut(shard, self._job.crawl, self._failures.failed)):
            return
        download = with_thumbs(self._job)
        skipped = self._dead_domains.merged_with(download.skipped_domains)
        download = replace(download, skipped_domains=skipped)
        scrapers.submit(shard.id, scrape, shard, crawl, download, self._away, limit=seconds)

    def _open(self, scraped: Iterable[ScoredParcel]) -> Iterator[_Opened]:
        """Check a parcel and find its images while the model is busy with the one before it."""
        for work in scraped:
            yield work, capture(partial(self._images, work.parcel))

    def _images(self, parcel: Parcel) -> Iterable[Image]:
        parcels.check_parcel(parcel)
        images = parcels.read_images(parcel, trusted=not self._ledger.get_parcel(parcel.shard))
        return chain(list(islice(images, 1)), images)

    def _judge(self, opened: Iterable[_Opened], loaded: Scorer) -> Iterator[_Step]:
        """Judge the images of each parcel, in the order of the pages."""
        for work, images in opened:
            if self._stop.is_set():
                return  # the parcel stays for the next launch
            try:
                for judged in self._judged(work, images.result(), loaded):
                    self._latest.offer(judged)
                    yield work, judged
                yield work, None
            except (RunError, ConfigError):
                raise
            except ShardError as error:  # the parcel is damaged: the shard is scraped again
                parcels.delete_parcel(self._parcels, work.parcel.shard)
                yield work, error
            except Exception as error:  # noqa: BLE001 - guards one shard: its failure is recorded
                yield work, error

    def _judged(
        self, work: ScoredParcel, images: Iterable[Image], loaded: Scorer
    ) -> Iterator[Judged]:
        images = drop_known_harm(images, self._harmful, work.stats)
        judged = loaded.judged(images, self._job.judge, work.stats)
        return self._ledger.resolve_claims(work.parcel.shard, judged)

    def _spec(self, loaded: Scorer) -> DatasetSpec:
        ours = self._ours
        return DatasetSpec(
            model=loaded.name,
            threshold=self._job.judge.chosen()[2],
            scores=loaded.columns(layout=ours.layout),
            forms=self._job.forms,
            versions={"cahlib": __version__},
            settings=ours.digest,
            layout=ours.layout,
        )

    def _write(self, steps: Iterable[_Step], spec: DatasetSpec) -> Iterator[ShardManifest]:
        """Write each shard's pairs into the dataset, and commit it in the ledger."""
        for work, of_shard in groupby(steps, key=itemgetter(0)):
            shard = work.parcel.shard
            self._known.begin_shard()
            written = capture(
                partial(
                    write_shard,
                    self._folder,
                    _items(item for _, item in of_shard),
                    work,
                    spec=spec,
                    again=self._known.find_duplicate,
                )
            )
            error = written.exception()
            ending = RunError, ConfigError, Abandoned
            if isinstance(error, Exception) and not isinstance(error, ending):
                if isinstance(error, ShardError):  # the outcomes do not belong to the images
                    parcels.delete_parcel(self._parcels, shard)
                self._in_work.pop(shard.id, None)
                known = error.args[0] if isinstance(error, _Failed) else error
                self._failures.failed(shard, known)
                continue
            committed = written.result()
            commit_shards(self._folder, self._ours, [shard.id])
            add_tar(self._folder, committed)
            self._ledger.commit(shard, read_uids(self._folder, committed), committed.stats)
            self._known.commit_shard()
            self._dead_domains.add(committed.silent)
            scraped = work.parcel.finished - work.parcel.started
            self._meter.add(committed.stats, scraped=scraped, worked=self._worked())
            with self._counting:
                self._in_work.pop(shard.id, None)
                self._committed += committed.stats
            yield committed

    def _finish(self, committed: ShardManifest) -> None:
        """Record that a committed shard is at its destination, and delete its parcel."""
        brought = self._ledger.get_parcel(committed.shard)
        self._ledger.mark_done(committed.shard)
        if brought:
            storage.delete_upload(brought)
        parcels.delete_parcel(self._parcels, committed.shard)

    def snapshot(self, elapsed: float, finished: bool) -> Snapshot:
        """Return the state of the work."""
        stats = self._stats()
        rates = self._speed.rates(
            {
                "links": stats.done(Stage.FETCH),
                "images": stats.left[Stage.FETCH],
                "judged": stats.entered[Stage.JUDGE],
                "pairs": stats.left[Stage.JUDGE],
                "busy": self._worked(),
            }
        )
        shards = self._ledger.counts()
        return Snapshot(
            elapsed=elapsed,
            shards=shards.total,
            done=shards.done,
            failed=shards.failed,
            stats=stats,
            busy=min(rates.pop("busy"), 1.0),
            rates=rates,
            queues=self._queues(),
            finished=finished,
            nodes=self._swarm_status.nodes,
            spent=self._swarm_status.spent,
            hourly=self._swarm_status.hourly,
            currency=self._swarm_status.currency,
            offline=offline_seconds(self._told()),
            latest=self._latest.shown(),
        )

    def _stats(self) -> Stats:
        """Return the stats of all shards, those in progress included, while other threads count."""
        told = (Stats.from_dict(values) for values in self._told())
        with self._counting:
            works, whole = list(self._in_work.values()), self._committed
        # through a dict: adding two Counters fails if another thread puts a new key into one
        in_work = (work.parcel.stats + Stats.from_dict(work.stats.as_dict()) for work in works)
        return sum((*told, *in_work), whole)


class _Failed(Exception):
    """Carries the error that ends a shard through the writing of its pairs, as its argument."""


def _items(steps: Iterable[Judged | Exception | None]) -> Iterator[Judged]:
    """Yield a shard's judged images up to its end; raise _Failed at its error."""
    for item in steps:
        if item is None:
            return  # not later: what follows may be minutes away
        if isinstance(item, Exception):
            raise _Failed(item)
        yield item
