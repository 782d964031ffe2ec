"""A run's ledger whose shards come from a tracker, which several runs share.

What is done here is in the ledger as ever; the tracker is told of it, now or when it answers
again. A file beside the ledger keeps what we owe, another one elsewhere who we are, so a run that
was killed goes on with its leases and tells what it had not told.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cahlib.core.atomic import write_file
from cahlib.core.errors import ConfigError, RunError, ShardError
from cahlib.core.records import Judged, Shard, Stats
from cahlib.core.secret_store import nickname_secret, secret_path, write_secret
from cahlib.ledger.client import Leased, Refused, Tracker, TrackerAway
from cahlib.ledger.local import Counts, Ledger
from cahlib.ledger.pending import PendingReport, PendingReports

_log = logging.getLogger(__name__)

#: Pairs whose uids are asked for in one call; they wait in memory meanwhile, others do not.
_AHEAD = 64
#: Seconds that the end of a run waits for a tracker that is away.
_GOODBYE = 15
#: Seconds without a shard after the storage of parcels did not answer, and after which, if it
#: never does, it is told of a parcel: that one may be what cannot be had.
_PAUSE, _PATIENCE = 60, 600


class Shared:
    """The ledger of a run that takes part in a tracker's crawl; a context that gives back."""

    def __init__(
        self,
        ledger: Ledger,
        tracker: Tracker,
        path: Path,
        *,
        who: tuple[str, str],
        often: tuple[float, float] = (30, 5),  # seconds between signs of life, between questions
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._tracker, self._path = ledger, tracker, path
        self._secret = secret_path(path.with_suffix(""), "secret")
        self._nickname, self._kind = who
        (self._every, self._poll), self._clock = often, clock
        self._reports = PendingReports(self._save)
        self._taken: set[str] = set()
        #: to leave our dataset: another shard brought them first
        self._lost: frozenset[str] = frozenset()
        self._finished, self._ask_again = False, float("-inf")
        self._trouble = float("inf")  #: since when the storage of parcels does not answer
        self._lock = threading.Lock()  #: of the three lines above
        #: held while the tracker gives a shard or takes one: no report crosses a new lease of its
        #: shard, nor is it discarded when that lease is noted already
        self._exchange = threading.Lock()
        self._ended, self._owing = threading.Event(), threading.Event()
        self._messenger = threading.Thread(target=self._carry, daemon=True)
        #: hears of a parcel that the tracker does not take any more
        self.refused: Callable[[dict[str, Any]], None] = lambda parcel: None
        #: says how similar the pairs of a shard in our dataset are, by their uids
        self.similarities: Callable[[str], Mapping[str, float]] = lambda id: {}

    @property
    def upload(self) -> str:
        """Where the tracker wants parcels: a URL, or "" for nowhere."""
        return self._tracker.upload

    def __enter__(self) -> Shared:
        """Join, or come back as who we were; raises ConfigError where there is no tracker."""
        self._recall()
        if self._kind == "cpu":  # killed once the parcel that was uploaded was noted
            for shard in self._ledger.in_state("sealed"):
                self._ledger.done(shard)
        try:
            if not (self._tracker.secret and self._tracker.persist(self._resume)):
                self._tracker.persist(self._join)
        except (TrackerAway, Refused) as error:
            raise ConfigError(f"tracker: {error}") from error
        self._messenger.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what is not done, and tell what is, if the tracker answers in time."""
        with self._reports:
            sealed = {shard.id for shard in self._ledger.in_state("sealed")}
            for id in self._reports.in_progress().keys() - sealed:
                self._reports.finish(id, "release")  # sealed ones: the next launch ends them
            for shard in self._ledger.in_state("todo", "leased"):
                self._ledger.forget(shard)
        self._ended.set()
        self._owing.set()
        self._messenger.join()
        self._tell_all()

    def lease(self, room: int = 1) -> Shard | None:
        """Return a shard that is ours already, or the tracker's next, if any; it gives up to room.

        Raise RunError when the tracker does not know us any more.
        """
        if shard := self._ledger.lease():
            return shard
        if self._clock() < self._ask_again:
            return None
        try:
            with self._exchange:
                leases, self._finished = self._tracker.lease(room)
                for leased in leases:
                    self._enter(leased)
        except (TrackerAway, Refused) as error:
            if isinstance(error, Refused) and error.status == 401:
                raise RunError(
                    f"The tracker {self._tracker.url} does not know this worker any more (it was "
                    "sent away, or the tracker lost its database); what is done stays, and who "
                    "starts again joins anew."
                ) from error
            _log.warning("%s", error)
        if (found := self._ledger.lease()) is None:
            with self._lock:
                self._ask_again = max(self._ask_again, self._clock() + self._poll)
        return found

    def parcel(self, shard: Shard) -> dict[str, Any] | None:
        """Where a leased shard's parcel is, if somebody else has scraped it."""
        report = self._reports.get(shard.id)
        return report.parcel if report else None

    def more(self) -> bool:
        """Whether there may be shards to lease yet."""
        return not self._finished or self._ledger.more()

    def give_back(self, shard: Shard, error: str) -> None:
        """The storage of its parcel does not answer: later, or for somebody else."""
        with self._lock:
            now = self._clock()
            self._ask_again = now + _PAUSE
            self._trouble = min(self._trouble, now)
            if never := now - self._trouble > _PATIENCE:
                self._trouble = now
        if never:
            self.fail(shard, error, attempts=1)
            return
        _log.warning("%s: %s", shard.id, error)
        self._settle(shard, "release")

    def fail(self, shard: Shard, error: str, *, attempts: int) -> bool:
        """It did not work here: the tracker gives it to somebody else."""
        _log.warning("%s: %s", shard.id, error.strip().splitlines()[-1] if error else "failed")
        self._settle(shard, "fail", reason=error)
        return True

    def seal(self, shard: Shard, uids: Iterable[str], stats: Stats) -> None:
        """A shard's files are in the dataset."""
        self._storage_answered()
        self._ledger.seal(shard, uids, stats)

    def done(self, shard: Shard) -> None:
        """A sealed shard is where it shall be: the tracker is to know.

        Without a lease, which an earlier launch may have lost, it stays in the dataset.
        """
        with self._reports:
            self._reports.finish(shard.id, "complete")
            self._ledger.done(shard)
        self._owing.set()

    def deliver(self, shard: Shard, parcel: dict[str, Any], stats: Stats) -> None:
        """A shard's parcel is uploaded: the tracker is to know; without a lease it is refused."""
        self._storage_answered()
        with self._reports:
            held = self._reports.finish(shard.id, "deliver", parcel=parcel)
            if held:
                self._ledger.seal(shard, [], stats)
                self._ledger.done(shard)
            else:
                self._ledger.forget(shard)
        if not held:
            self.refused(parcel)
        self._owing.set()

    def seen(self, uid: str) -> bool:
        """Whether this pair is in a dataset already: this run's or another's."""
        return uid in self._taken or self._ledger.seen(uid)

    def ours(self, shard: Shard, judged: Iterator[Judged]) -> Iterator[Judged]:
        """A shard's judged images, when the tracker has said which pairs others have brought.

        Waits as long as it takes: else most of the pairs that others have would be dropped later.
        Raises ShardError without a lease, Refused if the tracker has ended it.
        """
        kept: list[Judged] = []
        for each in judged:
            if each.reason is not None:
                yield each
                continue
            kept.append(each)
            if len(kept) == _AHEAD:
                yield from self._known(shard, kept)
                kept = []
        yield from self._known(shard, kept)

    def _known(self, shard: Shard, kept: list[Judged]) -> list[Judged]:
        """Return these pairs of a shard, once it is known which of them others have."""
        if kept:
            report = self._reports.get(shard.id)
            if report is None:
                raise ShardError(f"{shard.id} is not leased any more; another worker does it.")
            uids = (each.image.candidate.uid for each in kept)
            self._taken |= self._tracker.taken(report.number, uids, patience=float("inf"))
        return kept

    def leave_out(self, take: Callable[[Set[str]], None]) -> None:
        """Have the pairs taken out of this dataset that others were first to bring.

        Wait a little for a tracker that is away; what it says later, the next launch hears.
        """
        self._tell_all()
        late = self._lost
        take(late)
        with self._lock:
            self._lost -= late
        self._reports.save()

    def counts(self) -> Counts:
        """How many of this run's shards are in which state."""
        return self._ledger.counts()

    def stats(self) -> Stats:
        """What became of everything in this run's shards."""
        return self._ledger.stats()

    def in_state(self, *states: str) -> list[Shard]:
        """This run's shards in these states."""
        return self._ledger.in_state(*states)

    def errors(self, state: str = "failed") -> list[tuple[str, str]]:
        """None of those that failed here, which are the tracker's to show."""
        return [] if state == "failed" else self._ledger.errors(state)

    def _enter(self, leased: Leased) -> None:
        """Enter a leased shard in the ledger, if there is something to do for it now."""
        shard = leased.shard
        with self._reports:
            fresh = PendingReport(number=leased.number, parcel=leased.parcel)
            if not self._reports.start(shard.id, fresh):
                self._owing.set()  # the report of the lease that ran out ends this one as well
                return
            self._ledger.add([shard])  # it is in it, if its lease ran out while we work on it
            if not self._ledger.is_done(shard):
                return
            if self._kind == "cpu":  # its parcel is gone, or was refused
                self._ledger.give_back(shard, "")
            else:
                self._reports.finish(shard.id, "complete")
                self._owing.set()

    def _settle(self, shard: Shard, act: str, *, reason: str = "") -> None:
        with self._reports:  # else it could be leased anew before it is forgotten
            self._reports.finish(shard.id, act, reason=reason)
            self._ledger.forget(shard)
        self._owing.set()

    def _storage_answered(self) -> None:
        with self._lock:
            self._trouble = float("inf")

    def _join(self) -> None:
        proof = nickname_secret(self._tracker.url, self._nickname, self._path.parent.parent)
        self._tracker.join(self._nickname, self._kind, proof=proof)
        write_secret(self._secret, self._tracker.secret)
        for shard in self._ledger.in_state("todo", "leased"):
            self._ledger.forget(shard)  # leased by who we were
        with self._reports:
            self._reports.load(self._reports.due())
            self._reports.save()

    def _resume(self) -> bool:
        """Whether the tracker knows us; what is not ours any more is forgotten."""
        working = self._reports.in_progress()
        try:
            ours = self._tracker.beat(report.number for report in working.values())
        except Refused:
            return False
        for shard in self._ledger.in_state("todo", "leased"):
            report = working.pop(shard.id, None)
            if report is None or report.number not in ours:
                self._ledger.forget(shard)
                if report:
                    self._reports.discard(shard.id, report)
        sealed = {shard.id for shard in self._ledger.in_state("sealed")}
        for id in working.keys() - sealed:  # killed before the ledger knew it
            self._reports.finish(id, "release")
        return True

    def _carry(self) -> None:
        """Tell the tracker what we owe, and now and then that we live."""
        while not self._ended.is_set():
            self._owing.wait(self._every)
            self._owing.clear()
            if self._tell():
                self._live()
            else:
                self._ended.wait(min(self._every, 5))
                self._owing.set()

    def _live(self) -> None:
        numbers = {report.number for report in self._reports.in_progress().values()}
        try:
            lost = numbers - self._tracker.beat(numbers, f"working on {len(numbers)} shards")
        except (TrackerAway, Refused) as error:
            _log.warning("%s", error)
            return
        if lost:
            _log.warning("The tracker gave shards %s to others; we were silent too long.", lost)

    def _tell_all(self) -> None:
        deadline = time.monotonic() + _GOODBYE
        while not self._tell() and time.monotonic() < deadline:
            time.sleep(0.5)  # if it stays away, the leases run out, and the rest is told next time

    def _tell(self) -> bool:
        """Send every report that is due; False if the tracker is away."""
        for id, report in self._reports.due().items():
            refused = False
            try:
                with self._exchange:
                    try:
                        self._send(id, report)
                    except Refused as error:
                        refused = True
                        _log.warning("%s: %s", id, error)
                    self._reports.discard(id, report)
            except TrackerAway as error:
                _log.warning("%s It is told later.", error)
                return False
            except (OSError, RunError) as error:  # a full disk; to send it twice does no harm
                _log.warning("%s: %s", id, error)
            if refused and report.act == "complete":
                _log.warning("%s stays in this dataset; another may have its pairs too.", id)
            if refused and report.act == "deliver" and report.parcel:
                self.refused(report.parcel)
        return True

    def _send(self, id: str, report: PendingReport) -> None:
        account = self._ledger.account(id) if report.act in ("complete", "deliver") else None
        if account and report.act == "complete":
            known = self.similarities(id)
            named = {uid: known.get(uid, 0.0) for uid in self._ledger.uids(id)}
            late = self._tracker.complete(report.number, similarities=named, stats=account[1])
            with self._lock:
                self._lost |= late
        elif account and report.parcel:
            self._tracker.deliver(report.number, report.parcel, account[1])
        elif report.act in ("fail", "refetch"):
            tell = self._tracker.refetch if report.parcel else self._tracker.fail
            tell(report.number, report.reason)
        else:
            self._tracker.release(report.number)

    def _recall(self) -> None:
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            if (told["url"], told["kind"]) != (self._tracker.url, self._kind):
                raise ConfigError(
                    f"output: a {told['kind']} worker of the tracker {told['url']} uses this "
                    "folder; choose another."
                )
            self._tracker.upload = told["upload"]
            self._lost = frozenset(told.get("lost", ()))
            self._reports.load({id: PendingReport(**each) for id, each in told["debts"].items()})
            if "secret" in told:  # as an earlier version kept it
                self._tracker.secret = told["secret"]
                write_secret(self._secret, self._tracker.secret)
                self._reports.save()
            elif self._secret.exists():
                self._tracker.secret = self._secret.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} is damaged; remove it to join anew.") from error

    def _save(self, reports: Mapping[str, PendingReport]) -> None:
        told = {
            "url": self._tracker.url,
            "kind": self._kind,
            "upload": self._tracker.upload,
            "lost": sorted(self._lost),
            "debts": {id: asdict(report) for id, report in reports.items()},
        }
        write_file(self._path, json.dumps(told, indent=1))
