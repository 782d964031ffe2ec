"""What open pages cost a tracker: the CPU of its process while shards are finished.

    python -m tests.benchmarks.bench_watchers [--tabs N] [--seconds S]

The goal: 1,000 open pages take a tenth of a core at most.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from cahlib.fetch.images import raise_open_file_limit
from cahlib.ledger.database import Database
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import ShardResult, TrackerRules, WorkerKind
from tests.benchmarks.common import parser
from tests.world.crowded import fill
from tests.world.trackers import commanded

_ASK = b"GET /live HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"


def main(arguments: Sequence[str]) -> None:
    """Measure, and print it."""
    chosen = parser(__doc__, arguments, tabs=(1000, 5), seconds=(20.0, 0.2)).parse_args(arguments)
    raise_open_file_limit(chosen.tabs)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'tracker.sqlite'}"
        database = Database(url)
        migrate(database)
        fill(database, time.time())
        with commanded(url) as port:
            for tabs in (0, 1, chosen.tabs):
                share, heard = asyncio.run(watch(database, port, tabs, chosen.seconds))
                print(f"{tabs:>6,} open pages: {share:6.2%} of a core, {heard:.1f} kB to each")
        database.close()


async def watch(database: Database, port: int, tabs: int, seconds: float) -> tuple[float, float]:
    """Return the server's share of a core, and the least that a page is sent, in kB."""
    lease_store = LeaseStore(database, TrackerRules(max_held=10_000))
    secret = lease_store.register("watched", WorkerKind.HYBRID)[1]
    opened = []
    for n in range(tabs):
        here = (f"127.0.{n // 250}.{n % 250 + 1}", 0)  # each is somebody else
        opened.append(await asyncio.open_connection("127.0.0.1", port, local_addr=here))
        opened[-1][1].write(_ASK)
    heard = [asyncio.create_task(_hear(reader)) for reader, _ in opened]
    await asyncio.sleep(min(5, seconds))
    before, began = spent(), time.monotonic()
    while time.monotonic() - began < seconds:  # by another process than the server: not its CPU
        if leased := await asyncio.to_thread(lease_store.lease, secret):
            await asyncio.to_thread(
                lease_store.complete, secret, leased.number, ShardResult(pairs=7)
            )
        await asyncio.sleep(0.2)
    share = (spent() - before) / (time.monotonic() - began)
    for _, writer in opened:
        writer.close()
    every = await asyncio.gather(*heard)
    return share, min(every, default=0) / 1000


def spent() -> float:
    """Return the CPU seconds of the processes that were started from here: the server alone."""
    return sum(sum(each.cpu_times()[:2]) for each in psutil.Process().children(recursive=True))


async def _hear(reader: asyncio.StreamReader) -> int:
    total = 0
    try:
        while said := await reader.read(65536):
            total += len(said)
    except OSError:
        pass
    return total


if __name__ == "__main__":
    main(sys.argv[1:])
