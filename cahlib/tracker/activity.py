"""What people did over time: recorded every five minutes, summed up to hours, then to days.

It is derived from each person's totals, so completions cost no more for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add, sub
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, delete, func, literal_column, or_, select

from cahlib.ledger.database import Database
from cahlib.tracker.schema import activity, people

HOUR, DAY = 3600, 86400
#: Seconds after which rows are summed up, and the size of those sums.
_AGES = ((3 * HOUR, HOUR), (14 * DAY, DAY))


class Work(NamedTuple):
    """What was done."""

    done: int = 0  #: shards
    scraped: int = 0  #: parcels
    pairs: int = 0
    bytes: int = 0  #: of the parcels

    def plus(self, other: Work) -> Work:
        """Return both together."""
        return Work(*map(add, self, other))

    def minus(self, other: Work) -> Work:
        """Return what this is more than another."""
        return Work(*map(sub, self, other))


_SUMS = tuple(func.sum(activity.c[name]).label(name) for name in Work._fields)
#: The row with the sum of a person's rows.
_noted = activity.alias()
_OF_PERSON = (_noted.c.nickname == people.c.nickname) & (_noted.c.time == 0)
#: What a person did since it was noted last.
_SINCE = tuple(
    (people.c[name] - func.coalesce(_noted.c[name], 0)).label(name) for name in Work._fields
)


def note(database: Database, connection: Connection, start: int) -> None:
    """Record what each person did since the last call, for the five minutes from ``start``."""
    grown = select(people.c.nickname, *_SINCE).outerjoin_from(people, _noted, _OF_PERSON)
    grown = grown.where(or_(*(each != 0 for each in _SINCE)))
    rows = [dict(row._mapping) for row in connection.execute(grown)]
    if rows:
        upsert = _adding(database, database.insert(activity))
        connection.execute(upsert, [row | {"time": time} for row in rows for time in (start, 0)])


def condense(database: Database, connection: Connection, now: float) -> None:
    """Sum rows up to hours, and those to days, once they are old enough."""
    for age, size in _AGES:
        start = activity.c.time - activity.c.time % literal_column(str(size))
        fine = (activity.c.time > 0) & (activity.c.time != start)
        fine &= activity.c.time < (now - age) // size * size
        sums = select(activity.c.nickname, start, *_SUMS).where(fine)
        fresh = database.insert(activity).from_select(
            ["nickname", "time", *Work._fields], sums.group_by(activity.c.nickname, start)
        )
        connection.execute(_adding(database, fresh))
        connection.execute(delete(activity).where(fine))


def _adding(database: Database, fresh: Any) -> Any:
    more = {name: activity.c[name] + fresh.excluded[name] for name in Work._fields}
    return fresh.on_conflict_do_update(index_elements=["nickname", "time"], set_=more)


def recent(connection: Connection, now: float) -> dict[tuple[str, int], Work]:
    """Return what was recorded by nickname and age.

    The ages: 0 is the last hour, 1 the hour before, 2 the rest of the last day, 3 the day before.
    """
    time = activity.c.time
    age = case(
        (time >= now - HOUR, 0), (time >= now - 2 * HOUR, 1), (time >= now - DAY, 2), else_=3
    )
    query = select(activity.c.nickname, age.label("age"), *_SUMS)
    query = query.where(time >= now - 2 * DAY).group_by(activity.c.nickname, "age")
    return {(row[0], row[1]): Work(*map(int, row[2:])) for row in connection.execute(query)}


def everyone(connection: Connection) -> list[tuple[Any, Work, Work]]:
    """Return each person's row, total work, and the part of it that is not recorded yet."""
    query = select(people, *_SINCE).outerjoin_from(people, _noted, _OF_PERSON)
    query = query.where(people.c.done + people.c.scraped > 0)
    return [
        (row, Work(*(row._mapping[people.c[name]] for name in Work._fields)), Work(*row[-4:]))
        for row in connection.execute(query)
    ]


def series(
    database: Database, names: Sequence[str], *, size: int, start: float
) -> dict[str, dict[int, Work]]:
    """Return what these people did from ``start`` on, in pieces of ``size`` seconds."""
    piece = (activity.c.time - activity.c.time % literal_column(str(size))).label("piece")
    which = activity.c.nickname.in_(names) & (activity.c.time >= max(start, 1))
    query = select(activity.c.nickname, piece, *_SUMS).where(which)
    found: dict[str, dict[int, Work]] = {name: {} for name in names}
    with database.read() as connection:
        rows = connection.execute(query.group_by(activity.c.nickname, piece).order_by(piece))
        for name, at, *sums in rows:
            found[name][int(at)] = Work(*map(int, sums))
    return found


def streak(days: Sequence[int], now: float) -> tuple[int, int]:
    """Return the current and the longest run of consecutive days.

    ``days`` are the starts of the days worked, in order; today may still be added to a run.
    """
    longest = run = 0
    before = None
    for day in days:
        run = run + 1 if before is not None and day - before == DAY else 1
        longest, before = max(longest, run), day
    lives = before is not None and before >= now // DAY * DAY - DAY
    return (run if lives else 0), longest
