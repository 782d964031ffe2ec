"""Spot checks: another person repeats a finished shard, and their pairs are compared.

A check is a second pass over the shard in which the pairs of that shard are not claimed. Pairs that
both have stay with the first. How many those are, with the same similarity, tells the administrator
whom to trust. If it is less than half, a third person repeats the shard; if that agrees with the
second, the first is undone. Until it agrees with the first, the person who completed that may hold
one shard at a time.
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
class SpotCheck:
    """The agreement of a shard and its check."""

    number: int  #: of the shard
    nickname: str  #: of the person who completed it
    checker: str  #: who repeated it
    claimed: int  #: pairs that the shard had
    agreed: int  #: those that the check found as well, as similar

    @property
    def share(self) -> float:
        """The share of pairs that the check found, 0 … 1; some images vanish in between."""
        return self.agreed / self.claimed if self.claimed else 1.0


#: Similarities of pairs by uid; None where unknown.
Scores: TypeAlias = Mapping[str, float | None]
#: The largest difference of two similarities that count as the same. Processors that multiply in
#: bfloat16 differ by less than 0.001, and a server may have re-encoded the image.
TOLERANCE = 0.01
#: Most waiting checks of one person's shards: each lease of that person has to skip them.
_MAX_WAITING = 50


def begin_check(connection: Connection, number: int, worker: Worker, scores: Scores | None) -> None:
    """Have another person repeat a finished shard, unless many checks are waiting already.

    A check is not checked. ``scores`` is None where only a count is known.
    """
    checks = select(second_passes.c.checks).where(second_passes.c.number == number)
    last = select(second_passes.c.claimed).where(second_passes.c.avoid == worker.nickname)
    last = last.order_by(second_passes.c.number.desc()).limit(_MAX_WAITING)
    waiting = connection.execute(last).scalars().all().count(None)
    if waiting < _MAX_WAITING and connection.execute(checks).scalar() is None:
        check = {"avoid": worker.nickname, "scores": scores}
        pair_claims.add_second_pass(connection, number, checks=number, **check)


def compare_check(connection: Connection, number: int, checked: int, found: Scores | None) -> None:
    """Record how far a check agrees with its shard; if too little, add a second check."""
    scores = found or {}
    of_check = second_passes.c.number == number
    check = connection.execute(
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
    claimed, count = check.scores or {}, check.pairs
    if (check.state, check.nickname) != ("done", check.avoid):  # undone in the meantime
        claimed, count = {}, 0
    elif check.scores is not None:
        count = len(claimed)
    named = _agreed(claimed, scores)
    # the legacy protocol names no pairs: count as many as claimed, or as were found
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
        second = {"avoid": check.avoid, "scores": check.scores}
        pair_claims.add_second_pass(connection, checked, checks=checked, **second)
    ours = _found(connection, number, scores)
    for theirs in (_found(connection, each.number, each.scores) for each in others):
        if 2 * _agreed(ours, theirs) >= max(len(ours), len(theirs)):
            admin.undo_shard(connection, checked)
            return


#: A check found less than half of the pairs; images vanish, but not that many in days.
_DISAGREES = second_passes.c.agreed * 2 < second_passes.c.claimed


def _agreed(ours: Scores, theirs: Scores) -> int:
    """Return the number of pairs in both, with the same similarity where both are known."""
    both = [(ours[uid], theirs[uid]) for uid in ours.keys() & theirs.keys()]
    return sum(a is None or b is None or abs(a - b) <= TOLERANCE for a, b in both)


def _found(connection: Connection, number: int, scores: Scores | None) -> Scores:
    """Return all pairs that a shard named, its own or another's, with ``scores`` for some."""
    every = select(pairs.c.uid).where(pairs.c.shard == number)
    left = select(left_pairs.c.uid).where(left_pairs.c.shard == number)
    uids = connection.execute(every.union(left)).scalars()
    return dict.fromkeys((uid.hex() for uid in uids), None) | dict(scores or {})


def is_doubted(connection: Connection, nickname: str) -> bool:
    """Return whether a check found a shard of this person wrong, and none found it right."""
    other = second_passes.alias()
    agrees = select(1).where(
        other.c.checks == second_passes.c.checks, other.c.agreed * 2 >= other.c.claimed
    )
    wrong = select(1).where(second_passes.c.avoid == nickname, _DISAGREES, ~agrees.exists())
    return connection.execute(wrong.limit(1)).first() is not None


def finished_checks(database: Database, *, most: int = 1000) -> list[SpotCheck]:
    """Return the finished checks, those that agree least first."""
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
        return [SpotCheck(**row._mapping) for row in connection.execute(query)]
