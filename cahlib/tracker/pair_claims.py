"""The claims of shards on pairs: each belongs to one, so that all datasets together have it once.

The first *completed* shard that has a pair keeps it, and no earlier statement counts: so nobody can
take pairs from others by claiming them and returning the shard. A shard that left a pair to another
is recorded. If that other one is undone, the pair is recovered by a second pass: a shard of its own
over the same half of a WAT file, in which all other pairs are claimed. If it does not bring the
pair, the next shard that had it gets a second pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from cahlib.ledger.database import insert_into, is_sqlite
from cahlib.ledger.schema import pairs, shards
from cahlib.tracker.models import InvalidRequest
from cahlib.tracker.schema import left_pairs, second_passes

#: Keys per statement.
_BATCH = 1000


def find_claimed(
    connection: Connection, number: int, keys: Iterable[bytes], *, max_pairs: int
) -> list[bytes]:
    """Return which pairs a completed shard has, and record that ``number`` leaves them to it.

    Raise InvalidRequest if it leaves more than ``max_pairs``.
    """
    checked = select(second_passes.c.checks).where(second_passes.c.number == number)
    found = _owned(connection, keys, but=connection.execute(checked).scalar())
    _leave(connection, number, found)
    if found:
        count = select(func.count()).where(left_pairs.c.shard == number)
        if connection.execute(count).scalar_one() > max_pairs:
            raise InvalidRequest(f"uids: a shard has at most {max_pairs:,} pairs.")
    return found


def claim_pairs(connection: Connection, number: int, keys: Iterable[bytes]) -> list[bytes]:
    """Give pairs to a completed shard; return those that another one brought first."""
    named = sorted(set(keys))
    if not named:
        return []
    rows = [{"uid": key, "shard": number} for key in named]
    connection.execute(insert_into(connection, pairs).on_conflict_do_nothing(), rows)
    return leave_late_pairs(connection, number, named)


def leave_late_pairs(connection: Connection, number: int, keys: Sequence[bytes]) -> list[bytes]:
    """Return which of these pairs are not the shard's, and record that it left them."""
    ours = set(connection.execute(select(pairs.c.uid).where(pairs.c.shard == number)).scalars())
    others = [key for key in keys if key not in ours]
    _leave(connection, number, others)
    return others


def recover_left_pairs(connection: Connection, number: int) -> None:
    """Recover pairs that a shard left to one undone since, or should have recovered but did not."""
    waiting = select(left_pairs.c.uid).where(
        (left_pairs.c.shard == number) | (left_pairs.c.again == number)
    )
    recover_pairs(connection, connection.execute(waiting).scalars().all())


def claim_again(connection: Connection, number: int, keys: Iterable[bytes]) -> list[bytes]:
    """Return the result of `claim_pairs` again, for a repeated completion."""
    named = set(connection.execute(select(pairs.c.uid).where(pairs.c.shard == number)).scalars())
    left = set(
        connection.execute(select(left_pairs.c.uid).where(left_pairs.c.shard == number)).scalars()
    )
    others = claim_pairs(connection, number, left.intersection(keys))
    return [key for key in others if key not in named]


def release_pairs(connection: Connection, numbers: Sequence[int]) -> None:
    """Release the pairs of undone shards; the shards that left pairs to them get them back."""
    for start in range(0, len(numbers), _BATCH):
        batch = numbers[start : start + _BATCH]
        of_shards = left_pairs.c.shard.in_(batch)
        freed = select(pairs.c.uid).where(pairs.c.shard.in_(batch))
        promised = select(left_pairs.c.uid).where(of_shards, left_pairs.c.again.is_not(None))
        orphans = connection.execute(freed.union(promised)).scalars().all()
        connection.execute(delete(pairs).where(pairs.c.shard.in_(batch)))
        connection.execute(delete(left_pairs).where(of_shards))
        recover_pairs(connection, orphans)


def forget_left_pairs(connection: Connection, numbers: Sequence[int]) -> None:
    """Forget what an earlier worker of these shards left to others."""
    if numbers:
        of_shards = left_pairs.c.shard.in_(numbers)
        connection.execute(delete(left_pairs).where(of_shards, left_pairs.c.again.is_(None)))


def recover_pairs(connection: Connection, keys: Iterable[bytes]) -> None:
    """Have the unclaimed pairs recovered by the first shard that left them."""
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
    for number, uids in sorted(first.items()):
        passed = add_second_pass(connection, number)
        for batch in _batches(uids):
            mine = (left_pairs.c.shard == number) & left_pairs.c.uid.in_(batch)
            connection.execute(update(left_pairs).where(mine).values(again=passed))


def lock_wats(connection: Connection) -> None:
    """Let no other transaction number new shards; SQLite admits one writer anyway."""
    if not is_sqlite(connection):
        connection.exec_driver_sql("LOCK TABLE wats IN SHARE ROW EXCLUSIVE MODE")


def add_second_pass(connection: Connection, number: int, **check: Any) -> int:
    """Add a second pass over a shard, which may be a check of it; return its number.

    A check comes before everything else: images vanish, and invented pairs should be found soon.
    """
    lock_wats(connection)
    root = select(second_passes.c.of).where(second_passes.c.number == number)
    of = connection.execute(root).scalar() or number
    row = connection.execute(select(shards).where(shards.c.number == of)).one()
    last = connection.execute(select(func.max(shards.c.number))).scalar_one()
    fresh = 2 * (last // 2 + 1) + row.half
    values = {"number": fresh, "id": f"{row.id[:180]}-again{fresh}", "url": row.url}
    values |= {"half": row.half, "attempts": -1 if check else 0}
    connection.execute(insert_into(connection, shards).values(**values))
    connection.execute(insert_into(connection, second_passes).values(number=fresh, of=of, **check))
    return int(fresh)


def _owned(connection: Connection, keys: Iterable[bytes], *, but: int | None = None) -> list[bytes]:
    """Return which pairs belong to a shard, except ``but``."""
    found: list[bytes] = []
    for batch in _batches(keys):
        query = select(pairs.c.uid).where(pairs.c.uid.in_(batch))
        if but is not None:
            query = query.where(pairs.c.shard != but)
        found += connection.execute(query).scalars()
    return found


def _leave(connection: Connection, number: int, keys: Sequence[bytes]) -> None:
    if keys:
        rows = [{"uid": key, "shard": number} for key in sorted(keys)]
        connection.execute(insert_into(connection, left_pairs).on_conflict_do_nothing(), rows)


def _batches(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield keys in order, in batches: no two transactions deadlock."""
    every = sorted(set(keys))
    return (every[start : start + _BATCH] for start in range(0, len(every), _BATCH))
