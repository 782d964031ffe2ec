"""One worker in five lies: each honest pair is in exactly one dataset all the same."""

from __future__ import annotations

import random
from collections import Counter

from cahlib.core.records import Stage, Stats
from cahlib.ledger.client import RequestRejected, TrackerClient
from cahlib.tracker import admin, statistics
from cahlib.tracker.app import create_app
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.schema import workers
from cahlib.tracker.service import TrackerSettings
from tests.world.trackers import serving

WATS, PAIRS, LEASE = 15, 12, 900


def crawl(chance):
    """The pairs of each shard, by its number; one in three is in other shards too."""
    common = [f"{n:032x}" for n in range(40)]
    return {
        number: {f"{number:08x}{n:024x}" for n in range(1, PAIRS)} | set(chance.sample(common, 5))
        for number in range(2 * WATS)
    }


def account(pairs):
    stats = Stats()
    for stage in Stage:
        stats.entered[stage] = stats.left[stage] = pairs
    return stats


class Honest:
    """Keeps a dataset, and does one thing at a time."""

    def __init__(self, url, world, chance, nickname):
        self.tracker, self.world, self.chance = TrackerClient(url), world, chance
        self.tracker.join(nickname, "hybrid")
        self.dataset, self.leased, self.judged = {}, None, None
        self.finished = False

    def step(self):
        if self.leased is None:
            leases, self.finished = self.tracker.lease()
            self.leased = leases[0] if leases else None
        elif self.judged is None:
            pairs = self.world[
                int(self.leased.shard.id.split("-")[0][3:]) * 2 + self.leased.shard.half
            ]
            self.judged = pairs - self.tracker.claimed_pairs(self.leased.number, pairs)
        elif self.chance.random() < 0.1:  # it is ended, and its files with it
            self.tracker.release(self.leased.number)
            self.leased = self.judged = None
        else:
            number, kept = self.leased.number, self.judged
            said = {"similarities": dict.fromkeys(kept, 0.3), "stats": account(len(kept))}
            late = self.tracker.complete(number, **said)
            if self.chance.random() < 0.3:  # the answer gets lost, and it says so again
                late = self.tracker.complete(number, **said)
            self.dataset[number] = kept - late
            self.leased = self.judged = None

    def heartbeat(self):
        if self.leased:
            assert self.tracker.heartbeat([self.leased.number]) == {self.leased.number}


class Hostile:
    """Knows every pair, and does what it can to keep the others from them."""

    def __init__(self, url, world, chance, nickname):
        self.tracker, self.chance, self.nickname = TrackerClient(url), chance, nickname
        self.every = sorted(set().union(*world.values()))
        self.held = []
        self.tracker.join(nickname, "hybrid")

    def step(self):
        act = self.chance.choice(["claim", "lie", "lie", "release", "fail", "leave", "silence"])
        if len(self.held) < 3:
            self.held += [leased.number for leased in self.tracker.lease(2)[0]]
        if not self.held:
            return
        number = self.held[-1]
        try:
            getattr(self, act.replace(" ", "_"))(number)
        except RequestRejected as refused:
            assert refused.status in (409, 422)
            self.held.pop()

    def claim(self, number):
        self.tracker.claimed_pairs(number, self.every)

    def lie(self, number):
        stolen = self.chance.sample(self.every, 30)
        self.tracker.claimed_pairs(number, stolen)
        said = dict.fromkeys(stolen, 0.3)
        self.tracker.complete(number, similarities=said, stats=account(30))
        said = dict.fromkeys(self.every, 0.3)
        for _ in range(2):  # and more of it, when it is counted
            self.tracker.complete(number, similarities=said, stats=account(len(said)))
        self.held.pop()

    def release(self, number):
        self.tracker.release(self.held.pop())

    def fail(self, number):
        self.tracker.fail(self.held.pop(), "so it seems")

    def leave(self, number):
        self.tracker.heartbeat([], "bye")
        self.tracker.join(self.nickname, "hybrid")  # a newcomer that forgets what it held
        self.held.clear()

    def silence(self, number):
        self.held.pop()


def work(everyone, clock, chance):
    """Until no honest worker will be given a shard any more."""
    honest = [one for one in everyone if isinstance(one, Honest)]
    for _ in range(20_000):
        chance.choice(everyone).step()
        if chance.random() < 0.05:
            for one in honest:
                one.heartbeat()
            clock.now += LEASE / 2
        if all(one.finished and one.leased is None for one in honest):
            return
    raise AssertionError("there is no end to it")


def send_away(service, database):
    """What an administrator does who has found out."""
    with database.read() as connection:
        named = workers.c.nickname.like("mallory%")
        numbers = connection.execute(workers.select().where(named)).scalars().all()
    for number in numbers:
        service.leases.expel(number)
    for number in numbers:
        admin.undo_worker(database, number)
    admin.retry_shards(database)


def test_each_honest_pair_is_in_one_dataset(url, database, fill, clock):
    chance = random.Random(0)
    world = crawl(chance)
    fill(WATS)
    rules = TrackerRules(lease_seconds=LEASE, max_pairs=1000)
    limits = RequestLimits(address=0, worker=0, newcomers=0)
    app = create_app(
        TrackerSettings(database=url, rules=rules, limits=limits, fresh=0), clock=clock
    )
    with serving(app) as address:
        honest = [Honest(address, world, chance, f"ann{n}") for n in range(8)]
        hostile = [Hostile(address, world, chance, f"mallory{n}") for n in range(2)]
        work(honest + hostile, clock, chance)
        before = sum(len(pairs) for one in honest for pairs in one.dataset.values())
        send_away(app.state.service, database)
        work(honest, clock, chance)
        again = statistics.crawl_counts(database)
    made = Counter(uid for one in honest for pairs in one.dataset.values() for uid in pairs)
    every = set().union(*world.values())
    assert before < len(every)  # or they have done no harm
    assert set(made) == every and set(made.values()) == {1}
    assert (again.todo, again.leased, again.failed) == (0, 0, 0)
    assert again.total == again.done > 2 * WATS  # second passes among them
    assert again.pairs == len(every)
    assert {one["nickname"]: one["pairs"] for one in statistics.list_leaders(database)} == {
        f"ann{n}": sum(map(len, one.dataset.values())) for n, one in enumerate(honest)
    }
