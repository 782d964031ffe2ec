"""How many shards a tracker hands out and takes back, beside the claim query of the old server.

    python -m tests.benchmarks.bench_tracker [--shards N] [--seconds S] [--small]

PostgreSQL with fsync on, on this machine, which the clients share. A cycle is a lease and a
completion; a worker leases several shards at once, or one. What each side spends of the processors
is told too, because it depends less on what else the machine does. The old server's claim is
measured on the same table with the same driver.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from multiprocessing.pool import ThreadPool
from time import process_time
from typing import Any

import psutil
from sqlalchemy import text

from cahlib.core.records import Shard
from cahlib.ledger.database import Database
from cahlib.tracker import admin, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import ShardResult, TrackerRules, WorkerKind
from tests.benchmarks.common import Absent, parser, timed
from tests.world.postgres import missing, postgres
from tests.world.trackers import commanded

#: The old server's, with our names.
OLD = text("""
    UPDATE shards SET state = 'leased', worker = :worker WHERE number IN
    (SELECT number FROM shards WHERE state = 'todo' ORDER BY RANDOM() LIMIT 1
     FOR UPDATE SKIP LOCKED) RETURNING number, url, half
""")


def main(arguments: Sequence[str]) -> None:
    sizes = {
        "shards": (1_000_000, 1000), "seconds": (10.0, 0.2), "workers": (64, 4), "pairs": (1, 1),
    }  # fmt: skip
    chosen = parser(__doc__, arguments, **sizes).parse_args(arguments)
    if reason := missing():
        raise Absent(reason)
    sizes = sorted({min(n, chosen.shards) for n in (10_000, 100_000, 1_000_000)})
    with postgres(durable=True) as server:
        for size in sizes:
            url = server.create(f"bench{size}")
            database = filled(url, size)
            claims(database, size, chosen.seconds)
            if size == sizes[-1]:
                through_store(database, "PostgreSQL", chosen.workers, chosen.seconds)
                for processes, several in ((1, 8),) if chosen.small else ((1, 1), (2, 1), (2, 8)):
                    with commanded(url, "--processes", str(processes)) as port:
                        name = f"PostgreSQL, HTTP, {processes} processes, {several} at once"
                        through_http(port, name, chosen, several, database_pid=server.pid)
                        if processes == 1:
                            overview(database, port, chosen.seconds / 3)
                exactly_once(database)
            database.close()
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/tracker.sqlite"
            database = filled(url, size)
            claims(database, size, chosen.seconds)
            if size == sizes[-1]:
                chosen.workers = min(chosen.workers, 16)
                through_store(database, "SQLite", chosen.workers, chosen.seconds)
                if not chosen.small:  # the same server as above, and two seconds until it is up
                    with commanded(url, "--processes", "1") as port:
                        through_http(port, "SQLite, HTTP, 1 process, 8 at once", chosen, 8)
                exactly_once(database)
            database.close()


def filled(url: str, size: int) -> Database:
    database = Database(url)
    migrate(database)
    started = time.perf_counter()
    admin.add_wats(
        database,
        (
            Shard(id=f"CC-MAIN-{n:07}-{h}", url=f"https://data.example.org/{n:07}.wat.gz", half=h)
            for n in range(size // 2)
            for h in (0, 1)
        ),
    )
    print(f"{size:>9,} shards added in {time.perf_counter() - started:.1f} s")
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.exec_driver_sql("VACUUM ANALYZE shards")
    return database


def claims(database: Database, size: int, seconds: float) -> None:
    """One worker's claims, and the old server's on the same table where it is PostgreSQL."""
    lease_store = LeaseStore(database, TrackerRules())
    secret = lease_store.register("bench", WorkerKind.HYBRID)[1]
    ours: list[float] = []
    until = time.perf_counter() + seconds / 2
    while time.perf_counter() < until and len(ours) < size // 4:
        started = time.perf_counter()
        lease = lease_store.lease(secret)
        ours.append(time.perf_counter() - started)
        assert lease is not None
        lease_store.complete(secret, lease.number, ShardResult(pairs=1))
    ours.sort()
    p50 = ours[len(ours) // 2]
    if database.is_sqlite:
        print(f"{size:>9,} shards, SQLite: a lease takes {1000 * p50:.2f} ms")
        return

    def old() -> None:
        with database.write() as connection:
            connection.execute(OLD, {"worker": -1}).one()

    theirs = timed(old, seconds / 2, least=3)
    old50 = theirs[len(theirs) // 2]
    print(
        f"{size:>9,} shards: a lease takes {1000 * p50:.2f} ms, the old query "
        f"{1000 * old50:.2f} ms: {old50 / p50:.1f} times as long"
    )
    with database.write() as connection:
        connection.execute(text("UPDATE shards SET state = 'todo' WHERE worker = -1"))


def through_store(database: Database, name: str, workers: int, seconds: float) -> None:
    """Cycles of threads of one process, without HTTP."""
    lease_store = LeaseStore(database, TrackerRules())
    secrets = [lease_store.register(f"person{n}", WorkerKind.HYBRID)[1] for n in range(workers)]
    waits, lock, until = [], threading.Lock(), time.perf_counter() + seconds

    def work(secret: str) -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            lease = lease_store.lease(secret)
            waited = time.perf_counter() - started
            assert lease is not None
            lease_store.complete(secret, lease.number, ShardResult(pairs=1))
            with lock:
                waits.append(waited)

    threads = [threading.Thread(target=work, args=(secret,)) for secret in secrets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell(f"{name}, store alone", workers, len(waits) / seconds, sorted(waits))


def through_http(
    port: int, name: str, chosen: Namespace, several: int, *, database_pid: int | None = None
) -> None:
    """Cycles over HTTP, the clients in two processes on the same machine, or ``small`` in none."""
    clients(port, 4, chosen.seconds / 5, several, chosen.pairs)  # until all processes are up
    sides = {"server": psutil.Process().children(recursive=True)}
    if database_pid:
        main = psutil.Process(database_pid)
        sides["PostgreSQL"] = [main, *main.children()]
    before = {side: spent(processes) for side, processes in sides.items()}
    pools = multiprocessing.get_context("spawn").Pool if not chosen.small else ThreadPool
    what = (port, chosen.workers // 2, chosen.seconds, several, chosen.pairs)
    with pools(2) as pool:
        each = pool.starmap(clients, [what] * 2)
    if database_pid:  # with the processes of connections that were made meanwhile
        sides["PostgreSQL"] = [main, *main.children()]
    waits = sorted(wait for some, _ in each for wait in some)
    cycles = several * len(waits)
    tell(name, chosen.workers, cycles / chosen.seconds, waits)
    cost = {side: spent(sides[side]) - before[side] for side in sides}
    cost["clients"] = sum(cpu for _, cpu in each)
    shown = ", ".join(f"{side} {1000 * cpu / cycles:.2f}" for side, cpu in cost.items())
    total = 1000 * sum(cost.values()) / cycles
    had = sum(cost.values()) / chosen.seconds
    print(
        f"    CPU ms a cycle: {shown}; all had {had:.1f} of {os.cpu_count()} cores, two whole ones "
        f"have time for {2000 / total:.0f} cycles/s"
    )


def spent(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds that processes have used."""
    used = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def clients(
    port: int, workers: int, seconds: float, several: int, pairs: int
) -> tuple[list[float], float]:
    """Workers that do nothing but lease and complete; how long leases took, and the CPU seconds."""
    waits: list[float] = []
    lock, ready = threading.Lock(), threading.Barrier(workers, lambda: begun.append(process_time()))
    begun: list[float] = []

    def work(number: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            cycle(connection, number)

    def cycle(connection: http.client.HTTPConnection, number: int) -> None:
        def ask(path: str, body: str, secret: str = "") -> Any:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
            connection.request("POST", path, body, headers)
            with connection.getresponse() as answer:
                found = json.load(answer)
                assert answer.status < 300, found
                return found

        kind = {"nickname": f"p{os.getpid()}-{number}", "kind": "hybrid"}
        secret = ask("/v1/workers", json.dumps(kind))["secret"]
        ready.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter()
            shards = ask("/v1/lease", json.dumps({"count": several}), secret)["shards"]
            waited = time.perf_counter() - started
            assert len(shards) == several
            for each in (shard["number"] for shard in shards):
                ask(f"/v1/shards/{each}/complete", result(each, pairs), secret)
            with lock:
                waits.append(waited)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits, process_time() - begun[0]


def result(number: int, pairs: int) -> str:
    """What a worker says of a shard with so many pairs."""
    count = {"in": pairs, "out": pairs}
    stats = dict.fromkeys(("choose", "fetch", "judge"), count)
    return json.dumps({"uids": [f"{number:08x}{n:024x}" for n in range(pairs)], "tally": stats})


def overview(database: Database, port: int, seconds: float) -> None:
    """The overview page, with the numbers made anew and from the cache."""
    lease_store = LeaseStore(database, TrackerRules())
    for n in range(min(1000, int(300 * seconds))):
        lease_store.register(f"watcher{n}", WorkerKind.HYBRID)
    statistics.record_history(database, time.time() - 7200)
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:

        def look() -> None:
            connection.request("GET", "/")
            with connection.getresponse() as answer:
                assert answer.status == 200 and answer.read()

        look()  # the templates are read once
        cached = timed(look, seconds)
        fresh = []
        for _ in range(min(5, round(seconds))):
            time.sleep(2.1)  # the cache is old now
            fresh += timed(look, 0)
    anew = f", made anew {1000 * max(fresh):.1f} ms" if fresh else ""
    print(
        f"overview: {1000 * cached[len(cached) // 2]:.1f} ms (p99 "
        f"{1000 * cached[int(len(cached) * 0.99)]:.1f} ms){anew}"
    )


def exactly_once(database: Database) -> None:
    """Every shard that is done was counted once, so none was leased twice."""
    counts = statistics.crawl_counts(database)
    rows = [row for row in statistics.export_shards(database) if row["state"] == "done"]
    done = len(rows)
    assert 0 < done == counts.done and counts.pairs == sum(row["pairs"] for row in rows)
    print(f"{done:,} shards done, each counted once")


def tell(what: str, workers: int, rate: float, waits: list[float]) -> None:
    p50, p99 = (1000 * waits[int(len(waits) * share)] for share in (0.5, 0.99))
    print(
        f"{what}, {workers} workers: {rate:.0f} cycles/s, lease p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
