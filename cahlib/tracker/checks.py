"""Spot checks: a finished shard is done again by somebody else, and their pairs are compared.

A check is a second pass over the shard to which the pairs of that shard are not taken. What both
have stays with the first one; how many that are, with the same similarity, tells the administrator
whom to believe. If it is less than half, a third person does the shard: agreeing with the second
one, he undoes the first.
Until he agrees with the first one, who completed that is given one shard at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection, func, select, update

from cahlib.ledger.database import Database
from cahlib.ledger.schema import pairs, shards
from cahlib.tracker import admin, pair_claims
from cahlib.tracker.models import Worker
from cahlib.tracker.schema import left_pairs, second_passes, workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a shard and its check agree."""

    number: int  #: of the shard
    nickname: str  #: whose it was
    checker: str  #: who did it again
    claimed: int  #: pairs that the shard had
    agreed: int  #: of those, how many the check found too, as similar

    @property
    def share(self) -> float:
        """How many of the pairs the check found, 0 … 1; some images are gone by then."""
        return self.agreed / self.claimed if self.claimed else 1.0


#: Similarities of pairs by their uids; None where one is not known.
Scores: TypeAlias = Mapping[str, float | None]
#: Two similarities of a pair are the same if they differ by no more than this. Processors that
#: multiply in bfloat16 differ by less than 0.001, and an image may be encoded anew meanwhile.
BOUND = 0.01
#: Checks of one person's shards that may wait for others; each lease of his has to pass them.
_MOST_WAITING = 50


def begin(
    database: Database, connection: Connection, number: int, worker: Worker, scores: Scores | None
) -> None:
    """Have another person do a worker's finished shard again, unless many such wait already.

    A check is not checked. ``scores`` are None where only a count is known.
    """
    checks = select(second_passes.c.checks).where(second_passes.c.number == number)
    last = select(second_passes.c.claimed).where(second_passes.c.avoid == worker.nickname)
    last = last.order_by(second_passes.c.number.desc()).limit(_MOST_WAITING)
    waiting = connection.execute(last).scalars().all().count(None)
    if waiting < _MOST_WAITING and connection.execute(checks).scalar() is None:
        if not database.is_sqlite:
            connection.exec_driver_sql("LOCK TABLE wats IN SHARE ROW EXCLUSIVE MODE")
        begun = {"avoid": worker.nickname, "scores": scores}
        pair_claims.pass_again(database, connection, number, checks=number, **begun)


def compare(
    database: Database, connection: Connection, number: int, checked: int, found: Scores | None
) -> None:
    """Note how a check agrees with the shard that it is of; if it does not, have it settled."""
    scores = found or {}
    of_check = second_passes.c.number == number
    begun = connection.execute(
        select(
            second_passes.c.avoid,
            second_passes.c.scores,
            shards.c.state,
            shards.c.pairs,
            workers.c.nickname,
        )
        .join_from(second_passes, shards, shards.c.number == checked)
        .outerjoin(workers, workers.c.id == shards.c.worker)
        .where(of_check)
    ).one()
    claimed, count = begun.scores or {}, begun.pairs
    if (begun.state, begun.nickname) != ("done", begun.avoid):  # it was undone meanwhile
        claimed, count = {}, 0
    elif begun.scores is not None:
        count = len(claimed)
    named = _agreed(claimed, scores)
    # by the old protocol none are named: as many as are claimed, or were found
    agreed = named + min(count - len(claimed), len(scores) - named)
    agrees = 2 * agreed >= count
    values = {"claimed": count, "agreed": agreed, "scores": None if agrees else scores}
    connection.execute(update(second_passes).where(of_check).values(**values))
    if agrees:
        return
    other = select(second_passes.c.number, second_passes.c.scores)
    other = other.where(second_passes.c.checks == checked, _DISAGREES, ~of_check)
    others = connection.execute(other).all()
    if not others:
        if not database.is_sqlite:
            connection.exec_driver_sql("LOCK TABLE wats IN SHARE ROW EXCLUSIVE MODE")
        second = {"avoid": begun.avoid, "scores": begun.scores}
        pair_claims.pass_again(database, connection, checked, checks=checked, **second)
    ours = _found(connection, number, scores)
    for theirs in (_found(connection, each.number, each.scores) for each in others):
        if 2 * _agreed(ours, theirs) >= max(len(ours), len(theirs)):
            admin.undo_shard(database, connection, checked)
            return


#: Of a check: it found less than half of the pairs; images vanish, but not so many in days.
_DISAGREES = second_passes.c.agreed * 2 < second_passes.c.claimed


def _agreed(ours: Scores, theirs: Scores) -> int:
    """Return how many pairs are in both, as similar if both are known."""
    both = [(ours[uid], theirs[uid]) for uid in ours.keys() & theirs.keys()]
    return sum(a is None or b is None or abs(a - b) <= BOUND for a, b in both)


def _found(connection: Connection, number: int, scores: Scores | None) -> Scores:
    """Return all pairs that a shard named, be they its own or another's; ``scores`` of some."""
    every = select(pairs.c.uid).where(pairs.c.shard == number)
    left = select(left_pairs.c.uid).where(left_pairs.c.shard == number)
    uids = connection.execute(every.union(left)).scalars()
    return dict.fromkeys((uid.hex() for uid in uids), None) | dict(scores or {})


def doubted(connection: Connection, nickname: str) -> bool:
    """Whether a shard of this person was found wrong by a check, and right by none."""
    other = second_passes.alias()
    agrees = select(1).where(
        other.c.checks == second_passes.c.checks, other.c.agreed * 2 >= other.c.claimed
    )
    wrong = select(1).where(second_passes.c.avoid == nickname, _DISAGREES, ~agrees.exists())
    return connection.execute(wrong.limit(1)).first() is not None


def results(database: Database, *, most: int = 1000) -> list[Check]:
    """Return the checks that are done, those that agree least first."""
    query = (
        select(
            second_passes.c.checks.label("number"),
            second_passes.c.avoid.label("nickname"),
            workers.c.nickname.label("checker"),
            second_passes.c.claimed,
            second_passes.c.agreed,
        )
        .join_from(second_passes, shards, shards.c.number == second_passes.c.number)
        .join(workers, workers.c.id == shards.c.worker)
        .where(second_passes.c.claimed > 0)
        .order_by(
            second_passes.c.agreed * 1.0 / func.nullif(second_passes.c.claimed, 0),
            second_passes.c.checks,
        )
        .limit(most)
    )
    with database.read() as connection:
        return [Check(**row._mapping) for row in connection.execute(query)]
