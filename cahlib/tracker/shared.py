"""A run's ledger whose shards come from a tracker, which several runs share.

What is done here is in the ledger as ever; the tracker is told of it, now or when it answers
again. A file beside the ledger keeps who we are and what we owe, so a run that was killed goes on
with its leases and tells what it had not told.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cahlib.errors import ConfigError, RunError
from cahlib.records import Judged, Shard, Tally
from cahlib.tracker.client import Refused, Tracker, TrackerAway
from cahlib.tracker.store import Counts, Ledger

_log = logging.getLogger(__name__)

#: Judged images whose uids are asked for in one call; they wait in memory meanwhile.
_AHEAD = 64
#: Seconds that the end of a run waits for a tracker that is away.
_GOODBYE = 15
#: Seconds without a shard after the storage of parcels did not answer, and after which, if it
#: never does, it is told of a parcel: that one may be what cannot be had.
_PAUSE, _PATIENCE = 60, 600


@dataclass(frozen=True, slots=True, kw_only=True)
class _Debt:
    """A shard that the tracker gave us, and what we owe it for that."""

    number: int
    parcel: dict[str, Any] | None = None
    #: "" while in work, then the call that tells how it ended
    act: str = ""
    reason: str = ""


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
        self._nickname, self._kind = who
        (self._every, self._poll), self._clock = often, clock
        self._debts: dict[str, _Debt] = {}
        self._taken: set[str] = set()
        self._finished, self._ask_again = False, float("-inf")
        self._trouble = float("inf")  #: since when the storage of parcels does not answer
        self._lock = threading.RLock()
        self._ended, self._owing = threading.Event(), threading.Event()
        self._messenger = threading.Thread(target=self._carry, daemon=True)
        #: hears of a parcel that the tracker does not take any more
        self.refused: Callable[[dict[str, Any]], None] = lambda parcel: None

    @property
    def upload(self) -> str:
        """Where the tracker wants parcels: a URL, or "" for nowhere."""
        return self._tracker.upload

    def __enter__(self) -> Shared:
        """Join, or come back as who we were; raises ConfigError where there is no tracker."""
        self._recall()
        try:
            if not (self._tracker.secret and self._resume()):
                self._join()
        except (TrackerAway, Refused) as error:
            raise ConfigError(f"tracker: {error}") from error
        self._messenger.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what is not done, and tell what is, if the tracker answers in time."""
        with self._lock:
            sealed = {shard.id for shard in self._ledger.in_state("sealed")}
            for id, debt in list(self._debts.items()):
                if not debt.act and id not in sealed:  # those are finished by the next launch
                    self._owe(id, act="release")
            for shard in self._ledger.in_state("todo", "leased"):
                self._ledger.forget(shard)
        self._ended.set()
        self._owing.set()
        self._messenger.join()
        deadline = time.monotonic() + _GOODBYE
        while not self._tell() and time.monotonic() < deadline:
            time.sleep(0.5)  # if it stays away, the leases run out, and the rest is told next time

    def lease(self) -> Shard | None:
        """A shard of an earlier launch that is still ours, or the tracker's next, if any.

        Raises RunError when the tracker does not know us any more.
        """
        if shard := self._ledger.lease():
            return shard
        if self._clock() < self._ask_again:
            return None
        try:
            leased, self._finished = self._tracker.lease()
        except (TrackerAway, Refused) as error:
            if isinstance(error, Refused) and error.status == 401:
                raise RunError(
                    f"The tracker {self._tracker.url} does not know this worker any more (it was "
                    "sent away, or the tracker lost its database); what is done stays, and who "
                    "starts again joins anew."
                ) from error
            _log.warning("%s", error)
            leased = None
        if leased is None:
            self._ask_again = self._clock() + self._poll
            return None
        with self._lock:
            self._debts[leased.shard.id] = _Debt(number=leased.number, parcel=leased.parcel)
            self._remember()
        self._ledger.add([leased.shard])
        return self._ledger.lease()

    def parcel(self, shard: Shard) -> dict[str, Any] | None:
        """Where a leased shard's parcel is, if somebody else has scraped it."""
        debt = self._debts.get(shard.id)
        return debt.parcel if debt else None

    def more(self) -> bool:
        """Whether there may be shards to lease yet."""
        return not self._finished or self._ledger.more()

    def give_back(self, shard: Shard, error: str) -> None:
        """The storage of its parcel does not answer: later, or for somebody else."""
        now = self._clock()
        self._ask_again = now + _PAUSE
        self._trouble = min(self._trouble, now)
        if now - self._trouble > _PATIENCE:
            self._trouble = now
            self.fail(shard, error, attempts=1)
            return
        _log.warning("%s: %s", shard.id, error)
        self._settle(shard, act="release")

    def fail(self, shard: Shard, error: str, *, attempts: int) -> bool:
        """It did not work here: the tracker gives it to somebody else."""
        _log.warning("%s: %s", shard.id, error.strip().splitlines()[-1] if error else "failed")
        self._settle(shard, act="refetch" if self._debts[shard.id].parcel else "fail", reason=error)
        return True

    def seal(self, shard: Shard, uids: Iterable[str], tally: Tally) -> None:
        """A shard's files are in the dataset."""
        self._trouble = float("inf")
        self._ledger.seal(shard, uids, tally)

    def done(self, shard: Shard) -> None:
        """A sealed shard is where it shall be: the tracker is to know."""
        with self._lock:
            if shard.id in self._debts:  # not if it was told before a crash
                self._owe(shard.id, act="complete")
        self._ledger.done(shard)
        self._owing.set()

    def deliver(self, shard: Shard, parcel: dict[str, Any], tally: Tally) -> None:
        """A shard's parcel is uploaded: the tracker is to know."""
        self._trouble = float("inf")
        self._ledger.seal(shard, [], tally)
        with self._lock:
            self._debts[shard.id] = replace(self._debts[shard.id], parcel=parcel)
            self._owe(shard.id, act="deliver")
        self._ledger.done(shard)
        self._owing.set()

    def seen(self, uid: str) -> bool:
        """Whether this pair is in a dataset already: this run's or another's."""
        return uid in self._taken or self._ledger.seen(uid)

    def ours(self, shard: Shard, judged: Iterator[Judged]) -> Iterator[Judged]:
        """A shard's judged images, when the tracker has said whose their pairs are.

        Waits as long as it takes: else nobody could say that a pair is in one dataset only.
        """
        while batch := list(islice(judged, _AHEAD)):
            if uids := [each.image.candidate.uid for each in batch if each.reason is None]:
                number = self._debts[shard.id].number
                self._taken |= self._tracker.claim(number, uids, patience=float("inf"))
            yield from batch

    def counts(self) -> Counts:
        """How many of this run's shards are in which state."""
        return self._ledger.counts()

    def tally(self) -> Tally:
        """What became of everything in this run's shards."""
        return self._ledger.tally()

    def in_state(self, *states: str) -> list[Shard]:
        """This run's shards in these states."""
        return self._ledger.in_state(*states)

    def errors(self) -> list[tuple[str, str]]:
        """None: what fails here is the tracker's to show."""
        return []

    def _settle(self, shard: Shard, *, act: str, reason: str = "") -> None:
        with self._lock:
            self._owe(shard.id, act=act, reason=reason)
        self._ledger.forget(shard)
        self._owing.set()

    def _owe(self, id: str, *, act: str, reason: str = "") -> None:
        self._debts[id] = replace(self._debts[id], act=act, reason=reason)
        self._remember()

    def _join(self) -> None:
        self._tracker.join(self._nickname, self._kind)
        for shard in self._ledger.in_state("todo", "leased"):
            self._ledger.forget(shard)  # leased by who we were
        with self._lock:
            self._debts = {id: debt for id, debt in self._debts.items() if debt.act}
            self._remember()

    def _resume(self) -> bool:
        """Whether the tracker knows us; what is not ours any more is forgotten."""
        try:
            ours = self._tracker.beat(d.number for d in self._debts.values() if not d.act)
        except Refused:
            return False
        with self._lock:
            for shard in self._ledger.in_state("todo", "leased"):
                debt = self._debts.get(shard.id)
                if debt is None or debt.number not in ours:
                    self._debts.pop(shard.id, None)
                    self._ledger.forget(shard)
            self._remember()
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
        with self._lock:
            numbers = {debt.number for debt in self._debts.values() if not debt.act}
        try:
            lost = numbers - self._tracker.beat(numbers, f"working on {len(numbers)} shards")
        except (TrackerAway, Refused) as error:
            _log.warning("%s", error)
            return
        if lost:
            _log.warning("The tracker gave shards %s to others; we were silent too long.", lost)

    def _tell(self) -> bool:
        """Settle every debt that is due; False if the tracker is away."""
        with self._lock:
            due = [(id, debt) for id, debt in self._debts.items() if debt.act]
        for id, debt in due:
            try:
                self._settle_one(id, debt)
            except TrackerAway as error:
                _log.warning("%s It is told later.", error)
                return False
            except Refused as error:
                _log.warning("%s: %s", id, error)
                if debt.act == "complete":
                    _log.warning("%s stays in this dataset; another may have its pairs too.", id)
                if debt.act == "deliver" and debt.parcel:
                    self.refused(debt.parcel)
            with self._lock:
                del self._debts[id]
                self._remember()
        return True

    def _settle_one(self, id: str, debt: _Debt) -> None:
        if debt.act == "complete":
            pairs, tally = self._ledger.account(id)
            self._tracker.complete(debt.number, pairs=pairs, tally=tally)
        elif debt.act == "deliver" and debt.parcel:
            tally = self._ledger.account(id)[1]
            self._tracker.deliver(debt.number, debt.parcel, tally)
        elif debt.act == "release":
            self._tracker.release(debt.number)
        elif debt.act == "refetch":
            self._tracker.refetch(debt.number, debt.reason)
        else:
            self._tracker.fail(debt.number, debt.reason)

    def _recall(self) -> None:
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            if (told["url"], told["kind"]) != (self._tracker.url, self._kind):
                raise ConfigError(
                    f"output: a {told['kind']} worker of the tracker {told['url']} uses this "
                    "folder; choose another."
                )
            self._tracker.secret = told["secret"]
            self._tracker.upload = told["upload"]
            self._debts = {id: _Debt(**debt) for id, debt in told["debts"].items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} is damaged; remove it to join anew.") from error

    def _remember(self) -> None:
        told = {
            "url": self._tracker.url,
            "kind": self._kind,
            "secret": self._tracker.secret,
            "upload": self._tracker.upload,
            "debts": {id: asdict(debt) for id, debt in self._debts.items()},
        }
        fresh = self._path.with_suffix(".new")
        fresh.touch(mode=0o600)  # it holds the secret
        fresh.write_text(json.dumps(told, indent=1), encoding="utf-8")
        fresh.replace(self._path)
