"""When silence means that this machine is cut off, and when that hosts are dead."""

from collections import Counter, deque
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.errors import Postponed
from cahlib.fetch.connectivity import Connectivity, NoAnswerCause, Outages

QUIET, PROBE, STEP = 1.0, 2.0, 0.25


def state(*, asked=1):
    """A machine that asks since 0.0."""
    known = Connectivity(QUIET, 0.0)
    for _ in range(asked):
        known.request_started(0.0)
    return known


def test_a_failure_is_the_hosts_once_a_later_request_is_answered():
    known = state()
    known.record_answer(9.0, 9.5)
    assert known.no_answer_cause(0.0, 10.0, at_once=False) is None
    assert not known.record_answer(9.9, 10.1)  # what had arrived before a cut looks like this too
    assert known.no_answer_cause(0.0, 10.0, at_once=False) is None
    assert known.record_answer(10.0, 10.2)
    assert known.no_answer_cause(0.0, 10.0, at_once=False) is NoAnswerCause.HOST_DEAD
    assert not known.should_probe(11.1)


def test_a_failure_that_no_request_can_prove_is_probed_at_once():
    known = state(asked=1)
    known.request_ended()
    assert not known.should_probe(2.0)
    assert known.no_answer_cause(0.0, 2.0, at_once=False) is None
    assert known.should_probe(2.0)
    known.record_probe(2.1, 2.2, answered=True)
    assert known.no_answer_cause(0.0, 2.0, at_once=False) is NoAnswerCause.HOST_DEAD
    assert not known.should_probe(2.3)


def test_what_failed_at_once_is_worth_another_request():
    known = state()
    known.record_answer(5.0, 5.1)
    assert known.no_answer_cause(5.0, 5.1, at_once=True) is None
    assert not known.should_probe(6.0), "another may be answered soon"
    assert known.should_probe(6.1)
    known.record_probe(6.1, 6.2, answered=True)
    assert known.no_answer_cause(5.0, 5.1, at_once=True) is NoAnswerCause.TRANSIENT
    assert not known.should_probe(6.3)


def test_a_deadline_that_passed_while_this_machine_stood_still_says_nothing():
    known = state()
    known.record_standstill(30.0)
    known.record_probe(30.1, 30.2, answered=True)
    assert known.no_answer_cause(0.0, 30.0, at_once=False) is NoAnswerCause.TRANSIENT
    known.record_probe(41.0, 41.1, answered=True)
    assert known.no_answer_cause(30.3, 40.3, at_once=False) is NoAnswerCause.HOST_DEAD


def test_silence_is_suspect_while_somebody_is_asked_only():
    known = state(asked=0)
    assert not known.should_probe(100.0)
    known.request_started(100.0)
    assert not known.should_probe(100.9)
    assert known.should_probe(101.0)
    known.record_answer(100.0, 101.0)
    assert not known.should_probe(101.9)
    known.request_ended()
    assert not known.should_probe(200.0)


def test_an_outage_lasts_from_the_last_answer_to_the_first_probe_that_is_answered():
    known = state()
    known.record_answer(2.9, 3.0)
    known.record_probe(4.0, 6.0, answered=False)
    assert (known.offline, known.since) == (True, 3.0)
    assert known.no_answer_cause(2.0, 7.0, at_once=False) is None
    known.record_answer(2.5, 7.1)  # an answer that was under way ends nothing
    assert known.offline
    known.record_probe(8.0, 10.0, answered=False)
    assert known.since == 3.0
    known.record_probe(12.0, 12.1, answered=True)
    assert not known.offline
    assert known.no_answer_cause(2.0, 7.0, at_once=False) is NoAnswerCause.OUTAGE
    assert known.no_answer_cause(12.0, 22.0, at_once=False) is NoAnswerCause.OUTAGE, (
        "sent before that was over"
    )
    known.record_answer(23.0, 23.0)
    assert known.no_answer_cause(12.2, 22.2, at_once=False) is NoAnswerCause.HOST_DEAD


