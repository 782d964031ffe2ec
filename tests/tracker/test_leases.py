"""Many workers, one list of shards: nobody gets another's, nothing is lost or counted twice."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from cahlib.core.records import Stats
from cahlib.tracker import admin, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.models import (
    InvalidRequest,
    NotFound,
    NotHeld,
    ShardResult,
    TrackerRules,
    UnknownWorker,
    WorkerKind,
)
from cahlib.tracker.schema import left_pairs

from .conftest import wats

PARCEL = {"url": "s3://somewhere/a.tar", "sha256": "0" * 64, "size": 5}


def join(lease_store, kind=WorkerKind.HYBRID, nickname="ann"):
    return lease_store.register(nickname, kind)[1]


def test_twenty_threads_lease_each_shard_once(lease_store, fill, database):
    fill(100)
    every = [join(lease_store, nickname=f"n{n % 7}") for n in range(20)]
    taken = []

    def work(secret):
        while lease := lease_store.lease(secret):
            taken.append(lease.number)
            assert lease_store.complete(secret, lease.number, ShardResult(pairs=3)).counted

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(work, every))
    assert sorted(taken) == list(range(200))
    counts = statistics.crawl_counts(database)
    assert (counts.done, counts.pairs, counts.todo, counts.leased) == (200, 600, 0, 0)


def test_leases_under_fire_from_workers_that_give_up_fail_and_go_silent(lease_store, fill, clock):
    fill(60)
    done, lock = [], threading.Lock()

    def work(n):
        secret, mood = join(lease_store), random.Random(n)
        while lease := lease_store.lease(secret):
            act = mood.randrange(5)
            if act == 0:
                lease_store.release(secret, lease.number)
            elif act == 1:
                lease_store.leave(secret)
                secret = join(lease_store)
            elif lease_store.complete(secret, lease.number, ShardResult(pairs=1)).counted:
                with lock:
                    done.append(lease.number)

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(work, range(20)))
    assert sorted(done) == list(range(120))


def test_the_shard_of_a_silent_worker_is_given_to_another(lease_store, fill, clock):
    fill(1)
    silent, other = join(lease_store), join(lease_store)
    first, second = lease_store.lease(silent), lease_store.lease(silent)
    assert lease_store.lease(other) is None
    clock.now += 899
    assert lease_store.heartbeat(silent, [second.number]) == [second.number]
    clock.now += 2
    assert lease_store.lease(other).number == first.number
    assert lease_store.lease(other) is None
    with pytest.raises(NotHeld):
        lease_store.complete(silent, first.number, ShardResult(pairs=1))
    assert lease_store.heartbeat(silent, [first.number, second.number]) == [second.number]


def test_nothing_runs_out_at_once_when_the_tracker_was_away(lease_store, fill, clock, database):
    fill(1)
    ann, bob = join(lease_store), join(lease_store)
    first, second = lease_store.lease(ann).number, lease_store.lease(ann).number
    clock.now += 1000
    back = LeaseStore(database, lease_store.rules, clock=clock)
    assert back.lease(bob) is None and back.expire() == 0
    clock.now += 119
    assert back.heartbeat(ann, [first]) == [first]
    clock.now += 1
    assert back.lease(bob).number == second
    assert back.lease(bob) is None


def test_late_work_counts_while_nobody_else_has_the_shard(lease_store, fill, clock):
    fill(1)
    late = join(lease_store)
    first, second = lease_store.lease(late), lease_store.lease(late)
    clock.now += 10_000
    assert lease_store.expire() == 2
    assert lease_store.complete(late, first.number, ShardResult(pairs=1)).counted
    assert lease_store.heartbeat(late, [second.number]) == [second.number]
    assert lease_store.lease(join(lease_store)) is None


def test_a_completion_that_is_sent_again_counts_once(lease_store, fill, database):
    fill(1)
    secret = join(lease_store)
    number = lease_store.lease(secret).number
    result = ShardResult(pairs=7, stats=Stats(), output="s3://a")
    assert [lease_store.complete(secret, number, result).counted for _ in range(2)] == [True, False]
    (leader,) = statistics.list_leaders(database)
    assert (leader["nickname"], leader["done"], leader["pairs"]) == ("ann", 1, 7)


def test_a_foreign_shard_an_unknown_one_and_an_unknown_worker_are_refused(lease_store, fill):
    fill(1)
    holder, other = join(lease_store), join(lease_store)
    number = lease_store.lease(holder).number
    for act in (lease_store.release, lambda s, n: lease_store.complete(s, n, ShardResult(pairs=1))):
        with pytest.raises(NotHeld):
            act(other, number)
        with pytest.raises(NotFound):
            act(holder, 99)
        with pytest.raises(UnknownWorker):
            act("nobody", number)
    with pytest.raises(NotHeld):
        lease_store.fail(other, number, "no")
    lease_store.leave(holder)
    with pytest.raises(UnknownWorker):
        lease_store.lease(holder)
    assert lease_store.lease(other).number == number


def test_a_shard_that_fails_for_several_workers_is_set_aside(lease_store, fill, database):
    fill(1)
    for n in range(3):
        secret = join(lease_store)
        leases = [lease_store.lease(secret), lease_store.lease(secret)]
        assert sorted(lease.number for lease in leases) == [0, 1]
        lease_store.release(secret, 1)
        assert lease_store.fail(secret, 0, f"broken {n}") == (n == 2)
        # who failed with a shard does not get it again
        assert [lease_store.lease(secret).number, lease_store.lease(secret)] == [1, None]
        lease_store.release(secret, 1)
    (stuck,) = statistics.stuck_shards(database)
    assert (stuck["number"], stuck["error"], stuck["workers"]) == (0, "broken 2", 3)
    assert admin.retry_shards(database) == 1
    assert statistics.stuck_shards(database) == []
    assert lease_store.lease(secret).number == 0


def test_a_shard_that_silences_every_worker_is_set_aside(lease_store, fill, database, clock):
    fill(1)
    secret = join(lease_store)
    for _ in range(5):
        numbers = {lease_store.lease(secret).number, lease_store.lease(secret).number}
        assert numbers == {0, 1}
        clock.now += 1000
        lease_store.expire()
    assert lease_store.lease(secret) is None
    assert len(statistics.stuck_shards(database)) == 2


def test_a_parcel_goes_from_a_cpu_worker_to_a_gpu_worker(lease_store, fill, database):
    fill(1)
    cpu, gpu = join(lease_store, WorkerKind.CPU, "carl"), join(lease_store, WorkerKind.GPU, "gus")
    assert lease_store.lease(gpu) is None
    number = lease_store.lease(cpu).number
    with pytest.raises(InvalidRequest):
        lease_store.complete(cpu, number, ShardResult(pairs=1))
    assert lease_store.deliver(cpu, number, PARCEL)
    assert not lease_store.deliver(cpu, number, PARCEL)
    assert statistics.crawl_counts(database).scraped == 1
    lease = lease_store.lease(gpu)
    assert (lease.number, lease.parcel) == (number, PARCEL)
    assert not lease_store.deliver(cpu, number, PARCEL)
    assert lease_store.complete(gpu, number, ShardResult(pairs=4)).counted
    assert statistics.list_leaders(database, by="scraped")[0]["nickname"] == "carl"
    assert (
        statistics.list_leaders(database)[0] | {"nickname": "gus", "done": 1, "pairs": 4}
        == statistics.list_leaders(database)[0]
    )


def test_a_parcel_that_cannot_be_fetched_is_scraped_by_somebody_else(lease_store, fill, database):
    fill(1)
    cpu, second = join(lease_store, WorkerKind.CPU), join(lease_store, WorkerKind.CPU)
    number = lease_store.lease(cpu).number
    lease_store.deliver(cpu, number, PARCEL)
    for parcels in (1, 0):
        assert statistics.crawl_counts(database).parcels == 1
        gpu = join(lease_store, WorkerKind.GPU)
        assert lease_store.lease(gpu).parcel == PARCEL
        assert not lease_store.refetch(gpu, number, "404")
        assert statistics.crawl_counts(database).parcels == parcels
    with pytest.raises(NotHeld):
        lease_store.deliver(cpu, number, PARCEL)
    assert lease_store.lease(cpu).number != number
    assert lease_store.lease(second).number == number
    fresh = PARCEL | {"url": "s3://somewhere/b.tar"}  # what was said of the first is forgotten
    lease_store.deliver(second, number, fresh)
    assert lease_store.lease(gpu).parcel == fresh


def test_one_gpu_worker_alone_drops_no_parcel(lease_store, fill, database):
    fill(3)
    cpu, liar, honest = (
        join(lease_store, WorkerKind.CPU),
        join(lease_store, WorkerKind.GPU),
        join(lease_store, WorkerKind.GPU),
    )
    for _ in range(6):
        lease_store.deliver(cpu, lease_store.lease(cpu).number, PARCEL)
    refused = 0
    while lease := lease_store.lease(liar):
        lease_store.refetch(liar, lease.number, "404")
        refused += 1
    counts = statistics.crawl_counts(database)
    assert (refused, counts.scraped, counts.parcels) == (6, 6, 6)
    assert lease_store.lease(honest).parcel == PARCEL


def test_the_parcel_of_a_silent_gpu_worker_stays_a_parcel(lease_store, fill, clock):
    fill(1)
    cpu, silent, gpu = (
        join(lease_store, WorkerKind.CPU),
        join(lease_store, WorkerKind.GPU),
        join(lease_store, WorkerKind.GPU),
    )
    number = lease_store.lease(cpu).number
    lease_store.deliver(cpu, number, PARCEL)
    lease_store.lease(silent)
    clock.now += 1000
    assert lease_store.lease(gpu).parcel == PARCEL


def test_parcels_of_the_old_protocol_are_for_its_own_workers(lease_store, fill):
    fill(1)
    cpu, gpu = join(lease_store, WorkerKind.CPU), join(lease_store, WorkerKind.GPU)
    number = lease_store.lease(cpu, legacy=True).number
    lease_store.deliver(cpu, number, {"url": "rsync a"}, legacy=True)
    assert lease_store.lease(gpu) is None
    assert lease_store.lease(gpu, legacy=True).parcel == {"url": "rsync a"}


def test_a_worker_of_the_old_protocol_gives_back_by_asking(lease_store, fill, database):
    fill(1)
    secret = join(lease_store)
    for number in [0, 1] * 5:  # not the same again, which it may be unable to do
        assert lease_store.lease(secret, legacy=True).number == number
        assert lease_store.held_shards(secret) == [number]
    assert lease_store.lease(secret, legacy=True) is None
    assert [row["attempts"] for row in statistics.stuck_shards(database)] == [5, 5]


def test_nobody_hoards_shards(database, clock, fill):
    fill(10)
    lease_store = LeaseStore(database, TrackerRules(max_held=4), clock=clock)
    secret = join(lease_store)
    assert [bool(lease_store.lease(secret)) for _ in range(6)] == [True] * 4 + [False] * 2


A, B, C = ("aa" * 16, "bb" * 16, "cc" * 16)


def bring(lease_store, secret, number, *uids):
    """Complete a shard with these pairs; those that another was first to bring."""
    keys = tuple(map(bytes.fromhex, uids))
    closed = lease_store.complete(
        secret, number, ShardResult(pairs=len(keys), uids=keys, stats=Stats())
    )
    return [key.hex() for key in closed.late]


def undone(lease_store, database, secret):
    """Send a worker away, and put what it completed back on the list."""
    number = lease_store.known(secret).id
    lease_store.expel(number)
    return admin.undo_worker(database, number)


def test_a_pair_is_the_first_completed_shards(lease_store, fill, database):
    fill(1)
    ann, bob = join(lease_store), join(lease_store, nickname="bob")
    first, second = lease_store.lease(ann).number, lease_store.lease(bob).number
    assert (
        lease_store.claimed_pairs(ann, first, [A, B])
        == lease_store.claimed_pairs(bob, second, [B, C])
        == []
    )
    assert bring(lease_store, bob, second, B, C) == []
    assert lease_store.claimed_pairs(ann, first, [A, B]) == [B]
    assert bring(lease_store, ann, first, A, B, C) == [B, C]
    assert bring(lease_store, ann, first, A, B, C) == [B, C]  # the answer got lost
    assert {one["nickname"]: one["pairs"] for one in statistics.list_leaders(database)} == {
        "ann": 1,
        "bob": 2,
    }
    row = list(statistics.export_shards(database))[first]
    assert (row["pairs"], row["tally"]["judge"]["lost"]) == (1, {"pair_seen": 2})
    with pytest.raises(NotHeld):
        lease_store.claimed_pairs(bob, first, [A])
    with pytest.raises(InvalidRequest, match="CPU"):
        lease_store.claimed_pairs(join(lease_store, WorkerKind.CPU), first, [A])


def test_what_is_said_after_a_completion_takes_no_more_pairs(lease_store, fill):
    fill(1)
    eve, bob = join(lease_store), join(lease_store)
    first, second = lease_store.lease(eve).number, lease_store.lease(bob).number
    bring(lease_store, eve, first, A)
    assert bring(lease_store, eve, first, A, B, C) == []
    assert bring(lease_store, bob, second, B, C) == []


def test_who_gives_a_shard_back_has_left_nothing_to_others(lease_store, fill, database):
    fill(1)
    ann, eve = join(lease_store), join(lease_store, nickname="eve")
    bring(lease_store, ann, lease_store.lease(ann).number, A, B)
    number = lease_store.lease(eve).number
    assert lease_store.claimed_pairs(eve, number, [A, B, C]) == [A, B]
    lease_store.release(eve, number)
    with database.read() as connection:
        assert connection.execute(select(left_pairs)).all() == []


@pytest.mark.parametrize("told", ["before", "at its completion", "meanwhile"])
def test_pairs_left_to_a_shard_that_is_undone_come_back(lease_store, fill, database, told):
    fill(1)
    eve, bob = join(lease_store), join(lease_store, nickname="bob")
    first, second = lease_store.lease(eve).number, lease_store.lease(bob).number
    if told == "at its completion":
        bring(lease_store, eve, first, A, B)
        assert bring(lease_store, bob, second, A, C) == [A]
    else:
        bring(lease_store, eve, first, A, B)
        assert lease_store.claimed_pairs(bob, second, [A, C]) == [A]
        if told == "before":
            bring(lease_store, bob, second, C)
    assert undone(lease_store, database, eve) == 1
    if told == "meanwhile":
        bring(lease_store, bob, second, C)
    counts = statistics.crawl_counts(database)
    assert (counts.total, counts.todo) == (3, 2)
    carl = join(lease_store)
    leases = {lease.number: lease for lease in (lease_store.lease(carl), lease_store.lease(carl))}
    passed = leases.pop(max(leases))
    assert leases.keys() == {first}
    again, once = passed.shard, wats(1)[second]
    assert (again.url, again.half) == (once.url, once.half)
    assert again.id == f"{once.id}-again{passed.number}"
    assert lease_store.claimed_pairs(carl, passed.number, [A, C]) == [C]
    assert bring(lease_store, carl, passed.number, A) == []
    assert admin.add_wats(database, wats(2)) == 1
    assert statistics.crawl_counts(database).total == 5


def test_a_pair_that_one_shard_does_not_bring_again_the_next_one_does(lease_store, fill, database):
    fill(2)
    eve, carl, *others = (join(lease_store) for _ in range(5))
    bring(lease_store, eve, lease_store.lease(eve).number, A)
    for each in others:
        bring(lease_store, each, lease_store.lease(each).number, A)
    undone(lease_store, database, eve)
    assert undone(lease_store, database, others[0]) == 1  # whose shard was to bring it
    passes = []
    while lease := lease_store.lease(carl):
        if "again" in lease.shard.id:
            passes.append(lease.shard.id.split("-again")[0])
        bring(lease_store, carl, lease.number)  # which it never does
    assert passes == [wats(2)[n].id for n in (1, 2, 3)]


def test_a_shard_leaves_no_more_pairs_than_it_may_have(database, clock, fill):
    fill(1)
    lease_store = LeaseStore(database, TrackerRules(max_pairs=1200), clock=clock)
    ann, eve = join(lease_store), join(lease_store)
    first, second = lease_store.lease(ann).number, lease_store.lease(eve).number
    every = [f"{n:032x}" for n in range(1300)]
    bring(lease_store, ann, first, *every)
    assert lease_store.claimed_pairs(eve, second, every[:1200]) == every[:1200]
    with pytest.raises(InvalidRequest, match="at most 1,200"):
        lease_store.claimed_pairs(eve, second, every[1200:])


def test_several_leases_at_once_are_no_more_than_a_worker_may_hold(database, clock, fill):
    fill(5)
    lease_store = LeaseStore(database, TrackerRules(max_held=5), clock=clock)
    secret = join(lease_store)
    given = [[lease.number for lease in lease_store.lease_several(secret, 3)] for _ in range(4)]
    assert given == [[0, 1, 2], [3], [4], []]


def test_who_is_sent_away_elsewhere_leases_and_completes_nothing_from_then_on(
    lease_store, database, clock, fill
):
    fill(2)
    secret = join(lease_store)
    number = lease_store.lease(secret).number
    other = LeaseStore(database, TrackerRules(), clock=clock)  # another server process
    other.expel(other.known(secret).id)
    for act in (lease_store.lease, lambda secret: bring(lease_store, secret, number, A)):
        with pytest.raises(UnknownWorker):
            act(secret)
    assert statistics.crawl_counts(database).done == 0


def test_wats_are_added_once_and_numbered_in_pairs(database, lease_store):
    assert admin.add_wats(database, wats(3)) == 3
    assert admin.add_wats(database, wats(5)) == 2
    rows = list(statistics.export_shards(database))
    assert [(row["number"], row["half"]) for row in rows] == [(n, n % 2) for n in range(10)]
    assert statistics.crawl_counts(database).todo == 10


def test_the_secret_is_not_stored(lease_store, database):
    worker, secret = lease_store.register("ann", WorkerKind.HYBRID)
    assert lease_store.known(secret) == worker
    assert secret not in str(statistics.get_worker(database, worker.name))
    with database.read() as connection:
        assert (
            secret.encode()
            not in str(connection.exec_driver_sql("SELECT * FROM workers").all()).encode()
        )
