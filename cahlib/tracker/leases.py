"""The leases of workers on shards, in a database that serves many.

    todo ──► leased ──────────────────────────► done      a worker that scrapes and judges
      ▲        └──► scraped ──► judging ──────────┘        a CPU worker, then a GPU worker
      └─ released, expired, failed; after failing for several workers: set aside

Each change is one transaction whose first statement claims the row, so two workers never hold one
shard, and a request whose response got lost can be repeated. An expired lease remains its worker's
until another worker takes the shard: late work still counts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, and_, case, delete, func, select, update

from cahlib.core.records import Shard, Stats
from cahlib.ledger.database import Database
from cahlib.ledger.schema import is_one_of, shards
from cahlib.tracker import pair_claims, shard_failures, spot_checks, totals
from cahlib.tracker.completion import check_image_count, close_shard
from cahlib.tracker.models import (
    CompletionResult,
    InvalidRequest,
    Lease,
    NotFound,
    NotHeld,
    ShardResult,
    TrackerRules,
    Worker,
    WorkerKind,
    parse_uids,
)
from cahlib.tracker.queries import hash_secret, lease_statement, remaining_query, worker_from_row
from cahlib.tracker.registry import WorkerRegistry
from cahlib.tracker.schema import failures, workers

#: Most shards per call.
MAX_LEASES = 64
#: GPU workers that must fail with a parcel before it is dropped: one of them may lie.
_MIN_REFETCHES = 2

_HELD = is_one_of(shards.c.state, "leased", "judging")
#: The state of a shard whose lease expired.
_FREE = case((shards.c.state == "leased", "todo"), else_="scraped")


class LeaseStore(WorkerRegistry):
    """The workers and their leases, in a database that several server processes may share.

    Each call identifies the worker by its secret. Raise UnknownWorker for an unknown secret,
    NotHeld for another's shard, NotFound for a shard that does not exist, DatabaseUnavailable.
    """

    def __init__(
        self, database: Database, rules: TrackerRules, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(database, clock)
        self.rules = rules
        # no lease expires before: after a restart, workers need a while to send a heartbeat
        self._grace_end = clock() + min(rules.lease_seconds / 3, 120)

    def lease(self, secret: str, *, legacy: bool = False) -> Lease | None:
        """Lease the next shard to this worker, if there is one."""
        return next(iter(self.lease_several(secret, 1, legacy=legacy)), None)

    def lease_several(self, secret: str, count: int, *, legacy: bool = False) -> list[Lease]:
        """Lease the next shards to this worker, at most ``count``.

        ``legacy``: by the legacy protocol, whose workers hold at most one shard and return it by
        asking for another. They give no reason and may have failed, so the attempt counts.
        """
        with self.as_worker(secret, lookup=False) as (connection, worker):
            if legacy:
                self._release(connection, worker, _HELD, back=0)
            leases = self._claim(connection, secret, worker, count, legacy=legacy)
            if not leases and self._expire(connection):
                leases = self._claim(connection, secret, worker, count, legacy=legacy)
            if not leases:
                self._recognize(connection, hash_secret(secret))
            return leases

    def finished(self, secret: str) -> bool:
        """Return whether this worker will get no more shards, whatever the others do."""
        with self._database.read() as connection:
            worker, _ = self._recognize(connection, hash_secret(secret))
            me = {"me": worker.id, "nickname": worker.nickname}
            return connection.execute(remaining_query(worker.kind), me).first() is None

    def _claim(
        self, connection: Connection, secret: str, worker: Worker, count: int, *, legacy: bool
    ) -> list[Lease]:
        lane = 1 if legacy and worker.kind is WorkerKind.GPU else 0
        doubted = self.rules.verify_share and spot_checks.is_doubted(connection, worker.nickname)
        values = {
            "me": worker.id,
            "nickname": worker.nickname,
            "hash": hash_secret(secret),
            "until": self._clock() + self._lease_seconds(legacy),
            "most": 1 if doubted else self.rules.max_held,
        }
        rows: Sequence[Any] = ()
        for size in dict.fromkeys((min(count, MAX_LEASES), 1)):  # it may be allowed just one more
            statement = lease_statement(worker.kind, lane, size, legacy)
            rows = rows or connection.execute(statement, values).all()
        # until now, the previous holder could have resumed it
        pair_claims.forget_left_pairs(connection, [row.number for row in rows if row.attempts > 1])
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
        self, secret: str, numbers: Sequence[int], progress: str = "", *, legacy: bool = False
    ) -> list[int]:
        """Renew leases from now on; return which of these shards the worker still holds.

        ``legacy``: all that it holds, by the legacy protocol.
        """
        with self.as_worker(secret, progress) as (connection, worker):
            which = _HELD if legacy else shards.c.number.in_(numbers)
            renewed = (
                update(shards)
                .where(which, *_mine(worker))
                .values(
                    state=worker.kind.holds, expires=self._clock() + self._lease_seconds(legacy)
                )
                .returning(shards.c.number)
            )
            return sorted(connection.execute(renewed).scalars())

    def held_shards(self, secret: str) -> list[int]:
        """Return the shards that a worker holds."""
        with self.as_worker(secret) as (connection, worker):
            query = select(shards.c.number).where(shards.c.worker == worker.id, _HELD)
            return sorted(connection.execute(query).scalars())

    def complete(self, secret: str, number: int, result: ShardResult) -> CompletionResult:
        """Complete a shard; pairs that another shard brought first do not count."""
        with self.as_worker(secret, lookup=False) as (connection, worker):
            if worker.kind is WorkerKind.CPU:
                raise InvalidRequest(
                    "A CPU worker delivers a parcel; only a hybrid or GPU worker completes a shard."
                )
            check_image_count(connection, worker, number, result)
            values = {"now": self._clock(), "hash": hash_secret(secret)}
            closed = close_shard(connection, worker, number, result, values)
            if closed is None:
                self._recognize(connection, hash_secret(secret))
                done = (shards.c.state == "done") & (shards.c.worker == worker.id)
                self._require(connection, number, done)
                own = result.uids or ()
                late = pair_claims.claim_again(connection, number, own)
                return CompletionResult(counted=False, late=tuple(late))
            if closed.left:
                pair_claims.recover_left_pairs(connection, number)
            if closed.checks is not None:
                spot_checks.compare_check(connection, number, closed.checks, result.scores())
            if result.pairs and random.random() < self.rules.verify_share:
                spot_checks.begin_check(connection, number, worker, result.scores(closed.late))
            return CompletionResult(counted=True, late=tuple(closed.late))

    def deliver(
        self,
        secret: str,
        number: int,
        parcel: dict[str, Any],
        *,
        stats: Stats | None = None,
        legacy: bool = False,
    ) -> bool:
        """Record a CPU worker's parcel, work for a GPU; return False if it was known."""
        with self.as_worker(secret) as (connection, worker):
            if worker.kind is not WorkerKind.CPU:
                raise InvalidRequest("Only a CPU worker delivers a parcel.")
            delivered = {"state": "scraped", "lane": int(legacy), "attempts": 0, "parcel": parcel}
            delivered["tally"] = stats and stats.as_dict()
            changed = self._change(
                connection, worker, number, worker=None, scraper=worker.id, **delivered
            )
            if changed is None:
                states = shards.c.state.in_(["scraped", "judging", "done"])
                self._require(connection, number, states & (shards.c.scraper == worker.id))
                return False
            self._add_to_totals(connection, worker, scraped=1, bytes=parcel.get("size", 0))
            return True

    def release(self, secret: str, number: int) -> None:
        """Return a leased shard to the list; the attempt does not count."""
        with self.as_worker(secret) as (connection, worker):
            if not self._release(connection, worker, shards.c.number == number):
                raise self._not_held(connection, number)

    def leave(self, secret: str) -> None:
        """Unregister a worker and release its shards."""
        with self.as_worker(secret) as (connection, worker):
            self._expel(connection, worker)

    def fail(self, secret: str, number: int, error: str) -> bool:
        """Record a failure; return True if the shard is set aside, having failed for several."""
        with self.as_worker(secret) as (connection, worker):
            attempts = self._end_failed(connection, worker, number, error)
            return self._record_failure(connection, worker.id, number, attempts, error)

    def _record_failure(
        self, connection: Connection, worker: int | None, number: int, attempts: int, error: str
    ) -> bool:
        if worker is not None:
            shard_failures.record_failure(connection, worker, number, error, self._clock())
        return shard_failures.set_aside_if_hopeless(connection, number, attempts, self.rules)

    def refetch(self, secret: str, number: int, error: str) -> bool:
        """Record a parcel that cannot be fetched; after two, another worker scrapes anew."""
        with self.as_worker(secret) as (connection, worker):
            if worker.kind is not WorkerKind.GPU:
                raise InvalidRequest("Only a GPU worker downloads parcels.")
            attempts = self._end_failed(connection, worker, number, error)
            shard_failures.record_failure(connection, worker.id, number, error, self._clock())
            gpus = select(workers.c.id).where(workers.c.kind == WorkerKind.GPU.value)
            refetches = (failures.c.shard == number) & failures.c.worker.in_(gpus)
            said = connection.execute(select(func.count()).where(refetches)).scalar_one()
            return said >= _MIN_REFETCHES and self._drop(
                connection, number, attempts, error, refetches
            )

    def _end_failed(self, connection: Connection, worker: Worker, number: int, error: str) -> int:
        """Take a shard from a worker that failed with it; return the shard's attempts."""
        free = {"state": worker.kind.takes, "worker": None, "error": error, "expires": 0}
        attempts = self._change(connection, worker, number, **free)
        if attempts is None:
            raise self._not_held(connection, number)
        return attempts

    def _drop(
        self, connection: Connection, number: int, attempts: int, error: str, refetches: Any
    ) -> bool:
        """Remove a parcel and the failures reported of it; its scraper has failed."""
        query = select(shards.c.scraper, shards.c.parcel).where(shards.c.number == number)
        scraper, parcel = connection.execute(query).one()
        connection.execute(delete(failures).where(refetches))
        values = {"state": "todo", "lane": 0, "scraper": None, "parcel": None}
        connection.execute(update(shards).where(shards.c.number == number).values(**values))
        if row := connection.execute(select(workers).where(workers.c.id == scraper)).first():
            self._add_to_totals(
                connection, worker_from_row(row), scraped=-1, bytes=-parcel.get("size", 0)
            )
        return self._record_failure(connection, scraper, number, attempts, error)

    def claimed_pairs(self, secret: str, number: int, uids: Sequence[str]) -> list[str]:
        """Return which of these pairs a completed shard has; this one leaves them to it."""
        with self.as_worker(secret) as (connection, worker):
            if worker.kind is WorkerKind.CPU:
                raise InvalidRequest("A CPU worker delivers a parcel; it has no pairs to look up.")
            self._require(connection, number, and_(*_mine(worker)))
            keys, max_pairs = parse_uids(uids), self.rules.max_pairs
            claimed = pair_claims.find_claimed(connection, number, keys, max_pairs=max_pairs)
            return [key.hex() for key in claimed]

    def expel(self, number: int) -> None:
        """Expel a worker by its id and release its shards."""
        with self._database.write() as connection:
            row = connection.execute(select(workers).where(workers.c.id == number)).first()
            self._expel(connection, worker_from_row(row))

    def _expel(self, connection: Connection, worker: Worker) -> None:
        self._release(connection, worker, _HELD)
        connection.execute(update(workers).where(workers.c.id == worker.id).values(gone=True))

    def expire(self) -> int:
        """Free the shards whose leases have expired; return how many."""
        with self._database.write() as connection:
            return self._expire(connection)

    def _expire(self, connection: Connection) -> int:
        if self._clock() < self._grace_end:
            return 0
        late = (  # skipping locked rows: they are being renewed, or freed already
            select(shards.c.number)
            .where(_HELD, shards.c.expires <= self._clock())
            .with_for_update(skip_locked=True)
        )
        used = shards.c.attempts >= self.rules.max_attempts
        freed = (
            update(shards)
            .where(shards.c.number.in_(late))
            .values(
                state=case((used, "failed"), else_=_FREE),
                expires=0,
                error=case(
                    (used, "Every worker that leased the shard went silent."), else_=shards.c.error
                ),
            )
        )
        return int(connection.execute(freed).rowcount)

    def _lease_seconds(self, legacy: bool) -> float:
        return self.rules.legacy_lease_seconds if legacy else self.rules.lease_seconds

    def _change(
        self, connection: Connection, worker: Worker, number: int, /, **values: Any
    ) -> int | None:
        """Change a shard that the worker holds; return its attempts, or None if not held."""
        changed = (
            update(shards)
            .where(shards.c.number == number, *_mine(worker))
            .values(**values)
            .returning(shards.c.attempts)
        )
        return connection.execute(changed).scalar()

    def _release(self, connection: Connection, worker: Worker, which: Any, back: int = 1) -> int:
        attempts = shards.c.attempts - back
        state = case((attempts >= self.rules.max_attempts, "failed"), else_=worker.kind.takes)
        values = {"state": state, "worker": None, "attempts": attempts, "expires": 0}
        freed = update(shards).where(which, *_mine(worker)).values(**values)
        numbers = connection.execute(freed.returning(shards.c.number)).scalars().all()
        pair_claims.forget_left_pairs(connection, numbers)
        return len(numbers)

    def _require(self, connection: Connection, number: int, condition: Any) -> None:
        """Raise why a worker cannot change this shard, unless the condition holds."""
        query = select(shards.c.number).where(shards.c.number == number, condition)
        if connection.execute(query).first() is None:
            raise self._not_held(connection, number)

    def _not_held(self, connection: Connection, number: int) -> NotFound | NotHeld:
        if connection.execute(select(shards).where(shards.c.number == number)).first() is None:
            return NotFound(f"There is no shard {number}.")
        return NotHeld(
            f"Shard {number} is not leased to this worker; its lease was lost, or it is finished."
        )

    def _add_to_totals(self, connection: Connection, worker: Worker, **more: int) -> None:
        totals.add_to_totals(connection, worker.id, worker.nickname, **more)


def _mine(worker: Worker) -> tuple[Any, ...]:
    """Return conditions for shards that a worker holds, or held if no other took them since."""
    states = is_one_of(shards.c.state, worker.kind.holds, worker.kind.takes)
    return shards.c.worker == worker.id, states
