"""Milestones of the crawl and of people: those reached, when, and the next one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cahlib.tracker.service import CrawlState

_SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """A count that was reached."""

    key: str  #: unique
    text: str
    time: float


def crawl_milestones(state: CrawlState) -> list[Milestone]:
    """Return the milestones that the crawl has reached, latest first."""
    counts = state.counts
    here = {"time": state.time, "done": counts.done, "pairs": counts.pairs}
    rows = [*state.ever, here]
    pairs = [(row["time"], row["pairs"]) for row in rows]
    done = [(row["time"], row["done"]) for row in rows]
    found = pair_milestones(pairs)
    shares = {share: counts.total * share for share in _SHARES if counts.total}
    for share, at in _reached(done, shares.items()):
        text = "the whole crawl" if share == 1 else f"{share:.0%} of the crawl"
        found.append(Milestone(key=f"share-{share}", text=text, time=at))
    return sorted(found, key=lambda each: -each.time)


def pair_milestones(points: Sequence[tuple[float, float]]) -> list[Milestone]:
    """Return the pair counts that a series of (time, total) has reached, latest first."""
    most = points[-1][1] if points else 0
    marks = [(mark, mark) for mark in _marks(most)]
    return [
        Milestone(key=f"pairs-{mark}", text=_label(mark), time=at)
        for mark, at in _reached(points, marks)
    ][::-1]


def next_milestone(pairs: float, per_hour: float) -> tuple[str, float] | None:
    """Return the next pair count and the seconds until then; None without a rate."""
    mark = next(each for each in _marks(float("inf")) if each > pairs)
    return (_label(mark), (mark - pairs) / per_hour * 3600) if per_hour else None


def _label(mark: float) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million")):
        if mark >= size:
            return f"{mark / size:,.0f}{unit} pairs"
    return f"{mark:,.0f} pairs"


def _marks(most: float) -> Iterator[int]:
    mark = 1000
    while mark <= most:
        yield mark
        if 5 * mark <= most:
            yield 5 * mark
        mark *= 10


def _reached(
    points: Sequence[tuple[float, float]], marks: Iterable[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    """Yield the name of each mark (name, total) that was reached, and when it first was."""
    for name, mark in marks:
        at = next((time for time, value in points if value >= mark), None)
        if at is not None:
            yield name, at
