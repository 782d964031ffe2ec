"""Whole WAT files for legacy workers that scrape both halves at once, without leases."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, or_, select, update

from cahlib.ledger.database import Database
from cahlib.ledger.schema import shards
from cahlib.tracker import totals
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.models import InvalidRequest, TrackerRules, WorkerKind
from cahlib.tracker.schema import wats


def offer_wat(database: Database, now: float, rules: TrackerRules) -> str | None:
    """Return the URL of a WAT file with both halves free, not offered to another worker lately.

    It comes from the end of the list, which leases reach last, so the two ways seldom meet. Files
    tried before come last, each in one step of the index.
    """
    with database.write() as connection:
        for attempts in range(rules.max_attempts):
            if url := _offer(connection, now, now + rules.legacy_lease_seconds, attempts):
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
    # both halves, as only an offered half is accepted
    halves = shards.c.number.in_([first, first + 1]) & (shards.c.state == "todo")
    offered = update(shards).where(halves).values(expires=until)
    return connection.execute(offered.returning(shards.c.url)).scalars().first()


def find_wat_shards(database: Database, url: str) -> list[int]:
    """Return the numbers of a WAT file's shards; none for a file of another crawl."""
    with database.read() as connection:
        number = connection.execute(select(wats.c.number).where(wats.c.url == url)).scalar()
    return [] if number is None else [2 * number, 2 * number + 1]


def deliver_wats(lease_store: LeaseStore, secret: str, urls: Mapping[int, str]) -> int:
    """Record parcels of whole WAT files; return how many were unclaimed or this worker's."""
    with lease_store.as_worker(secret) as (connection, worker):
        if worker.kind is not WorkerKind.CPU:
            raise InvalidRequest("Only a CPU worker delivers a parcel.")
        offered = (shards.c.state == "todo") & (shards.c.expires > 0)
        mine = (shards.c.state == "leased") & (shards.c.worker == worker.id)
        scraped = {"state": "scraped", "lane": 1, "attempts": 0, "worker": None}
        delivered = 0
        for number, url in sorted(urls.items()):
            statement = (
                update(shards)
                .where(shards.c.number == number, or_(offered, mine))
                .values(scraper=worker.id, parcel={"url": url}, **scraped)
            )
            delivered += int(connection.execute(statement).rowcount)
        if delivered:
            totals.add_to_totals(connection, worker.id, worker.nickname, scraped=delivered)
        return delivered
