"""Which workers failed with which shards, and which shards failed for too many of them."""

from __future__ import annotations

from sqlalchemy import Connection, func, select, update

from cahlib.ledger.database import Database
from cahlib.ledger.schema import shards
from cahlib.tracker.models import Rules
from cahlib.tracker.schema import failures


def note(
    database: Database, connection: Connection, worker: int, number: int, error: str, now: float
) -> None:
    """Write down that a worker failed with a shard; it does not get it again."""
    values = {"time": now, "error": error}
    noted = database.insert(failures).values(shard=number, worker=worker, **values)
    keys = ["shard", "worker"]
    connection.execute(noted.on_conflict_do_update(index_elements=keys, set_=values))


def set_aside(connection: Connection, number: int, attempts: int, rules: Rules) -> bool:
    """Set a shard aside that failed for several workers, or too often; return whether it is."""
    several = select(func.count()).where(failures.c.shard == number)
    failed: int = connection.execute(several).scalar_one()
    if failed < rules.failures and attempts < rules.attempts:
        return False
    connection.execute(update(shards).where(shards.c.number == number).values(state="failed"))
    return True
