"""The failures of workers with shards, and the shards that failed too often."""

from __future__ import annotations

from sqlalchemy import Connection, func, select, update

from cahlib.ledger.database import insert_into
from cahlib.ledger.schema import shards
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.schema import failures


def record_failure(
    connection: Connection, worker: int, number: int, error: str, now: float
) -> None:
    """Record that a worker failed with a shard; it does not get it again."""
    values = {"time": now, "error": error}
    insert = insert_into(connection, failures).values(shard=number, worker=worker, **values)
    keys = ["shard", "worker"]
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=values))


def set_aside_if_hopeless(
    connection: Connection, number: int, attempts: int, rules: TrackerRules
) -> bool:
    """Set a shard aside if it failed for several workers or too often; return whether."""
    several = select(func.count()).where(failures.c.shard == number)
    failed: int = connection.execute(several).scalar_one()
    if failed < rules.max_failures and attempts < rules.max_attempts:
        return False
    connection.execute(update(shards).where(shards.c.number == number).values(state="failed"))
    return True
