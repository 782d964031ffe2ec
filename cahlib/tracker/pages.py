"""The pages people watch, the Atom feed, the badges, and the sign of health.

Pages are made whole on the server, and work without script; with it, the overview is kept up to
date by server-sent events. Everything they need is served from here.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response

from cahlib.tracker import activity, charts, milestones, models, rendering, standings, statistics
from cahlib.tracker.activity import DAY, HOUR
from cahlib.tracker.models import Missing
from cahlib.tracker.service import Service, of, shown_time

router = APIRouter(include_in_schema=False)
#: Rows of a table on one page.
_ROWS = 50
#: Days that the bars of a person's or a team's page show.
_DAYS = 42
#: What leaderboards are ordered by, and what it is called.
_UNITS = {"pairs": "pairs", "scraped": "parcels"}

Period: TypeAlias = Literal["hour", "day", "all"]
Text = Annotated[str, Query(max_length=200)]
Number = Annotated[int, Query(ge=1, le=100_000)]


@router.get("/")
def overview(request: Request) -> Response:
    """Show how far the crawl is."""
    service = of(request)
    state = service.state()
    pairs = [*((row["time"], row["pairs"]) for row in state.ever), (state.time, state.counts.pairs)]
    lines = [
        charts.chart("Shards per hour, last day", _rates(state.day, "done"), now=state.time),
        charts.chart("Pairs, all time", pairs, now=state.time),
    ]
    values, finished = look(service)
    leaders = standings.ranked(service.contributors(), "day")[:10]
    return rendering.page(
        "overview.html", request, state=state, values=values, finished=finished, charts=lines,
        leaders=leaders, lines=_sparks(service, [each.who.name for each in leaders], "pairs"),
        reached=milestones.of_crawl(state)[:4],
        following=milestones.following(state.counts.pairs, state.pairs_per_hour),
        address=str(request.base_url).rstrip("/"),
    )  # fmt: skip


def look(service: Service) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the overview's values by name, and the shards that were finished last."""
    rows = service.latest()  # first, so that the counts hold them
    state = service.state()
    counts, now = state.counts, service.clock()
    texts = {
        "share": f"{counts.share * 100:.2f}",
        "eta": shown_time(state.eta),
        "per_hour": charts.number(state.per_hour),
        "at_work": charts.number(sum(state.workers.values())),
        "kinds": ", ".join(
            f"{count} {kind if kind == 'hybrid' else kind.upper()}"
            for kind, count in state.workers.items()
        ),
        "busy": charts.number(counts.leased + counts.judging),
    } | {
        name: charts.number(getattr(counts, name))
        for name in ("done", "total", "pairs", "scraped", "todo", "failed")
    }
    scale = 1000 / (counts.total or 1)
    parts = (counts.done, counts.scraped, counts.leased + counts.judging)
    bars = {
        name: round(sum(parts[: n + 1]) * scale, 1)
        for n, name in enumerate(("done", "scraped", "busy"))
    }
    finished = [
        {
            "key": f"{row['number']}-{row['finished']}",
            "who": row["nickname"],
            "pairs": charts.number(row["pairs"]),
            "shard": row["number"],
            "pace": _pace(row),
            "ago": max(round(now - row["finished"]), 0),
        }
        for row in rows
    ]
    return {"texts": texts, "bars": bars}, finished


def _pace(row: dict[str, Any]) -> str:
    """Return the average pace of a finished shard's worker since it joined."""
    seconds = row["finished"] - row["first_seen"]
    if seconds < 1 or not row["all_pairs"]:
        return ""
    return f"{charts.number(round(row['all_pairs'] / seconds * 3600))} pairs/h"


@router.get("/badge.svg")
def badge(request: Request, name: Text = "") -> Response:
    """Draw how far the crawl is, or what a person has done, for other sites."""
    service = of(request)
    title, share = service.settings.title, service.state().counts.share
    if name:
        what, standing = _standing(service.contributors(), models.sentence(name, 200))
        said = f"{charts.number(getattr(standing.work, what))} {_UNITS[what]} · #{standing.rank}"
        title, share = standing.who.name, 0.0
    else:
        said = f"{share:.1%} · {charts.number(service.state().counts.pairs)} pairs"
    values = {"title": title, "share": share, "said": said}
    text = rendering.render("badge.svg", values)
    headers = {"Cache-Control": "max-age=60", "X-Content-Type-Options": "nosniff"}
    return Response(text, media_type="image/svg+xml", headers=headers)


