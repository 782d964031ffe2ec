"""Spot checks: a finished shard is done again by somebody else, and their pairs are compared.

A check is a second pass over the shard to which the pairs of that shard are not taken. What both
have stays with the first one; how many that are tells the administrator whom to believe.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from cahlib.tracker import uids
from cahlib.tracker.database import Database
from cahlib.tracker.schema import again, pairs, shards, workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a shard and its check agree."""

    number: int  #: of the shard
    nickname: str  #: whose it was
    checker: str  #: who did it again
    claimed: int  #: pairs that the shard had
    agreed: int  #: of those, how many the check found too

    @property
    def share(self) -> float:
        """How many of the pairs the check found, 0 … 1; some images are gone by then."""
        return self.agreed / self.claimed if self.claimed else 1.0


def begin(database: Database, connection: Connection, number: int, nickname: str) -> None:
    """Have somebody else than ``nickname`` do a finished shard again; a check is not checked."""
    checks = select(again.c.checks).where(again.c.number == number)
    if connection.execute(checks).scalar() is None:
        if not database.is_sqlite:
            connection.exec_driver_sql("LOCK TABLE wats IN SHARE ROW EXCLUSIVE MODE")
        uids.pass_again(database, connection, number, checks=number, avoid=nickname)


def compare(connection: Connection, number: int, checked: int, named: tuple[bytes, ...]) -> None:
    """Note how a check agrees with the shard that it is of."""
    claimed = set(connection.execute(select(pairs.c.uid).where(pairs.c.shard == checked)).scalars())
    values = {"claimed": len(claimed), "agreed": len(claimed.intersection(named))}
    connection.execute(update(again).where(again.c.number == number).values(**values))


def results(database: Database, *, most: int = 1000) -> list[Check]:
    """Return the checks that are done, those that agree least first."""
    first, second = workers.alias(), workers.alias()
    shard, check = shards.alias(), shards.alias()
    query = (
        select(
            shard.c.number,
            first.c.nickname,
            second.c.nickname.label("checker"),
            again.c.claimed,
            again.c.agreed,
        )
        .join_from(again, check, check.c.number == again.c.number)
        .join(shard, shard.c.number == again.c.checks)
        .join(first, first.c.id == shard.c.worker)
        .join(second, second.c.id == check.c.worker)
        .where(again.c.claimed > 0)
        .order_by(again.c.agreed * 1.0 / func.nullif(again.c.claimed, 0), shard.c.number)
        .limit(most)
    )
    with database.read() as connection:
        return [Check(**row._mapping) for row in connection.execute(query)]
