"""What workers and the people behind them have done; every shard that is closed changes it."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, update

from cahlib.ledger.database import Database
from cahlib.tracker.schema import people, workers

_COUNTED = ("scraped", "done", "pairs")
_GROWING = (
    update(workers)
    .where(workers.c.id == bindparam("id_"))
    .values({name: workers.c[name] + bindparam(name) for name in _COUNTED})
)


def count(
    database: Database, connection: Connection, worker: int, nickname: str, **more: int
) -> None:
    """Add to what a worker and the person behind it have done; less than 0 takes it back."""
    values = {"id_": worker} | {name: more.get(name, 0) for name in _COUNTED}
    # First the worker, then the person, as everywhere: two transactions never wait in a ring.
    connection.execute(_GROWING, values)
    person = {"nickname": nickname} | {name: more.get(name, 0) for name in (*_COUNTED, "bytes")}
    upsert = database.insert(people)
    grown = {name: people.c[name] + upsert.excluded[name] for name in (*_COUNTED, "bytes")}
    keys = ["nickname"]
    connection.execute(upsert.on_conflict_do_update(index_elements=keys, set_=grown), person)
