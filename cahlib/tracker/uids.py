"""Whose pair is whose: each belongs to one shard, so that all datasets together hold it once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, select

from cahlib.tracker.database import Database
from cahlib.tracker.rules import Invalid
from cahlib.tracker.schema import pairs


def claim(
    database: Database, connection: Connection, number: int, uids: Sequence[str], *, most: int
) -> list[str]:
    """Make pairs a shard's, ``most`` in all; which of them are another's. Raises Invalid."""
    keys = sorted(bytes.fromhex(uid) for uid in set(uids))  # sorted: no two wait for each other
    taken: list[bytes] = []
    for start in range(0, len(keys), 1000):
        batch = keys[start : start + 1000]
        rows = [{"uid": key, "shard": number} for key in batch]
        connection.execute(database.insert(pairs).values(rows).on_conflict_do_nothing())
        query = select(pairs.c.uid).where(pairs.c.uid.in_(batch), pairs.c.shard == number)
        ours = set(connection.execute(query).scalars())
        taken += (key for key in batch if key not in ours)
    held = connection.execute(select(func.count()).where(pairs.c.shard == number)).scalar_one()
    if held > most:
        raise Invalid(f"uids: a shard holds at most {most:,} pairs; this one would have {held:,}.")
    return [key.hex() for key in taken]


def free(connection: Connection, numbers: Sequence[int]) -> None:
    """The pairs of these shards are nobody's: who claimed them did not complete the shards."""
    if numbers:
        connection.execute(delete(pairs).where(pairs.c.shard.in_(numbers)))
