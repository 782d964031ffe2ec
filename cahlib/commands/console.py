"""The progress of a run as text: in a terminal a live line per stage, elsewhere plain lines."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from cahlib.core.background import BackgroundLoop
from cahlib.core.progress import (
    Listener,
    NodeStatus,
    Snapshot,
    SwarmStatus,
    Transient,
    describe_offline,
)
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.core.terminal import is_quiet, print_note

if TYPE_CHECKING:
    from cahlib.run.result import RunResult

#: Seconds between two plain lines.
_PAUSE = 15

#: How far a node is on its way to work, by its state.
_STEPS = ("made", "ssh", "boot", "install", "start")

#: Lines of nodes at most, and seconds after which others have their turn; likewise of logs.
_NODES, _TURN = 10, 4


def print_message(sentence: str) -> None:
    """Print a sentence above the live lines, if there are any, that these do not show.

    A warning, which begins with the command's name, is printed in any case.
    """
    from tqdm import tqdm

    if isinstance(sentence, Transient) and sys.stderr.isatty():
        return
    if sentence.startswith("cah: ") or not is_quiet():
        tqdm.write(sentence, file=sys.stderr)


def print_result(
    chosen: argparse.Namespace, result: Mapping[str, Any], lines: Iterable[str] = ()
) -> None:
    """Print a command's result: lines for people, or with `--json` one object for scripts."""
    if chosen.json:
        lines = (json.dumps(result, indent=2, ensure_ascii=False),)
    for line in lines:
        print(line)


def print_run(chosen: argparse.Namespace, result: RunResult, lines: Iterable[str]) -> None:
    """Print how a run ended, and to stderr what went wrong in it."""
    shards = result.shards
    ended = {
        "dataset": str(result.folder),
        "links": result.stats.entered[Stage.CHOOSE],
        "pairs": result.stats.left[Stage.JUDGE],
        "shards": shards.total,
        "done": shards.done,
        "failed": shards.failed,
        "stopped": result.stopped,
        "errors": [{"shard": shard, "error": error} for shard, error in result.errors],
        "faults": [*result.faults],
        "warnings": [*result.warnings],
    }
    print_result(chosen, ended, lines)
    print_run_trouble(result)


def print_run_trouble(result: RunResult) -> None:
    """Print what went wrong in a run, and what users of its dataset should know."""
    for each in result.warnings:
        print(f"cah: {each}", file=sys.stderr)
    for shard, error in result.errors:
        print(f"cah: shard {shard} failed: {error}", file=sys.stderr)
    if result.errors:
        print("cah: run the same command again to retry them.", file=sys.stderr)
    for fault in result.faults:
        print(f"cah: {fault}", file=sys.stderr)


def _draws(stream: TextIO) -> bool:
    """Return whether lines can be drawn and redrawn on a stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def progress_view(stream: TextIO | None = None) -> Iterator[Listener]:
    """Provide a listener that shows snapshots on a stream: live lines, or one after another."""
    stream = stream or sys.stderr
    if is_quiet():
        yield lambda snapshot: None
    elif _draws(stream):
        with _bars(stream) as listener:
            yield listener
    else:
        yield _plain(stream)


def stage_lines(snapshot: Snapshot) -> tuple[str, str, str]:
    """Return a line each on scraping, judging and writing."""
    stats, rates = snapshot.stats, snapshot.rates
    lost = (
        f" · lost: {_causes(stats)}" if any(r.stage is Stage.FETCH for r in stats.dropped) else ""
    )
    if snapshot.offline:
        lost = f" · {describe_offline(snapshot.offline)}"
    kept, judged = stats.left[Stage.JUDGE], stats.entered[Stage.JUDGE]
    share = f" ({kept / judged:.0%})" if judged else ""
    return (
        f"scrape  {rates['links']:.0f} links/s, {rates['images']:.0f} images/s{lost}",
        f"judge   {rates['judged']:.0f} images/s, model busy {snapshot.busy:.0%}, "
        f"{_queue(snapshot, 'parcels')} parcels wait",
        f"keep    {kept:,} pairs{share}, {rates['pairs']:.1f} pairs/s, "
        f"{_queue(snapshot, 'judged')} wait to be written",
    )


def node_lines(nodes: Sequence[NodeStatus], currency: str = "EUR") -> list[str]:
    """Return a table of the nodes: a line of headings, then a line for each."""
    name, job = (max([8, *(len(getattr(n, what)) for n in nodes)]) for what in ("name", "job"))
    lines = [
        f"{'node':<{name}}  {'type':<6} {'place':<5} {'state':<8} {'shard':<{job}} "
        f"{'links/s':>7} {'seen':>6} {currency:>7}"
    ]
    for each in nodes:
        seen = "-" if each.seen is None else f"{each.seen:.0f} s"
        lines.append(
            f"{each.name:<{name}}  {each.type:<6} {each.location:<5} {each.state:<8} "
            f"{each.job or '-':<{job}} {each.rate:>7.0f} {seen:>6} {each.cost:>7.4f}"
        )
    return lines


def startup_line(nodes: Sequence[NodeStatus], elapsed: float, width: int) -> str:
    """Return how far nodes are on their way, as a bar with an estimate; "" once all are up."""
    from tqdm import tqdm

    if not any(each.state in _STEPS for each in nodes) or any(each.seen for each in nodes):
        return ""
    steps = len(_STEPS)
    done = sum(_STEPS.index(n.state) if n.state in _STEPS else steps for n in nodes)
    left = "about {remaining} left" if done else "no estimate yet"
    line: str = tqdm.format_meter(
        done,
        steps * len(nodes),
        elapsed,
        ncols=width,
        bar_format=f"servers come up {{percentage:.0f}} % |{{bar}}| {left}",
    )
    return line


@contextmanager
def startup_bar(
    swarm_status: SwarmStatus, stream: TextIO | None = None
) -> Iterator[Callable[[str], None]]:
    """Print sentences while a swarm's nodes start; a terminal shows a bar below them."""
    stream = stream or sys.stderr
    if is_quiet() or not _draws(stream):
        yield print_note
        return
    from tqdm import tqdm

    started = time.monotonic()

    def report(sentence: str) -> None:
        if not isinstance(sentence, Transient):
            tqdm.write(sentence, file=stream)

    def draw(bar: Any) -> None:
        width = shutil.get_terminal_size().columns - 1
        bar.set_description_str(startup_line(swarm_status.nodes, time.monotonic() - started, width))

    with (
        tqdm(file=stream, bar_format="{desc}", leave=False) as bar,
        BackgroundLoop(1, partial(draw, bar)),
    ):
        yield report


