"""The web pages, the Atom feed, the badges and the health checks.

Pages are rendered on the server and work without scripts; a script keeps the overview up to date by
server-sent events. All that they need is served from here.
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
from cahlib.tracker.models import NotFound
from cahlib.tracker.service import Service, get_service

page_router = APIRouter(include_in_schema=False)
#: Rows of a table per page.
_ROWS = 50
#: Days in the chart of a person's or a team's page.
_DAYS = 42
#: The columns that leaderboards are ordered by, and their labels.
_UNITS = {"pairs": "pairs", "scraped": "parcels"}

_Period: TypeAlias = Literal["hour", "day", "all"]
_Text = Annotated[str, Query(max_length=200)]
_Page = Annotated[int, Query(ge=1, le=100_000)]


@page_router.get("/")
def show_overview(request: Request) -> Response:
    """Show the progress of the crawl."""
    service = get_service(request)
    state = service.state()
    pairs = [*((row["time"], row["pairs"]) for row in state.ever), (state.time, state.counts.pairs)]
    lines = [
        charts.line_chart("Shards per hour, last day", _rates(state.day, "done"), now=state.time),
        charts.line_chart("Pairs, all time", pairs, now=state.time),
    ]
    values, finished = overview_values(service)
    leaders = standings.rank_contributors(service.contributors(), "day")[:10]
    return rendering.render_page(
        "overview.html", request, state=state, values=values, finished=finished, charts=lines,
        leaders=leaders, lines=_sparks(service, [each.who.name for each in leaders], "pairs"),
        reached=milestones.crawl_milestones(state)[:4],
        following=milestones.next_milestone(state.counts.pairs, state.pairs_per_hour),
        address=str(request.base_url).rstrip("/"),
    )  # fmt: skip


def overview_values(service: Service) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the overview's values by name, and the latest finished shards."""
    rows = service.latest()  # first, so that the counts include them
    state = service.state()
    counts, now = state.counts, service.clock()
    texts = {
        "share": f"{counts.share * 100:.2f}",
        "eta": charts.human_duration(state.eta),
        "per_hour": charts.format_number(state.per_hour),
        "at_work": charts.format_number(sum(state.workers.values())),
        "kinds": ", ".join(
            f"{count} {kind if kind == 'hybrid' else kind.upper()}"
            for kind, count in state.workers.items()
        ),
        "busy": charts.format_number(counts.leased + counts.judging),
    } | {
        name: charts.format_number(getattr(counts, name))
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
            "pairs": charts.format_number(row["pairs"]),
            "shard": row["number"],
            "pace": _pace(row),
            "ago": max(round(now - row["finished"]), 0),
        }
        for row in rows
    ]
    return {"texts": texts, "bars": bars}, finished


def _pace(row: dict[str, Any]) -> str:
    """Return the average rate of a finished shard's worker since it joined."""
    seconds = row["finished"] - row["first_seen"]
    if seconds < 1 or not row["all_pairs"]:
        return ""
    return f"{charts.format_number(round(row['all_pairs'] / seconds * 3600))} pairs/h"


@page_router.get("/badge.svg")
def draw_badge(request: Request, name: _Text = "") -> Response:
    """Draw the progress of the crawl, or of a person, for other sites."""
    service = get_service(request)
    title, share = service.settings.title, service.state().counts.share
    if name:
        what, standing = _standing(service.contributors(), models.clean_text(name, 200))
        count = charts.format_number(getattr(standing.work, what))
        said = f"{count} {_UNITS[what]} · #{standing.rank}"
        title, share = standing.who.name, 0.0
    else:
        said = f"{share:.1%} · {charts.format_number(service.state().counts.pairs)} pairs"
    values = {"title": title, "share": share, "said": said}
    text = rendering.render_template("badge.svg", values)
    headers = {"Cache-Control": "max-age=60", "X-Content-Type-Options": "nosniff"}
    return Response(text, media_type="image/svg+xml", headers=headers)


