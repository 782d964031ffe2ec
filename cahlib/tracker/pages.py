"""The pages people watch, the numbers for Prometheus, and the sign of health.

Pages are made whole on the server; a few lines of script fetch them again and exchange what lies
in <main>. Everything they need is served from here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cahlib.tracker import board
from cahlib.tracker.rules import Missing
from cahlib.tracker.service import of, shown_time

router = APIRouter(include_in_schema=False)
_SITE = FilePath(__file__).parent / "site"
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ABOUT = (
    "Volunteers turn the web pages of Common Crawl into image–text pairs that models learn from."
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A line over time, in a box of 600 × 160."""

    title: str
    line: str  #: points of a polyline
    area: str  #: the same closed at the bottom
    top: str  #: the largest value, for people
    start: str
    end: str


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_SITE),
        autoescape=True,  # nicknames, errors and progress are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, long=shown_time, ago=_ago)
    return environment


@router.get("/")
def overview(request: Request) -> HTMLResponse:
    """How far the crawl is."""
    state = of(request).state()
    pairs = [*((row["time"], row["pairs"]) for row in state.ever), (state.time, state.counts.pairs)]
    rates = _rates(state.day, "done")
    charts = [
        _chart("Shards per hour, last day", rates, now=state.time),
        _chart("Pairs, all time", pairs, now=state.time),
    ]
    address = str(request.base_url).rstrip("/")
    return _page("overview.html", request, state=state, charts=charts, address=address)


@router.get("/badge.svg")
def badge(request: Request) -> Response:
    """How far the crawl is, to show elsewhere."""
    service = of(request)
    counts = service.state().counts
    said = f"{counts.share:.1%} · {_number(counts.pairs)} pairs"
    values = {"title": service.settings.title, "share": counts.share, "said": said}
    text = _PAGES.get_template("badge.svg").render(values)
    headers = {"Cache-Control": "max-age=60", "X-Content-Type-Options": "nosniff"}
    return Response(text, media_type="image/svg+xml", headers=headers)


@router.get("/leaderboard")
def leaderboard(request: Request) -> HTMLResponse:
    """Who did most."""
    service = of(request)
    return _page(
        "leaderboard.html", request, people=service.pairs_board(), scrapers=service.parcel_board()
    )


@router.get("/workers")
def workers(request: Request) -> HTMLResponse:
    """Who is at work."""
    return _page("workers.html", request, workers=of(request).active())


@router.get("/worker/{kind}/{name}")
def worker(
    request: Request, kind: str, name: Annotated[str, Path(pattern="^[a-z0-9-]{1,60}$")]
) -> HTMLResponse:
    """One worker."""
    found = board.worker(of(request).database, name)
    if found["kind"] != kind.lower():
        raise Missing("There is no worker of this name and type.")
    return _page("worker.html", request, worker=found)


@router.get("/stuck")
def stuck(request: Request) -> HTMLResponse:
    """The shards that were set aside."""
    return _page("stuck.html", request, shards=of(request).stuck())


@router.get("/site/{name}")
def asset(name: str) -> FileResponse:
    """A style sheet, the script, or the icon."""
    path = _SITE / name
    if path.parent != _SITE or path.suffix not in _KINDS or not path.is_file():
        raise Missing("There is no such file.")
    headers = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type=_KINDS[path.suffix], headers=headers)


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


def _page(template: str, request: Request, **values: Any) -> HTMLResponse:
    # relative: behind a proxy, all of this may lie below a path of which nobody tells us
    base = "../" * (request.url.path.count("/") - 1) or "./"
    service = of(request)
    more = {"now": service.clock(), "base": base, "title": service.settings.title, "about": _ABOUT}
    text = _PAGES.get_template(template).render(values, **more)
    return HTMLResponse(text, headers=_HEADERS)


def _rates(history: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """What a count grew by an hour, at each point over the half hour before it."""
    return [
        (after["time"], (after[name] - before[name]) * 3600 / (after["time"] - before["time"]))
        for before, after in zip(history, history[6:], strict=False)
    ]


def _chart(title: str, points: list[tuple[float, float]], *, now: float) -> Chart | None:
    if len(points) < 2:
        return None
    first, last = points[0][0], points[-1][0]
    top = max(max(value for _, value in points), 1)
    step = max(len(points) // 300, 1)  # more than that cannot be seen
    places = [
        f"{600 * (at - first) / max(last - first, 1):.1f},{156 - 150 * max(value, 0) / top:.1f}"
        for at, value in [*points[:-1:step], points[-1]]
    ]
    form = "%d %b %H:%M" if last - first < 2 * 86400 else "%d %b %Y"
    line = " ".join(places)
    return Chart(
        title=title,
        line=line,
        area=f"0,156 {line} 600,156",
        top=_number(top),
        start=time.strftime(form, time.gmtime(first)),
        end=f"now ({time.strftime('%H:%M', time.gmtime(now))} UTC)",
    )


def _number(value: float) -> str:
    """A number for people: 1,234 or 12.3 M."""
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:,.2f}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"


def _ago(then: float, now: float) -> str:
    """How long ago something was."""
    seconds = max(now - then, 0)
    return f"{seconds:.0f} s ago" if seconds < 90 else f"{shown_time(seconds)} ago"


_PAGES = _environment()
