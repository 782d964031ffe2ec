"""The ledger of a run whose shards come from a tracker, which several runs share.

Results go into the local ledger as ever, and are reported to the tracker now or when it answers
again. One file beside the ledger keeps the pending reports, another one elsewhere the worker's
secret, so a run that was killed resumes its leases and sends the reports it had not sent.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cahlib.core.atomic import write_file
from cahlib.core.background import BackgroundLoop
from cahlib.core.errors import ConfigError, RunError, ShardError
from cahlib.core.records import Judged, Shard, Stats
from cahlib.core.retry import wait_until
from cahlib.core.secret_store import nickname_secret, secret_path, write_secret
from cahlib.ledger.client import (
    LeasedShard,
    RequestRejected,
    TrackerClient,
    TrackerUnavailable,
    WorkerOptions,
)
from cahlib.ledger.local import LocalLedger
from cahlib.ledger.pending import PendingReport, PendingReports
from cahlib.ledger.protocol import COMMITTED, ShardCounts

_log = logging.getLogger(__name__)

#: Pairs per call that asks for claims; they wait in memory meanwhile, other images do not.
_CLAIM_BATCH = 64
#: Seconds that the end of a run waits for an unavailable tracker.
_CLOSE_TIMEOUT = 15
#: Seconds without a lease after the parcel storage did not answer, and seconds of its silence after
#: which the parcel is reported as failed: that parcel may be the cause.
_STORAGE_PAUSE, _STORAGE_TIMEOUT = 60, 600


class RemoteLedger:
    """The `Ledger` of a run on a tracker's crawl; leaving the context ends its leases."""

    retries = False  #: a tracker has none

    def __init__(
        self,
        ledger: LocalLedger,
        tracker: TrackerClient,
        path: Path,
        options: WorkerOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._tracker, self._path = ledger, tracker, path
        self._secret = secret_path(path.with_suffix(""), "secret")
        self._options, self._clock = options, clock
        self._reports = PendingReports(self._save)
        self._claimed: set[str] = set()  #: pairs that other shards have
        #: pairs to withdraw from this dataset: another shard brought them first
        self._to_withdraw: frozenset[str] = frozenset()
        self._finished, self._next_poll = False, float("-inf")
        self._storage_down_since = float("inf")
        self._lock = threading.Lock()  #: of the three lines above
        #: held while the tracker grants a lease or ends one: no report crosses a new lease of its
        #: shard, nor is it discarded once that lease is recorded
        self._exchange = threading.Lock()
        self._reporter = BackgroundLoop(options.heartbeat_seconds, self._report)
        #: called with a parcel that the tracker rejects
        self.on_rejected_parcel: Callable[[dict[str, Any]], None] = lambda parcel: None
        #: returns the similarities of a shard's pairs in this dataset, by uid
        self.read_similarities: Callable[[str], Mapping[str, float]] = lambda id: {}

    @property
    def upload_url(self) -> str:
        """The URL where the tracker wants parcels; "" if it wants none."""
        return self._tracker.upload_url

    def __enter__(self) -> RemoteLedger:
        """Join the tracker, or resume with stored credentials; raise ConfigError on failure."""
        self._load()
        if self._options.kind == "cpu":  # killed just after the uploaded parcel was recorded
            for shard in self._ledger.in_state(COMMITTED):
                self._ledger.mark_done(shard)
        try:
            if not (self._tracker.secret and self._tracker.wait_while_unavailable(self._resume)):
                self._tracker.wait_while_unavailable(self._join)
        except (TrackerUnavailable, RequestRejected) as error:
            raise ConfigError(f"tracker: {error}") from error
        self._reporter.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Release unfinished shards and send all reports if the tracker answers in time."""
        with self._reports:
            committed = {shard.id for shard in self._ledger.in_state(COMMITTED)}
            for id in self._reports.in_progress().keys() - committed:
                self._reports.finish(id, "release")  # the next launch ends the committed ones
            for shard in self._ledger.in_state("todo", "leased"):
                self._ledger.forget(shard)
        self._reporter.stop()
        self._send_all()

    def fill(self, list_shards: Callable[[Callable[[], Sequence[Shard]]], Iterable[Shard]]) -> None:
        """Do nothing: the tracker has the list of shards."""

    def lease(self, count: int = 1) -> Shard | None:
        """Return a shard leased already, or the tracker's next, if any; lease up to ``count``.

        Raise RunError if the tracker does not know this worker any more.
        """
        if shard := self._ledger.lease():
            return shard
        if self._clock() < self._next_poll:
            return None
        try:
            with self._exchange:
                leases, self._finished = self._tracker.lease(count)
                for leased in leases:
                    self._add(leased)
        except (TrackerUnavailable, RequestRejected) as error:
            if isinstance(error, RequestRejected) and error.status == 401:
                raise RunError(
                    f"The tracker {self._tracker.url} no longer knows this worker (it was expelled "
                    "or the tracker lost its database); finished work is kept, and the next run "
                    "joins again."
                ) from error
            _log.warning("%s", error)
        if (shard := self._ledger.lease()) is None:
            with self._lock:
                self._next_poll = max(self._next_poll, self._clock() + self._options.poll_seconds)
        return shard

    def get_parcel(self, shard: Shard) -> dict[str, Any] | None:
        report = self._reports.get(shard.id)
        return report.parcel if report else None

    def has_more(self) -> bool:
        return not self._finished or self._ledger.has_more()

    def release(self, shard: Shard, error: str) -> None:
        """Return a shard whose parcel storage does not answer, and lease none for a while."""
        with self._lock:
            now = self._clock()
            self._next_poll = now + _STORAGE_PAUSE
            self._storage_down_since = min(self._storage_down_since, now)
            if timed_out := now - self._storage_down_since > _STORAGE_TIMEOUT:
                self._storage_down_since = now
        if timed_out:
            self.fail(shard, error, attempts=1)
            return
        _log.warning("%s: %s", shard.id, error)
        self._end_lease(shard, "release")

    def fail(self, shard: Shard, error: str, *, attempts: int) -> bool:
        """Report a failure to the tracker, which gives the shard to another worker."""
        _log.warning("%s: %s", shard.id, error.strip().splitlines()[-1] if error else "failed")
        self._end_lease(shard, "fail", reason=error)
        return True

    def commit(self, shard: Shard, uids: Iterable[str], stats: Stats) -> None:
        self._storage_answered()
        self._ledger.commit(shard, uids, stats)

    def mark_done(self, shard: Shard) -> None:
        """Record and report a finished shard; if its lease is lost, it stays in the dataset."""
        with self._reports:
            self._reports.finish(shard.id, "complete")
            self._ledger.mark_done(shard)
        self._reporter.wake()

    def deliver(self, shard: Shard, parcel: dict[str, Any], stats: Stats) -> None:
        """Report that a shard's parcel is uploaded; without a lease the parcel is rejected."""
        self._storage_answered()
        with self._reports:
            held = self._reports.finish(shard.id, "deliver", parcel=parcel)
            if held:
                self._ledger.commit(shard, [], stats)
                self._ledger.mark_done(shard)
            else:
                self._ledger.forget(shard)
        if not held:
            self.on_rejected_parcel(parcel)
        self._reporter.wake()

    def has_pair(self, uid: str) -> bool:
        """Return whether this pair is in a dataset already: this run's or another's."""
        return uid in self._claimed or self._ledger.has_pair(uid)

    def resolve_claims(self, shard: Shard, judged: Iterator[Judged]) -> Iterator[Judged]:
        """Yield a shard's judged images once the tracker has said which pairs others have.

        Wait as long as it takes: otherwise most claimed pairs would have to be withdrawn later.
        Raise ShardError without a lease, RequestRejected if the tracker has ended it.
        """
        batch: list[Judged] = []
        for each in judged:
            if each.reason is not None:
                yield each
                continue
            batch.append(each)
            if len(batch) == _CLAIM_BATCH:
                yield from self._resolved(shard, batch)
                batch = []
        yield from self._resolved(shard, batch)

    def _resolved(self, shard: Shard, batch: list[Judged]) -> list[Judged]:
        """Return these pairs once it is known which of them others have."""
        if batch:
            report = self._reports.get(shard.id)
            if report is None:
                raise ShardError(f"{shard.id} is no longer leased; another worker does it.")
            uids = (each.image.candidate.uid for each in batch)
            forever = float("inf")
            self._claimed |= self._tracker.claimed_pairs(report.number, uids, retry_seconds=forever)
        return batch

    def withdraw_claimed(self, withdraw: Callable[[Set[str]], None]) -> None:
        """Withdraw pairs that others brought first; the next launch withdraws later ones."""
        self._send_all()
        claimed = self._to_withdraw
        withdraw(claimed)
        with self._lock:
            self._to_withdraw -= claimed
        self._reports.save()

    def counts(self) -> ShardCounts:
        return self._ledger.counts()

    def stats(self) -> Stats:
        """Return the stats of this run's committed shards."""
        return self._ledger.stats()

    def in_state(self, *states: str) -> list[Shard]:
        return self._ledger.in_state(*states)

    def errors(self, state: str = "failed") -> list[tuple[str, str]]:
        """Return id and last error of damaged shards; the tracker shows those that failed."""
        return [] if state == "failed" else self._ledger.errors(state)

    def _add(self, leased: LeasedShard) -> None:
        """Add a leased shard to the local ledger if there is something to do for it now."""
        shard = leased.shard
        with self._reports:
            report = PendingReport(number=leased.number, parcel=leased.parcel)
            if not self._reports.start(shard.id, report):
                self._reporter.wake()  # the report of the expired lease ends this one as well
                return
            self._ledger.add([shard])  # already there if its lease expired while it is in work
            if not self._ledger.is_done(shard):
                return
            if self._options.kind == "cpu":  # its parcel is gone, or was rejected
                self._ledger.release(shard, "")
            else:
                self._reports.finish(shard.id, "complete")
                self._reporter.wake()

    def _end_lease(self, shard: Shard, act: str, *, reason: str = "") -> None:
        with self._reports:  # or it could be leased again before it is forgotten
            self._reports.finish(shard.id, act, reason=reason)
            self._ledger.forget(shard)
        self._reporter.wake()

    def _storage_answered(self) -> None:
        with self._lock:
            self._storage_down_since = float("inf")

    def _join(self) -> None:
        nickname = self._options.nickname
        secret = nickname_secret(self._tracker.url, nickname, self._path.parent.parent)
        self._tracker.join(nickname, self._options.kind, nickname_secret=secret)
        write_secret(self._secret, self._tracker.secret)
        for shard in self._ledger.in_state("todo", "leased"):
            self._ledger.forget(shard)  # leased by an earlier worker
        with self._reports:
            self._reports.load(self._reports.due())
            self._reports.save()

    def _resume(self) -> bool:
        """Return whether the tracker knows this worker; forget the leases that it has lost."""
        working = self._reports.in_progress()
        try:
            held = self._tracker.heartbeat(report.number for report in working.values())
        except RequestRejected:
            return False
        for shard in self._ledger.in_state("todo", "leased"):
            report = working.pop(shard.id, None)
            if report is None or report.number not in held:
                self._ledger.forget(shard)
                if report:
                    self._reports.discard(shard.id, report)
        committed = {shard.id for shard in self._ledger.in_state(COMMITTED)}
        for id in working.keys() - committed:  # killed before the ledger recorded it
            self._reports.finish(id, "release")
        return True

    def _report(self) -> None:
        """Send the reports that are due, and a heartbeat."""
        if self._send_due():
            self._heartbeat()
        else:
            self._reporter.stopping.wait(min(self._options.heartbeat_seconds, 5))
            self._reporter.wake()

    def _heartbeat(self) -> None:
        numbers = {report.number for report in self._reports.in_progress().values()}
        try:
            held = self._tracker.heartbeat(numbers, f"working on {len(numbers)} shards")
        except (TrackerUnavailable, RequestRejected) as error:
            _log.warning("%s", error)
            return
        if lost := numbers - held:
            _log.warning("The leases of shards %s expired; other workers have them.", lost)

    def _send_all(self) -> None:
        # if it stays away, leases expire, and the next launch sends the rest
        wait_until(self._send_due, timeout=_CLOSE_TIMEOUT, pause=0.5)

    def _send_due(self) -> bool:
        """Send every report that is due; return False if the tracker is unavailable."""
        for id, report in self._reports.due().items():
            rejected = False
            try:
                with self._exchange:
                    try:
                        self._send(id, report)
                    except RequestRejected as error:
                        rejected = True
                        _log.warning("%s: %s", id, error)
                    self._reports.discard(id, report)
            except TrackerUnavailable as error:
                _log.warning("%s The report is sent later.", error)
                return False
            except (OSError, RunError) as error:  # a full disk; sending it twice does no harm
                _log.warning("%s: %s", id, error)
            if rejected and report.act == "complete":
                _log.warning("%s stays in this dataset; another may have its pairs too.", id)
            if rejected and report.act == "deliver" and report.parcel:
                self.on_rejected_parcel(report.parcel)
        return True

    def _send(self, id: str, report: PendingReport) -> None:
        stats = self._ledger.committed_stats(id) if report.act in ("complete", "deliver") else None
        if stats and report.act == "complete":
            known = self.read_similarities(id)
            similarities = {uid: known.get(uid, 0.0) for uid in self._ledger.uids(id)}
            late = self._tracker.complete(report.number, similarities=similarities, stats=stats)
            with self._lock:
                self._to_withdraw |= late
        elif stats and report.parcel:
            self._tracker.deliver(report.number, report.parcel, stats)
        elif report.act in ("fail", "refetch"):
            send = self._tracker.refetch if report.parcel else self._tracker.fail
            send(report.number, report.reason)
        else:
            self._tracker.release(report.number)

    def _load(self) -> None:
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            if (stored["url"], stored["kind"]) != (self._tracker.url, self._options.kind):
                owner = f"a {stored['kind']} worker of the tracker {stored['url']}"
                raise ConfigError(f"output: this folder is used by {owner}; choose another folder.")
            self._tracker.upload_url = stored["upload"]
            self._to_withdraw = frozenset(stored.get("lost", ()))
            self._reports.load({id: PendingReport(**each) for id, each in stored["debts"].items()})
            if "secret" in stored:  # as an earlier version kept it
                self._tracker.secret = stored["secret"]
                write_secret(self._secret, self._tracker.secret)
                self._reports.save()
            elif self._secret.exists():
                self._tracker.secret = self._secret.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} is damaged; remove it to join again.") from error

    def _save(self, reports: Mapping[str, PendingReport]) -> None:
        stored = {
            "url": self._tracker.url,
            "kind": self._options.kind,
            "upload": self._tracker.upload_url,
            "lost": sorted(self._to_withdraw),
            "debts": {id: asdict(report) for id, report in reports.items()},
        }
        write_file(self._path, json.dumps(stored, indent=1))
