"""A finished shard is done again by somebody else; whoever invents pairs is seen by it."""

import pytest

from cahlib.commands.cli import main
from cahlib.core.records import Stats
from cahlib.tracker import admin, hot_routes, spot_checks, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.models import OutdatedWorker, ShardResult, TrackerRules, WorkerKind
from cahlib.tracker.service import Service, TrackerSettings

PAIRS = [f"{n:032x}" for n in range(10)]


@pytest.fixture
def lease_store(database, clock):
    return LeaseStore(database, TrackerRules(verify_share=1), clock=clock)


def bring(lease_store, secret, number, uids, similarity=0.3):
    keys = tuple(map(bytes.fromhex, uids))
    lease_store.claimed_pairs(secret, number, uids)
    found = {"uids": keys, "similarities": (similarity,) * len(keys)}
    closed = lease_store.complete(
        secret, number, ShardResult(pairs=len(keys), stats=Stats(), **found)
    )
    return [key.hex() for key in closed.late]


def test_a_check_finds_who_invents_pairs(lease_store, fill, database, url, capsys):
    fill(1)
    ann, eve = (lease_store.register(name, WorkerKind.HYBRID)[1] for name in ("ann", "eve"))
    honest, invented = lease_store.lease(ann).number, lease_store.lease(eve).number
    assert bring(lease_store, ann, honest, PAIRS[:4]) == []
    assert bring(lease_store, eve, invented, ["ab" * 16, "cd" * 16]) == []
    own = lease_store.lease(ann)
    assert own.shard.id.startswith("wat000000-1-again")  # eve's; its own is for others
    assert lease_store.claimed_pairs(ann, own.number, [PAIRS[0], "ab" * 16]) == [PAIRS[0]]
    assert bring(lease_store, ann, own.number, PAIRS[4:7]) == []
    assert lease_store.lease(ann) is None and lease_store.finished(ann)
    other = lease_store.lease(eve)
    # what was there before stays the first one's; an image is gone, and another one is found
    assert bring(lease_store, eve, other.number, PAIRS[1:4] + PAIRS[7:8]) == PAIRS[1:4]
    assert lease_store.lease(eve) is None  # a check is not checked
    told = [
        (c.nickname, c.checker, c.agreed, c.claimed) for c in spot_checks.finished_checks(database)
    ]
    assert told == [("eve", "ann", 0, 2), ("ann", "eve", 3, 4)]
    counts = statistics.crawl_counts(database)
    assert (counts.total, counts.done, counts.pairs) == (5, 4, 4 + 2 + 3 + 1)  # one to settle it
    assert main(["tracker", "checks", "--database", url]) == 0
    said = capsys.readouterr().out
    assert "0.0% of      2 pairs  shard 1  eve, checked by ann" in said and "75.0%" in said
    lease_store.expel(lease_store.known(eve).id)
    assert admin.undo_worker(database, statistics.find_worker_ids(database, "eve")[0]) == 2


@pytest.mark.parametrize("invented", ["pairs", "similarities"])
@pytest.mark.parametrize("third", ["agrees", "finds nothing", "says as the first"])
def test_two_who_agree_undo_the_first(database, clock, fill, third, invented):
    fill(2)
    lease_store = LeaseStore(database, TrackerRules(verify_share=1), clock=clock)
    eve, ann, carl = (
        lease_store.register(name, WorkerKind.HYBRID)[1] for name in ("eve", "ann", "carl")
    )
    first = lease_store.lease(eve).number
    said = {"pairs": (["ab" * 16, "cd" * 16], 0.3), "similarities": (PAIRS[:4], 0.4)}[invented]
    bring(lease_store, eve, first, *said)
    lease_store.rules = TrackerRules(verify_share=1e-12)  # no other shard is checked
    held = {lease.number for lease in lease_store.lease_several(ann, 9)}
    check = max(held)
    assert first not in held and len(held) == 4
    bring(lease_store, ann, check, PAIRS[:4], 0.301)
    for number in held - {check}:
        lease_store.release(ann, number)
    # it is seen, and he does one at a time, and nothing that settles it
    assert len(lease_store.lease_several(eve, 9)) == 1 and lease_store.lease(eve) is None
    assert {lease.number for lease in lease_store.lease_several(ann, 9)}.isdisjoint({first, check})
    settling = lease_store.lease(carl)
    assert settling.shard.id.startswith("wat000000-0-again") and lease_store.lease(carl) is None
    found = {"agrees": (PAIRS[:3], 0.297), "finds nothing": ([],), "says as the first": said}
    bring(lease_store, carl, settling.number, *found[third])
    people = {
        one["nickname"]: (one["done"], one["pairs"])
        for one in statistics.full_leaderboard(database)
    }
    again = lease_store.lease(carl)
    if third == "agrees":
        assert "eve" not in people and again.number == first
        assert people["ann"] == (1, 4 if invented == "pairs" else 0)  # which are still hers
    else:
        assert people["eve"] == (1, len(said[0])) and again is None
    with database.read() as connection:
        assert spot_checks.is_doubted(connection, "eve") == (third != "says as the first")
    assert [c.nickname for c in spot_checks.finished_checks(database)] == ["eve", "eve"]


