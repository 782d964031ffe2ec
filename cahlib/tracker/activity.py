"""The work of people over time: recorded every five minutes, summed to hours, then days.

It is derived from each person's totals, so it costs completions nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add, sub
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, delete, func, literal_column, or_, select

from cahlib.ledger.database import Database, insert_into
from cahlib.tracker.schema import activity, people

HOUR, DAY = 3600, 86400
#: Age in seconds at which rows are summed, and the interval of the sums.
_AGES = ((3 * HOUR, HOUR), (14 * DAY, DAY))


class Contribution(NamedTuple):
    """The work that was done."""

    done: int = 0  #: shards
    scraped: int = 0  #: parcels
    pairs: int = 0
    bytes: int = 0  #: of the parcels

    def plus(self, other: Contribution) -> Contribution:
        """Return the sum of two contributions."""
        return Contribution(*map(add, self, other))

    def minus(self, other: Contribution) -> Contribution:
        """Return the difference of two contributions."""
        return Contribution(*map(sub, self, other))


_SUMS = tuple(func.sum(activity.c[name]).label(name) for name in Contribution._fields)
#: The row with the sum of a person's rows.
_recorded = activity.alias()
_OF_PERSON = (_recorded.c.nickname == people.c.nickname) & (_recorded.c.time == 0)
#: What a person did since it was recorded last.
_SINCE = tuple(
    (people.c[name] - func.coalesce(_recorded.c[name], 0)).label(name)
    for name in Contribution._fields
)


def record_activity(connection: Connection, start: int) -> None:
    """Record what each person did since the last call, for the five minutes from ``start``."""
    changed = select(people.c.nickname, *_SINCE).outerjoin_from(people, _recorded, _OF_PERSON)
    changed = changed.where(or_(*(each != 0 for each in _SINCE)))
    rows = [dict(row._mapping) for row in connection.execute(changed)]
    if rows:
        upsert = _upsert(insert_into(connection, activity))
        connection.execute(upsert, [row | {"time": time} for row in rows for time in (start, 0)])


def roll_up(connection: Connection, now: float) -> None:
    """Sum old rows to hours, and older ones to days."""
    for age, size in _AGES:
        start = activity.c.time - activity.c.time % literal_column(str(size))
        due = (activity.c.time > 0) & (activity.c.time != start)
        due &= activity.c.time < (now - age) // size * size
        sums = select(activity.c.nickname, start, *_SUMS).where(due)
        fresh = insert_into(connection, activity).from_select(
            ["nickname", "time", *Contribution._fields], sums.group_by(activity.c.nickname, start)
        )
        connection.execute(_upsert(fresh))
        connection.execute(delete(activity).where(due))


def _upsert(fresh: Any) -> Any:
    more = {name: activity.c[name] + fresh.excluded[name] for name in Contribution._fields}
    return fresh.on_conflict_do_update(index_elements=["nickname", "time"], set_=more)


def recent_activity(connection: Connection, now: float) -> dict[tuple[str, int], Contribution]:
    """Return what was recorded by nickname and age.

    Age 0 is the last hour, 1 the hour before, 2 the rest of the last day, 3 the day before.
    """
    time = activity.c.time
    age = case(
        (time >= now - HOUR, 0), (time >= now - 2 * HOUR, 1), (time >= now - DAY, 2), else_=3
    )
    query = select(activity.c.nickname, age.label("age"), *_SUMS)
    query = query.where(time >= now - 2 * DAY).group_by(activity.c.nickname, "age")
    return {(row[0], row[1]): Contribution(*map(int, row[2:])) for row in connection.execute(query)}


def lifetime_totals(connection: Connection) -> list[tuple[Any, Contribution, Contribution]]:
    """Return each person's row, total, and the part of the total that is not recorded yet."""
    query = select(people, *_SINCE).outerjoin_from(people, _recorded, _OF_PERSON)
    query = query.where(people.c.done + people.c.scraped > 0)
    return [
        (
            row,
            Contribution(*(row._mapping[people.c[name]] for name in Contribution._fields)),
            Contribution(*row[-4:]),
        )
        for row in connection.execute(query)
    ]


def activity_series(
    database: Database, names: Sequence[str], *, size: int, start: float
) -> dict[str, dict[int, Contribution]]:
    """Return what these people did from ``start`` on, by intervals of ``size`` seconds."""
    piece = (activity.c.time - activity.c.time % literal_column(str(size))).label("piece")
    which = activity.c.nickname.in_(names) & (activity.c.time >= max(start, 1))
    query = select(activity.c.nickname, piece, *_SUMS).where(which)
    found: dict[str, dict[int, Contribution]] = {name: {} for name in names}
    with database.read() as connection:
        rows = connection.execute(query.group_by(activity.c.nickname, piece).order_by(piece))
        for name, at, *sums in rows:
            found[name][int(at)] = Contribution(*map(int, sums))
    return found


def streak(days: Sequence[int], now: float) -> tuple[int, int]:
    """Return the current and the longest run of consecutive days.

    ``days`` are the starts of the days worked, in order; a run that includes yesterday is current.
    """
    longest = run = 0
    before = None
    for day in days:
        run = run + 1 if before is not None and day - before == DAY else 1
        longest, before = max(longest, run), day
    lives = before is not None and before >= now // DAY * DAY - DAY
    return (run if lives else 0), longest
