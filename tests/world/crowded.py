"""A tracker's database as a large community fills it: people, machines, teams, weeks of work."""

from __future__ import annotations

import random
from typing import Any

from cahlib.ledger.database import Database
from cahlib.ledger.schema import shards
from cahlib.tracker.activity import DAY, HOUR
from cahlib.tracker.nicknames import fold
from cahlib.tracker.schema import activity, failures, history, people, teams, wats, workers

#: Names as people choose them, and some that want to break the page.
NAMES = (
    "ann", "Théo", "李雷", "Иван Петров", "مريم", "W" * 40, "<img src=x onerror=alert(1)>",
    "a/b?c=d&e#f", "Dr. Maximiliane von Hohenstauffen-Berg", "..", "o'Brien \"Bob\"", "i" * 40,
)  # fmt: skip
TEAMS = ("LAION", "DataHoarders", "Crawling@Home", "Team <b>Bold</b>", "Sächsische Bibliothek")
_WAT = "https://data.example.org/crawl-data/CC-MAIN-2024-10/segments/{0}/{0:06}.warc.wat.gz"
_ERRORS = "{url} answers 404.", "{url} is cut off at byte {n}.", "99.{n} % of the links timed out."
#: Most shards have no row here: how many there are is told by the last one's number.
_APART = 240


def fill(database: Database, now: float, *, machines: int = 1000, rows: int = 6000) -> None:
    """Write down as many machines, of half as many people, and a crawl that is a third done."""
    chance = random.Random(7)
    every = [*NAMES, *(f"volunteer {n}" for n in range(machines // 2 - len(NAMES)))]
    did = [_activity(name, n % 5 == 4, now, chance) for n, name in enumerate(every)]
    sums = [
        {what: sum(row[what] for row in each) for what in ("scraped", "done", "pairs", "bytes")}
        for each in did
    ]
    nicknames = [
        {"nickname": name, "folded": f"{fold(name)}{n}", "team": chance.choice([None, *TEAMS]),
         "secret": None if n % 7 == 3 else b"his" * 10}
        for n, name in enumerate(every)
    ]  # fmt: skip
    found = [
        {"id": n, "name": f"brave-otter-{n:05}", "nickname": every[n % len(every)],
         "kind": "cpu" if n % len(every) % 5 == 4 else "hybrid", "secret": n.to_bytes(32, "big"),
         "first_seen": now - 20 * DAY, "last_seen": now - chance.expovariate(1 / 1200),
         "gone": n % 11 == 0, "progress": f"working on {2 + n % 7} shards", "scraped": 4,
         "done": 30, "pairs": 33_000 + 977 * n}
        for n in range(1, machines + 1)
    ]  # fmt: skip
    done, pairs = (sum(each[what] for each in sums) for what in ("done", "pairs"))
    hour = int(now // HOUR * HOUR)
    times = [hour - HOUR * n for n in range(960)] + [hour - 300 * n for n in range(500) if n % 12]
    past = [((at - hour) / HOUR / 960 + 1, at) for at in times]
    tables: list[tuple[Any, list[dict[str, Any]]]] = [
        (teams, [{"name": team, "folded": fold(team)} for team in TEAMS]),
        (activity, [row for each in did for row in each]),
        (activity, [{"nickname": name, "time": 0} | sums[n] for n, name in enumerate(every)]),
        (people, [owner | sums[n] for n, owner in enumerate(nicknames)]),
        (workers, found),
        (wats, [{"number": n * _APART, "url": _WAT.format(n)} for n in range(rows // 2)]),
        (shards, [
            {"number": n * _APART, "id": f"{n:06}", "url": _WAT.format(n // 2), "half": n % 2}
            | _state(n, rows, now, chance, [each["id"] for each in found if each["kind"] != "cpu"])
            for n in range(rows)
        ]),
        (failures, [
            {"shard": (rows - 1 - n) * _APART, "worker": who, "time": now - 60 * n, "error": "x"}
            for n in range(40) for who in (1, 2, 3)
        ]),
        (history, [
            {"time": at, "done": int(done * share**1.3), "pairs": int(pairs * share**1.3),
             "scraped": 0, "workers": 300}
            for share, at in past
        ]),
    ]  # fmt: skip
    with database.write() as connection:
        for table, values in tables:
            connection.execute(table.insert(), values)


def _activity(name: str, cpu: bool, now: float, chance: random.Random) -> list[dict[str, Any]]:
    """Return what somebody did on the days since he came, and in the hours of the last one."""
    pace, since = min(chance.paretovariate(1.2), 60), chance.randrange(40)
    day, hour = int(now // DAY * DAY), int(now // HOUR * HOUR)
    parts = [(day - DAY * n, 24) for n in range(1, since) if chance.random() < 0.8]
    parts += [(hour - HOUR * n, 1) for n in range(24) if chance.random() < 0.5]
    some = [(at, int(size * chance.uniform(0, 1.5) * pace) + 1) for at, size in parts]
    none = {"nickname": name, "scraped": 0, "done": 0, "pairs": 0, "bytes": 0}
    return [
        none | {"time": at}
        | ({"scraped": n, "bytes": n * 41_000_000} if cpu else {"done": n, "pairs": n * 1100})
        for at, n in some
    ]  # fmt: skip


def _state(n: int, rows: int, now: float, chance: random.Random, who: list[int]) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(("worker", "finished", "error"))
    values |= {"state": "todo", "pairs": 0, "expires": 0}
    if n < rows // 3:
        some = {"pairs": chance.randrange(300, 2500), "finished": now - 9 * (n + chance.random())}
        return values | some | {"state": "done", "worker": chance.choice(who)}
    if n < rows // 2:
        return values | {"state": "leased", "worker": chance.choice(who), "expires": now + 600}
    if n >= rows - 40:
        error = _ERRORS[n * n // 3 % 3].format(url=_WAT.format(n // 2), n=n)
        return values | {"state": "failed", "error": error}
    return values | {"state": "scraped" if n < rows * 5 // 8 else "todo"}
