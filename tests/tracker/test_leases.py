"""Many workers, one list of shards: nobody gets another's, nothing is lost or counted twice."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from cahlib.core.records import Stats
from cahlib.ledger.schema import lost
from cahlib.tracker import admin, statistics
from cahlib.tracker.leases import Crowd
from cahlib.tracker.models import Invalid, Kind, Missing, NotHeld, Result, Rules, Unknown

from .conftest import wats

PARCEL = {"url": "s3://somewhere/a.tar", "sha256": "0" * 64, "size": 5}


def join(crowd, kind=Kind.HYBRID, nickname="ann"):
    return crowd.register(nickname, kind)[1]


def test_twenty_threads_lease_each_shard_once(crowd, fill, database):
    fill(100)
    every = [join(crowd, nickname=f"n{n % 7}") for n in range(20)]
    taken = []

    def work(secret):
        while lease := crowd.lease(secret):
            taken.append(lease.number)
            assert crowd.complete(secret, lease.number, Result(pairs=3)).counted

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(work, every))
    assert sorted(taken) == list(range(200))
    counts = statistics.counts(database)
    assert (counts.done, counts.pairs, counts.todo, counts.leased) == (200, 600, 0, 0)


def test_leases_under_fire_from_workers_that_give_up_fail_and_go_silent(crowd, fill, clock):
    fill(60)
    done, lock = [], threading.Lock()

    def work(n):
        secret, mood = join(crowd), random.Random(n)
        while lease := crowd.lease(secret):
            act = mood.randrange(5)
            if act == 0:
                crowd.give_back(secret, lease.number)
            elif act == 1:
                crowd.leave(secret)
                secret = join(crowd)
            elif crowd.complete(secret, lease.number, Result(pairs=1)).counted:
                with lock:
                    done.append(lease.number)

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(work, range(20)))
    assert sorted(done) == list(range(120))


def test_the_shard_of_a_silent_worker_is_given_to_another(crowd, fill, clock):
    fill(1)
    silent, other = join(crowd), join(crowd)
    first, second = crowd.lease(silent), crowd.lease(silent)
    assert crowd.lease(other) is None
    clock.now += 899
    assert crowd.beat(silent, [second.number]) == [second.number]
    clock.now += 2
    assert crowd.lease(other).number == first.number
    assert crowd.lease(other) is None
    with pytest.raises(NotHeld):
        crowd.complete(silent, first.number, Result(pairs=1))
    assert crowd.beat(silent, [first.number, second.number]) == [second.number]


def test_nothing_runs_out_at_once_when_the_tracker_was_away(crowd, fill, clock, database):
    fill(1)
    ann, bob = join(crowd), join(crowd)
    first, second = crowd.lease(ann).number, crowd.lease(ann).number
    clock.now += 1000
    back = Crowd(database, crowd.rules, clock=clock)
    assert back.lease(bob) is None and back.expire() == 0
    clock.now += 119
    assert back.beat(ann, [first]) == [first]
    clock.now += 1
    assert back.lease(bob).number == second
    assert back.lease(bob) is None


def test_late_work_counts_while_nobody_else_has_the_shard(crowd, fill, clock):
    fill(1)
    late = join(crowd)
    first, second = crowd.lease(late), crowd.lease(late)
    clock.now += 10_000
    assert crowd.expire() == 2
    assert crowd.complete(late, first.number, Result(pairs=1)).counted
    assert crowd.beat(late, [second.number]) == [second.number]
    assert crowd.lease(join(crowd)) is None


def test_a_completion_that_is_sent_again_counts_once(crowd, fill, database):
    fill(1)
    secret = join(crowd)
    number = crowd.lease(secret).number
    result = Result(pairs=7, stats=Stats(), output="s3://a")
    assert [crowd.complete(secret, number, result).counted for _ in range(2)] == [True, False]
    (leader,) = statistics.leaders(database)
    assert (leader["nickname"], leader["done"], leader["pairs"]) == ("ann", 1, 7)


def test_a_foreign_shard_an_unknown_one_and_an_unknown_worker_are_refused(crowd, fill):
    fill(1)
    holder, other = join(crowd), join(crowd)
    number = crowd.lease(holder).number
    for act in (crowd.give_back, lambda s, n: crowd.complete(s, n, Result(pairs=1))):
        with pytest.raises(NotHeld):
            act(other, number)
        with pytest.raises(Missing):
            act(holder, 99)
        with pytest.raises(Unknown):
            act("nobody", number)
    with pytest.raises(NotHeld):
        crowd.fail(other, number, "no")
    crowd.leave(holder)
    with pytest.raises(Unknown):
        crowd.lease(holder)
    assert crowd.lease(other).number == number


def test_a_shard_that_fails_for_several_workers_is_set_aside(crowd, fill, database):
    fill(1)
    for n in range(3):
        secret = join(crowd)
        leases = [crowd.lease(secret), crowd.lease(secret)]
        assert sorted(lease.number for lease in leases) == [0, 1]
        crowd.give_back(secret, 1)
        assert crowd.fail(secret, 0, f"broken {n}") == (n == 2)
        # who failed with a shard does not get it again
        assert [crowd.lease(secret).number, crowd.lease(secret)] == [1, None]
        crowd.give_back(secret, 1)
    (stuck,) = statistics.stuck(database)
    assert (stuck["number"], stuck["error"], stuck["workers"]) == (0, "broken 2", 3)
    assert admin.retry(database) == 1
    assert statistics.stuck(database) == []
    assert crowd.lease(secret).number == 0


def test_a_shard_that_silences_every_worker_is_set_aside(crowd, fill, database, clock):
    fill(1)
    secret = join(crowd)
    for _ in range(5):
        numbers = {crowd.lease(secret).number, crowd.lease(secret).number}
        assert numbers == {0, 1}
        clock.now += 1000
        crowd.expire()
    assert crowd.lease(secret) is None
    assert len(statistics.stuck(database)) == 2


def test_a_parcel_goes_from_a_cpu_worker_to_a_gpu_worker(crowd, fill, database):
    fill(1)
    cpu, gpu = join(crowd, Kind.CPU, "carl"), join(crowd, Kind.GPU, "gus")
    assert crowd.lease(gpu) is None
    number = crowd.lease(cpu).number
    with pytest.raises(Invalid):
        crowd.complete(cpu, number, Result(pairs=1))
    assert crowd.deliver(cpu, number, PARCEL)
    assert not crowd.deliver(cpu, number, PARCEL)
    assert statistics.counts(database).scraped == 1
    lease = crowd.lease(gpu)
    assert (lease.number, lease.parcel) == (number, PARCEL)
    assert not crowd.deliver(cpu, number, PARCEL)
    assert crowd.complete(gpu, number, Result(pairs=4)).counted
    assert statistics.leaders(database, by="scraped")[0]["nickname"] == "carl"
    assert (
        statistics.leaders(database)[0] | {"nickname": "gus", "done": 1, "pairs": 4}
        == statistics.leaders(database)[0]
    )


def test_a_parcel_that_cannot_be_fetched_is_scraped_by_somebody_else(crowd, fill, database):
    fill(1)
    cpu, second = join(crowd, Kind.CPU), join(crowd, Kind.CPU)
    number = crowd.lease(cpu).number
    crowd.deliver(cpu, number, PARCEL)
    for parcels in (1, 0):
        assert statistics.counts(database).parcels == 1
        gpu = join(crowd, Kind.GPU)
        assert crowd.lease(gpu).parcel == PARCEL
        assert not crowd.refetch(gpu, number, "404")
        assert statistics.counts(database).parcels == parcels
    with pytest.raises(NotHeld):
        crowd.deliver(cpu, number, PARCEL)
    assert crowd.lease(cpu).number != number
    assert crowd.lease(second).number == number
    fresh = PARCEL | {"url": "s3://somewhere/b.tar"}  # what was said of the first is forgotten
    crowd.deliver(second, number, fresh)
    assert crowd.lease(gpu).parcel == fresh


def test_one_gpu_worker_alone_drops_no_parcel(crowd, fill, database):
    fill(3)
    cpu, liar, honest = join(crowd, Kind.CPU), join(crowd, Kind.GPU), join(crowd, Kind.GPU)
    for _ in range(6):
        crowd.deliver(cpu, crowd.lease(cpu).number, PARCEL)
    refused = 0
    while lease := crowd.lease(liar):
        crowd.refetch(liar, lease.number, "404")
        refused += 1
    counts = statistics.counts(database)
    assert (refused, counts.scraped, counts.parcels) == (6, 6, 6)
    assert crowd.lease(honest).parcel == PARCEL


def test_the_parcel_of_a_silent_gpu_worker_stays_a_parcel(crowd, fill, clock):
    fill(1)
    cpu, silent, gpu = join(crowd, Kind.CPU), join(crowd, Kind.GPU), join(crowd, Kind.GPU)
    number = crowd.lease(cpu).number
    crowd.deliver(cpu, number, PARCEL)
    crowd.lease(silent)
    clock.now += 1000
    assert crowd.lease(gpu).parcel == PARCEL


def test_parcels_of_the_old_protocol_are_for_its_own_workers(crowd, fill):
    fill(1)
    cpu, gpu = join(crowd, Kind.CPU), join(crowd, Kind.GPU)
    number = crowd.lease(cpu, old=True).number
    crowd.deliver(cpu, number, {"url": "rsync a"}, old=True)
    assert crowd.lease(gpu) is None
    assert crowd.lease(gpu, old=True).parcel == {"url": "rsync a"}


def test_a_worker_of_the_old_protocol_gives_back_by_asking(crowd, fill, database):
    fill(1)
    secret = join(crowd)
    for number in [0, 1] * 5:  # not the same again, which it may be unable to do
        assert crowd.lease(secret, old=True).number == number
        assert crowd.held(secret) == [number]
    assert crowd.lease(secret, old=True) is None
    assert [row["attempts"] for row in statistics.stuck(database)] == [5, 5]


def test_nobody_hoards_shards(database, clock, fill):
    fill(10)
    crowd = Crowd(database, Rules(most_held=4), clock=clock)
    secret = join(crowd)
    assert [bool(crowd.lease(secret)) for _ in range(6)] == [True] * 4 + [False] * 2


A, B, C = ("aa" * 16, "bb" * 16, "cc" * 16)


def bring(crowd, secret, number, *uids):
    """Complete a shard with these pairs; those that another was first to bring."""
    keys = tuple(map(bytes.fromhex, uids))
    closed = crowd.complete(secret, number, Result(pairs=len(keys), uids=keys, stats=Stats()))
    return [key.hex() for key in closed.lost]


def undone(crowd, database, secret):
    """Send a worker away, and put what it completed back on the list."""
    number = crowd.known(secret).id
    crowd.expel(number)
    return admin.undo(database, number)


def test_a_pair_is_the_first_completed_shards(crowd, fill, database):
    fill(1)
    ann, bob = join(crowd), join(crowd, nickname="bob")
    first, second = crowd.lease(ann).number, crowd.lease(bob).number
    assert crowd.taken(ann, first, [A, B]) == crowd.taken(bob, second, [B, C]) == []
    assert bring(crowd, bob, second, B, C) == []
    assert crowd.taken(ann, first, [A, B]) == [B]
    assert bring(crowd, ann, first, A, B, C) == [B, C]
    assert bring(crowd, ann, first, A, B, C) == [B, C]  # the answer got lost
    assert {one["nickname"]: one["pairs"] for one in statistics.leaders(database)} == {
        "ann": 1,
        "bob": 2,
    }
    row = list(statistics.export(database))[first]
    assert (row["pairs"], row["tally"]["judge"]["lost"]) == (1, {"pair_seen": 2})
    with pytest.raises(NotHeld):
        crowd.taken(bob, first, [A])
    with pytest.raises(Invalid, match="CPU"):
        crowd.taken(join(crowd, Kind.CPU), first, [A])


def test_what_is_said_after_a_completion_takes_no_more_pairs(crowd, fill):
    fill(1)
    eve, bob = join(crowd), join(crowd)
    first, second = crowd.lease(eve).number, crowd.lease(bob).number
    bring(crowd, eve, first, A)
    assert bring(crowd, eve, first, A, B, C) == []
    assert bring(crowd, bob, second, B, C) == []


def test_who_gives_a_shard_back_has_left_nothing_to_others(crowd, fill, database):
    fill(1)
    ann, eve = join(crowd), join(crowd, nickname="eve")
    bring(crowd, ann, crowd.lease(ann).number, A, B)
    number = crowd.lease(eve).number
    assert crowd.taken(eve, number, [A, B, C]) == [A, B]
    crowd.give_back(eve, number)
    with database.read() as connection:
        assert connection.execute(select(lost)).all() == []


@pytest.mark.parametrize("told", ["before", "at its completion", "meanwhile"])
def test_pairs_left_to_a_shard_that_is_undone_come_back(crowd, fill, database, told):
    fill(1)
    eve, bob = join(crowd), join(crowd, nickname="bob")
    first, second = crowd.lease(eve).number, crowd.lease(bob).number
    if told == "at its completion":
        bring(crowd, eve, first, A, B)
        assert bring(crowd, bob, second, A, C) == [A]
    else:
        bring(crowd, eve, first, A, B)
        assert crowd.taken(bob, second, [A, C]) == [A]
        if told == "before":
            bring(crowd, bob, second, C)
    assert undone(crowd, database, eve) == 1
    if told == "meanwhile":
        bring(crowd, bob, second, C)
    counts = statistics.counts(database)
    assert (counts.total, counts.todo) == (3, 2)
    carl = join(crowd)
    leases = {lease.number: lease for lease in (crowd.lease(carl), crowd.lease(carl))}
    passed = leases.pop(max(leases))
    assert leases.keys() == {first}
    again, once = passed.shard, wats(1)[second]
    assert (again.url, again.half) == (once.url, once.half)
    assert again.id == f"{once.id}-again{passed.number}"
    assert crowd.taken(carl, passed.number, [A, C]) == [C]
    assert bring(crowd, carl, passed.number, A) == []
    assert admin.add(database, wats(2)) == 1
    assert statistics.counts(database).total == 5


def test_a_pair_that_one_shard_does_not_bring_again_the_next_one_does(crowd, fill, database):
    fill(2)
    eve, carl, *others = (join(crowd) for _ in range(5))
    bring(crowd, eve, crowd.lease(eve).number, A)
    for each in others:
        bring(crowd, each, crowd.lease(each).number, A)
    undone(crowd, database, eve)
    assert undone(crowd, database, others[0]) == 1  # whose shard was to bring it
    passes = []
    while lease := crowd.lease(carl):
        if "again" in lease.shard.id:
            passes.append(lease.shard.id.split("-again")[0])
        bring(crowd, carl, lease.number)  # which it never does
    assert passes == [wats(2)[n].id for n in (1, 2, 3)]


def test_a_shard_leaves_no_more_pairs_than_it_may_have(database, clock, fill):
    fill(1)
    crowd = Crowd(database, Rules(most_pairs=1200), clock=clock)
    ann, eve = join(crowd), join(crowd)
    first, second = crowd.lease(ann).number, crowd.lease(eve).number
    every = [f"{n:032x}" for n in range(1300)]
    bring(crowd, ann, first, *every)
    assert crowd.taken(eve, second, every[:1200]) == every[:1200]
    with pytest.raises(Invalid, match="at most 1,200"):
        crowd.taken(eve, second, every[1200:])


def test_several_leases_at_once_are_no_more_than_a_worker_may_hold(database, clock, fill):
    fill(5)
    crowd = Crowd(database, Rules(most_held=5), clock=clock)
    secret = join(crowd)
    given = [[lease.number for lease in crowd.lease_several(secret, 3)] for _ in range(4)]
    assert given == [[0, 1, 2], [3], [4], []]


def test_who_is_sent_away_elsewhere_leases_and_completes_nothing_from_then_on(
    crowd, database, clock, fill
):
    fill(2)
    secret = join(crowd)
    number = crowd.lease(secret).number
    other = Crowd(database, Rules(), clock=clock)  # another server process
    other.expel(other.known(secret).id)
    for act in (crowd.lease, lambda secret: bring(crowd, secret, number, A)):
        with pytest.raises(Unknown):
            act(secret)
    assert statistics.counts(database).done == 0


def test_wats_are_added_once_and_numbered_in_pairs(database, crowd):
    assert admin.add(database, wats(3)) == 3
    assert admin.add(database, wats(5)) == 2
    rows = list(statistics.export(database))
    assert [(row["number"], row["half"]) for row in rows] == [(n, n % 2) for n in range(10)]
    assert statistics.counts(database).todo == 10


def test_the_secret_is_not_stored(crowd, database):
    worker, secret = crowd.register("ann", Kind.HYBRID)
    assert crowd.known(secret) == worker
    assert secret not in str(statistics.worker(database, worker.name))
    with database.read() as connection:
        assert (
            secret.encode()
            not in str(connection.exec_driver_sql("SELECT * FROM workers").all()).encode()
        )