class World:
    """Hosts that answer in a tenth of a second, a network that may be away, and the probes."""

    def __init__(self, requests, outage):
        """``requests``: when, whether the host lives, whether one fails at once without network."""
        self.requests, self.outage = requests, outage
        self.known, self.offline = Connectivity(QUIET, 0.0), []
        self.sent, self.arrived, self.lost = Counter(), set(), set()

    def up(self, start, end):
        return end < self.outage[0] or start > self.outage[1]

    def end(self, start, alive, instant):
        """When a request ends, and whether it was answered; TCP sends its packets four times."""
        if instant and not (alive and self.up(start, start)):
            return start + 0.01, False
        for sent in (start, start + 1, start + 3, start + 7):
            if alive and self.up(sent, sent + 0.1):
                return sent + 0.1, True
        return start + 10.0, False

    def send(self, now, number):
        _, alive, instant = self.requests[number]
        end, answered = self.end(now, alive, instant)
        self.sent[number] += 1
        self.known.request_started(now)
        heappush(self.events, (end, number, now, answered))

    def run(self):
        self.events, self.waiting, self.doubted = [], [], set()
        due = deque(sorted((start, number) for number, (start, _, _) in enumerate(self.requests)))
        now = probe = rest = 0.0
        while due or self.events or self.waiting or self.known.offline:
            now += STEP
            assert now < 500, "a verdict never came"
            while due and due[0][0] <= now and not self.known.offline:
                self.send(now, due.popleft()[1])
            while self.events and self.events[0][0] <= now:
                self.ended(*heappop(self.events))
            for each in list(self.waiting):
                self.judge(each, now)
            if probe and now >= probe[1]:
                begun, end, answered = probe
                was, probe = self.known.offline, None
                self.known.record_probe(begun, end, answered=answered)
                self.offline += [now] if self.known.offline and not was else []
                rest = now + (STEP if answered else 2.0 if was else 0.0)
            if not probe and now >= rest and self.known.should_probe(now):
                sent = [at for at in (now, now + 1) if self.up(at, at + 0.1)]
                probe = (now, sent[0] + 0.1, True) if sent else (now, now + PROBE, False)
        return self

    def ended(self, at, number, begun, answered):
        self.known.request_ended()
        if answered:
            self.known.record_answer(begun, at)
            self.arrived.add(number)
        else:
            self.waiting.append((number, begun, at))

    def judge(self, each, now):
        number, begun, at = each
        if (verdict := self.known.no_answer_cause(begun, at, at_once=at - begun < 1)) is None:
            return
        self.waiting.remove(each)
        if verdict is NoAnswerCause.HOST_DEAD or (
            verdict is NoAnswerCause.TRANSIENT and number in self.doubted
        ):
            self.lost.add(number)
            return
        if verdict is NoAnswerCause.TRANSIENT:
            self.doubted.add(number)
        self.send(now, number)


REQUESTS = st.lists(
    st.tuples(st.floats(0, 60).map(lambda at: round(at, 2)), st.booleans(), st.booleans()),
    min_size=1, max_size=60,
)  # fmt: skip


@given(REQUESTS)
def test_dead_hosts_alone_are_no_outage(requests):
    world = World(requests, outage=(1e9, 1e9)).run()
    assert world.offline == []
    assert world.lost == {number for number, (_, alive, _) in enumerate(requests) if not alive}
    for number, (_, alive, instant) in enumerate(requests):
        assert world.sent[number] == (2 if instant and not alive else 1)


@given(st.integers(1, 300), st.floats(0, 5))
def test_one_dead_host_with_many_links_is_no_outage(links, gap):
    requests = [(0.0, True, False)] + [(n * gap, False, False) for n in range(links)]
    assert World(requests[:40], outage=(1e9, 1e9)).run().offline == []


@given(REQUESTS, st.floats(0, 60), st.floats(0.05, 5) | st.floats(5, 100))
def test_what_an_outage_of_any_length_costs_is_asked_again(requests, start, length):
    world = World(requests, (start, start + length)).run()
    assert world.lost == {number for number, (_, alive, _) in enumerate(requests) if not alive}
    assert len(world.arrived) + len(world.lost) == len(requests)
    assert max(world.sent.values()) <= 4


def test_outages_of_several_who_notice_them_count_once():
    now = 0.0
    outages = Outages(60, clock=lambda: now)
    outages.begin("hosts", 0.0)
    now = 10.0
    outages.begin("hosts", 9.0)
    outages.begin("names", 5.0)
    assert (outages.current_seconds(), outages.total()) == (10.0, 10.0)
    outages.end("hosts")
    now = 12.0
    outages.end("names")
    outages.end("names")
    assert (outages.current_seconds(), outages.total()) == (0.0, 12.0)
    now = 20.0
    outages.begin("hosts", 11.0)  # it begins with the last answer, which may be before that end
    assert (outages.current_seconds(), outages.total()) == (8.0, 20.0)


def test_an_outage_that_lasts_too_long_ends_the_work():
    now = 0.0
    outages = Outages(60, clock=lambda: now)
    outages.check_overdue()
    outages.begin("hosts", 0.0)
    now = 60.0
    outages.check_overdue()
    now = 61.0
    with pytest.raises(Postponed, match="no network for 1 minutes"):
        outages.check_overdue()
