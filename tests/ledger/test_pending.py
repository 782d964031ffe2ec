"""Whatever a tracker, a disk or a kill does in between, a worker's leases end once, as it said."""

from __future__ import annotations

import queue
import random
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import Stage, Stats
from cahlib.ledger import pending, remote
from cahlib.ledger.client import RequestRejected
from cahlib.ledger.remote import RemoteLedger
from cahlib.tracker.models import UnknownWorker
from tests.world.leases import (
    LEASE,
    PARCEL,
    Killed,
    Switch,
    World,
    judged,
    uid,
)
from tests.world.races import shaken, together
from tests.world.trackers import serving


def account(kind):
    """The stats of a shard with one pair, or of one whose parcel holds one image."""
    stats = Stats()
    for stage in Stage:
        stats.entered[stage] = stats.left[stage] = 1
    return Stats.from_dict(
        {k: v for k, v in stats.as_dict().items() if kind != "cpu" or k != "judge"}
    )


@pytest.fixture(scope="module")
def place(sqlite_template):
    """An address, the switch behind it, and a tracker's database without shards."""
    switch = Switch()
    with serving(switch) as address:
        yield switch, address, sqlite_template


PICK = st.integers(0, 7)


class Hostile(RuleBasedStateMachine):
    """A worker among everything that may happen to it, in any order."""

    place = None

    @initialize(kind=st.sampled_from(["hybrid", "cpu", "gpu"]))
    def begin(self, kind):
        self.world = World(*self.place, kind=kind, count=1)
        self.worker = self.world.launch()
        self.hands, self.committed = {}, {}
        self.done, self.failed, self.orphans = set(), set(), set()

    def alive(self):
        return self.worker is not None

    def safely(self, act, *arguments):
        """Do something, unless the process is killed by it."""
        try:
            return act(*arguments)
        except Killed:
            self.kill()
            return None

    def took(self, shards, number):
        id = sorted(shards)[number % len(shards)]
        return shards.pop(id)

    @rule()
    @precondition(alive)
    def lease(self):
        try:
            shard = self.safely(self.worker.lease)
        except RunError as error:  # it was sent away
            assert "does not know this worker" in str(error)
            self.leave()
            return
        if shard:
            assert shard.id not in self.hands and shard.id not in self.committed
            assert shard.id not in self.done or self.world.kind == "cpu"
            self.done.discard(shard.id)
            self.hands[shard.id] = shard

    @rule(number=PICK)
    @precondition(lambda self: self.alive() and self.hands)
    def fail(self, number):
        shard = self.took(self.hands, number)
        if self.safely(lambda: self.worker.fail(shard, "broken", attempts=3)):
            self.failed.add(shard.id)

    @rule(number=PICK)
    @precondition(lambda self: self.alive() and self.hands)
    def release(self, number):
        self.safely(self.worker.release, self.took(self.hands, number), "no storage")

    @rule(number=PICK)
    @precondition(lambda self: self.alive() and self.hands and self.world.kind != "cpu")
    def commit(self, number):
        shard = self.took(self.hands, number)
        if self.world.switch.mode == "up":  # it waits for the tracker, however long
            try:
                list(self.worker.resolve_claims(shard, iter([judged(shard)])))
            except RequestRejected as refused:
                reason = str(refused)
                self.safely(lambda: self.worker.fail(shard, reason, attempts=3))
                return
        self.safely(self.worker.commit, shard, [uid(shard)], account(self.world.kind))
        if self.worker:
            self.committed[shard.id] = shard

    @rule(number=PICK)
    @precondition(lambda self: self.alive() and self.committed)
    def finish(self, number):
        shard = self.took(self.committed, number)
        self.safely(self.worker.mark_done, shard)
        if self.worker:
            self.done.add(shard.id)

    @rule(number=PICK)
    @precondition(lambda self: self.alive() and self.hands and self.world.kind == "cpu")
    def deliver(self, number):
        shard = self.took(self.hands, number)
        self.safely(self.worker.deliver, shard, PARCEL, account("cpu"))
        if self.worker:
            self.done.add(shard.id)

    @rule()
    @precondition(alive)
    def heartbeat(self):
        self.worker._heartbeat()

    @rule()
    @precondition(alive)
    def tell(self):
        self.safely(self.worker._send_due)

    @rule(mode=st.sampled_from(["up", "up", "up", "away", "lossy"]))
    def tracker_is(self, mode):
        self.world.switch.mode = mode

    @rule(fate=st.sampled_from(["keeps", "gives back", "fails", "ends"]))
    def leases_run_out_and_a_rival(self, fate):
        world = self.world
        world.clock.now += LEASE + 1
        lease_store, rival = world.lease_store, world.rival
        if fate == "keeps" or not (lease := lease_store.lease(rival)):
            lease_store.expire()
        elif fate == "gives back":
            lease_store.release(rival, lease.number)
        elif fate == "fails":
            lease_store.fail(rival, lease.number, "no")
        elif world.kind == "cpu":
            lease_store.deliver(rival, lease.number, PARCEL)

    @rule(what=st.sampled_from(["kill", "leave", "expel"]), steps=st.integers(1, 8))
    @precondition(alive)
    def ends(self, what, steps):
        """Killed in one of its next steps, asked to end, or sent away by the tracker."""
        if what == "kill":
            self.world.fuse.left = steps
        elif what == "expel":
            with suppress(UnknownWorker):  # it is already
                self.world.lease_store.expel(
                    self.world.lease_store.known(self.worker._tracker.secret).id
                )
        elif self.world.switch.mode == "up":
            self.leave()

    def leave(self):
        self.safely(self.worker.__exit__)
        if self.worker:
            self.kill()

    def kill(self):
        self.world.fuse.left = 0
        self.worker._reporter.stop()
        self.world.ledger.close()
        self.worker = None
        self.hands.clear()
        self.committed.clear()

    @rule()
    @precondition(lambda self: not self.alive())
    def launch(self):
        try:
            self.worker = self.world.launch()
        except Killed:
            self.world.fuse.left = 0
        except ConfigError as error:
            assert self.world.switch.mode == "away" and "503" in str(error)
        else:
            self.committed = {s.id: s for s in self.worker.in_state("sealed")}
            known = {r.number for r in self.worker._reports.in_progress().values()}
            known |= {r.number for r in self.worker._reports.due().values()}
            # leased, and killed before that was written down: it runs out
            self.orphans |= self.world.held() - known

    @invariant()
    @precondition(lambda self: getattr(self, "worker", None))
    def nothing_is_held_that_nobody_works_on(self):
        worker = self.worker
        working = worker._reports.in_progress().keys()
        assert self.hands.keys() <= working
        assert self.hands.keys() == {s.id for s in worker.in_state("leased")}
        assert working <= {s.id for s in worker.in_state("todo", "leased", "sealed")}
        assert self.committed.keys() == {s.id for s in worker.in_state("sealed")}
        assert self.done <= {s.id for s in worker.in_state("done")}

    def teardown(self):
        if not hasattr(self, "worker"):
            return
        self.world.switch.mode = "up"
        self.world.fuse.left = 0
        try:
            if not self.worker:
                self.launch()
            self.world.check(self.worker, done=self.done, failed=self.failed, orphans=self.orphans)
            self.kill()
        finally:
            self.world.close()


