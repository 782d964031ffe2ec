"""Shows a run in a terminal: one live line a stage, or plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from cahlib.progress import Listener, Snapshot
from cahlib.records import Reason, Stage, Tally

#: Seconds between two plain lines.
_PAUSE = 15


@contextmanager
def view(stream: TextIO | None = None) -> Iterator[Listener]:
    """A listener that shows what it hears on a stream: lines that stay, or that follow."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _bars(stream) as listener:
            yield listener
    else:
        yield _plain(stream)


def stage_lines(snapshot: Snapshot) -> tuple[str, str, str]:
    """What scraping, judging and writing do, a line each."""
    tally, rates = snapshot.tally, snapshot.rates
    lost = f" · lost: {_causes(tally)}" if any(r.stage is Stage.FETCH for r in tally.lost) else ""
    kept, judged = tally.left[Stage.JUDGE], tally.entered[Stage.JUDGE]
    share = f" ({kept / judged:.0%})" if judged else ""
    return (
        f"scrape  {rates['links']:.0f} links/s, {rates['images']:.0f} images/s{lost}",
        f"judge   {rates['judged']:.0f} images/s, model busy {snapshot.busy:.0%}, "
        f"{_queue(snapshot, 'parcels')} parcels wait",
        f"keep    {kept:,} pairs{share}, {rates['pairs']:.1f} pairs/s, "
        f"{_queue(snapshot, 'judged')} wait to be written",
    )


def _queue(snapshot: Snapshot, name: str) -> str:
    waiting, limit = snapshot.queues.get(name, (0, 0))
    return f"{waiting}/{limit}"


def _causes(tally: Tally) -> str:
    """The most frequent failures of the fetching."""
    failed = {r: n for r in Reason if r.stage is Stage.FETCH and (n := tally.lost[r])}
    often = sorted(failed, key=lambda reason: -failed[reason])[:4]
    return ", ".join(f"{reason.value} {failed[reason]:,}" for reason in often)


@contextmanager
def _bars(stream: TextIO) -> Iterator[Listener]:
    shards = tqdm(
        desc="shards",
        unit="shard",
        file=stream,
        position=0,
        bar_format="{desc}  {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
    )
    stages = [tqdm(file=stream, position=i, bar_format="{desc}") for i in (1, 2, 3)]

    def show(snapshot: Snapshot) -> None:
        shards.total, shards.n = snapshot.shards, snapshot.done
        shards.set_postfix_str(f"{snapshot.failed} failed" if snapshot.failed else "", refresh=True)
        for bar, line in zip(stages, stage_lines(snapshot), strict=True):
            bar.set_description_str(line)

    try:
        yield show
    finally:
        for bar in (shards, *stages):
            bar.close()


def _plain(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Listener:
    last = float(-_PAUSE)

    def show(snapshot: Snapshot) -> None:
        nonlocal last
        if clock() - last >= _PAUSE or snapshot.finished:
            last = clock()
            head = f"{snapshot.elapsed:.0f} s, shards {snapshot.done}/{snapshot.shards}"
            failed = f", {snapshot.failed} failed" if snapshot.failed else ""
            body = "; ".join(" ".join(line.split()) for line in stage_lines(snapshot))
            print(f"{head}{failed}; {body}", file=stream, flush=True)

    return show
