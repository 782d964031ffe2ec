"""The ledger: which shards are to do, leased, sealed, done, with what result; of one run.

A shard goes ``todo → leased → sealed → done``: sealed when its files are in the dataset on this
machine and its pairs are known, done when they are where they shall be (uploaded). A failure takes
it back to ``todo`` until its attempts are used up, then to ``failed``. A shard that was committed
and is not whole any more is ``damaged``, until it is whole again or forgotten. It does not know
what a shard holds.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import closing
from dataclasses import dataclass
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
from cahlib.ledger.database import Database
from cahlib.ledger.schema import pairs as _pairs
from cahlib.ledger.schema import schema
from cahlib.ledger.schema import shards as _shards

_log = logging.getLogger(__name__)

#: What SQLite says of a sound file that is something else.
_OTHER = re.compile("no such|has no column")

_STATES = "todo", "leased", "sealed", "done", "failed", "damaged"


def following(state: str, *conditions: Any, lane: int = 0, count: int = 1) -> Select[tuple[int]]:
    """The numbers of the next shards in a state; those that failed come after the others.

    Locked for who asks, and those that others have locked are passed over, so that claiming it is
    one statement. SQLite has no such locks and needs none: it lets one writer in at a time.
    """
    return (
        select(_shards.c.number)
        .where(_shards.c.state == state, _shards.c.lane == lane, *conditions)
        .order_by(_shards.c.attempts, _shards.c.number)
        .limit(literal_column(str(count)))  # PostgreSQL's planner has to know how few they are
        .with_for_update(skip_locked=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many shards are in which state."""

    todo: int
    leased: int
    sealed: int
    done: int
    failed: int
    damaged: int = 0

    @property
    def open(self) -> int:
        """Shards that may still bring a parcel."""
        return self.todo + self.leased

    @property
    def total(self) -> int:
        return self.open + self.sealed + self.done + self.failed + self.damaged


class DamagedLedger(ConfigError):
    """The file of a ledger cannot be read as one."""


def _mark(digest: str) -> int:
    """Return what stands of a digest in the head of an SQLite file, where 31 bits are free."""
    return int(digest[:8], 16) >> 1


