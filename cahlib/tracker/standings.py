"""Leaderboards of people and teams for the last hour, the last day and all time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cahlib.ledger.database import Database
from cahlib.tracker import activity
from cahlib.tracker.activity import Contribution

PERIODS = {"hour": "last hour", "day": "last day", "all": "all time"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributor:
    """A person or a team, and what was done."""

    name: str
    team: str | None = None  #: of a person
    verified: bool = False  #: workers under this name have proved that they own it
    members: int = 1
    now: Mapping[str, Contribution]  #: by period
    before: Mapping[str, Contribution]  #: in the period before; for all time: until a day ago


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A place on a leaderboard."""

    rank: int
    climbed: int | None  #: places since the period before; None if there was none
    who: Contributor
    work: Contribution


def list_contributors(database: Database, now: float) -> list[Contributor]:
    """Return everybody who has finished a shard or delivered a parcel."""
    with database.read() as connection:
        recent = activity.recent_activity(connection, now)
        every = activity.lifetime_totals(connection)
    return [_contributor(row, total, fresh, recent) for row, total, fresh in every]


def _contributor(
    row: object,
    total: Contribution,
    fresh: Contribution,
    recent: Mapping[tuple[str, int], Contribution],
) -> Contributor:
    name = row.nickname  # type: ignore[attr-defined]
    hour, hour_before, rest, day_before = (
        recent.get((name, age), Contribution()) for age in range(4)
    )
    hour = hour.plus(fresh)
    day = hour.plus(hour_before).plus(rest)
    return Contributor(
        name=name,
        team=row.team,  # type: ignore[attr-defined]
        verified=row.secret is not None,  # type: ignore[attr-defined]
        now={"hour": hour, "day": day, "all": total},
        before={"hour": hour_before, "day": day_before, "all": total.minus(day)},
    )


def team_contributors(people: Iterable[Contributor]) -> list[Contributor]:
    """Return the teams, with all that their present members did."""
    members: dict[str, list[Contributor]] = {}
    for one in people:
        if one.team:
            members.setdefault(one.team, []).append(one)
    return [
        Contributor(
            name=name,
            members=len(every),
            now={period: _sum(one.now[period] for one in every) for period in PERIODS},
            before={period: _sum(one.before[period] for one in every) for period in PERIODS},
        )
        for name, every in members.items()
    ]


def _sum(works: Iterable[Contribution]) -> Contribution:
    total = Contribution()
    for each in works:
        total = total.plus(each)
    return total


def rank_contributors(
    every: Sequence[Contributor], period: str, by: str = "pairs"
) -> list[Standing]:
    """Return the leaderboard of a period, by "pairs" or by parcels "scraped"."""
    now = _order({one.name: one.now[period] for one in every}, by)
    before = _order({one.name: one.before[period] for one in every}, by)
    named = {one.name: one for one in every}
    return [
        Standing(
            rank=rank,
            climbed=before[name] - rank if name in before else None,
            who=named[name],
            work=named[name].now[period],
        )
        for name, rank in now.items()
    ]


def _order(works: Mapping[str, Contribution], by: str) -> dict[str, int]:
    """Return the rank of each name, in order, without names that have done nothing."""
    least = {"pairs": "done"}.get(by, by)  # a shard may have no pairs
    some = [(-getattr(work, by), name) for name, work in works.items() if getattr(work, least) > 0]
    return {name: rank for rank, (_, name) in enumerate(sorted(some), 1)}
