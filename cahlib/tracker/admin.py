"""What the administrator does to the shards of a tracker: add them, try them again, undo work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from cahlib.core.records import Shard
from cahlib.ledger.database import Database
from cahlib.ledger.schema import shards
from cahlib.tracker import blame, credit, pair_claims
from cahlib.tracker.schema import failures, wats, workers

#: A shard that nobody has touched.
_FRESH = {
    "state": "todo", "lane": 0, "attempts": 0, "worker": None, "expires": 0, "scraper": None,
    "parcel": None,
}  # fmt: skip


def add(database: Database, every: Iterable[Shard]) -> int:
    """Put WAT files at the end of the list, both halves of each; those known already stay.

    The number of WAT files added: all, or none when it fails.
    """
    whole = (list(halves) for _, halves in groupby(every, key=lambda shard: shard.url))
    with database.write() as connection:
        if not database.is_sqlite:  # there, no two write at once anyway
            connection.exec_driver_sql("LOCK TABLE wats IN SHARE ROW EXCLUSIVE MODE")
        last = connection.execute(select(func.max(shards.c.number))).scalar()
        first = number = 0 if last is None else last // 2 + 1
        while batch := {halves[0].url: halves for halves in islice(whole, 5000)}:
            number += _add(database, connection, batch, number)
    return number - first


def _add(
    database: Database, connection: Connection, batch: dict[str, list[Shard]], number: int
) -> int:
    known = select(wats.c.url).where(wats.c.url.in_(batch))
    for url in connection.execute(known).scalars():
        del batch[url]
    if batch:
        rows = [{"number": number + n, "url": url} for n, url in enumerate(batch)]
        connection.execute(database.insert(wats), rows)
        halves = [
            {"number": 2 * (number + n) + s.half, "id": s.id, "url": s.url, "half": s.half}
            for n, of_wat in enumerate(batch.values())
            for s in of_wat
        ]
        connection.execute(database.insert(shards), halves)
    return len(batch)


def retry(
    database: Database, numbers: Sequence[int] | None = None, *, old_parcels: bool = False
) -> int:
    """Put shards that were set aside back on the list (all, or these); how many.

    ``old_parcels``: also those whose parcels of the old protocol no GPU worker has taken.
    """
    aside = shards.c.state == "failed"
    if old_parcels:
        aside |= (shards.c.state == "scraped") & (shards.c.lane == 1)
    if numbers is not None:
        aside &= shards.c.number.in_(numbers)
    with database.write() as connection:
        again = select(shards.c.number).where(aside)
        connection.execute(delete(failures).where(failures.c.shard.in_(again)))
        return int(connection.execute(update(shards).where(aside).values(**_FRESH)).rowcount)


def undo(database: Database, worker: int) -> int:
    """Put what a worker completed, and its parcels that are not judged yet, back on the list.

    How many shards. Their pairs are not counted for it any more, and those that others had left to
    it come back to them. It must have been sent away, or there may be more of it the next moment.
    """
    done = (shards.c.worker == worker) & (shards.c.state == "done")
    brought = (shards.c.scraper == worker) & shards.c.state.in_(["scraped", "judging"])
    with database.write() as connection:
        return _undo(database, connection, worker, done | brought)


def undo_shard(database: Database, connection: Connection, number: int) -> None:
    """Put a finished shard back on the list, for another worker than the one that completed it."""
    this = (shards.c.number == number) & (shards.c.state == "done")
    worker = connection.execute(select(shards.c.worker).where(this)).scalar()
    if worker is not None:
        _undo(database, connection, worker, this)
        blame.note(database, connection, worker, number, "Two others found other pairs.", 0)


def _undo(database: Database, connection: Connection, worker: int, which: Any) -> int:
    """Put what a worker completed or brought back on the list; return how many shards."""
    query = select(shards.c.number, shards.c.state, shards.c.pairs, shards.c.parcel).where(which)
    rows = connection.execute(query.with_for_update()).all()
    emptied = _FRESH | {"pairs": 0, "tally": None, "output": None, "finished": None}
    connection.execute(update(shards).where(which).values(**emptied))
    pair_claims.undo(database, connection, [row.number for row in rows if row.state == "done"])
    closed = [row.pairs for row in rows if row.state == "done"]
    less = {"done": -len(closed), "pairs": -sum(closed), "scraped": len(closed) - len(rows)}
    less["bytes"] = -sum((row.parcel or {}).get("size", 0) for row in rows if row.state != "done")
    named = select(workers.c.nickname).where(workers.c.id == worker)
    nickname = connection.execute(named).scalar_one()
    credit.count(database, connection, worker, nickname, **less)
    return len(rows)
