"""Draws the report's charts as HTML and inline SVG.

The SVG holds shapes only and stretches with the page; all words are HTML, so they stay readable on
a phone. Every word that comes from outside is escaped here. Colours belong to the page's style.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from cahlib.dataset.show.summary import ShardTimes

#: Steps of the time line.
_STEPS = 80


def bars(
    rows: Sequence[tuple[str, int, str]], *, most: int = 0, log: bool = False, kind: str = ""
) -> str:
    """A row for each label with its number, a bar and a note; the bar of ``most`` is full."""
    most = most or max((number for _, number, _ in rows), default=0)

    def length(number: int) -> float:
        if log:
            return math.log10(number + 1) / math.log10(most + 1) if most else 0
        return number / most if most else 0

    return (
        f'<ol class="bars {kind}">'
        + "".join(
            f'<li><span class="label"><bdi>{escape(label)}</bdi></span>'
            f'<span class="track"><i style="width:{100 * length(number):.2f}%"></i></span>'
            f'<span class="number">{number:,}</span><span class="note">{escape(note)}</span></li>'
            for label, number, note in rows
        )
        + "</ol>"
    )


def histogram(
    kept: Mapping[int, int], dropped: Mapping[int, int], *, thresholds: Iterable[float]
) -> str:
    """Kept and dropped pairs by hundredths of similarity, and where the threshold lies."""
    lines = [100 * threshold for threshold in thresholds]
    bins = [*kept, *dropped, *(math.floor(line) for line in lines)] or [0, 39]
    first, last = min(bins), max(bins) + 1
    most = max(kept.get(bin, 0) + dropped.get(bin, 0) for bin in range(first, last)) or 1
    columns = "".join(
        _column(bin, bin - first, kept=kept.get(bin, 0), dropped=dropped.get(bin, 0))
        for bin in range(first, last)
    )
    width = last - first
    marks = "".join(
        f'<span class="mark" style="left:{100 * (line - first) / width:.2f}%">'
        f"<b>{line / 100:g}</b></span>"
        for line in lines
    )
    return _chart(
        f'<svg viewBox="0 0 {width} {most}" preserveAspectRatio="none" role="img" '
        'aria-label="Pairs by similarity">'
        f'<g transform="matrix(1 0 0 -1 0 {most})">{columns}</g></svg>{marks}',
        top=f"{most:,} pairs",
        ticks=[(f"{tick / 100:g}", (tick - first) / width) for tick in _round(first, last)],
    )


def timeline(work: Sequence[ShardTimes], *, what: str) -> str:
    """How many of ``what``, "images" or "pairs", came a second while there was work."""
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
    area = f"M0 0 L{points} {_STEPS} 0Z"
    return _chart(
        f'<svg viewBox="0 0 {_STEPS} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(what)} a second">'
        f'<g transform="matrix(1 0 0 -1 0 1)"><path class="area" d="{area}"/></g></svg>',
        top=f"{most:,.0f} {what}/s" if most >= 100 else f"{most:.2g} {what}/s",
        ticks=[("0", 0.0), (_duration(hours.total), 1.0)],
    )


class _Worked:
    """Time without the pauses: a run may rest for days between two launches."""

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
        """Seconds worked until a time within a span."""
        span = bisect_right(self._starts, time) - 1
        return self._before[span] + time - self._starts[span]


def _spread(rates: list[float], step: float, *, start: float, end: float, number: int) -> None:
    """Add what came evenly between two times to the rates of the steps."""
    end = max(end, start + step / 100)
    for at in range(int(start / step), min(int(end / step) + 1, len(rates))):
        share = min(end, (at + 1) * step) - max(start, at * step)
        rates[at] += number * max(share, 0) / (end - start) / step


def _column(bin: int, at: int, *, kept: int, dropped: int) -> str:
    if not kept + dropped:
        return ""
    return (
        f"<g><title>{bin / 100:.2f} to {(bin + 1) / 100:.2f}: {kept:,} kept, {dropped:,} dropped"
        f'</title><rect class="kept" x="{at}.07" width="0.86" height="{kept}"/>'
        f'<rect class="lost" x="{at}.07" width="0.86" y="{kept}" height="{dropped}"/></g>'
    )


def _round(first: int, last: int) -> Iterable[int]:
    """Round hundredths between two, five or so of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50) if (last - first) / step <= 6 or step == 50)
    return range(-(-first // step) * step, last + 1, step)


def _chart(shapes: str, *, top: str, ticks: Iterable[tuple[str, float]]) -> str:
    """Shapes with the height that the top stands for, and marks below."""
    below = "".join(
        f'<span style="left:{100 * at:.2f}%">{escape(label)}</span>' for label, at in ticks
    )
    return (
        f'<div class="chart"><span class="top">{escape(top)}</span>'
        f'<div class="plot">{shapes}</div><div class="axis">{below}</div></div>'
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
