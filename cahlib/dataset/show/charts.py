"""Compute the report's charts: lengths, positions and labels, which its template draws as SVG.

The SVG holds shapes only and stretches with the page; all words are HTML, so they stay readable on
a phone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cahlib.dataset.show.summary import ShardTimes

#: Steps of the time line.
_STEPS = 80


class BarRow(NamedTuple):
    """A row of a bar chart."""

    label: str
    number: int
    note: str
    length: float  #: in percent


class HistogramBin(NamedTuple):
    """A bin of a histogram."""

    bin: int  #: in hundredths of similarity
    x: int
    kept: int
    dropped: int


class Histogram(NamedTuple):
    """Kept and dropped pairs by similarity."""

    width: int
    most: int  #: pairs in the largest bin
    columns: list[HistogramBin]
    marks: list[tuple[float, float]]  #: thresholds, each with its position in percent
    ticks: list[tuple[str, float]]  #: labels with their positions in percent


class Timeline(NamedTuple):
    """A rate over the time worked."""

    width: int
    area: str  #: an SVG path, 1 high
    what: str
    most: str  #: the highest rate
    ticks: list[tuple[str, float]]


def bar_rows(
    rows: Iterable[tuple[str, int, str]], *, most: int = 0, log: bool = False
) -> list[BarRow]:
    """Return a bar for each label, number and note; that of ``most`` has full length."""
    rows = list(rows)
    scale = math.log1p if log else float
    full = scale(most or max((number for _, number, _ in rows), default=0)) or 1
    return [BarRow(label, n, note, 100 * scale(n) / full) for label, n, note in rows]


def histogram(
    kept: Mapping[int, int], dropped: Mapping[int, int], *, thresholds: Iterable[float]
) -> Histogram:
    """Return a histogram of pairs by hundredths of similarity, with the thresholds marked."""
    lines = [100 * threshold for threshold in thresholds]
    bins = [*kept, *dropped, *(math.floor(line) for line in lines)] or [0, 39]
    first, last = min(bins), max(bins) + 1
    width = last - first
    columns = [
        HistogramBin(bin, bin - first, kept.get(bin, 0), dropped.get(bin, 0))
        for bin in range(first, last)
    ]
    return Histogram(
        width=width,
        most=max(each.kept + each.dropped for each in columns) or 1,
        columns=[each for each in columns if each.kept + each.dropped],
        marks=[(line / 100, 100 * (line - first) / width) for line in lines],
        ticks=[(f"{n / 100:g}", 100 * (n - first) / width) for n in _round(first, last)],
    )


def timeline(work: Sequence[ShardTimes], *, what: str) -> Timeline:
    """Return how many of ``what``, "images" or "pairs", came per second of work."""
    # The first two times are a scraper's, whose clock may differ from the third's.
    times = [(each.started, each.scraped, each.finished) for each in work]
    hours = _Worked((min(each), max(each)) for each in times)
    rates = [0.0] * _STEPS
    step = max(hours.total, 1e-3) / _STEPS
    for each in work:
        if what == "images":
            start, end, number = each.started, each.scraped, each.images
        else:
            start, end, number = each.scraped, each.finished, each.pairs
        _spread(rates, step, start=hours.at(start), end=hours.at(end), number=number)
    most = max(rates) or 1.0
    points = " ".join(f"{at} {rate / most:.4f}" for at, rate in enumerate([*rates, rates[-1]]))
    return Timeline(
        width=_STEPS,
        area=f"M0 0 L{points} {_STEPS} 0Z",
        what=what,
        most=f"{most:,.0f}" if most >= 100 else f"{most:.2g}",
        ticks=[("0", 0.0), (_duration(hours.total), 100.0)],
    )


class _Worked:
    """Time without pauses: days may pass between two launches."""

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        self.total = 0.0
        self._starts: list[float] = []  #: of the spans that do not touch each other
        self._before: list[float] = []  #: seconds worked before each of them
        until = -math.inf
        for start, end in sorted(spans):
            if start > until:
                self._starts.append(start)
                self._before.append(self.total)
            self.total += max(end - max(start, until), 0)
            until = max(until, end)

    def at(self, time: float) -> float:
        """Return the seconds worked until a time within a span."""
        span = bisect_right(self._starts, time) - 1
        return self._before[span] + time - self._starts[span]


def _spread(rates: list[float], step: float, *, start: float, end: float, number: int) -> None:
    """Add what came evenly between two times to the rates of the steps."""
    end = max(end, start + step / 100)
    for at in range(int(start / step), min(int(end / step) + 1, len(rates))):
        share = min(end, (at + 1) * step) - max(start, at * step)
        rates[at] += number * max(share, 0) / (end - start) / step


def _round(first: int, last: int) -> Iterable[int]:
    """Return some five round hundredths between two."""
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (last - first) / step <= 6 or step == 50)
    return range(-(-first // step) * step, last + 1, step)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
