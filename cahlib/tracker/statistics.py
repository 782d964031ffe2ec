"""Statistics of a tracker: counts, leaderboards, workers, stuck shards, history.

Only `export_shards` reads all shards: finished work is summed by person, and the shards in each
other state are few, or one end of an index.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, select

from cahlib.ledger.database import Database, insert_into
from cahlib.ledger.schema import is_one_of, shards
from cahlib.tracker import activity
from cahlib.tracker.models import NotFound
from cahlib.tracker.schema import (
    failures,
    health,
    history,
    people,
    second_passes,
    teams,
    wats,
    workers,
)

#: Seconds without a sign of life after which a worker is not active.
ACTIVE_SECONDS = 900
#: A crawl's name in Common Crawl's file paths.
_CRAWL = re.compile(r"CC-MAIN-\d{4}(?:-\d{4})?-\d{2}")
#: Seconds per row of the history, and the age at which only full hours are kept.
SLOT_SECONDS, FULL_HISTORY_SECONDS = 300, 2 * 86400


#: A person's columns; "verified": the name has an owner, who has shown its secret.
_PERSON = (
    people.c.nickname,
    people.c.scraped,
    people.c.done,
    people.c.pairs,
    people.c.secret.is_not(None).label("verified"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawlCounts:
    """The state of the crawl."""

    total: int  #: shards
    leased: int  #: being scraped
    scraped: int  #: parcels waiting for a GPU worker
    judging: int  #: being judged by GPU workers
    failed: int  #: set aside
    done: int
    pairs: int
    parcels: int  #: delivered by CPU workers in total
    legacy_parcels: int  #: of `scraped`, those of the legacy protocol

    @property
    def todo(self) -> int:
        """Shards that no worker has taken."""
        rest = self.total - self.leased - self.scraped - self.judging - self.failed - self.done
        return max(rest, 0)

    @property
    def share(self) -> float:
        """The share of shards done, 0 … 1."""
        return self.done / self.total if self.total else 0.0


def crawl_counts(database: Database) -> CrawlCounts:
    """Return the state of the crawl now."""
    lanes = select(shards.c.state, shards.c.lane, func.count()).where(
        shards.c.state.in_(["leased", "scraped", "judging", "failed"])
    )
    sums = select(func.sum(people.c.done), func.sum(people.c.pairs), func.sum(people.c.scraped))
    with database.read() as connection:
        found = {
            (row[0], row[1]): row[2]
            for row in connection.execute(lanes.group_by(shards.c.state, shards.c.lane))
        }
        done, pairs, parcels = (int(n or 0) for n in connection.execute(sums).one())
        last = connection.execute(select(func.max(shards.c.number))).scalar()
        single = connection.execute(select(func.count()).select_from(second_passes)).scalar_one()
    state = {
        name: sum(n for (each, _), n in found.items() if each == name)
        for name in ("leased", "scraped", "judging", "failed")
    }
    return CrawlCounts(
        **state,
        total=0
        if last is None
        else 2 * (last // 2 + 1) - single,  # second passes have one half only
        done=done,
        pairs=pairs,
        parcels=parcels,
        legacy_parcels=found.get(("scraped", 1), 0),
    )


def count_workers(database: Database, now: float) -> dict[str, int]:
    """Return the number of active workers of each kind."""
    query = select(workers.c.kind, func.count()).where(is_active(now)).group_by(workers.c.kind)
    with database.read() as connection:
        found = {row[0]: row[1] for row in connection.execute(query)}
    return {kind: found.get(kind, 0) for kind in ("hybrid", "cpu", "gpu")}


def list_leaders(database: Database, *, by: str = "pairs", most: int = 100) -> list[dict[str, Any]]:
    """Return the people who did most, by "pairs" or by parcels "scraped"."""
    column = people.c[by]
    query = (
        select(*_PERSON).where(column > 0).order_by(column.desc(), people.c.nickname).limit(most)
    )
    return _rows(database, query)


def get_worker(database: Database, name: str) -> dict[str, Any]:
    """Return what is known of a worker by its name, and its shards; raise NotFound."""
    shown = [c for c in workers.c if c.name != "secret"]
    found = _rows(database, select(*shown).where(workers.c.name == name))
    if not found:
        raise NotFound(f"There is no worker {name}.")
    held = select(shards.c.number).where(
        shards.c.worker == found[0]["id"], is_one_of(shards.c.state, "leased", "judging")
    )
    return found[0] | {"shards": sorted(row["number"] for row in _rows(database, held))}


def find_worker_ids(database: Database, name: str) -> list[int]:
    """Return the ids of the worker with a name, or of all with a nickname; raise NotFound."""
    for column in (workers.c.name, workers.c.nickname):
        if found := _rows(database, select(workers.c.id).where(column == name)):
            return [row["id"] for row in found]
    raise NotFound(f"There is no worker or nickname {name}.")


def search_workers(
    database: Database, *conditions: Any, skip: int = 0, most: int = 100
) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of workers that meet conditions, and some of them, last seen first."""
    shown = [c for c in workers.c if c.name not in ("secret", "id")]
    query = select(*shown).where(*conditions).order_by(workers.c.last_seen.desc(), workers.c.id)
    with database.read() as connection:
        number = connection.execute(select(func.count()).select_from(workers).where(*conditions))
        rows = connection.execute(query.offset(skip).limit(most))
        return number.scalar_one(), [dict(row._mapping) for row in rows]


