"""Each pair belongs to the first completed shard that has it."""

import pytest
from sqlalchemy import select

from cahlib.core.records import Stats
from cahlib.tracker import admin, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.models import (
    InvalidRequest,
    NotHeld,
    ShardResult,
    TrackerRules,
    UnknownWorker,
    WorkerKind,
)
from cahlib.tracker.schema import left_pairs

from .conftest import wats


def join(lease_store, kind=WorkerKind.HYBRID, nickname="ann"):
    return lease_store.register(nickname, kind)[1]


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
