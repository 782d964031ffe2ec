"""When silence means that this machine is cut off, and when that hosts are dead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.errors import Postponed
from cahlib.scrape.connectivity import Connectivity, Outages

QUIET, PROBE, STEP = 1.0, 2.0, 0.25


def state(*, asked=1):
    """A machine that asks since 0.0."""
    known = Connectivity(QUIET, 0.0)
    for _ in range(asked):
        known.asked(0.0)
    return known


def test_what_takes_long_is_dead_where_others_answer():
    known = state()
    known.heard(9.5)
    assert known.verdict(0.0, 10.0) is False
    assert not known.suspect(10.0)


def test_what_fails_at_once_waits_for_a_probe_that_was_sent_later():
    known = state()
    known.heard(5.0)
    assert known.verdict(5.0, 5.1) is None
    known.heard(5.2)  # what had arrived before a cut looks like this too
    assert known.verdict(5.0, 5.1) is None
    assert known.suspect(5.2)
    known.probed(5.2, 5.3, answered=True)
    assert known.verdict(5.0, 5.1) is False
    assert not known.suspect(5.4)


def test_silence_is_suspect_while_somebody_is_asked_only():
    known = state(asked=0)
    assert not known.suspect(100.0)
    known.asked(100.0)
    assert not known.suspect(100.9)
    assert known.suspect(101.0)
    known.heard(101.0)
    assert not known.suspect(101.9)
    known.done()
    assert not known.suspect(200.0)


def test_an_outage_lasts_from_the_last_answer_to_the_first_probe_that_is_answered():
    known = state()
    known.heard(3.0)
    known.probed(4.0, 6.0, answered=False)
    assert (known.offline, known.since) == (True, 3.0)
    assert known.verdict(2.0, 7.0) is None
    known.heard(7.1)  # an answer that was under way ends nothing
    assert known.offline
    known.probed(8.0, 10.0, answered=False)
    assert known.since == 3.0
    known.probed(12.0, 12.1, answered=True)
    assert not known.offline
    assert known.verdict(2.0, 7.0) is True
    assert known.verdict(12.0, 22.0) is True, "it was sent before that was over"
    known.heard(23.0)
    assert known.verdict(12.2, 22.2) is False


class World:
    """Hosts that answer in a tenth of a second, a network that may be away, and the probes."""

    def __init__(self, requests, outage):
        self.requests, self.outage = requests, outage
        self.known, self.verdicts, self.offline = Connectivity(QUIET, 0.0), {}, []

    def up(self, start, end):
        return end < self.outage[0] or start > self.outage[1]

    def end(self, start, alive, instant):
        """When a request ends, and whether it was answered; TCP sends its packets four times."""
        if instant and not self.up(start, start):
            return start + 0.01, False
        for sent in (start, start + 1, start + 3, start + 7):
            if alive and self.up(sent, sent + 0.1):
                return sent + 0.1, True
        return start + 10.0, False

    def run(self):
        events, waiting, probe, rest = [], [], None, 0.0
        for number, (start, alive, instant) in enumerate(self.requests):
            end, answered = self.end(start, alive, instant)
            events += [(start, 0, number, answered), (end, 1, number, answered)]
        events.sort()
        now = 0.0
        while events or waiting or self.known.offline:
            now += STEP
            assert now < 500, "a verdict never came"
            while events and events[0][0] <= now:
                at, what, number, answered = events.pop(0)
                if what == 0:
                    self.known.asked(at)
                    continue
                self.known.done()
                if answered:
                    self.known.heard(at)
                else:
                    waiting.append((number, self.requests[number][0], at))
            for each in list(waiting):
                if (verdict := self.known.verdict(*each[1:])) is not None:
                    self.verdicts[each[0]] = verdict
                    waiting.remove(each)
            if probe and now >= probe[1]:
                begun, end, answered = probe
                was, probe = self.known.offline, None
                self.known.probed(begun, end, answered=answered)
                self.offline += [now] if self.known.offline and not was else []
                rest = now + (QUIET if answered else 2.0 if was else 0.0)
            if not probe and now >= rest and self.known.suspect(now):
                answered = self.up(now, now + 0.1)
                probe = now, now + (0.1 if answered else PROBE), answered
        return self


REQUESTS = st.lists(
    st.tuples(st.floats(0, 60).map(lambda at: round(at, 2)), st.booleans(), st.booleans()),
    min_size=1, max_size=60,
)  # fmt: skip


@given(REQUESTS)
def test_dead_hosts_alone_are_no_outage(requests):
    world = World(requests, outage=(1e9, 1e9)).run()
    assert world.offline == []
    assert not any(world.verdicts.values())


@given(st.integers(1, 300), st.floats(0, 5))
def test_one_dead_host_with_many_links_is_no_outage(links, gap):
    requests = [(0.0, True, False)] + [(n * gap, False, False) for n in range(links)]
    assert World(requests[:40], outage=(1e9, 1e9)).run().offline == []


@given(REQUESTS, st.floats(0, 60), st.floats(5, 100))
def test_what_an_outage_costs_is_asked_again(requests, start, length):
    outage = start, start + length
    world = World(requests, outage).run()
    for number, (at, alive, instant) in enumerate(requests):
        end, answered = world.end(at, alive, instant)
        found = end + QUIET + PROBE < outage[1]  # at once: it takes as long to find an outage
        if alive and not answered and (found or end > at + 1):
            assert world.verdicts[number] is True
        if end < start - PROBE or at > outage[1] + 2 * PROBE + 2:
            assert not world.verdicts.get(number), "the outage has nothing to do with it"


def test_outages_of_several_who_notice_them_count_once():
    now = 0.0
    outages = Outages(60, clock=lambda: now)
    outages.begin("hosts", 0.0)
    now = 10.0
    outages.begin("hosts", 9.0)
    outages.begin("names", 5.0)
    assert (outages.lasting(), outages.total()) == (10.0, 10.0)
    outages.end("hosts")
    now = 12.0
    outages.end("names")
    outages.end("names")
    assert (outages.lasting(), outages.total()) == (0.0, 12.0)
    now = 20.0
    outages.begin("hosts", 11.0)  # it begins with the last answer, which may be before that end
    assert (outages.lasting(), outages.total()) == (8.0, 20.0)


def test_an_outage_that_lasts_too_long_ends_the_work():
    now = 0.0
    outages = Outages(60, clock=lambda: now)
    outages.check()
    outages.begin("hosts", 0.0)
    now = 60.0
    outages.check()
    now = 61.0
    with pytest.raises(Postponed, match="no network for 1 minutes"):
        outages.check()
