"""The statements that recognize a worker and give it shards, put together once.

Building a statement in Python costs more than running it: 1.2 of 4.8 ms of a cycle.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from sqlalchemy import Select, Update, and_, bindparam, func, select, update

from cahlib.ledger.local import next_shards
from cahlib.ledger.schema import is_one_of, shards
from cahlib.tracker.models import Kind, Unknown, Worker
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
#: Of a shard: this worker has not failed with it, and if it is a check, the person has neither done
#: nor checked the same shard. The latter are scalars because PostgreSQL looks those up for each
#: shard that it comes to; of ``EXISTS`` it made a scan of all checks, 2 ms a lease with 2,000.
_UNTRIED = and_(
    ~(
        select(1)
        .where(failures.c.shard == shards.c.number, failures.c.worker == bindparam("me"))
        .exists()
    ),
    _OWNER.scalar_subquery().is_distinct_from(bindparam("nickname")),
    _CHECKERS.scalar_subquery() == 0,
)

#: This worker was not sent away since it was recognized; what else is known of it never changes.
WELCOME = (
    select(1)
    .where(workers.c.id == bindparam("me"), workers.c.secret == bindparam("hash"), ~workers.c.gone)
    .exists()
)


@cache
def claiming(kind: Kind, lane: int, count: int, old: bool) -> Update:
    """Take the next shards with which this worker has not failed, if it may hold so many more.

    ``old``: no second passes, which are over pairs that are named, and the old protocol names none.
    """
    other = shards.alias()
    held = (
        select(func.count())
        .where(other.c.worker == bindparam("me"), is_one_of(other.c.state, "leased", "judging"))
        .scalar_subquery()
    )
    names = ("number", "id", "url", "half", "expires", "parcel", "attempts")
    shown = (shards.c[name] for name in names)
    first = ~select(1).where(second_passes.c.number == shards.c.number).exists()
    fit = (_UNTRIED, first) if old else (_UNTRIED,)
    free = next_shards(kind.takes, *fit, lane=lane, count=count).cte("free")
    return (
        update(shards)
        .where(shards.c.number.in_(select(free.c.number)))
        .where(held <= bindparam("most") - count, WELCOME)
        .values(
            state=kind.holds,
            attempts=shards.c.attempts + 1,
            worker=bindparam("me"),
            expires=bindparam("until"),
        )
        .returning(*shown)
    )


@cache
def coming(kind: Kind) -> Select[tuple[int]]:
    """A shard that this worker may still be given: one that is free, or may be again.

    What waits for GPU workers comes back to the others only if it cannot be fetched, so nobody
    waits for that; GPU workers wait for whatever may be scraped.
    """
    states = ["todo", "leased", "scraped", "judging"] if kind is Kind.GPU else ["todo", "leased"]
    return select(1).where(shards.c.state.in_(states), shards.c.lane == 0, _UNTRIED).limit(1)


def found(row: Any) -> Worker:
    """Return the worker of a row; raise Unknown if there is none."""
    if row is None:
        raise Unknown("This tracker does not know you; register anew.")
    return Worker(id=row.id, name=row.name, nickname=row.nickname, kind=Kind(row.kind))


def hashed(secret: str) -> bytes:
    """Return what is stored of a secret."""
    # The secrets are 256 random bits, so a plain hash of one gives nothing away.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