@page_router.get("/feed.atom")
def write_feed(request: Request) -> Response:
    """List the crawl's milestones for feed readers."""
    service = get_service(request)
    state = service.state()
    title, form = service.settings.title, "%Y-%m-%dT%H:%M:%SZ"
    entries = [
        {
            # of the community's and the crawls' names, which is all that never changes
            "id": uuid.uuid5(uuid.NAMESPACE_URL, f"{title} {service.crawls()} {each.key}").urn,
            "text": each.text,
            "time": time.strftime(form, time.gmtime(each.time)),
        }
        for each in milestones.crawl_milestones(state)[:30]
    ]
    updated = entries[0]["time"] if entries else time.strftime(form, time.gmtime(0))
    ours = uuid.uuid5(uuid.NAMESPACE_URL, f"{title} {service.crawls()}").urn
    values = {"title": title, "id": ours, "updated": updated, "entries": entries}
    text = rendering.render_template("feed.xml", values)
    return rendering.respond(request, text, "application/atom+xml")


@page_router.get("/leaderboard")
@page_router.get("/teams")
def show_leaderboard(
    request: Request,
    last: _Period = "all",
    by: Literal["pairs", "scraped"] = "pairs",
    q: _Text = "",
    page: _Page = 1,
) -> Response:
    """Rank people or teams."""
    service, sought = get_service(request), models.clean_text(q, 200)
    kind = "team" if request.url.path == "/teams" else "person"
    every = service.contributors()
    ranked = standings.rank_contributors(
        standings.team_contributors(every) if kind == "team" else every, last, by
    )
    if sought:
        ranked = [each for each in ranked if sought.casefold() in each.who.name.casefold()]
    rows = ranked[(page - 1) * _ROWS : page * _ROWS]
    names = [each.who.name for each in rows] if kind == "person" else []
    return rendering.render_page(
        "leaderboard.html", request, rows=rows, lines=_sparks(service, names, by), kind=kind,
        asked={"last": last, "by": by, "q": sought}, **_paging(page, len(ranked)),
    )  # fmt: skip