@router.get("/feed.atom")
def feed(request: Request) -> Response:
    """List the milestones of the crawl for feed readers."""
    service = of(request)
    state = service.state()
    title, form = service.settings.title, "%Y-%m-%dT%H:%M:%SZ"
    entries = [
        {
            # of this community's crawls: a name is all that is known of either for good
            "id": uuid.uuid5(uuid.NAMESPACE_URL, f"{title} {service.crawls()} {each.key}").urn,
            "text": each.text,
            "time": time.strftime(form, time.gmtime(each.time)),
        }
        for each in milestones.of_crawl(state)[:30]
    ]
    updated = entries[0]["time"] if entries else time.strftime(form, time.gmtime(0))
    ours = uuid.uuid5(uuid.NAMESPACE_URL, f"{title} {service.crawls()}").urn
    values = {"title": title, "id": ours, "updated": updated, "entries": entries}
    text = rendering.render("feed.xml", values)
    return rendering.answer(request, text, "application/atom+xml")


@router.get("/leaderboard")
@router.get("/teams")
def leaderboard(
    request: Request,
    last: Period = "all",
    by: Literal["pairs", "scraped"] = "pairs",
    q: Text = "",
    page: Number = 1,
) -> Response:
    """Rank people, or teams."""
    service, sought = of(request), models.sentence(q, 200)
    kind = "team" if request.url.path == "/teams" else "person"
    every = service.contributors()
    ranked = standings.ranked(standings.teams(every) if kind == "team" else every, last, by)
    if sought:
        ranked = [each for each in ranked if sought.casefold() in each.who.name.casefold()]
    rows = ranked[(page - 1) * _ROWS : page * _ROWS]
    names = [each.who.name for each in rows] if kind == "person" else []
    return rendering.page(
        "leaderboard.html", request, rows=rows, lines=_sparks(service, names, by), kind=kind,
        asked={"last": last, "by": by, "q": sought}, **_paging(page, len(ranked)),
    )  # fmt: skip


