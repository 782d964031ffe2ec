"""The ledger of a single run in an SQLite file, as `cahlib.ledger.protocol` describes it.

It does not know what a shard holds.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Select,
    case,
    delete,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError, OperationalError

from cahlib.core.errors import ConfigError, disk_full_error, is_disk_full
from cahlib.core.records import Judged, Shard, Stats
from cahlib.core.retry_shards import parse_attempt
from cahlib.ledger.database import Database, insert_into
from cahlib.ledger.protocol import COMMITTED, ShardCounts
from cahlib.ledger.schema import metadata
from cahlib.ledger.schema import pairs as _pairs
from cahlib.ledger.schema import shards as _shards

_log = logging.getLogger(__name__)

#: SQLite's errors for a sound file that is not a ledger.
_NOT_A_LEDGER = re.compile("no such|has no column")

#: Asked for every pair.
_HAS_PAIR = f"SELECT 1 FROM {_pairs.name} WHERE uid = ?"

#: The lane of shards that retry failed links.
_RETRIES = 2

_STATES = "todo", "leased", COMMITTED, "done", "failed", "damaged"


def next_shards(state: str, *conditions: Any, lane: int = 0, count: int = 1) -> Select[tuple[int]]:
    """Return a query for the next shards in a state; those that failed come last.

    It locks the rows and skips those that others have locked, so that leasing is one statement.
    SQLite has no row locks and needs none: it admits one writer at a time.
    """
    return (
        select(_shards.c.number)
        .where(_shards.c.state == state, _shards.c.lane == lane, *conditions)
        .order_by(_shards.c.attempts, _shards.c.number)
        .limit(literal_column(str(count)))  # PostgreSQL's planner has to know how few they are
        .with_for_update(skip_locked=True)
    )


class DamagedLedger(ConfigError):
    """The file is not a readable ledger."""


def _application_id(digest: str) -> int:
    """Return the part of a digest that fits into SQLite's application id, which has 31 bits."""
    return int(digest[:8], 16) >> 1


def _lane(id: str) -> int:
    """Return the lane of a shard by its id."""
    return _RETRIES if parse_attempt(id)[1] else 0