def _paging(page: int, found: int) -> dict[str, int]:
    """Return the page number, of how many; raise NotFound for one that does not exist."""
    pages = -(-found // _ROWS)
    if page > max(pages, 1):
        raise NotFound(f"There is no page {page}.")
    return {"page": page, "pages": pages, "found": found}


def _sparks(service: Service, names: Sequence[str], what: str) -> dict[str, str]:
    """Return a sparkline for each of these people: the last day, hour by hour."""
    now = service.clock()
    starts = [int(now // HOUR * HOUR) - HOUR * n for n in reversed(range(24))]
    did = activity.activity_series(service.database, names, size=HOUR, start=starts[0])
    return {
        name: charts.sparkline(
            [getattr(hours.get(at, activity.Contribution()), what) for at in starts]
        )
        for name, hours in did.items()
    }


@page_router.get("/person")
def show_person(request: Request, name: _Text) -> Response:
    """Show what a person has done."""
    service = get_service(request)
    what, standing = _standing(service.contributors(), models.clean_text(name, 200))
    who = standing.who
    count, machines = statistics.search_workers(
        service.database, statistics.has_nickname(who.name), most=_ROWS
    )
    days = activity.activity_series(service.database, [who.name], size=DAY, start=1)[who.name]
    points, total = [], standing.work.pairs - sum(work.pairs for work in days.values())
    for day, work in days.items():
        points.append((day, total := total + work.pairs))
    worked = [day for day, work in days.items() if work.done + work.scraped > 0]
    everybody = service.state().counts.pairs
    return rendering.render_page(
        "person.html", request, standing=standing, what=what, machines=machines, count=count,
        streak=activity.streak(worked, service.clock()),
        share=standing.work.pairs / everybody if everybody else 0.0,
        reached=milestones.pair_milestones(points)[:6], **_days(service, days, what),
    )  # fmt: skip


def _days(service: Service, days: dict[int, activity.Contribution], what: str) -> dict[str, Any]:
    """Return the bars of the last weeks."""
    last = int(service.clock() // DAY * DAY)
    starts = [last - DAY * n for n in reversed(range(_DAYS))]
    values = {day: getattr(work, what) for day, work in days.items()}
    bars = charts.day_bars(values, starts, _UNITS[what])
    top = max(values.get(day, 0) for day in starts)
    return {"bars": bars, "since": starts[0], "unit": _UNITS[what], "top": top}


@page_router.get("/team")
def show_team(request: Request, name: _Text) -> Response:
    """Show what a team and its members have done."""
    service, people = get_service(request), get_service(request).contributors()
    what, standing = _standing(standings.team_contributors(people), models.clean_text(name, 200))
    members = [one for one in people if one.team == standing.who.name]
    members.sort(key=lambda one: (*(-getattr(one.now["all"], by) for by in _UNITS), one.name))
    names = [one.name for one in members]
    days: dict[int, activity.Contribution] = {}
    for did in activity.activity_series(service.database, names[:500], size=DAY, start=1).values():
        for day, work in did.items():
            days[day] = work.plus(days.get(day, activity.Contribution()))
    return rendering.render_page(
        "team.html", request, standing=standing, what=what, members=members[:_ROWS],
        lines=_sparks(service, names[:_ROWS], what), **_days(service, days, what),
    )  # fmt: skip


def _standing(every: Sequence[standings.Contributor], name: str) -> tuple[str, standings.Standing]:
    """Return a name's place among all, and by which measure; raise NotFound."""
    for by in _UNITS:
        for each in standings.rank_contributors(every, "all", by):
            if each.who.name == name:
                return by, each
    raise NotFound(f"Nobody called {name} has finished a shard.")


@page_router.get("/workers")
def show_workers(
    request: Request, q: _Text = "", page: _Page = 1, every: Annotated[int, Query(ge=0, le=1)] = 0
) -> Response:
    """List the workers that are active, or all."""
    service, sought = get_service(request), models.clean_text(q, 200)
    conditions = [] if every else [statistics.is_active(service.clock())]
    if sought:
        conditions.append(statistics.name_contains(sought))
    skip = (page - 1) * _ROWS
    count, rows = statistics.search_workers(service.database, *conditions, skip=skip, most=_ROWS)
    asked = {"q": sought, "every": every}
    paging = _paging(page, count)
    return rendering.render_page("workers.html", request, workers=rows, asked=asked, **paging)


@page_router.get("/worker/{kind}/{name}")
def show_worker(
    request: Request, kind: str, name: Annotated[str, Path(pattern="^[a-z0-9-]{1,60}$")]
) -> Response:
    """Show one worker."""
    found = statistics.get_worker(get_service(request).database, name)
    if found["kind"] != kind.lower():
        raise NotFound("There is no worker with this name and type.")
    return rendering.render_page("worker.html", request, worker=found)


@page_router.get("/stuck")
def show_stuck_shards(request: Request) -> Response:
    """List the shards that were set aside, grouped by error."""
    return rendering.render_page(
        "stuck.html", request, groups=group_by_error(get_service(request).stuck()), most=_ROWS
    )


def group_by_error(every: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return shards grouped by error, the largest group first.

    What differs from shard to shard is left out of the errors.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for each in every:
        found.setdefault(_SPECIFIC.sub("…", each["error"] or ""), []).append(each)
    return sorted(found.items(), key=lambda group: -len(group[1]))


#: Files, hosts, times and measurements in an error; status codes are kept.
_SPECIFIC = re.compile(r"\w+://\S+|/\S+|\b[0-9a-f]{8,}\b|\d+[.,:]\d[\d.,:]*|\d{4,}")


@page_router.get("/site/{name}")
def send_asset(request: Request, name: str) -> Response:
    """Send a style sheet, the script, or the icon."""
    return rendering.send_file(request, name)


@page_router.get("/healthz", response_class=PlainTextResponse)
def healthz(request: Request) -> str:
    """Return ok if the database accepts writes; 503 with the reason if not, such as a full disk."""
    get_service(request).check_writable()
    return "ok"


@page_router.get("/readyz", response_class=PlainTextResponse)
def readyz(request: Request) -> str:
    """Return ok if the server can read its database and should get requests; otherwise 503."""
    with get_service(request).database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    return "ok"


def _rates(history: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return a count's growth per hour at each point, over the half hour before it."""
    return [
        (after["time"], (after[name] - before[name]) * 3600 / (after["time"] - before["time"]))
        for before, after in zip(history, history[6:], strict=False)
    ]
