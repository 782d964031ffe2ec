"""Whose pair is whose: each belongs to one shard, so that all datasets together hold it once.

The first *completed* shard that has a pair keeps it, and nothing that is said before counts: so
nobody can take pairs from others by claiming them and then giving his shard back. A shard that has
left a pair to another is remembered. If that other one is undone, the pair is brought back by a
second pass: a shard of its own over the same half of a WAT file, to which all other pairs are
taken. When that does not bring it, the next shard that had it is passed over again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from cahlib.ledger.database import Database
from cahlib.ledger.schema import pairs, shards
from cahlib.tracker.models import Invalid
from cahlib.tracker.schema import left_pairs, second_passes

#: Keys in one statement.
_BATCH = 1000


def taken(
    database: Database, connection: Connection, number: int, keys: Iterable[bytes], *, most: int
) -> list[bytes]:
    """Return which pairs a completed shard has, and note that shard ``number`` leaves them to it.

    Raise Invalid if it leaves more than ``most``.
    """
    checked = select(second_passes.c.checks).where(second_passes.c.number == number)
    found = _owned(connection, keys, but=connection.execute(checked).scalar())
    _leave(database, connection, number, found)
    if found:
        count = select(func.count()).where(left_pairs.c.shard == number)
        if connection.execute(count).scalar_one() > most:
            raise Invalid(f"uids: a shard holds at most {most:,} pairs.")
    return found


def settle(
    database: Database, connection: Connection, number: int, keys: Iterable[bytes]
) -> list[bytes]:
    """Make pairs a completed shard's; return those that another one was first to bring."""
    named = sorted(set(keys))
    if not named:
        return []
    rows = [{"uid": key, "shard": number} for key in named]
    connection.execute(database.insert(pairs).on_conflict_do_nothing(), rows)
    return late(database, connection, number, named)


def late(
    database: Database, connection: Connection, number: int, keys: Sequence[bytes]
) -> list[bytes]:
    """Return which of these pairs are not the shard's, and note that it left them."""
    ours = set(connection.execute(select(pairs.c.uid).where(pairs.c.shard == number)).scalars())
    others = [key for key in keys if key not in ours]
    _leave(database, connection, number, others)
    return others


def revive_left(database: Database, connection: Connection, number: int) -> None:
    """Bring back what a shard left to one that is undone by now, or was to bring and did not."""
    waiting = select(left_pairs.c.uid).where(
        (left_pairs.c.shard == number) | (left_pairs.c.again == number)
    )
    revive(database, connection, connection.execute(waiting).scalars().all())


def settled_again(
    database: Database, connection: Connection, number: int, keys: Iterable[bytes]
) -> list[bytes]:
    """Return the same once more, of the pairs that the shard named when it was completed."""
    named = set(connection.execute(select(pairs.c.uid).where(pairs.c.shard == number)).scalars())
    left = set(
        connection.execute(select(left_pairs.c.uid).where(left_pairs.c.shard == number)).scalars()
    )
    others = settle(database, connection, number, left.intersection(keys))
    return [key for key in others if key not in named]


def undo(database: Database, connection: Connection, numbers: Sequence[int]) -> None:
    """Free the pairs of shards that are to do again; those who had left them get them back."""
    for start in range(0, len(numbers), _BATCH):
        batch = numbers[start : start + _BATCH]
        of_shards = left_pairs.c.shard.in_(batch)
        freed = select(pairs.c.uid).where(pairs.c.shard.in_(batch))
        promised = select(left_pairs.c.uid).where(of_shards, left_pairs.c.again.is_not(None))
        orphans = connection.execute(freed.union(promised)).scalars().all()
        connection.execute(delete(pairs).where(pairs.c.shard.in_(batch)))
        connection.execute(delete(left_pairs).where(of_shards))
        revive(database, connection, orphans)


def forget(connection: Connection, numbers: Sequence[int]) -> None:
    """Begin shards anew: what an earlier worker was told counts no more."""
    if numbers:
        of_shards = left_pairs.c.shard.in_(numbers)
        connection.execute(delete(left_pairs).where(of_shards, left_pairs.c.again.is_(None)))


def revive(database: Database, connection: Connection, keys: Iterable[bytes]) -> None:
    """Have the pairs that are nobody's brought again by the first shard that had left them."""
    first: dict[int, list[bytes]] = {}
    for batch in _batches(keys):
        owned = set(_owned(connection, batch))
        under_way = select(left_pairs.c.uid).join(shards, shards.c.number == left_pairs.c.again)
        under_way = under_way.where(left_pairs.c.uid.in_(batch), shards.c.state != "done")
        owned |= set(connection.execute(under_way).scalars())
        losers = select(left_pairs.c.uid, func.min(left_pairs.c.shard)).join(
            shards, shards.c.number == left_pairs.c.shard
        )
        free = [key for key in batch if key not in owned]
        losers = losers.where(
            left_pairs.c.uid.in_(free), left_pairs.c.again.is_(None), shards.c.state == "done"
        )
        for uid, number in connection.execute(losers.group_by(left_pairs.c.uid)):
            first.setdefault(number, []).append(uid)
    if first and not database.is_sqlite:
        connection.exec_driver_sql("LOCK TABLE wats IN SHARE ROW EXCLUSIVE MODE")
    for number, uids in sorted(first.items()):
        passed = pass_again(database, connection, number)
        for batch in _batches(uids):
            mine = (left_pairs.c.shard == number) & left_pairs.c.uid.in_(batch)
            connection.execute(update(left_pairs).where(mine).values(again=passed))


def pass_again(database: Database, connection: Connection, number: int, **check: Any) -> int:
    """Add a second pass over a shard, which may be a check of it; return its number.

    A check comes before all else: images vanish, and who invents pairs is to be known soon. The
    table of the WATs must be locked.
    """
    root = select(second_passes.c.of).where(second_passes.c.number == number)
    of = connection.execute(root).scalar() or number
    row = connection.execute(select(shards).where(shards.c.number == of)).one()
    last = connection.execute(select(func.max(shards.c.number))).scalar_one()
    fresh = 2 * (last // 2 + 1) + row.half
    values = {"number": fresh, "id": f"{row.id[:180]}-again{fresh}", "url": row.url}
    values |= {"half": row.half, "attempts": -1 if check else 0}
    connection.execute(database.insert(shards).values(**values))
    connection.execute(database.insert(second_passes).values(number=fresh, of=of, **check))
    return int(fresh)


def _owned(connection: Connection, keys: Iterable[bytes], *, but: int | None = None) -> list[bytes]:
    """Return which pairs a shard has, ``but`` for one."""
    found: list[bytes] = []
    for batch in _batches(keys):
        query = select(pairs.c.uid).where(pairs.c.uid.in_(batch))
        if but is not None:
            query = query.where(pairs.c.shard != but)
        found += connection.execute(query).scalars()
    return found


def _leave(database: Database, connection: Connection, number: int, keys: Sequence[bytes]) -> None:
    if keys:
        rows = [{"uid": key, "shard": number} for key in sorted(keys)]
        connection.execute(database.insert(left_pairs).on_conflict_do_nothing(), rows)


def _batches(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield keys in order, some at a time: no two transactions wait for each other in a ring."""
    every = sorted(set(keys))
    return (every[start : start + _BATCH] for start in range(0, len(every), _BATCH))
