"""Many workers, one list of shards: nobody gets another's, nothing is lost or counted twice."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

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


def test_several_leases_at_once_are_no_more_than_a_worker_may_hold(database, clock, fill):
    fill(5)
    lease_store = LeaseStore(database, TrackerRules(max_held=5), clock=clock)
    secret = join(lease_store)
    given = [[lease.number for lease in lease_store.lease_several(secret, 3)] for _ in range(4)]
    assert given == [[0, 1, 2], [3], [4], []]


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