def test_a_worker_that_knows_no_similarities_is_told_to_update(tmp_path):
    service = Service(
        TrackerSettings(database=f"sqlite:///{tmp_path / 'x'}", rules=TrackerRules(verify_share=1))
    )
    with pytest.raises(OutdatedWorker):
        hot_routes.complete_shard(
            service, "", 0, hot_routes.CompletionRequest(uids=PAIRS, tally={})
        )


def test_no_shard_is_checked_unless_it_is_asked_for(database, fill, clock):
    fill(1)
    lease_store = LeaseStore(database, TrackerRules(), clock=clock)
    ann = lease_store.register("ann", WorkerKind.HYBRID)[1]
    bring(lease_store, ann, lease_store.lease(ann).number, PAIRS)
    assert (
        statistics.crawl_counts(database).total == 2 and spot_checks.finished_checks(database) == []
    )


def test_a_check_comes_before_what_nobody_has_done(lease_store, fill):
    fill(3)
    ann, bob = (lease_store.register(name, WorkerKind.HYBRID)[1] for name in ("ann", "bob"))
    bring(lease_store, ann, lease_store.lease(ann).number, PAIRS)
    assert lease_store.lease(ann).number == 1  # nobody checks himself
    assert lease_store.lease(bob).shard.id.startswith("wat000000-0-again")


def test_checks_do_not_pile_up_where_nobody_else_is(lease_store, fill, database):
    fill(40)
    ann = lease_store.register("ann", WorkerKind.HYBRID)[1]
    for lease in lease_store.lease_several(ann, 60):
        bring(lease_store, ann, lease.number, [f"{lease.number:032x}"])
    assert statistics.crawl_counts(database).total == 80 + 50


@pytest.mark.parametrize(("claimed", "agreed"), [(4, 4), (5, 4), (20_000, 4)])
def test_who_names_no_pairs_is_checked_by_their_number(
    lease_store, fill, database, claimed, agreed
):
    fill(2)
    (_, old), (_, ann) = (lease_store.register(name, WorkerKind.HYBRID) for name in ("old", "ann"))
    first = lease_store.lease(old, legacy=True).number
    lease_store.complete(old, first, ShardResult(pairs=claimed))
    # an old client, which names no pairs, cannot check anybody
    other = lease_store.register("other", WorkerKind.HYBRID)[1]
    assert lease_store.lease(other, legacy=True).number < 4
    bring(lease_store, ann, lease_store.lease(ann).number, PAIRS[:4])
    assert [(c.agreed, c.claimed) for c in spot_checks.finished_checks(database)] == [
        (agreed, claimed)
    ]


def test_a_check_of_what_was_undone_meanwhile_accuses_nobody(lease_store, fill, database):
    fill(1)
    eve, ann, bob = (
        lease_store.register(name, WorkerKind.HYBRID)[1] for name in ("eve", "ann", "bob")
    )
    first, _ = (lease.number for lease in lease_store.lease_several(eve, 2))
    bring(lease_store, eve, first, ["ab" * 16])
    check = lease_store.lease(ann).number
    lease_store.expel(lease_store.known(eve).id)
    admin.undo_worker(database, statistics.find_worker_ids(database, "eve")[0])
    lease_store.rules = TrackerRules(verify_share=1e-12)
    assert first in {lease.number for lease in lease_store.lease_several(bob, 2)}
    bring(lease_store, bob, first, PAIRS)
    bring(lease_store, ann, check, [])
    assert spot_checks.finished_checks(database) == []
    assert {one["nickname"]: one["pairs"] for one in statistics.full_leaderboard(database)}[
        "bob"
    ] == 10
