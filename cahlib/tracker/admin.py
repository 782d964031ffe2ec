"""The actions of a tracker's administrator on shards: add them, retry them, undo work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from cahlib.core.records import Shard
from cahlib.ledger.database import Database, insert_into
from cahlib.ledger.schema import shards
from cahlib.tracker import pair_claims, shard_failures, totals
from cahlib.tracker.schema import failures, wats, workers

#: The values of a new shard.
_NEW = {
    "state": "todo", "lane": 0, "attempts": 0, "worker": None, "expires": 0, "scraper": None,
    "parcel": None,
}  # fmt: skip


def add_wats(database: Database, all_shards: Iterable[Shard]) -> int:
    """Append WAT files to the list, both halves of each; those already known stay.

    Return the number of WAT files added: all, or none if it fails.
    """
    whole = (list(halves) for _, halves in groupby(all_shards, key=lambda shard: shard.url))
    with database.write() as connection:
        pair_claims.lock_wats(connection)
        last = connection.execute(select(func.max(shards.c.number))).scalar()
        first = number = 0 if last is None else last // 2 + 1
        while batch := {halves[0].url: halves for halves in islice(whole, 5000)}:
            number += _add(connection, batch, number)
    return number - first


def _add(connection: Connection, batch: dict[str, list[Shard]], number: int) -> int:
    known = select(wats.c.url).where(wats.c.url.in_(batch))
    for url in connection.execute(known).scalars():
        del batch[url]
    if batch:
        rows = [{"number": number + n, "url": url} for n, url in enumerate(batch)]
        connection.execute(insert_into(connection, wats), rows)
        halves = [
            {"number": 2 * (number + n) + s.half, "id": s.id, "url": s.url, "half": s.half}
            for n, of_wat in enumerate(batch.values())
            for s in of_wat
        ]
        connection.execute(insert_into(connection, shards), halves)
    return len(batch)


def retry_shards(
    database: Database, numbers: Sequence[int] | None = None, *, old_parcels: bool = False
) -> int:
    """Requeue shards that were set aside (all, or ``numbers``); return how many.

    ``old_parcels``: also those whose parcels of the legacy protocol no GPU worker has taken.
    """
    aside = shards.c.state == "failed"
    if old_parcels:
        aside |= (shards.c.state == "scraped") & (shards.c.lane == 1)
    if numbers is not None:
        aside &= shards.c.number.in_(numbers)
    with database.write() as connection:
        again = select(shards.c.number).where(aside)
        connection.execute(delete(failures).where(failures.c.shard.in_(again)))
        return int(connection.execute(update(shards).where(aside).values(**_NEW)).rowcount)


def undo_worker(database: Database, worker: int) -> int:
    """Requeue what a worker completed, and its parcels that are not judged yet; return how many.

    The pairs no longer count for it, and shards that left pairs to it get them back. Expel the
    worker first, or it may complete more.
    """
    done = (shards.c.worker == worker) & (shards.c.state == "done")
    delivered = (shards.c.scraper == worker) & shards.c.state.in_(["scraped", "judging"])
    with database.write() as connection:
        return _undo(connection, worker, done | delivered)


def undo_shard(connection: Connection, number: int) -> None:
    """Requeue a finished shard for another worker than the one that completed it."""
    this = (shards.c.number == number) & (shards.c.state == "done")
    worker = connection.execute(select(shards.c.worker).where(this)).scalar()
    if worker is not None:
        _undo(connection, worker, this)
        shard_failures.record_failure(
            connection, worker, number, "Two other workers found other pairs.", 0
        )


def _undo(connection: Connection, worker: int, which: Any) -> int:
    """Requeue what a worker completed or delivered; return how many shards."""
    query = select(shards.c.number, shards.c.state, shards.c.pairs, shards.c.parcel).where(which)
    rows = connection.execute(query.with_for_update()).all()
    emptied = _NEW | {"pairs": 0, "tally": None, "output": None, "finished": None}
    connection.execute(update(shards).where(which).values(**emptied))
    pair_claims.release_pairs(connection, [row.number for row in rows if row.state == "done"])
    closed = [row.pairs for row in rows if row.state == "done"]
    less = {"done": -len(closed), "pairs": -sum(closed), "scraped": len(closed) - len(rows)}
    less["bytes"] = -sum((row.parcel or {}).get("size", 0) for row in rows if row.state != "done")
    named = select(workers.c.nickname).where(workers.c.id == worker)
    nickname = connection.execute(named).scalar_one()
    totals.add_to_totals(connection, worker, nickname, **less)
    return len(rows)
