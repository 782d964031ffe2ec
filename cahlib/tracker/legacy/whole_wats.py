"""Whole WAT files, for workers of the old protocol that scrape both halves at once; no leases."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, or_, select, update

from cahlib.ledger.database import Database
from cahlib.ledger.schema import shards
from cahlib.tracker import credit
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.models import Invalid, Kind, Rules
from cahlib.tracker.schema import wats


def offer(database: Database, now: float, rules: Rules) -> str | None:
    """The URL of a WAT file with both halves free, not offered to another for some time.

    From the far end of the list, where a lease comes last: so the two ways seldom meet. What was
    tried before comes after the rest, each time in one step of the index.
    """
    with database.write() as connection:
        for attempts in range(rules.attempts):
            if url := _offer(connection, now, now + rules.old_lease, attempts):
                return url
    return None


def _offer(connection: Connection, now: float, until: float, attempts: int) -> str | None:
    other = shards.alias()
    free = select(1).where(other.c.number == shards.c.number + 1, other.c.state == "todo").exists()
    whole = (
        select(shards.c.number)
        .where(shards.c.state == "todo", shards.c.lane == 0, shards.c.attempts == attempts)
        .where(shards.c.half == 0, shards.c.expires <= now, free)
        .order_by(shards.c.number.desc())
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    first = connection.execute(whole).scalar()
    if first is None:
        return None
    # Both halves: what was never offered is not taken back.
    halves = shards.c.number.in_([first, first + 1]) & (shards.c.state == "todo")
    offered = update(shards).where(halves).values(expires=until)
    return connection.execute(offered.returning(shards.c.url)).scalars().first()


def find(database: Database, url: str) -> list[int]:
    """The numbers of a WAT file's shards; none for a file of another crawl."""
    with database.read() as connection:
        number = connection.execute(select(wats.c.number).where(wats.c.url == url)).scalar()
    return [] if number is None else [2 * number, 2 * number + 1]


def bring(lease_store: LeaseStore, database: Database, secret: str, urls: Mapping[int, str]) -> int:
    """Take parcels of whole WAT files; how many were offered and are free yet, or his."""
    with lease_store.acting(secret) as (connection, worker):
        if worker.kind is not Kind.CPU:
            raise Invalid("Only a CPU worker brings a parcel.")
        offered = (shards.c.state == "todo") & (shards.c.expires > 0)
        mine = (shards.c.state == "leased") & (shards.c.worker == worker.id)
        scraped = {"state": "scraped", "lane": 1, "attempts": 0, "worker": None}
        brought = 0
        for number, url in sorted(urls.items()):
            delivered = (
                update(shards)
                .where(shards.c.number == number, or_(offered, mine))
                .values(scraper=worker.id, parcel={"url": url}, **scraped)
            )
            brought += int(connection.execute(delivered).rowcount)
        if brought:
            credit.count(database, connection, worker.id, worker.nickname, scraped=brought)
        return brought
