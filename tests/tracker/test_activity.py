"""What people did over time is noted once, kept by hours and days, and never lost or doubled."""

import pytest
from sqlalchemy import select

from cahlib.tracker import activity, admin, milestones, standings, statistics
from cahlib.tracker.activity import DAY, HOUR, Contribution
from cahlib.tracker.models import ShardResult, WorkerKind
from cahlib.tracker.schema import activity as table
from cahlib.tracker.schema import people
from cahlib.tracker.service import CrawlState

PARCEL = {"url": "s3://parcels/a.tar", "sha256": "0" * 64, "size": 5000}


def finish(lease_store, secret, pairs):
    number = lease_store.lease(secret).number
    lease_store.complete(secret, number, ShardResult(pairs=pairs))
    return number


def noted(database):
    """Return all that is noted of each person, and the sum of it that is kept."""
    found = {}
    with database.read() as connection:
        for row in connection.execute(select(table)):
            done, pairs = found.get((row.nickname, row.time > 0), (0, 0))
            found[row.nickname, row.time > 0] = done + row.done, pairs + row.pairs
    return found


def test_each_shard_is_in_one_piece_of_time(lease_store, fill, database, clock):
    fill(20)
    clock.now = 20 * DAY + 600.0
    ann, bob = (lease_store.register(name, WorkerKind.HYBRID)[1] for name in ("ann", "bob"))
    start = int(clock.now)
    for _ in range(10):
        finish(lease_store, ann, 100)
        clock.now += 300
        statistics.record_history(database, clock.now)
        statistics.record_history(database, clock.now + 1)  # by another server
    finish(lease_store, bob, 7)
    assert noted(database) == {("ann", True): (10, 1000), ("ann", False): (10, 1000)}
    fine = activity.activity_series(database, ["ann"], size=300, start=1)["ann"]
    assert list(fine) == list(range(start, start + 3000, 300))
    assert set(fine.values()) == {Contribution(done=1, pairs=100)}

    clock.now += 5 * HOUR
    statistics.record_history(database, clock.now)
    with database.read() as connection:
        times = connection.execute(select(table.c.time).where(table.c.nickname == "ann")).scalars()
        assert sorted(times) == [0, 20 * DAY]
    clock.now += 15 * DAY
    undone = statistics.find_worker_ids(database, "bob")[0]
    lease_store.expel(undone)
    assert admin.undo_worker(database, undone) == 1
    statistics.record_history(database, clock.now)
    days = activity.activity_series(database, ["ann", "bob"], size=DAY, start=1)
    assert days["ann"] == {20 * DAY: Contribution(done=10, pairs=1000)}
    assert noted(database)["bob", False] == noted(database)["bob", True] == (0, 0)


def test_ranks_of_the_last_hour_the_last_day_and_all_time(lease_store, fill, database, clock):
    fill(20)
    ann, bob, carl = (
        lease_store.register(name, WorkerKind.HYBRID, nickname_secret=name, team=team)[1]
        for name, team in (("ann", "cats"), ("bob", "dogs"), ("carl", "dogs"))
    )

    def ranks(period, kind=lambda every: every):
        every = kind(standings.list_contributors(database, clock.now))
        shown = standings.rank_contributors(every, period)
        return [(one.who.name, one.work.pairs, one.climbed) for one in shown]

    finish(lease_store, ann, 1000)
    finish(lease_store, bob, 400)
    statistics.record_history(database, clock.now)
    clock.now += 30 * HOUR
    statistics.record_history(database, clock.now)
    finish(lease_store, ann, 10)
    statistics.record_history(database, clock.now + 300)
    clock.now += 1.5 * HOUR
    finish(lease_store, bob, 700)  # just now, and not noted yet
    finish(lease_store, carl, 20)
    assert ranks("hour") == [("bob", 700, None), ("carl", 20, None)]
    assert ranks("day") == [("bob", 700, 1), ("carl", 20, None), ("ann", 10, -2)]
    assert ranks("all") == [("bob", 1100, 1), ("ann", 1010, -1), ("carl", 20, None)]
    assert ranks("all", standings.team_contributors) == [("dogs", 1120, 1), ("cats", 1010, -1)]


def test_bytes_are_those_of_the_parcels_that_stay(lease_store, fill, database):
    fill(3)
    cpu = lease_store.register("ann", WorkerKind.CPU)[1]
    gpus = [lease_store.register(name, WorkerKind.GPU)[1] for name in ("bob", "carl")]
    lease_store.deliver(cpu, lease_store.lease(cpu).number, PARCEL)
    for gpu in gpus:  # neither can fetch it
        lease_store.refetch(gpu, lease_store.lease(gpu).number, "gone")
    for _ in range(2):
        lease_store.deliver(cpu, lease_store.lease(cpu).number, PARCEL)

    def brought():
        with database.read() as connection:
            mine = select(people.c.scraped, people.c.bytes).where(people.c.nickname == "ann")
            return tuple(connection.execute(mine).one())

    assert brought() == (2, 10_000)
    lease_store.complete(gpus[0], lease_store.lease(gpus[0]).number, ShardResult(pairs=5))
    ann = statistics.find_worker_ids(database, "ann")[0]
    lease_store.expel(ann)
    admin.undo_worker(database, ann)  # the parcel that nobody has judged
    assert brought() == (1, 5000)


@pytest.mark.parametrize(
    ("worked", "found"),
    [([], (0, 0)), ([8], (1, 1)), ([9], (1, 1)), ([1, 2, 3, 5, 8, 9], (2, 3)), ([5, 6], (0, 2))],
)
def test_a_streak_lives_until_a_day_is_left_out(worked, found):
    assert activity.streak([DAY * day for day in worked], 9.5 * DAY) == found


def test_a_milestone_is_of_when_it_was_first_reached():
    past = [{"time": 3600 * n, "done": n, "pairs": 400 * n, "scraped": 0} for n in range(1, 26)]
    counts = statistics.CrawlCounts(
        total=100,
        leased=0,
        scraped=0,
        judging=0,
        failed=0,
        done=25,
        pairs=10_400,
        parcels=0,
        legacy_parcels=0,
    )
    state = CrawlState(counts=counts, workers={}, per_hour=1, day=[], ever=past, time=26 * 3600.0)
    shown = [(each.text, each.time / 3600) for each in milestones.crawl_milestones(state)]
    assert shown == [
        ("10,000 pairs", 25), ("25% of the crawl", 25), ("5,000 pairs", 13),
        ("10% of the crawl", 10), ("1,000 pairs", 3), ("1% of the crawl", 1),
    ]  # fmt: skip
    assert milestones.next_milestone(10_400, 400) == ("50,000 pairs", 99 * 3600)
    assert milestones.next_milestone(2_000_000, 1) == ("5 million pairs", 3_000_000 * 3600)
    assert milestones.next_milestone(10_400, 0) is None
