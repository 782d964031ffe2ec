"""Numbers, dates and series as text and as SVG coordinates for the pages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A line over time, in a box of 600 × 160."""

    title: str
    line: str  #: points of a polyline
    area: str  #: the same, closed at the bottom
    top: str  #: the largest value, for people
    start: str
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar of a chart that is 100 high."""

    left: float
    height: float
    title: str


def line_chart(title: str, points: Sequence[tuple[float, float]], *, now: float) -> Chart | None:
    """Return a line through (time, value); None for fewer than two points."""
    if len(points) < 2:
        return None
    first, last = points[0][0], points[-1][0]
    top = max(max(value for _, value in points), 1)
    step = max(len(points) // 300, 1)  # more cannot be seen
    places = [
        f"{600 * (at - first) / max(last - first, 1):.1f},{156 - 150 * max(value, 0) / top:.1f}"
        for at, value in [*points[:-1:step], points[-1]]
    ]
    line = " ".join(places)
    return Chart(
        title=title,
        line=line,
        area=f"0,156 {line} 600,156",
        top=format_number(top),
        start=format_date(first, hours=last - first < 2 * 86400),
        end=f"now ({time.strftime('%H:%M', time.gmtime(now))} UTC)",
    )


def day_bars(values: Mapping[int, float], starts: Sequence[int], unit: str) -> list[Bar]:
    """Return a bar for each day."""
    top = max([values.get(at, 0) for at in starts], default=0) or 1
    return [
        Bar(
            left=10 * n,
            height=round(100 * max(values.get(at, 0), 0) / top, 1),
            title=f"{format_date(at)}: {format_number(values.get(at, 0))} {unit}",
        )
        for n, at in enumerate(starts)
    ]


def sparkline(values: Sequence[float]) -> str:
    """Return the points of a small line in a box of 100 × 24; "" if all values are 0."""
    top = max(values, default=0)
    if top <= 0:
        return ""
    step = 100 / max(len(values) - 1, 1)
    return " ".join(
        f"{n * step:.1f},{22 - 20 * max(value, 0) / top:.1f}" for n, value in enumerate(values)
    )


def format_number(value: float) -> str:
    """Return a number for people: 1,234 or 12.34 M."""
    for size, unit in ((1e9, " B"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:,.2f}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"


def human_size(value: float) -> str:
    """Return a number of bytes for people."""
    for each, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if abs(value) >= each:
            return f"{value / each:,.1f} {unit}"
    return f"{value / 1e3:,.0f} kB" if value else "0"


def human_duration(seconds: float | None) -> str:
    """Return a duration for people, in its two largest units."""
    if seconds is None:
        return "unknown"
    minutes = int(seconds // 60)
    if minutes >= 2 * 1440:
        return f"{minutes // 1440} days {minutes % 1440 // 60} h"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def format_age(then: float, now: float) -> str:
    """Return how long ago a time was."""
    seconds = max(now - then, 0)
    return f"{seconds:.0f} s ago" if seconds < 90 else f"{human_duration(seconds)} ago"


def format_date(at: float, *, hours: bool = False) -> str:
    """Return a date in UTC, with the time of day if ``hours``."""
    return time.strftime("%d %b %H:%M" if hours else "%d %b %Y", time.gmtime(at))