@contextmanager
def progress_bar(noun: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many of all are done, in a terminal alone."""
    if is_quiet() or not _draws(sys.stderr):
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(file=sys.stderr, unit=f" {noun}", leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def swarm_line(snapshot: Snapshot) -> str:
    """Return a line on all nodes and their cost; "" if there never were any."""
    if not (snapshot.nodes or snapshot.spent):
        return ""
    states = Counter(each.state for each in snapshot.nodes)
    told = ", ".join(f"{state} {number}" for state, number in states.items()) or "no servers"
    cost = f"{snapshot.currency} {snapshot.spent:.4f} so far, {snapshot.hourly:.4f} an hour"
    return f"swarm   {told}, {cost}"


def log_line(snapshot: Snapshot) -> str:
    """Return the last log line of one node; they take turns."""
    said = [each for each in snapshot.nodes if each.line]
    if not said:
        return ""
    each = said[int(snapshot.elapsed / _TURN) % len(said)]
    return f"log     {each.name}: {each.line}"


def _queue(snapshot: Snapshot, name: str) -> str:
    waiting, limit = snapshot.queues.get(name, (0, 0))
    return f"{waiting}/{limit}"


def _causes(stats: Stats) -> str:
    """Return the most frequent failures of fetching."""
    failed = {r: n for r in DropReason if r.stage is Stage.FETCH and (n := stats.dropped[r])}
    often = sorted(failed, key=lambda reason: -failed[reason])[:4]
    return ", ".join(f"{reason.value} {failed[reason]:,}" for reason in often)


@contextmanager
def _bars(stream: TextIO) -> Iterator[Listener]:
    from tqdm import tqdm  # every command prints, few draw

    shards = tqdm(
        desc="shards",
        unit="shard",
        file=stream,
        position=0,
        bar_format="{desc}  {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
    )
    bars = list[Any]()

    def show(snapshot: Snapshot) -> None:
        shards.total, shards.n = snapshot.shards, snapshot.done
        shards.set_postfix_str(f"{snapshot.failed} failed" if snapshot.failed else "", refresh=True)
        size = shutil.get_terminal_size()
        lines = [*stage_lines(snapshot), *_swarm(snapshot, room=size.lines - 9)]
        while len(bars) < len(lines):
            bars.append(tqdm(file=stream, position=len(bars) + 1, bar_format="{desc}"))
        for number, bar in enumerate(bars):
            line = lines[number] if number < len(lines) else ""
            bar.set_description_str(line[: size.columns - 1])

    try:
        yield show
    finally:
        for bar in (shards, *bars):
            bar.close()


def _swarm(snapshot: Snapshot, *, room: int) -> list[str]:
    """Return lines on as many nodes as there is room for; they take turns."""
    if not snapshot.nodes:
        return [each for each in [swarm_line(snapshot)] if each]
    heading, *nodes = node_lines(snapshot.nodes, snapshot.currency)
    room = min(max(room, 1), _NODES)
    coming = startup_line(snapshot.nodes, snapshot.elapsed, shutil.get_terminal_size().columns - 1)
    pages = -(-len(nodes) // room)
    first = int(snapshot.elapsed / _TURN) % pages * room
    shown = nodes[first : first + room]
    arriving = [coming] if coming else []
    return [swarm_line(snapshot), *arriving, heading, *shown, log_line(snapshot)]


def _plain(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Listener:
    last = float(-_PAUSE)

    def show(snapshot: Snapshot) -> None:
        nonlocal last
        if clock() - last >= _PAUSE or snapshot.finished:
            last = clock()
            head = f"{snapshot.elapsed:.0f} s, shards {snapshot.done}/{snapshot.shards}"
            failed = f", {snapshot.failed} failed" if snapshot.failed else ""
            lines = [*stage_lines(snapshot), *filter(None, [swarm_line(snapshot)])]
            body = "; ".join(" ".join(line.split()) for line in lines)
            print(f"{head}{failed}; {body}", file=stream, flush=True)

    return show
