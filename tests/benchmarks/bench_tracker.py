"""How many shards a tracker hands out and takes back, beside the claim query of the old server.

    python -m tests.benchmarks.bench_tracker [--shards N] [--seconds S] [--small]

PostgreSQL with fsync on, on this machine, which the clients share. A cycle is a lease and a
completion. The old server's claim is measured on the same table with the same driver.
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
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.pool import ThreadPool
from typing import Any

from sqlalchemy import text

from cahlib.records import Shard
from cahlib.tracker import board, intake
from cahlib.tracker.crowd import Crowd
from cahlib.tracker.database import Database
from cahlib.tracker.migrate import migrate
from cahlib.tracker.rules import Kind, Result, Rules
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
    sizes = {"shards": (1_000_000, 1000), "seconds": (10.0, 0.2), "workers": (64, 4)}
    chosen = parser(__doc__, arguments, **sizes).parse_args(arguments)
    if reason := missing():
        raise Absent(reason)
    with postgres(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        sizes = sorted({min(n, chosen.shards) for n in (10_000, 100_000, 1_000_000)})
        for size in sizes:
            url = server.create(f"bench{size}")
            database = filled(url, size)
            claims(database, size, chosen.seconds)
            if size == sizes[-1]:
                through_store(database, "PostgreSQL", chosen.workers, chosen.seconds)
                for processes in (1,) if chosen.small else (1, 2):
                    with commanded(url, "--processes", str(processes)) as port:
                        name = f"PostgreSQL, HTTP, {processes} processes"
                        through_http(port, name, chosen.workers, chosen.seconds, small=chosen.small)
                        if processes == 1:
                            overview(database, port, chosen.seconds / 3)
                exactly_once(database)
            database.close()
        url = f"sqlite:///{folder}/tracker.sqlite"
        database = filled(url, min(chosen.shards, 100_000))
        through_store(database, "SQLite", min(chosen.workers, 16), chosen.seconds)
        if not chosen.small:  # the same server as above, and two seconds until it is up
            with commanded(url, "--processes", "1") as port:
                through_http(port, "SQLite, HTTP, 1 processes", 16, chosen.seconds)
        exactly_once(database)
        database.close()


def filled(url: str, size: int) -> Database:
    database = Database(url)
    migrate(database)
    started = time.perf_counter()
    intake.add(
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
    """One worker's claims, ours and the old server's, on the same table."""
    crowd = Crowd(database, Rules())
    secret = crowd.register("bench", Kind.HYBRID)[1]
    ours: list[float] = []
    until = time.perf_counter() + seconds / 2
    while time.perf_counter() < until and len(ours) < size // 4:
        started = time.perf_counter()
        lease = crowd.lease(secret)
        ours.append(time.perf_counter() - started)
        assert lease is not None
        crowd.complete(secret, lease.number, Result(pairs=1))
    ours.sort()

    def old() -> None:
        with database.write() as connection:
            connection.execute(OLD, {"worker": -1}).one()

    theirs = timed(old, seconds / 2, least=3)
    p50, old50 = ours[len(ours) // 2], theirs[len(theirs) // 2]
    print(
        f"{size:>9,} shards: a lease takes {1000 * p50:.2f} ms, the old query "
        f"{1000 * old50:.2f} ms: {old50 / p50:.1f} times as long"
    )
    with database.write() as connection:
        connection.execute(text("UPDATE shards SET state = 'todo' WHERE worker = -1"))


def through_store(database: Database, name: str, workers: int, seconds: float) -> None:
    """Cycles of threads of one process, without HTTP."""
    crowd = Crowd(database, Rules())
    secrets = [crowd.register(f"person{n}", Kind.HYBRID)[1] for n in range(workers)]
    waits, lock, until = [], threading.Lock(), time.perf_counter() + seconds

    def work(secret: str) -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            lease = crowd.lease(secret)
            waited = time.perf_counter() - started
            assert lease is not None
            crowd.complete(secret, lease.number, Result(pairs=1))
            with lock:
                waits.append(waited)

    threads = [threading.Thread(target=work, args=(secret,)) for secret in secrets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell(f"{name}, store alone", workers, len(waits) / seconds, sorted(waits))


def through_http(
    port: int, name: str, workers: int, seconds: float, *, small: bool = False
) -> None:
    """Cycles over HTTP, the clients in two processes on the same machine, or ``small`` in none."""
    pools = multiprocessing.get_context("spawn").Pool if not small else ThreadPool
    with pools(2) as pool:
        each = pool.starmap(clients, [(port, workers // 2, seconds)] * 2)
    waits = sorted(wait for some in each for wait in some)
    tell(name, workers, len(waits) / seconds, waits)


def clients(port: int, workers: int, seconds: float) -> list[float]:
    """Workers that do nothing but lease and complete; how long each lease took."""
    waits: list[float] = []
    lock, ready = threading.Lock(), threading.Barrier(workers)

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
            shard = ask("/v1/lease", "{}", secret)["shard"]
            waited = time.perf_counter() - started
            ask(f"/v1/shards/{shard['number']}/complete", result(shard["number"]), secret)
            with lock:
                waits.append(waited)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits


def result(number: int) -> str:
    """What a worker says of a shard with one pair."""
    one = {"in": 1, "out": 1}
    tally = dict.fromkeys(("choose", "fetch", "judge"), one)
    return json.dumps({"uids": [f"{number:032x}"], "tally": tally})


def overview(database: Database, port: int, seconds: float) -> None:
    """The overview page, with the numbers made anew and from the cache."""
    crowd = Crowd(database, Rules())
    for n in range(min(1000, int(300 * seconds))):
        crowd.register(f"watcher{n}", Kind.HYBRID)
    board.record(database, time.time() - 7200)
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
    counts = board.counts(database)
    done = sum(row["state"] == "done" for row in board.export(database))
    assert 0 < done == counts.done == counts.pairs, (done, counts)
    print(f"{done:,} shards done, each counted once")


def tell(what: str, workers: int, rate: float, waits: list[float]) -> None:
    p50, p99 = (1000 * waits[int(len(waits) * share)] for share in (0.5, 0.99))
    print(
        f"{what}, {workers} workers: {rate:.0f} cycles/s, lease p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
