"""A tracker whose workers, server and database are killed at random, and a fifth of whom lie.

What workers were told is compared with the books at the end: each pair that an honest one keeps is
his shard's, and nobody else's; every sum is the sum of its parts.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from cahlib.core.records import Shard, Stage, Stats
from cahlib.ledger.client import LeasedShard, RequestRejected, TrackerClient, TrackerUnavailable
from cahlib.ledger.database import Database, DatabaseUnavailable
from cahlib.ledger.schema import pairs
from cahlib.tracker import admin, statistics
from cahlib.tracker.migrate import migrate
from cahlib.tracker.schema import people
from tests.world import command
from tests.world import postgres as servers
from tests.world.jobs import LIMIT, until
from tests.world.ports import free_port

WORKERS, HOSTILE = 64, 13  # a fifth
#: Pairs that many shards have.
COMMON = [f"{n:032x}" for n in range(1 << 127, (1 << 127) + 200)]


class Server:
    """The command on a port of its own; killed and started again."""

    def __init__(self, database: str) -> None:
        self.port = free_port()
        self._database = database
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = ["--port", self.port, "--rate", "0", "--lease-minutes", "0.1"]
        with open(os.devnull, "w") as nowhere:
            self.process = command.started(
                "tracker", "serve", *options, stdout=nowhere, CAH_TRACKER_DATABASE=self._database
            )
        until(self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Told:
    """What the tracker told the honest workers; the books must say the same at the end."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    done: Counter[int] = field(default_factory=Counter)
    kept: dict[int, set[str]] = field(default_factory=dict)


@dataclass
class Person:
    """A worker that joins, works, and sometimes vanishes with shards in hand."""

    url: str
    chance: random.Random
    told: Told
    ended: threading.Event

    def live(self) -> None:
        tracker = TrackerClient(self.url)
        while not self.ended.is_set():
            with suppress(TrackerUnavailable, RequestRejected):
                if not tracker.secret or self.chance.random() < 0.01:
                    tracker.join(
                        f"{self.name}{self.chance.randrange(9)}", "hybrid", retry_seconds=20
                    )
                leases, finished = tracker.lease(self.chance.randrange(1, 5), retry_seconds=20)
                if finished:
                    return
                if not leases:
                    self.ended.wait(0.2)
                if self.chance.random() < 0.02:
                    tracker.secret = ""  # killed: nobody hears of it again
                    continue
                for leased in leases:
                    self.work(tracker, leased)


class Honest(Person):
    name = "person"

    def work(self, tracker: TrackerClient, leased: LeasedShard) -> None:
        own = self.chance.randrange(50)
        uids = {f"{leased.number:016x}{n:016x}" for n in range(own)}
        uids |= set(self.chance.sample(COMMON, self.chance.randrange(3)))
        if self.chance.random() < 0.5:
            uids -= tracker.claimed_pairs(leased.number, uids, retry_seconds=20)
        for _ in range(1 + (self.chance.random() < 0.1)):  # some say it twice
            late = complete(tracker, leased, uids)
        with self.told.lock:
            self.told.done[leased.number] += 1
            self.told.kept[leased.number] = uids - late


class Hostile(Person):
    name = "mallory"

    def work(self, tracker: TrackerClient, leased: LeasedShard) -> None:
        stolen = set(self.chance.sample(COMMON, 50))
        stolen |= {f"{leased.number + 2:016x}{n:016x}" for n in range(20)}  # of a shard to come
        act = self.chance.choice(["claim", "lie", "give back", "fail", "silence"])
        if act == "claim":
            tracker.claimed_pairs(leased.number, stolen)
        if act in ("claim", "give back"):
            tracker.release(leased.number)
        elif act == "lie":
            complete(tracker, leased, stolen)
            complete(tracker, leased, stolen | {f"{n:032x}" for n in range(50)})  # and more of it
        elif act == "fail":
            tracker.fail(leased.number, "so it seems")