@pytest.mark.hypothesis
def test_in_no_order_of_events_is_work_lost_or_counted_twice(place):
    machine = type("Placed", (Hostile,), {"place": place})
    most = settings(max_examples=settings.default.max_examples // 4)
    run_state_machine_as_test(machine, settings=settings(most, stateful_step_count=30))


def driven(place, kind):
    """The same, by hand."""
    machine = type("Placed", (Hostile,), {"place": place})()
    machine.begin(kind=kind)
    return machine


@pytest.mark.parametrize(
    ("kind", "acts"),
    [
        ("hybrid", ["lease", "fail", "tell"]),
        ("hybrid", ["lease", "release", "tell"]),
        ("hybrid", ["lease", "commit", "finish", "tell"]),
        ("cpu", ["lease", "deliver", "tell"]),
    ],
)
def test_a_kill_at_any_step_loses_nothing(place, kind, acts):
    for steps in range(1, 100):
        machine = driven(place, kind)
        machine.world.fuse.left = steps
        for act in acts:
            if machine.worker:
                getattr(machine, act)(**({} if act in ("lease", "tell") else {"number": 0}))
                if machine.worker:
                    machine.nothing_is_held_that_nobody_works_on()
        survived, machine.world.fuse.left = machine.worker is not None, 0
        if not survived:
            machine.launch()
            machine.nothing_is_held_that_nobody_works_on()
        machine.teardown()
        if survived:
            break
    assert 5 < steps < 99


@pytest.mark.parametrize(
    ("kind", "act"), [("hybrid", "fail"), ("hybrid", "commit"), ("cpu", "deliver")]
)
def test_how_a_lease_ended_is_told_though_the_shard_is_leased_again(place, kind, act):
    """It ran out while the tracker was away."""
    machine = driven(place, kind)
    machine.lease()
    machine.lease()
    for _ in range(2):
        getattr(machine, act)(number=0)
        if act == "commit":
            machine.finish(number=0)
    machine.world.clock.now += LEASE + 1
    machine.world.lease_store.expire()
    machine.lease()
    assert not machine.hands and len(machine.worker._reports.due()) == 2
    machine.teardown()


class Busy:
    """A worker's threads: one leases, two end leases in every way; and a rival takes some."""

    def __init__(self, world, count):
        self.world, self.hands = world, queue.SimpleQueue()
        self.most, self.ended = count, threading.Event()
        self.done = []

    def lease(self):
        leased, late = 0, time.monotonic() + 30
        while leased < self.most and not self.ended.is_set() and self.worker.has_more():
            if shard := self.worker.lease():
                self.hands.put(shard)
                leased, late = leased + 1, time.monotonic() + 30
            if time.monotonic() > late:  # they are held, and nobody works on them
                break
        self.ended.set()
        for _ in range(2):
            self.hands.put(None)

    def work(self):
        chance = random.Random(self.world.kind)
        try:
            while shard := self.hands.get():
                assert shard.id in self.worker._reports.in_progress()
                self.finish(shard, chance.choice(["give back"] * 8 + ["fail", "end"]))
        finally:
            self.ended.set()

    def finish(self, shard, fate):
        worker = self.worker
        if fate == "give back":
            worker.release(shard, "no storage")
        elif fate == "fail":
            worker.fail(shard, "broken", attempts=1)
        elif self.world.kind == "cpu":
            worker.deliver(shard, PARCEL, account("cpu"))
        else:
            worker.commit(shard, [uid(shard)], account(self.world.kind))
            worker.mark_done(shard)
            self.done.append(shard.id)

    def rival(self):
        while not self.ended.wait(0.01):  # without a pause it takes more than all the others
            if found := self.world.lease_store.lease(self.world.rival):
                self.world.lease_store.release(self.world.rival, found.number)


def test_a_shard_is_forgotten_before_it_can_be_leased_again(place, monkeypatch):
    """Between the note that it is given back and its end in the ledger, others have a second."""
    monkeypatch.setattr(remote, "_STORAGE_PAUSE", 0)
    world, again = World(*place, kind="hybrid", count=1), []
    worker = world.launch()
    forget = world.ledger.forget

    def others():
        worker._send_due()
        again.append(worker.lease())

    def forgetting(shard):
        world.ledger.forget = forget
        other.start()
        other.join(1)
        forget(shard)

    other = threading.Thread(target=others, daemon=True)
    world.ledger.forget = forgetting
    shard = worker.lease()
    worker.release(shard, "no storage")
    other.join()
    assert again == [shard] and worker.in_state("leased") == [shard]
    world.close()


@pytest.mark.parametrize("kind", ["hybrid", "cpu", "gpu"])
def test_threads_that_are_held_up_anywhere_lose_no_lease(place, kind, monkeypatch):
    monkeypatch.setattr(
        remote, "_STORAGE_PAUSE", 0
    )  # what is given back may be leased again at once
    monkeypatch.setattr(remote, "_STORAGE_TIMEOUT", float("inf"))
    world = World(*place, kind=kind, count=4, shared=RemoteLedger)
    busy = Busy(world, 25)
    with shaken(pending, remote):
        busy.worker = world.launch(heartbeat_seconds=0.01)
        together(busy.lease, busy.work, busy.work, busy.rival)
        assert busy.worker._reporter.is_running()
        busy.worker._reporter.stop()
    world.check(busy.worker, done=busy.done)
    world.close()
