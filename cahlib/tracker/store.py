"""The ledger: which shards are to do, leased, sealed, done, with what result; of one run.

A shard goes ``todo → leased → sealed → done``: sealed when its files are in the dataset on this
machine and its pairs are known, done when they are where they shall be (uploaded). A failure takes
it back to ``todo`` until its attempts are used up, then to ``failed``. It does not know what a
shard holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ScalarSelect, case, delete, func, select, update
from sqlalchemy.exc import DatabaseError

from cahlib.errors import ConfigError, is_full, no_space
from cahlib.records import Judged, Shard, Tally
from cahlib.tracker.database import Database
from cahlib.tracker.schema import pairs as _pairs
from cahlib.tracker.schema import schema
from cahlib.tracker.schema import shards as _shards


def following(state: str, *conditions: Any, lane: int = 0) -> ScalarSelect[int]:
    """The number of the next shard in a state; those that failed come after the others.

    Locked for who asks, and those that others have locked are passed over, so that claiming it is
    one statement. SQLite has no such locks and needs none: it lets one writer in at a time.
    """
    return (
        select(_shards.c.number)
        .where(_shards.c.state == state, _shards.c.lane == lane, *conditions)
        .order_by(_shards.c.attempts, _shards.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many shards are in which state."""

    todo: int
    leased: int
    sealed: int
    done: int
    failed: int

    @property
    def open(self) -> int:
        """Shards that may still bring a parcel."""
        return self.todo + self.leased

    @property
    def total(self) -> int:
        return self.open + self.sealed + self.done + self.failed


class Ledger:
    """The shards of one run in an SQLite file; safe for several threads of one process."""

    def __init__(self, path: Path) -> None:
        self._database = Database(URL.create("sqlite", database=str(path)))
        try:
            schema.create_all(self._database.engine, [_shards, _pairs])
        except DatabaseError as error:
            if is_full(error):
                raise no_space(path) from error
            raise ConfigError(
                f"{path} is not a ledger of cahlib that can be used ({error.orig}); "
                "choose another output folder."
            ) from error

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

    def lease(self) -> Shard | None:
        """The next shard to do, if any; those that failed come after the others."""
        with self._database.write() as connection:
            row = connection.execute(
                update(_shards)
                .where(_shards.c.number == following("todo"))
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

    def seal(self, shard: Shard, uids: Iterable[str], tally: Tally) -> None:
        """A shard's files are in the dataset: keep its pairs' uids and its tally."""
        keys = [bytes.fromhex(uid) for uid in uids]
        with self._database.write() as connection:
            number = connection.execute(
                update(_shards)
                .where(_shards.c.id == shard.id)
                .values(state="sealed", error=None, pairs=len(keys), tally=tally.as_dict())
                .returning(_shards.c.number)
            ).scalar_one()
            if keys:
                connection.execute(
                    self._database.insert(_pairs), [{"uid": key, "shard": number} for key in keys]
                )

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

    def forget(self, shard: Shard) -> None:
        """A shard that is not done is not this run's any more."""
        with self._database.write() as connection:
            given = _shards.c.state.in_(["todo", "leased"])
            connection.execute(delete(_shards).where(_shards.c.id == shard.id, given))

    def account(self, id: str) -> tuple[int, Tally] | None:
        """Return a sealed shard's pairs and tally; None if it was never sealed here."""
        query = select(_shards.c.pairs, _shards.c.tally).where(_shards.c.id == id)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return (row.pairs, Tally.from_dict(row.tally)) if row and row.tally else None

    def counts(self) -> Counts:
        """How many shards are in which state."""
        query = select(_shards.c.state, func.count()).group_by(_shards.c.state)
        with self._database.read() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return Counts(
            **{s: found.get(s, 0) for s in ("todo", "leased", "sealed", "done", "failed")}
        )

    def tally(self) -> Tally:
        """What became of everything in the sealed shards."""
        query = select(_shards.c.tally).where(_shards.c.tally.is_not(None))
        with self._database.read() as connection:
            each = (Tally.from_dict(row.tally) for row in connection.execute(query))
            return sum(each, Tally())

    def in_state(self, *states: str) -> list[Shard]:
        """The shards in these states, in their order."""
        query = (
            select(_shards.c.id, _shards.c.url, _shards.c.half)
            .where(_shards.c.state.in_(states))
            .order_by(_shards.c.number)
        )
        with self._database.read() as connection:
            return [Shard(id=r.id, url=r.url, half=r.half) for r in connection.execute(query)]

    def errors(self) -> list[tuple[str, str]]:
        """Id and last error of each shard that was given up."""
        query = select(_shards.c.id, _shards.c.error).where(_shards.c.state == "failed")
        with self._database.read() as connection:
            return [(row.id, row.error) for row in connection.execute(query)]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _change(self, shard: Shard, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(update(_shards).where(_shards.c.id == shard.id).values(**values))