def _paging(page: int, found: int) -> dict[str, int]:
    """Return which page this is, of how many; raise Missing for one that is not there."""
    pages = -(-found // _ROWS)
    if page > max(pages, 1):
        raise Missing(f"This list has no page {page}.")
    return {"page": page, "pages": pages, "found": found}


def _sparks(service: Service, names: Sequence[str], what: str) -> dict[str, str]:
    """Return a small line for each of these people: the last day, hour by hour."""
    now = service.clock()
    starts = [int(now // HOUR * HOUR) - HOUR * n for n in reversed(range(24))]
    did = activity.series(service.database, names, size=HOUR, start=starts[0])
    return {
        name: charts.spark([getattr(hours.get(at, activity.Work()), what) for at in starts])
        for name, hours in did.items()
    }


@router.get("/person")
def person(request: Request, name: Text) -> Response:
    """Show what a person has done."""
    service = of(request)
    what, standing = _standing(service.contributors(), models.sentence(name, 200))
    who = standing.who
    count, machines = statistics.found(
        service.database, statistics.of_nickname(who.name), most=_ROWS
    )
    days = activity.series(service.database, [who.name], size=DAY, start=1)[who.name]
    points, total = [], standing.work.pairs - sum(work.pairs for work in days.values())
    for day, work in days.items():
        points.append((day, total := total + work.pairs))
    worked = [day for day, work in days.items() if work.done + work.scraped > 0]
    everybody = service.state().counts.pairs
    return rendering.page(
        "person.html", request, standing=standing, what=what, machines=machines, count=count,
        streak=activity.streak(worked, service.clock()),
        share=standing.work.pairs / everybody if everybody else 0.0,
        reached=milestones.of_pairs(points)[:6], **_days(service, days, what),
    )  # fmt: skip


def _days(service: Service, days: dict[int, activity.Work], what: str) -> dict[str, Any]:
    """Return the bars of the last weeks."""
    last = int(service.clock() // DAY * DAY)
    starts = [last - DAY * n for n in reversed(range(_DAYS))]
    values = {day: getattr(work, what) for day, work in days.items()}
    bars = charts.bars(values, starts, _UNITS[what])
    top = max(values.get(day, 0) for day in starts)
    return {"bars": bars, "since": starts[0], "unit": _UNITS[what], "top": top}


@router.get("/team")
def team(request: Request, name: Text) -> Response:
    """Show what a team has done, and its members."""
    service, people = of(request), of(request).contributors()
    what, standing = _standing(standings.teams(people), models.sentence(name, 200))
    members = [one for one in people if one.team == standing.who.name]
    members.sort(key=lambda one: (*(-getattr(one.now["all"], by) for by in _UNITS), one.name))
    names = [one.name for one in members]
    days: dict[int, activity.Work] = {}
    for did in activity.series(service.database, names[:500], size=DAY, start=1).values():
        for day, work in did.items():
            days[day] = work.plus(days.get(day, activity.Work()))
    return rendering.page(
        "team.html", request, standing=standing, what=what, members=members[:_ROWS],
        lines=_sparks(service, names[:_ROWS], what), **_days(service, days, what),
    )  # fmt: skip


def _standing(every: Sequence[standings.Contributor], name: str) -> tuple[str, standings.Standing]:
    """Return a place among all, and by what; raise Missing."""
    for by in _UNITS:
        for each in standings.ranked(every, "all", by):
            if each.who.name == name:
                return by, each
    raise Missing(f"Nobody called {name} has finished a shard.")


@router.get("/workers")
def workers(
    request: Request, q: Text = "", page: Number = 1, every: Annotated[int, Query(ge=0, le=1)] = 0
) -> Response:
    """List the workers: those at work, or all."""
    service, sought = of(request), models.sentence(q, 200)
    conditions = [] if every else [statistics.active(service.clock())]
    if sought:
        conditions.append(statistics.called(sought))
    skip = (page - 1) * _ROWS
    count, rows = statistics.found(service.database, *conditions, skip=skip, most=_ROWS)
    asked = {"q": sought, "every": every}
    paging = _paging(page, count)
    return rendering.page("workers.html", request, workers=rows, asked=asked, **paging)


@router.get("/worker/{kind}/{name}")
def worker(
    request: Request, kind: str, name: Annotated[str, Path(pattern="^[a-z0-9-]{1,60}$")]
) -> Response:
    """Show one worker."""
    found = statistics.worker(of(request).database, name)
    if found["kind"] != kind.lower():
        raise Missing("There is no worker of this name and type.")
    return rendering.page("worker.html", request, worker=found)


@router.get("/stuck")
def stuck(request: Request) -> Response:
    """List the shards that were set aside, grouped by error."""
    return rendering.page("stuck.html", request, groups=grouped(of(request).stuck()), most=_ROWS)


def grouped(every: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return shards grouped by error, the largest group first.

    What differs from shard to shard is left out of the errors.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for each in every:
        found.setdefault(_PARTICULAR.sub("…", each["error"] or ""), []).append(each)
    return sorted(found.items(), key=lambda group: -len(group[1]))


#: What names one file, host, moment or measurement in an error; a status code is of all.
_PARTICULAR = re.compile(r"\w+://\S+|/\S+|\b[0-9a-f]{8,}\b|\d+[.,:]\d[\d.,:]*|\d{4,}")


@router.get("/site/{name}")
def asset(request: Request, name: str) -> Response:
    """Send a style sheet, the script, or the icon."""
    return rendering.file(request, name)


@router.get("/healthz", response_class=PlainTextResponse)
def healthz(request: Request) -> str:
    """Whether work can be written down; 503 with the reason if not, a full disk among them."""
    of(request).writes()
    return "ok"


@router.get("/readyz", response_class=PlainTextResponse)
def readyz(request: Request) -> str:
    """Whether this server should be sent requests: it answers, and reads its database; or 503."""
    with of(request).database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    return "ok"


def _rates(history: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return a count's growth per hour at each point, over the half hour before it."""
    return [
        (after["time"], (after[name] - before[name]) * 3600 / (after["time"] - before["time"]))
        for before, after in zip(history, history[6:], strict=False)
    ]