class LocalLedger:
    """The `Ledger` of one run in an SQLite file; safe for several threads of one process."""

    def __init__(self, path: Path) -> None:
        self._database = Database(URL.create("sqlite", database=str(path)))
        self.retries = False
        try:
            metadata.create_all(self._database.engine, [_shards, _pairs])
            fault = self._fault()
        except DatabaseError as error:
            self.close()
            fault = str(error.orig)
            if is_disk_full(error):
                raise disk_full_error(path) from error
            # failing to open, lock or read a file does not mean that its content is damaged
            if isinstance(error, OperationalError) and not _NOT_A_LEDGER.search(fault):
                raise ConfigError(f"output: {path} cannot be used ({fault}).") from error
        if fault:
            self.close()
            raise DamagedLedger(f"{path} is not a readable ledger ({fault}).")

    @classmethod
    def open_or_replace(cls, path: Path) -> LocalLedger:
        """Open a ledger; set a damaged one aside and start a new one.

        A ledger is an index of the dataset and can be rebuilt from it.
        """
        try:
            return cls(path)
        except DamagedLedger as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            for kind in ("-wal", "-shm"):
                path.with_name(path.name + kind).unlink(missing_ok=True)
            _log.warning("%s It is rebuilt from the dataset; the old one is %s.", error, aside)
            return cls(path)

    def _fault(self) -> str:
        """Return what is wrong with the file, or ""; raise SQLite's errors."""
        with self._database.engine.connect() as connection:
            for table in (_shards, _pairs):
                connection.execute(select(table).limit(1)).all()
            found = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
        return "" if found == "ok" else found

    def belongs_to(self, digest: str) -> bool:
        """Return whether the ledger is of a job with these settings, or of no job yet."""
        with self._database.read() as connection:
            return connection.exec_driver_sql("PRAGMA application_id").scalar() in (
                0,
                _application_id(digest),
            )

    def assign_to(self, digest: str) -> None:
        """Record the settings that its shards are made with; earlier versions did not."""
        with self._database.write() as connection:
            connection.exec_driver_sql(f"PRAGMA application_id = {_application_id(digest)}")

    def fill(self, list_shards: Callable[[Callable[[], Sequence[Shard]]], Iterable[Shard]]) -> None:
        self.add(list_shards(self.in_state))

    def replace_retries(self, shards: Iterable[Shard]) -> None:
        """Append shards that retry failed links; forget those of before that are not committed."""
        with self._database.write() as connection:
            begun = _shards.c.lane == _RETRIES, _shards.c.state.in_(["todo", "leased"])
            connection.execute(delete(_shards).where(*begun))
        self.add(shards)

    def add(self, shards: Iterable[Shard]) -> None:
        """Append shards to the list; those already in it stay as they are."""
        every = iter(shards)
        with self._database.write() as connection:
            while batch := list(islice(every, 5000)):
                rows = [
                    {"id": s.id, "url": s.url, "half": s.half, "lane": _lane(s.id)} for s in batch
                ]
                connection.execute(insert_into(connection, _shards).on_conflict_do_nothing(), rows)

    def recover(self) -> None:
        """Requeue what an earlier launch left unfinished; one process may use a ledger."""
        with self._database.write() as connection:
            connection.execute(
                update(_shards)
                .where(_shards.c.state.in_(["leased", "failed"]))
                .values(state="todo", attempts=0)
            )

    def lease(self, count: int = 1) -> Shard | None:
        """Lease the next shard, if any; those that failed come last.

        ``count`` matters only to a tracker.
        """
        lane = _RETRIES if self.retries else 0
        with self._database.write() as connection:
            row = connection.execute(
                update(_shards)
                .where(_shards.c.number == next_shards("todo", lane=lane).scalar_subquery())
                .values(state="leased", attempts=_shards.c.attempts + 1)
                .returning(_shards.c.id, _shards.c.url, _shards.c.half)
            ).first()
        return None if row is None else Shard(id=row.id, url=row.url, half=row.half)

    def release(self, shard: Shard, error: str) -> None:
        self._change(shard, state="todo", attempts=_shards.c.attempts - 1, error=error)

    def fail(self, shard: Shard, error: str, *, attempts: int) -> bool:
        with self._database.write() as connection:
            state = connection.execute(
                update(_shards)
                .where(_shards.c.id == shard.id)
                .values(
                    state=case((_shards.c.attempts >= attempts, "failed"), else_="todo"),
                    error=error,
                )
                .returning(_shards.c.state)
            ).scalar_one()
        return bool(state == "failed")

    def commit(self, shard: Shard, uids: Iterable[str], stats: Stats) -> None:
        keys = [bytes.fromhex(uid) for uid in uids]
        with self._database.write() as connection:
            number = connection.execute(
                update(_shards)
                .where(_shards.c.id == shard.id)
                .values(state=COMMITTED, error=None, pairs=len(keys), tally=stats.as_dict())
                .returning(_shards.c.number)
            ).scalar_one()
            if keys:
                connection.execute(
                    insert_into(connection, _pairs), [{"uid": key, "shard": number} for key in keys]
                )

    def adopt(self, shard: Shard, uids: Iterable[str], stats: Stats, *, state: str) -> None:
        """Record a shard that is in the dataset as committed or done, whatever was known of it."""
        values = {"url": shard.url, "half": shard.half, "state": state, "error": None}
        keys = list(dict.fromkeys(bytes.fromhex(uid) for uid in uids))
        values |= {"pairs": len(keys), "tally": stats.as_dict()}
        with self._database.write() as connection:
            number = self._put(connection, shard.id, values)
            connection.execute(delete(_pairs).where(_pairs.c.shard == number))
            if keys:
                connection.execute(
                    insert_into(connection, _pairs).on_conflict_do_nothing(),
                    [{"uid": key, "shard": number} for key in keys],
                )

    def mark_damaged(self, id: str, error: str) -> None:
        """Record that a committed shard is not whole; its pairs stay known."""
        with self._database.write() as connection:
            self._put(connection, id, {"state": "damaged", "error": error})

    def _put(self, connection: Connection, id: str, values: dict[str, Any]) -> int:
        row = {"id": id, "url": "", "half": 0, "lane": _lane(id), **values}
        changed = insert_into(connection, _shards).values(row)
        changed = changed.on_conflict_do_update(index_elements=["id"], set_=values)
        return int(connection.execute(changed.returning(_shards.c.number)).scalar_one())

    def remove(self, id: str) -> None:
        """Forget a shard and its pairs, whatever its state; it may be added again."""
        numbers = select(_shards.c.number).where(_shards.c.id == id)
        with self._database.write() as connection:
            connection.execute(delete(_pairs).where(_pairs.c.shard.in_(numbers)))
            connection.execute(delete(_shards).where(_shards.c.id == id))

    def is_done(self, shard: Shard) -> bool:
        """Return whether a shard is at its destination."""
        query = select(_shards.c.state).where(_shards.c.id == shard.id)
        with self._database.read() as connection:
            return connection.execute(query).scalar() == "done"

    def states(self) -> dict[str, str]:
        """Return the state of every shard, by id."""
        with self._database.read() as connection:
            rows = connection.execute(select(_shards.c.id, _shards.c.state))
            return {row.id: row.state for row in rows}

    def mark_done(self, shard: Shard) -> None:
        self._change(shard, state="done")

    def has_pair(self, uid: str) -> bool:
        with self._database.cursor() as cursor:
            return cursor.execute(_HAS_PAIR, (bytes.fromhex(uid),)).fetchone() is not None

    def has_more(self) -> bool:
        return self.counts().open > 0

    def get_parcel(self, shard: Shard) -> dict[str, Any] | None:
        """Return None: without a tracker, no other worker has scraped a shard."""
        return None

    def resolve_claims(self, shard: Shard, judged: Iterator[Judged]) -> Iterator[Judged]:
        """Return a shard's judged images; without a tracker, no other worker claims them."""
        return judged

    def withdraw_claimed(self, withdraw: Callable[[Set[str]], None]) -> None:
        """Do nothing: without a tracker, no other worker claims pairs."""

    def uids(self, id: str) -> list[str]:
        """Return the pairs of a shard that is in the dataset."""
        query = select(_pairs.c.uid).join(_shards, _shards.c.number == _pairs.c.shard)
        query = query.where(_shards.c.id == id)
        with self._database.read() as connection:
            return [key.hex() for key in connection.execute(query).scalars()]

    def forget(self, shard: Shard) -> None:
        """Remove a shard that is not committed."""
        with self._database.write() as connection:
            open_ = _shards.c.state.in_(["todo", "leased"])
            connection.execute(delete(_shards).where(_shards.c.id == shard.id, open_))

    def committed_stats(self, id: str) -> Stats | None:
        """Return a committed shard's stats; None if it was never committed here."""
        query = select(_shards.c.tally).where(_shards.c.id == id)
        with self._database.read() as connection:
            stored = connection.execute(query).scalar()
        return Stats.from_dict(stored) if stored else None

    def counts(self) -> ShardCounts:
        own = _shards.c.lane == (_RETRIES if self.retries else 0)
        query = select(_shards.c.state, func.count()).where(own).group_by(_shards.c.state)
        with self._database.read() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        found["committed"] = found.pop(COMMITTED, 0)
        return ShardCounts(**{"todo": 0, "leased": 0, "done": 0, "failed": 0} | found)

    def stats(self) -> Stats:
        query = select(_shards.c.tally).where(_shards.c.tally.is_not(None))
        with self._database.read() as connection:
            each = (Stats.from_dict(row.tally) for row in connection.execute(query))
            return sum(each, Stats())

    def in_state(self, *states: str) -> list[Shard]:
        query = (
            select(_shards.c.id, _shards.c.url, _shards.c.half)
            .where(_shards.c.state.in_(states or _STATES))
            .order_by(_shards.c.number)
        )
        with self._database.read() as connection:
            return [Shard(id=r.id, url=r.url, half=r.half) for r in connection.execute(query)]

    def errors(self, state: str = "failed") -> list[tuple[str, str]]:
        query = select(_shards.c.id, _shards.c.error).where(_shards.c.state == state)
        with self._database.read() as connection:
            return [(row.id, row.error) for row in connection.execute(query)]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _change(self, shard: Shard, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(update(_shards).where(_shards.c.id == shard.id).values(**values))


def committed_shards(path: Path) -> set[str]:
    """Return the ids of the committed shards in a ledger; none if it cannot be read."""
    return _select_ids(path, "state IN ('sealed', 'done', 'damaged')")


def listed_shards(path: Path) -> set[str]:
    """Return the ids of all shards in a ledger; none if it cannot be read."""
    return _select_ids(path, "TRUE")


def _select_ids(path: Path, condition: str) -> set[str]:
    """Return ids of shards; nothing is written, so the disk may be read-only."""
    try:
        if not path.is_file():
            return set()
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as file:
            rows = file.execute(f"SELECT id FROM shards WHERE {condition}")
            return {str(id) for (id,) in rows}
    except (OSError, sqlite3.Error):
        return set()
