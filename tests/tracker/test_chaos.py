"""Workers are killed, the server is killed, PostgreSQL is killed: every shard is done once.

It earns its half minute: no smaller test has all of these happen at the same time.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections import Counter
from contextlib import suppress

import pytest

from cahlib.records import Tally
from cahlib.tracker import board, intake
from cahlib.tracker.client import Refused, Tracker, TrackerAway
from cahlib.tracker.database import Database, DatabaseAway
from cahlib.tracker.migrate import migrate
from tests.world import command
from tests.world import postgres as servers
from tests.world.jobs import LIMIT, until
from tests.world.ports import free_port

from .conftest import wats

SHARDS, THREADS = 500, 64


class Server:
    """The installed command on a port of its own; killed and started again."""

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


class Acknowledged:
    """What the tracker said it counted; the sums must be the same at the end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shards: Counter[int] = Counter()
        self.pairs: dict[int, int] = {}


def live(url: str, mood: random.Random, said: Acknowledged, ended: threading.Event) -> None:
    """Work as people's machines do: mostly well, sometimes vanishing with a shard in hand."""
    tracker = Tracker(url)
    while not ended.is_set():
        with suppress(TrackerAway, Refused):
            if not tracker.secret or mood.random() < 0.01:
                tracker.join(f"person{mood.randrange(9)}", "hybrid", patience=20)
            leases, finished = tracker.lease(patience=20)
            if finished:
                return
            if not leases:
                ended.wait(0.2)
                continue
            leased = leases[0]
            if mood.random() < 0.02:
                tracker.secret = ""  # killed: nobody hears of it again
                continue
            pairs = mood.randrange(100)
            tally = Tally.from_dict(
                {"judge": {"in": pairs, "out": pairs, "lost": {}}}
                | {name: {"in": pairs, "out": pairs, "lost": {}} for name in ("choose", "fetch")}
            )
            uids = {f"{leased.number:016x}{n:016x}" for n in range(pairs)}
            for _ in range(1 + (mood.random() < 0.1)):  # some say it twice
                tracker.complete(leased.number, uids=uids, tally=tally, patience=20)
            with said.lock:
                said.shards[leased.number] += 1
                said.pairs[leased.number] = pairs


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_every_shard_is_done_once_whatever_is_killed(kind, tmp_path):
    if kind == "sqlite":
        chaos(f"sqlite:///{tmp_path / 'tracker.sqlite'}", None)
        return
    if reason := servers.missing():
        pytest.skip(reason)
    with servers.postgres() as postgres:
        chaos(postgres.create("chaos"), postgres)


def chaos(url: str, postgres: servers.Postgres | None) -> None:
    database = Database(url)
    migrate(database)
    intake.add(database, wats(SHARDS // 2))
    server, said, ended = Server(url), Acknowledged(), threading.Event()
    threads = [
        threading.Thread(target=live, args=(server.url, random.Random(n), said, ended))
        for n in range(THREADS)
    ]
    try:
        for thread in threads:
            thread.start()
        for share in (0.2, 0.5, 0.8):
            until(lambda share=share: len(said.shards) > share * SHARDS)
            if postgres is not None and share == 0.5:
                postgres.restart()
            else:
                server.kill()
                server.start()
        for thread in threads:
            thread.join(LIMIT)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        ended.set()
        server.kill()
    check(database, said)
    database.close()


def check(database: Database, said: Acknowledged) -> None:
    found = []

    def answers() -> bool:  # the first question after a crash finds the old connection broken
        with suppress(DatabaseAway):
            found.append((board.counts(database), list(board.export(database))))
        return bool(found)

    until(answers)
    [(counts, rows)] = found
    assert (counts.done, counts.failed, counts.todo, counts.leased) == (SHARDS, 0, 0, 0)
    assert {row["state"] for row in rows} == {"done"}
    # Acknowledged is counted; what was counted without anybody hearing of it died with its worker.
    assert set(said.shards.values()) == {1}
    stored = {row["number"]: row["pairs"] for row in rows}
    assert all(stored[number] == pairs for number, pairs in said.pairs.items())
    assert counts.pairs == sum(stored.values())
    assert sum(one["done"] for one in board.everyone(database)) == SHARDS