def complete(tracker: TrackerClient, leased: LeasedShard, uids: set[str]) -> set[str]:
    stats = Stats()
    for stage in Stage:
        stats.entered[stage] = stats.left[stage] = len(uids)
    similarities = dict.fromkeys(uids, 0.3)
    return tracker.complete(leased.number, similarities=similarities, stats=stats, retry_seconds=20)


def community(
    url: str,
    postgres: servers.Postgres | None,
    *,
    count: int,
    seed: int,
    kills: Callable[[Told], Iterable[Callable[[], bool]]],
    finish: bool,
) -> str:
    """Have workers do ``count`` shards, kill when each of ``kills`` comes true; check the books.

    Return what was seen, in a sentence. With ``finish`` until all shards are done.
    """
    database = Database(url)
    migrate(database)
    admin.add_wats(database, wats(count // 2))
    server, told, ended = Server(url), Told(), threading.Event()
    kinds = [Hostile if n < HOSTILE else Honest for n in range(WORKERS)]
    everyone = [
        kind(server.url, random.Random(f"{seed} {n}"), told, ended) for n, kind in enumerate(kinds)
    ]
    threads = [threading.Thread(target=person.live) for person in everyone]
    chance, killed = random.Random(seed), Counter[str]()
    try:
        for thread in threads:
            thread.start()
        for comes in kills(told):
            until(comes)
            if postgres is not None and chance.random() < 0.4:
                killed["database"] += 1
                postgres.restart()
            else:
                killed["server"] += 1
                server.kill()
                server.start()
        while finish and any(thread.is_alive() for thread in threads):
            with suppress(DatabaseUnavailable):
                admin.retry_shards(database)  # what was set aside because of those who lie
            for thread in threads:
                thread.join(1 / WORKERS)
        ended.set()
        for thread in threads:
            thread.join(LIMIT)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        ended.set()
        server.kill()
    with suppress(
        DatabaseUnavailable
    ):  # the first question after a crash finds the old connection broken
        statistics.crawl_counts(database)
    done = check(database, told, count if finish else 0)
    database.close()
    return f"{done:,} shards done by {WORKERS} workers, {HOSTILE} hostile; {dict(killed)} killed"


def check(database: Database, told: Told, expected: int) -> int:
    """Raise AssertionError unless the books say what the honest were told; return shards done."""
    counts, rows = statistics.crawl_counts(database), list(statistics.export_shards(database))
    done = {row["number"]: row["pairs"] for row in rows if row["state"] == "done"}
    assert counts.done == len(done) >= expected
    assert set(told.done.values()) <= {1} and told.done.keys() <= done.keys()
    with database.read() as connection:
        owned: dict[int, set[str]] = {number: set() for number in done}
        for uid, number in connection.execute(select(pairs.c.uid, pairs.c.shard)):
            owned[number].add(uid.hex())
        sums: Any = select(func.sum(people.c.done), func.sum(people.c.pairs))
        of_people = tuple(connection.execute(sums).one())
    assert {number: len(uids) for number, uids in owned.items()} == done
    assert all(owned[number] == kept for number, kept in told.kept.items())
    assert of_people == (len(done), sum(done.values())) == (counts.done, counts.pairs)
    return len(done)


def wats(count: int) -> Iterable[Shard]:
    """The shards of so many WAT files."""
    url = "https://data.example.org/{:06}.warc.wat.gz"
    for n in range(count):
        for half in (0, 1):
            yield Shard(id=f"wat{n:06}-{half}", url=url.format(n), half=half)


def soak(seconds: float, seed: int) -> None:
    """Do so for some seconds, and print what was seen; raise AssertionError for wrong books."""
    chance, end = random.Random(seed), time.monotonic() + seconds

    def at_random(told: Told) -> Iterable[Callable[[], bool]]:
        while (at := time.monotonic() + chance.uniform(5, 30)) < end:
            yield lambda at=at: time.monotonic() > at
        yield lambda: time.monotonic() > end

    if reason := servers.missing():
        print(f"community: not tried ({reason})")
        return
    with servers.postgres() as postgres:
        seen = community(
            postgres.create("community"), postgres, count=400_000, seed=seed, kills=at_random,
            finish=False,
        )  # fmt: skip
    print(f"community: {seen}; the books are right")
