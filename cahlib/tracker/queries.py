"""The statements that recognize a worker and lease shards to it, built once.

Building a statement in Python costs more than running it: 1.2 of 4.8 ms per cycle.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from sqlalchemy import Select, Update, and_, bindparam, func, select, update

from cahlib.ledger.local import next_shards
from cahlib.ledger.schema import is_one_of, shards
from cahlib.tracker.models import UnknownWorker, Worker, WorkerKind
from cahlib.tracker.schema import failures, second_passes, workers

BY_SECRET = select(
    workers.c.id, workers.c.name, workers.c.nickname, workers.c.kind, workers.c.last_seen
).where(workers.c.secret == bindparam("hash"), ~workers.c.gone)

_mine, _other, _check = second_passes.alias(), second_passes.alias(), shards.alias()
_OWNER = select(_mine.c.avoid).where(_mine.c.number == shards.c.number)
_CHECKERS = (
    select(func.count())
    .select_from(_mine)
    .join(_other, _other.c.checks == _mine.c.checks)
    .join(_check, _check.c.number == _other.c.number)
    .join(workers, workers.c.id == _check.c.worker)
    .where(_mine.c.number == shards.c.number, workers.c.nickname == bindparam("nickname"))
)
#: A shard that this worker has not failed with and, if it is a check, whose original this person
#: has neither done nor checked. The latter are scalars because PostgreSQL evaluates those only for
#: the shards that it visits; for ``EXISTS`` it scanned all checks, 2 ms a lease with 2,000.
_UNTRIED = and_(
    ~(
        select(1)
        .where(failures.c.shard == shards.c.number, failures.c.worker == bindparam("me"))
        .exists()
    ),
    _OWNER.scalar_subquery().is_distinct_from(bindparam("nickname")),
    _CHECKERS.scalar_subquery() == 0,
)

#: This worker was not expelled since it was recognized; nothing else about it can change.
NOT_EXPELLED = (
    select(1)
    .where(workers.c.id == bindparam("me"), workers.c.secret == bindparam("hash"), ~workers.c.gone)
    .exists()
)


@cache
def lease_statement(kind: WorkerKind, lane: int, count: int, legacy: bool) -> Update:
    """Return an update that leases the next shards not tried by this worker, if it may hold more.

    ``legacy``: without second passes, which need named pairs; the legacy protocol names none.
    """
    other = shards.alias()
    held = (
        select(func.count())
        .where(other.c.worker == bindparam("me"), is_one_of(other.c.state, "leased", "judging"))
        .scalar_subquery()
    )
    columns = ("number", "id", "url", "half", "expires", "parcel", "attempts")
    shown = (shards.c[name] for name in columns)
    first = ~select(1).where(second_passes.c.number == shards.c.number).exists()
    fit = (_UNTRIED, first) if legacy else (_UNTRIED,)
    free = next_shards(kind.takes, *fit, lane=lane, count=count).cte("free")
    return (
        update(shards)
        .where(shards.c.number.in_(select(free.c.number)))
        .where(held <= bindparam("most") - count, NOT_EXPELLED)
        .values(
            state=kind.holds,
            attempts=shards.c.attempts + 1,
            worker=bindparam("me"),
            expires=bindparam("until"),
        )
        .returning(*shown)
    )


@cache
def remaining_query(kind: WorkerKind) -> Select[tuple[int]]:
    """Return a query for a shard that this worker may still get: one free now or later.

    Scraped shards return to scrapers only if the parcel cannot be fetched, so those do not wait for
    that; GPU workers wait for whatever may be scraped.
    """
    states = (
        ["todo", "leased", "scraped", "judging"] if kind is WorkerKind.GPU else ["todo", "leased"]
    )
    return select(1).where(shards.c.state.in_(states), shards.c.lane == 0, _UNTRIED).limit(1)


def worker_from_row(row: Any) -> Worker:
    """Return the worker of a row; raise UnknownWorker if there is none."""
    if row is None:
        raise UnknownWorker("This tracker does not know this worker; register again.")
    return Worker(id=row.id, name=row.name, nickname=row.nickname, kind=WorkerKind(row.kind))


def hash_secret(secret: str) -> bytes:
    """Return the hash of a secret, which is what is stored."""
    # secrets have 256 random bits, so a plain hash is safe
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
