"""The ledger made to serve many: workers, and their leases on shards.

    todo ──► leased ──────────────────────────► done      a worker that scrapes and judges
      ▲        └──► scraped ──► judging ──────────┘        a CPU worker, then a GPU worker
      └─ given back, run out, failed; and failed for several workers: set aside

Every change is one transaction in which the first statement claims the row it is about, so two
workers never hold one shard, and an answer that got lost can be asked for again. A lease that ran
out is still its worker's until somebody else takes the shard: late work is not lost work.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, and_, case, delete, func, select, update

from cahlib.core.records import Shard, Stats
from cahlib.ledger.database import Database
from cahlib.ledger.schema import is_one_of, shards
from cahlib.tracker import blame, checks, credit, names, pair_claims, people
from cahlib.tracker.completion import complete, require_fitting
from cahlib.tracker.models import (
    Closed,
    Invalid,
    Kind,
    Lease,
    Missing,
    NotHeld,
    Result,
    Rules,
    Worker,
)
from cahlib.tracker.models import uids as pair_keys
from cahlib.tracker.queries import BY_SECRET, claiming, coming, found, hashed
from cahlib.tracker.schema import failures, workers

#: A sign of life is written down when the last one is older than this, in seconds.
_SEEN = 10
#: Workers that are remembered between two such moments.
_MOST_RECOGNIZED = 100_000
#: Shards that one call leases at most.
MOST_LEASES = 64
#: GPU workers that must fail with a parcel before it is dropped: one of them may lie.
_DOUBTS = 2

_HELD = is_one_of(shards.c.state, "leased", "judging")
#: The state of a shard that is free again.
_FREE = case((shards.c.state == "leased", "todo"), else_="scraped")


class LeaseStore:
    """Who does which shard, in a database that several server processes may share.

    Each call names the worker by its secret; raises Unknown for one that is none, NotHeld for a
    shard that is another's, Missing for one that does not exist, DatabaseAway.
    """

    def __init__(
        self, database: Database, rules: Rules, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._clock, self.rules = database, clock, rules
        # Until then nothing runs out: after a restart workers need a while to say that they live.
        self._patient = clock() + min(rules.lease / 3, 120)
        #: by the hash of its secret: the worker, and when it was last written that it lives
        self._recognized: dict[bytes, tuple[Worker, float]] = {}

    def register(
        self, nickname: str, kind: Kind, *, proof: str = "", team: str = "", old: bool = False
    ) -> tuple[Worker, str]:
        """Return a new worker, and its secret, of which only a hash is stored.

        ``proof`` is the secret of the nickname; raise Owned if that is another's.
        """
        secret, now = secrets.token_urlsafe(32), self._clock()
        values = {
            "kind": kind.value, "secret": hashed(secret), "first_seen": now,
            "last_seen": now, "gone": False, "progress": "", "scraped": 0, "done": 0, "pairs": 0,
        }  # fmt: skip
        with self._database.write() as connection:
            shown = hashed(proof) if proof else None
            nickname = people.admit(self._database, connection, nickname, shown, old=old)
            values["nickname"] = nickname
            if team:
                people.enter_team(self._database, connection, nickname, team)
            while True:
                name = names.draw()
                fresh = self._database.insert(workers).values(name=name, **values)
                free = fresh.on_conflict_do_nothing(index_elements=["name"])
                number = connection.execute(free.returning(workers.c.id)).scalar()
                if number is not None:
                    return Worker(id=number, name=name, nickname=nickname, kind=kind), secret

    def known(self, secret: str) -> Worker:
        """The worker of this secret."""
        with self._database.read() as connection:
            return self._recognize(connection, hashed(secret))[0]

    def _recognize(self, connection: Connection, key: bytes) -> tuple[Worker, float]:
        """Return the worker whose secret has this hash, and when it was seen; raise Unknown."""
        row = connection.execute(BY_SECRET, {"hash": key}).first()
        return found(row), row.last_seen if row else 0.0

    def lease(self, secret: str, *, old: bool = False) -> Lease | None:
        """Lease the next shard to this worker, if there is one."""
        return next(iter(self.lease_several(secret, 1, old=old)), None)

    def lease_several(self, secret: str, count: int, *, old: bool = False) -> list[Lease]:
        """Lease the next shards to this worker, ``count`` at most.

        ``old``: by the old protocol, whose workers hold one shard at most and give it back by
        asking for another. They do not say why, and may have failed: so the attempt counts.
        """
        with self.acting(secret, lookup=False) as (connection, worker):
            if old:
                self._release(connection, worker, _HELD, back=0)
            leases = self._claim(connection, secret, worker, count, old=old)
            if not leases and self._expire(connection):
                leases = self._claim(connection, secret, worker, count, old=old)
            if not leases:
                self._recognize(connection, hashed(secret))
            return leases

    def finished(self, secret: str) -> bool:
        """Whether this worker will be given no shard any more, whatever the others do."""
        with self._database.read() as connection:
            worker, _ = self._recognize(connection, hashed(secret))
            me = {"me": worker.id, "nickname": worker.nickname}
            return connection.execute(coming(worker.kind), me).first() is None

    def _claim(
        self, connection: Connection, secret: str, worker: Worker, count: int, *, old: bool
    ) -> list[Lease]:
        lane = 1 if old and worker.kind is Kind.GPU else 0
        doubted = self.rules.verify and checks.doubted(connection, worker.nickname)
        values = {
            "me": worker.id,
            "nickname": worker.nickname,
            "hash": hashed(secret),
            "until": self._clock() + (self.rules.old_lease if old else self.rules.lease),
            "most": 1 if doubted else self.rules.most_held,
        }
        rows: Sequence[Any] = ()
        for size in dict.fromkeys((min(count, MOST_LEASES), 1)):  # it may hold just one more
            rows = rows or connection.execute(claiming(worker.kind, lane, size, old), values).all()
        # until now, who had fallen silent could have come back to it
        pair_claims.forget(connection, [row.number for row in rows if row.attempts > 1])
        return [
            Lease(
                number=row.number,
                shard=Shard(id=row.id, url=row.url, half=row.half),
                expires=row.expires,
                parcel=row.parcel,
            )
            for row in sorted(rows, key=lambda row: (row.attempts, row.number))
        ]

    def heartbeat(
        self, secret: str, numbers: Sequence[int], progress: str = "", *, old: bool = False
    ) -> list[int]:
        """A sign of life: which of these shards the worker still holds, for a lease from now on.

        ``old``: whatever it holds, by the old protocol.
        """
        with self.acting(secret, progress) as (connection, worker):
            which = _HELD if old else shards.c.number.in_(numbers)
            lease = self.rules.old_lease if old else self.rules.lease
            renewed = (
                update(shards)
                .where(which, *_mine(worker))
                .values(state=worker.kind.holds, expires=self._clock() + lease)
                .returning(shards.c.number)
            )
            return sorted(connection.execute(renewed).scalars())

    def held(self, secret: str) -> list[int]:
        """The shards whose leases a worker has."""
        with self.acting(secret) as (connection, worker):
            query = select(shards.c.number).where(shards.c.worker == worker.id, _HELD)
            return sorted(connection.execute(query).scalars())

    def complete(self, secret: str, number: int, result: Result) -> Closed:
        """Close a shard whose pairs are made; those that another brought first do not count."""
        with self.acting(secret, lookup=False) as (connection, worker):
            if worker.kind is Kind.CPU:
                raise Invalid("A CPU worker brings a parcel; it has no pairs to count.")
            require_fitting(connection, worker, number, result)
            values = {"now": self._clock(), "hash": hashed(secret)}
            closed = complete(self._database, connection, worker, number, result, values)
            if closed is None:
                self._recognize(connection, hashed(secret))
                done = (shards.c.state == "done") & (shards.c.worker == worker.id)
                self._must(connection, number, done)
                own = result.uids or ()
                late = pair_claims.settled_again(self._database, connection, number, own)
                return Closed(counted=False, lost=tuple(late))
            if closed.left:
                pair_claims.revive_left(self._database, connection, number)
            if closed.checks is not None:
                checks.compare(self._database, connection, number, closed.checks, result.scores())
            if result.pairs and random.random() < self.rules.verify:
                checks.begin(self._database, connection, number, worker, result.scores(closed.late))
            return Closed(counted=True, lost=tuple(closed.late))

    def deliver(
        self,
        secret: str,
        number: int,
        parcel: dict[str, Any],
        *,
        stats: Stats | None = None,
        old: bool = False,
    ) -> bool:
        """A CPU worker's parcel is there: work for a GPU; False if that was known already."""
        with self.acting(secret) as (connection, worker):
            if worker.kind is not Kind.CPU:
                raise Invalid("Only a CPU worker brings a parcel.")
            brought = {"state": "scraped", "lane": int(old), "attempts": 0, "parcel": parcel}
            brought["tally"] = stats and stats.as_dict()
            changed = self._change(
                connection, worker, number, worker=None, scraper=worker.id, **brought
            )
            if changed is None:
                states = shards.c.state.in_(["scraped", "judging", "done"])
                self._must(connection, number, states & (shards.c.scraper == worker.id))
                return False
            self._count(connection, worker, scraped=1, bytes=parcel.get("size", 0))
            return True

    def release(self, secret: str, number: int) -> None:
        """A leased shard is free again, and the attempt does not count."""
        with self.acting(secret) as (connection, worker):
            if not self._release(connection, worker, shards.c.number == number):
                raise self._refusal(connection, number)

    def leave(self, secret: str) -> None:
        """The worker goes; what it held is free again."""
        with self.acting(secret) as (connection, worker):
            self._dismiss(connection, worker)

    def fail(self, secret: str, number: int, error: str) -> bool:
        """A worker failed with a shard; True if it is set aside, having failed for several."""
        with self.acting(secret) as (connection, worker):
            attempts = self._part(connection, worker, number, error)
            return self._blame(connection, worker.id, number, attempts, error)

    def _blame(
        self, connection: Connection, worker: int | None, number: int, attempts: int, error: str
    ) -> bool:
        if worker is not None:
            blame.note(self._database, connection, worker, number, error, self._clock())
        return blame.set_aside(connection, number, attempts, self.rules)

    def refetch(self, secret: str, number: int, error: str) -> bool:
        """A GPU worker cannot fetch a parcel; if two cannot, somebody else scrapes it anew."""
        with self.acting(secret) as (connection, worker):
            if worker.kind is not Kind.GPU:
                raise Invalid("Only a GPU worker fetches parcels.")
            attempts = self._part(connection, worker, number, error)
            blame.note(self._database, connection, worker.id, number, error, self._clock())
            gpus = select(workers.c.id).where(workers.c.kind == Kind.GPU.value)
            doubts = (failures.c.shard == number) & failures.c.worker.in_(gpus)
            said = connection.execute(select(func.count()).where(doubts)).scalar_one()
            return said >= _DOUBTS and self._drop(connection, number, attempts, error, doubts)

    def _part(self, connection: Connection, worker: Worker, number: int, error: str) -> int:
        """Take a shard from a worker that failed with it; the shard's attempts."""
        free = {"state": worker.kind.takes, "worker": None, "error": error, "expires": 0}
        attempts = self._change(connection, worker, number, **free)
        if attempts is None:
            raise self._refusal(connection, number)
        return attempts

    def _drop(
        self, connection: Connection, number: int, attempts: int, error: str, doubts: Any
    ) -> bool:
        """Remove a parcel, and with it what was said of it; who brought it has failed."""
        query = select(shards.c.scraper, shards.c.parcel).where(shards.c.number == number)
        scraper, parcel = connection.execute(query).one()
        connection.execute(delete(failures).where(doubts))
        values = {"state": "todo", "lane": 0, "scraper": None, "parcel": None}
        connection.execute(update(shards).where(shards.c.number == number).values(**values))
        if row := connection.execute(select(workers).where(workers.c.id == scraper)).first():
            self._count(connection, found(row), scraped=-1, bytes=-parcel.get("size", 0))
        return self._blame(connection, scraper, number, attempts, error)

    def claimed_pairs(self, secret: str, number: int, keys: Sequence[str]) -> list[str]:
        """Return which of these pairs a completed shard has; this one leaves them to it."""
        with self.acting(secret) as (connection, worker):
            if worker.kind is Kind.CPU:
                raise Invalid("A CPU worker brings a parcel, and names no pairs.")
            self._must(connection, number, and_(*_mine(worker)))
            named, most = pair_keys(keys), self.rules.most_pairs
            owned = pair_claims.taken(self._database, connection, number, named, most=most)
            return [key.hex() for key in owned]

    def expel(self, number: int) -> None:
        """Send a worker away by its id: what it held is free again."""
        with self._database.write() as connection:
            row = connection.execute(select(workers).where(workers.c.id == number)).first()
            self._dismiss(connection, found(row))

    def _dismiss(self, connection: Connection, worker: Worker) -> None:
        self._release(connection, worker, _HELD)
        connection.execute(update(workers).where(workers.c.id == worker.id).values(gone=True))

    def expire(self) -> int:
        """Free the shards whose workers gave no sign of life; how many."""
        with self._database.write() as connection:
            return self._expire(connection)

    def _expire(self, connection: Connection) -> int:
        if self._clock() < self._patient:
            return 0
        late = (  # passing over what others have locked: it is being renewed, or expired already
            select(shards.c.number)
            .where(_HELD, shards.c.expires <= self._clock())
            .with_for_update(skip_locked=True)
        )
        used = shards.c.attempts >= self.rules.attempts
        freed = (
            update(shards)
            .where(shards.c.number.in_(late))
            .values(
                state=case((used, "failed"), else_=_FREE),
                expires=0,
                error=case((used, "Every worker that had it went silent."), else_=shards.c.error),
            )
        )
        return int(connection.execute(freed).rowcount)

    @contextmanager
    def acting(
        self, secret: str, progress: str = "", *, lookup: bool = True
    ) -> Iterator[tuple[Connection, Worker]]:
        """A transaction in a worker's name, which is seen to be alive.

        Without ``lookup`` one that was recognized a moment ago is taken for who it was: for
        statements that ask for themselves whether it was sent away.
        """
        key, now = hashed(secret), self._clock()
        with self._database.write() as connection:
            worker, seen = self._recognized.get(key, (None, 0.0))
            if lookup or worker is None or not 0 <= now - seen <= _SEEN:
                worker, seen = self._recognize(connection, key)
            if progress or now - seen > _SEEN:
                values: dict[str, Any] = {"progress": progress} if progress else {}
                connection.execute(
                    update(workers).where(workers.c.id == worker.id).values(last_seen=now, **values)
                )
                seen = now
            if len(self._recognized) > _MOST_RECOGNIZED:
                self._recognized.clear()
            self._recognized[key] = worker, seen
            yield connection, worker

    def _change(
        self, connection: Connection, worker: Worker, number: int, /, **values: Any
    ) -> int | None:
        """Change a shard that the worker holds; its attempts, or None if it does not hold it."""
        changed = (
            update(shards)
            .where(shards.c.number == number, *_mine(worker))
            .values(**values)
            .returning(shards.c.attempts)
        )
        return connection.execute(changed).scalar()

    def _release(self, connection: Connection, worker: Worker, which: Any, back: int = 1) -> int:
        attempts = shards.c.attempts - back
        state = case((attempts >= self.rules.attempts, "failed"), else_=worker.kind.takes)
        values = {"state": state, "worker": None, "attempts": attempts, "expires": 0}
        freed = update(shards).where(which, *_mine(worker)).values(**values)
        numbers = connection.execute(freed.returning(shards.c.number)).scalars().all()
        pair_claims.forget(connection, numbers)
        return len(numbers)

    def _must(self, connection: Connection, number: int, condition: Any) -> None:
        """Raise the reason why a worker cannot change this shard, unless the condition holds."""
        query = select(shards.c.number).where(shards.c.number == number, condition)
        if connection.execute(query).first() is None:
            raise self._refusal(connection, number)

    def _refusal(self, connection: Connection, number: int) -> Missing | NotHeld:
        if connection.execute(select(shards).where(shards.c.number == number)).first() is None:
            return Missing(f"There is no shard {number}.")
        return NotHeld(f"Shard {number} is not yours; it was given to another, or is closed.")

    def _count(self, connection: Connection, worker: Worker, **more: int) -> None:
        credit.count(self._database, connection, worker.id, worker.nickname, **more)


def _mine(worker: Worker) -> tuple[Any, ...]:
    """What is true of the shards that a worker holds, or held and nobody has taken since."""
    states = is_one_of(shards.c.state, worker.kind.holds, worker.kind.takes)
    return shards.c.worker == worker.id, states