def is_active(now: float) -> Any:
    """Return a condition for workers with a recent sign of life."""
    return (workers.c.last_seen > now - ACTIVE_SECONDS) & ~workers.c.gone


def name_contains(text: str) -> Any:
    """Return a condition for workers with a text in their name or nickname."""
    return workers.c.name.icontains(text, autoescape=True) | workers.c.nickname.icontains(
        text, autoescape=True
    )


def has_nickname(nickname: str) -> Any:
    """Return a condition for a person's workers."""
    return workers.c.nickname == nickname


def latest_finished(database: Database, *, most: int = 12) -> list[dict[str, Any]]:
    """Return the latest finished shards and their workers."""
    query = (
        select(
            shards.c.number,
            shards.c.pairs,
            shards.c.finished,
            workers.c.nickname,
            workers.c.kind,
            workers.c.pairs.label("all_pairs"),
            workers.c.first_seen,
        )
        .join(workers, workers.c.id == shards.c.worker)
        .where(shards.c.finished.is_not(None))
        .order_by(shards.c.finished.desc())
    )
    return _rows(database, query.limit(most))


def crawl_range(database: Database) -> list[str]:
    """Return the names of the first and the last crawl, as far as the URLs of WATs tell."""
    ends = [func.min(wats.c.number), func.max(wats.c.number)]
    with database.read() as connection:
        numbers = connection.execute(select(*ends)).one()
        query = select(wats.c.url).where(wats.c.number.in_(numbers)).order_by(wats.c.number)
        urls = connection.execute(query).scalars().all()
    named = (_CRAWL.search(url) for url in urls)
    return list(dict.fromkeys(each[0] for each in named if each))


def stuck_shards(database: Database, *, most: int = 2000) -> list[dict[str, Any]]:
    """Return the shards set aside, with their last error and how many workers failed."""
    failed = (
        select(func.count())
        .where(failures.c.shard == shards.c.number)
        .scalar_subquery()
        .label("workers")
    )
    query = select(
        shards.c.number, shards.c.id, shards.c.url, shards.c.attempts, shards.c.error, failed
    ).where(shards.c.state == "failed")
    return _rows(database, query.order_by(shards.c.number).limit(most))


def record_history(database: Database, now: float) -> None:
    """Record the state of the crawl every five minutes, by whichever server comes first."""
    slot = int(now // SLOT_SECONDS * SLOT_SECONDS)
    with database.read() as connection:
        if connection.execute(select(history.c.time).where(history.c.time == slot)).first():
            return
    state = crawl_counts(database)
    row = {"done": state.done, "scraped": state.parcels, "pairs": state.pairs}
    row |= {"time": slot, "workers": sum(count_workers(database, now).values())}
    old = (history.c.time < slot - FULL_HISTORY_SECONDS) & (history.c.time % 3600 != 0)
    forgotten = (
        (workers.c.last_seen < now - 30 * 86400) & (workers.c.done == 0) & (workers.c.scraped == 0)
    )
    idle = (people.c.done == 0) & (people.c.scraped == 0) & ~people.c.banned
    idle &= ~select(1).where(workers.c.nickname == people.c.nickname).exists()
    empty = ~select(1).where(people.c.team == teams.c.name).exists()
    with database.write() as connection:
        fresh = insert_into(connection, history).values(row).on_conflict_do_nothing()
        if connection.execute(fresh.returning(history.c.time)).first() is None:
            return
        activity.record_activity(connection, slot - SLOT_SECONDS)
        activity.roll_up(connection, now)
        connection.execute(delete(history).where(old))
        connection.execute(delete(workers).where(forgotten))
        connection.execute(delete(people).where(idle))
        connection.execute(delete(teams).where(empty))


def check_writable(database: Database, now: float) -> None:
    """Write to the database as each lease does; raise DatabaseUnavailable if that fails."""
    with database.write() as connection:
        row = insert_into(connection, health).values(id=1, time=now)
        connection.execute(row.on_conflict_do_update(index_elements=["id"], set_={"time": now}))


def history_since(database: Database, since: float) -> list[dict[str, Any]]:
    """Return the history from a time on, oldest first."""
    query = select(history).where(history.c.time >= since).order_by(history.c.time)
    return _rows(database, query)


def full_leaderboard(database: Database) -> list[dict[str, Any]]:
    """Return the whole leaderboard."""
    worked = people.c.done + people.c.scraped > 0
    query = select(*_PERSON).where(worked)
    return _rows(database, query.order_by(people.c.pairs.desc(), people.c.nickname))


def export_shards(database: Database) -> Iterator[dict[str, Any]]:
    """Yield every shard with its state, read as it goes."""
    query = (
        select(
            shards.c.number, shards.c.id, shards.c.url, shards.c.half, shards.c.state,
            shards.c.attempts, shards.c.pairs, workers.c.name.label("worker"),
            workers.c.nickname, shards.c.output, shards.c.finished, shards.c.error, shards.c.tally,
        )
        .outerjoin_from(shards, workers, workers.c.id == shards.c.worker)
        .order_by(shards.c.number)
        .execution_options(yield_per=5000)
    )  # fmt: skip
    with database.read() as connection:
        for row in connection.execute(query):
            yield dict(row._mapping)


def _rows(database: Database, query: Select[Any]) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]
