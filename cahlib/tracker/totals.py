"""The totals of workers and people, which every finished shard changes."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, update

from cahlib.ledger.database import insert_into
from cahlib.tracker.schema import people, workers

_WORKER_COLUMNS = ("scraped", "done", "pairs")
_ADD_TO_WORKER = (
    update(workers)
    .where(workers.c.id == bindparam("id_"))
    .values({name: workers.c[name] + bindparam(name) for name in _WORKER_COLUMNS})
)


def add_to_totals(connection: Connection, worker: int, nickname: str, **more: int) -> None:
    """Add to the totals of a worker and its person; negative numbers subtract."""
    values = {"id_": worker} | {name: more.get(name, 0) for name in _WORKER_COLUMNS}
    # the worker before the person, as everywhere: transactions cannot deadlock
    connection.execute(_ADD_TO_WORKER, values)
    person = {"nickname": nickname} | {
        name: more.get(name, 0) for name in (*_WORKER_COLUMNS, "bytes")
    }
    upsert = insert_into(connection, people)
    sums = {name: people.c[name] + upsert.excluded[name] for name in (*_WORKER_COLUMNS, "bytes")}
    keys = ["nickname"]
    connection.execute(upsert.on_conflict_do_update(index_elements=keys, set_=sums), person)