class Ledger:
    """The shards of one run in an SQLite file; safe for several threads of one process."""

    def __init__(self, path: Path) -> None:
        self._database = Database(URL.create("sqlite", database=str(path)))
        try:
            schema.create_all(self._database.engine, [_shards, _pairs])
            wrong = self._wrong()
        except DatabaseError as error:
            self.close()
            wrong = str(error.orig)
            if is_disk_full(error):
                raise disk_full_error(path) from error
            # what fails to be opened, locked or read is a file in trouble, not a damaged one
            if isinstance(error, OperationalError) and not _OTHER.search(wrong):
                raise ConfigError(f"output: {path} cannot be used ({wrong}).") from error
        if wrong:
            self.close()
            raise DamagedLedger(f"{path} is not a ledger of cahlib that can be read ({wrong}).")

    @classmethod
    def sound(cls, path: Path) -> Ledger:
        """Open a ledger; one that is damaged is put aside, and a new one begun.

        A ledger is an index of the dataset, from which it can be filled again.
        """
        try:
            return cls(path)
        except DamagedLedger as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            for kind in ("-wal", "-shm"):
                path.with_name(path.name + kind).unlink(missing_ok=True)
            _log.warning("%s It is made anew from the dataset; the old one is %s.", error, aside)
            return cls(path)

    def _wrong(self) -> str:
        """Return what is wrong with the file, or ""; raise as SQLite does."""
        with self._database.engine.connect() as connection:
            for table in (_shards, _pairs):
                connection.execute(select(table).limit(1)).all()
            found = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
        return "" if found == "ok" else found

    def is_of(self, digest: str) -> bool:
        """Whether the ledger is that of a job with these settings, or of nobody yet."""
        with self._database.read() as connection:
            return connection.exec_driver_sql("PRAGMA application_id").scalar() in (
                0,
                _mark(digest),
            )

    def belong(self, digest: str) -> None:
        """Note by whose settings its shards are done; an earlier version did not."""
        with self._database.write() as connection:
            connection.exec_driver_sql(f"PRAGMA application_id = {_mark(digest)}")

    def add(self, shards: Iterable[Shard]) -> None:
        """Put shards at the end of the list; those that are in it already stay as they are."""
        every = iter(shards)
        with self._database.write() as connection:
            while batch := list(islice(every, 5000)):
                rows = [{"id": s.id, "url": s.url, "half": s.half} for s in batch]
                connection.execute(self._database.insert(_shards).on_conflict_do_nothing(), rows)

    def recover(self) -> None:
        """Take back what an earlier launch left unfinished; only one process may hold a ledger."""
        with self._database.write() as connection:
            connection.execute(
                update(_shards)
                .where(_shards.c.state.in_(["leased", "failed"]))
                .values(state="todo", attempts=0)
            )

    def lease(self, room: int = 1) -> Shard | None:
        """Lease the next shard, if any; those that failed come after the others.

        ``room``: so many would be taken, which matters only to a tracker.
        """
        with self._database.write() as connection:
            row = connection.execute(
                update(_shards)
                .where(_shards.c.number == following("todo").scalar_subquery())
                .values(state="leased", attempts=_shards.c.attempts + 1)
                .returning(_shards.c.id, _shards.c.url, _shards.c.half)
            ).first()
        return None if row is None else Shard(id=row.id, url=row.url, half=row.half)

    def give_back(self, shard: Shard, error: str) -> None:
        """A leased shard is to do again, and the attempt does not count."""
        self._change(shard, state="todo", attempts=_shards.c.attempts - 1, error=error)

    def fail(self, shard: Shard, error: str, *, attempts: int) -> bool:
        """Note a failed attempt; True if that was the last one."""
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

    def seal(self, shard: Shard, uids: Iterable[str], stats: Stats) -> None:
        """A shard's files are in the dataset: keep its pairs' uids and its stats."""
        keys = [bytes.fromhex(uid) for uid in uids]
        with self._database.write() as connection:
            number = connection.execute(
                update(_shards)
                .where(_shards.c.id == shard.id)
                .values(state="sealed", error=None, pairs=len(keys), tally=stats.as_dict())
                .returning(_shards.c.number)
            ).scalar_one()
            if keys:
                connection.execute(
                    self._database.insert(_pairs), [{"uid": key, "shard": number} for key in keys]
                )

    def adopt(self, shard: Shard, uids: Iterable[str], stats: Stats, *, state: str) -> None:
        """Enter a shard that is in the dataset, whatever was known of it, as sealed or done."""
        values = {"url": shard.url, "half": shard.half, "state": state, "error": None}
        keys = list(dict.fromkeys(bytes.fromhex(uid) for uid in uids))
        values |= {"pairs": len(keys), "tally": stats.as_dict()}
        with self._database.write() as connection:
            number = self._put(connection, shard.id, values)
            connection.execute(delete(_pairs).where(_pairs.c.shard == number))
            if keys:
                connection.execute(
                    self._database.insert(_pairs).on_conflict_do_nothing(),
                    [{"uid": key, "shard": number} for key in keys],
                )

    def damage(self, id: str, error: str) -> None:
        """A committed shard is not whole; its pairs stay known."""
        with self._database.write() as connection:
            self._put(connection, id, {"state": "damaged", "error": error})

    def _put(self, connection: Connection, id: str, values: dict[str, Any]) -> int:
        row = {"id": id, "url": "", "half": 0, **values}
        changed = self._database.insert(_shards).values(row)
        changed = changed.on_conflict_do_update(index_elements=["id"], set_=values)
        return int(connection.execute(changed.returning(_shards.c.number)).scalar_one())

    def remove(self, id: str) -> None:
        """Forget a shard and its pairs, whatever its state: it may be added again."""
        numbers = select(_shards.c.number).where(_shards.c.id == id)
        with self._database.write() as connection:
            connection.execute(delete(_pairs).where(_pairs.c.shard.in_(numbers)))
            connection.execute(delete(_shards).where(_shards.c.id == id))

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard is where it shall be."""
        query = select(_shards.c.state).where(_shards.c.id == shard.id)
        with self._database.read() as connection:
            return connection.execute(query).scalar() == "done"

    def states(self) -> dict[str, str]:
        """Return the state of every shard, by id."""
        with self._database.read() as connection:
            rows = connection.execute(select(_shards.c.id, _shards.c.state))
            return {row.id: row.state for row in rows}

    def done(self, shard: Shard) -> None:
        """A sealed shard is where it shall be."""
        self._change(shard, state="done")

    def seen(self, uid: str) -> bool:
        """Whether a sealed shard brought this pair."""
        query = select(_pairs.c.uid).where(_pairs.c.uid == bytes.fromhex(uid))
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def more(self) -> bool:
        """Whether there may be shards to lease yet."""
        return self.counts().open > 0

    def parcel(self, shard: Shard) -> dict[str, Any] | None:
        """Where a shard's parcel is, if somebody else has scraped it: never, in a run alone."""
        return None

    def ours(self, shard: Shard, judged: Iterator[Judged]) -> Iterator[Judged]:
        """A shard's judged images; nobody else could have them."""
        return judged

    def leave_out(self, take: Callable[[Set[str]], None]) -> None:
        """Have the pairs taken out that others were first to bring: none, in a run alone."""

    def uids(self, id: str) -> list[str]:
        """Return the pairs of a shard that is in the dataset."""
        query = select(_pairs.c.uid).join(_shards, _shards.c.number == _pairs.c.shard)
        query = query.where(_shards.c.id == id)
        with self._database.read() as connection:
            return [key.hex() for key in connection.execute(query).scalars()]

    def forget(self, shard: Shard) -> None:
        """A shard that is not done is not this run's any more."""
        with self._database.write() as connection:
            given = _shards.c.state.in_(["todo", "leased"])
            connection.execute(delete(_shards).where(_shards.c.id == shard.id, given))

    def account(self, id: str) -> tuple[int, Stats] | None:
        """Return a sealed shard's pairs and stats; None if it was never sealed here."""
        query = select(_shards.c.pairs, _shards.c.tally).where(_shards.c.id == id)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return (row.pairs, Stats.from_dict(row.tally)) if row and row.tally else None

    def counts(self) -> Counts:
        """How many shards are in which state."""
        query = select(_shards.c.state, func.count()).group_by(_shards.c.state)
        with self._database.read() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return Counts(**{s: found.get(s, 0) for s in _STATES})

    def stats(self) -> Stats:
        """What became of everything in the sealed shards."""
        query = select(_shards.c.tally).where(_shards.c.tally.is_not(None))
        with self._database.read() as connection:
            each = (Stats.from_dict(row.tally) for row in connection.execute(query))
            return sum(each, Stats())

    def in_state(self, *states: str) -> list[Shard]:
        """The shards in these states, or all, in their order."""
        query = (
            select(_shards.c.id, _shards.c.url, _shards.c.half)
            .where(_shards.c.state.in_(states or _STATES))
            .order_by(_shards.c.number)
        )
        with self._database.read() as connection:
            return [Shard(id=r.id, url=r.url, half=r.half) for r in connection.execute(query)]

    def errors(self, state: str = "failed") -> list[tuple[str, str]]:
        """Id and last error of each shard that was given up, or is damaged."""
        query = select(_shards.c.id, _shards.c.error).where(_shards.c.state == state)
        with self._database.read() as connection:
            return [(row.id, row.error) for row in connection.execute(query)]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _change(self, shard: Shard, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(update(_shards).where(_shards.c.id == shard.id).values(**values))


def committed(path: Path) -> set[str]:
    """Return the ids of the shards that a ledger calls committed; none if it cannot be read.

    Nothing is written, so it may lie on a disk that is read-only.
    """
    try:
        if not path.is_file():
            return set()
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as file:
            rows = file.execute(
                "SELECT id FROM shards WHERE state IN ('sealed', 'done', 'damaged')"
            )
            return {str(id) for (id,) in rows}
    except (OSError, sqlite3.Error):
        return set()
