"""Servers come up where there is stock and room, and none of them outlives what happens."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from cahlib.core.errors import ConfigError, RunError, Stopped
from cahlib.core.progress import SwarmStatus
from cahlib.swarm import lifecycle
from cahlib.swarm import provisioning as fleets
from cahlib.swarm.billing import Billing
from cahlib.swarm.hetzner import accounts
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.planner import ServerLimits
from cahlib.swarm.provider import DenialReason, Denied, Server
from cahlib.swarm.provisioning import Provisioner, delete_labelled
from cahlib.swarm.runs import list_runs, orphan_warnings
from cahlib.swarm.status import status_monitored
from tests.world.cloud import PLACES, TYPES, No
from tests.world.jobs import LIMIT, until
from tests.world.races import shaken, together
from tests.world.servers import ONE, TWO, hold, made, nothing_is_left, ruled, two_accounts


@pytest.fixture
def cloud():
    with two_accounts() as cloud:
        yield cloud


def test_nodes_spread_over_places_and_accounts_and_leave_nothing(cloud):
    swarm, told = made(cloud, nodes=4)
    with hold(swarm):
        ours = [s for s in cloud.servers() if s["name"] != "stranger"]
        assert {s["location"]["name"] for s in ours} == set(PLACES)
        assert [s["labels"]["role"] for s in ours].count("head") == 1
        assert len(cloud.servers(ONE)) == 3 and len(cloud.servers(TWO)) == 2
        assert {s["server_type"]["name"] for s in ours} == {"cx23"}  # the cheapest core
        assert swarm.spent() == pytest.approx(4 * 0.007)
    assert nothing_is_left(cloud)
    assert any("raise the limit" in line for line in told)


def test_sold_out_places_are_passed_by(cloud):
    cloud.empty = {("cx23", place) for place in PLACES[:2]}
    swarm, told = made(cloud, nodes=2, location="fsn1")
    with hold(swarm):
        assert {s.type for s in swarm.servers()} == {"cx33"}
    assert any("cx23 at fsn1" in line for line in told)


def sold_out(cloud, *types):
    cloud.empty = {(each, place) for each in types for place in PLACES}


def test_what_is_much_dearer_than_planned_is_not_taken_instead(cloud, monkeypatch):
    monkeypatch.setitem(TYPES, "ccx63", (48, 192, "x86", 0.899))
    swarm, told = made(cloud, nodes=2, max_cost=5)
    sold_out(cloud, "cx23", "cx33")
    with pytest.raises(RunError, match="no account accepted an order"), hold(swarm):
        pass
    assert "from EUR 0.0120 an hour, is too expensive: a server or a core costs over 3" in told[-1]
    assert nothing_is_left(cloud)


def test_the_ceiling_holds_for_what_is_taken_instead_and_for_replacements(cloud):
    swarm, told = made(cloud, nodes=2, max_cost=0.03)
    sold_out(cloud, "cx23")
    with hold(swarm):
        [server] = swarm.servers()
        assert any(f"{server.name}: cx33 at" in line and "EUR 0.0190" in line for line in told)
        swarm.remove(server)
        with pytest.raises(RunError, match="no account accepted"):
            swarm.fill()
        assert "than max_cost leaves" in told[-1]
        assert "continuing with 1 of 2 servers." in told
        assert swarm.spent() == pytest.approx(0.019)


def test_the_ceiling_holds_for_all_launches_of_a_run_together(cloud, tmp_path):
    theirs = accounts(f"{ONE},{TWO}", endpoint=cloud.url, poll=0.01)
    orders = lifecycle.SwarmConfig(limits=ServerLimits(nodes=2, max_cost=0.03), state=tmp_path)
    for spent in (0.0, 0.014):
        billing = Billing.load(tmp_path)
        assert billing.spent(time.time()) == pytest.approx(spent)
        wanted = lifecycle.plan_swarm(theirs, orders)
        with hold(Provisioner("r1", wanted, lambda name: "", lambda _: None, billing=billing)):
            pass
    with pytest.raises(ConfigError, match="limit of EUR 0.03, of which 0.03 is spent"):
        lifecycle.plan_swarm(theirs, orders)
    told = Billing.load(tmp_path).summary(time.time())
    assert told == "EUR 0.0280 in total, with IPv4 and tax, for 4 servers, all of them deleted."


def test_an_account_that_cannot_be_read_begins_anew_and_one_that_returns_goes_on(tmp_path):
    (tmp_path / "account.json").write_text("{")
    billing = Billing.load(tmp_path)
    billing.open("a", 0.01, 1000)
    billing.close(["a"], 1000 + 7000)  # the cloud did not list it for a moment
    assert billing.past_cost(9000) == pytest.approx(0.02) and not billing.running()
    billing.open("a", 0.01, 1000)
    assert Billing.load(tmp_path).cost("a", 1000 + 7300) == pytest.approx(0.03)
    assert "for 1 server, none of them deleted" in billing.summary(8000)


def test_a_ceiling_of_just_the_plans_price_is_enough(cloud):
    swarm, _ = made(cloud, nodes=5, max_cost=0.035)
    with hold(swarm):
        assert len(swarm.servers()) == 5


def test_what_came_up_is_kept_when_no_account_takes_more(cloud):
    swarm, told = made(cloud, nodes=40)
    with hold(swarm):
        assert len(swarm.servers()) == 5
    assert sum("limit" in line for line in told) == 2
    assert nothing_is_left(cloud)


def test_no_quota_at_all_is_one_sentence(cloud):
    cloud.accounts[ONE].limit = cloud.accounts[TWO].limit = 0
    swarm, _ = made(cloud)
    with pytest.raises(RunError, match="not|no account accepted"), hold(swarm):
        pass
    assert nothing_is_left(cloud)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"nodes": 1, "cores": 1}, "either a number of servers or of cores"),
        ({"nodes": 0}, " 0 is not a valid number of nodes"),
        ({"nodes": 10_000}, "10000 is not a valid number of nodes"),
        ({"location": "moon"}, "location: 'moon' .* fsn1"),
        ({"server_type": "cx11"}, "server_type: 'cx11' .* cx23"),
        ({"max_cost": 0.001}, "max_cost: .* 0.0210"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(cloud, limits, sentence):
    with pytest.raises(ConfigError, match=sentence):
        made(cloud, **limits)
    assert not any(call.startswith("POST") for call in cloud.calls)


def test_a_server_that_cannot_be_deleted_is_named_with_its_price(cloud):
    swarm, _ = made(cloud, nodes=3, tokens=ONE)
    cloud.accounts[ONE].limit = 4
    swarm.prepare("ssh-ed25519 AAAA")
    swarm.fill()
    first, *_ = swarm.servers()
    kept = f"DELETE /servers/{first.id}"
    cloud.faults = lambda number, what: what == kept and No(423, "protected")
    end = r"NOT deleted .*cah-r1-1-.*0\.0070.*`cah swarm down --run r1`"
    with pytest.raises(RunError, match=end):
        swarm.down(pause=0.01, timeout=0)
    assert [server.name for server in swarm.servers()] == [first.name]  # all others are gone
    cloud.faults = lambda number, what: None
    swarm.down(pause=0.01)
    assert nothing_is_left(cloud)


@pytest.mark.parametrize("fault", ["error", "timeout", "interrupt", "errors"])
@pytest.mark.parametrize("nth", range(1, 15))
def test_whichever_call_fails_no_server_is_left(cloud, nth, fault):
    """Earns its seconds: a client that gives up waiting cannot be had without waiting."""
    swarm, _ = made(cloud, nodes=2, timeout=0.5 if fault == "timeout" else LIMIT)
    before = len(cloud.calls)

    def faults(number, what):
        number -= before
        if fault == "errors":  # from here on nothing can be made any more
            return "error" if number >= nth and what.startswith("POST") else None
        return fault if number == nth else None

    cloud.faults = faults
    handler = signal.getsignal(signal.SIGINT)
    try:
        with hold(swarm):
            assert len(swarm.servers()) == 2
    except (RunError, KeyboardInterrupt):
        pass
    assert len(cloud.calls) - before >= nth
    assert signal.getsignal(signal.SIGINT) is handler
    cloud.faults = lambda number, what: None
    assert nothing_is_left(cloud)


def test_a_cloud_that_is_gone_does_not_hold_the_end_for_long(cloud, monkeypatch):
    """Each of its requests is six, by the client, and is not made again where that took long."""
    monkeypatch.setattr("hcloud._client.time", SimpleNamespace(sleep=lambda seconds: None))
    theirs = accounts(
        f"{ONE},{TWO}", endpoint=cloud.url, timeout=0.05, poll=0.01, retry_timeout=0.1
    )
    cloud.faults = lambda number, what: "timeout"
    with pytest.raises(RunError, match="NOT deleted"):
        lifecycle.delete_swarm(theirs, {"project": "cahlib", "run": "r1"}, timeout=0)
    assert len(cloud.calls) <= 2 * 6


class Stubborn:
    """An account that deletes no server, and does not answer any more if it is ``away`` then."""

    def __init__(self, away):
        self.name, self.away, self.asked = "stubborn", away, []

    def servers(self, labels):
        if self.away and self.asked:
            raise Denied(DenialReason.AWAY, "nobody answers.")
        return [
            Server(
                id=n,
                name=f"n{n}",
                address="",
                type="",
                location="",
                status="",
                labels={},
                created=0,
            )
            for n in range(3)
        ]

    def delete(self, server):
        self.asked.append(server.name)
        raise Denied(DenialReason.AWAY, f"{server.name} is locked.")


def test_what_does_not_answer_is_left_for_the_next_account_but_a_locked_server_is_passed_by():
    gone, locked = Stubborn(away=True), Stubborn(away=False)
    left, trouble = delete_labelled([gone, locked], {})
    assert gone.asked == ["n0"] and locked.asked == ["n0", "n1", "n2"]
    assert len(left) == 3 and "nobody answers." in trouble


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_disturbs_the_deletion(cloud, number, capfd):
    swarm, told = made(cloud, nodes=2)

    def interrupted(number, frame):
        raise KeyboardInterrupt

    def faults(nth, what):
        if what.startswith("DELETE /servers"):
            os.kill(os.getpid(), number)

    before, cloud.faults = signal.signal(number, interrupted), faults
    try:
        with hold(swarm):
            pass
    finally:
        signal.signal(number, before)
    assert nothing_is_left(cloud)
    would = "2 servers are still being deleted, and would otherwise keep costing EUR 0.0140 an hour"
    assert (would in capfd.readouterr().err) == (number is signal.SIGINT)
    assert "deleting 2 servers …" in told


def test_servers_of_runs_that_are_over_are_told_of_with_price_and_command(cloud):
    swarm, _ = made(cloud, nodes=2)
    with hold(swarm):
        soon, later = time.time() + 100, time.time() + 1000
        assert orphan_warnings(swarm.accounts, now=soon) == []
        assert orphan_warnings(swarm.accounts, but={"r1"}, now=later) == []
        [sentence] = orphan_warnings(swarm.accounts, now=later)
        assert sentence.startswith("2 servers of run r1 are still there") and "0.0140" in sentence
        assert sentence.endswith("`cah swarm down --run r1`.")
        swarm.clock = lambda: later
        swarm.heartbeat()
        assert orphan_warnings(swarm.accounts, now=later + 200) == []
        assert len(swarm.servers()) == 2  # a mark takes no other label away


def test_servers_that_come_up_are_marked_from_the_first_on(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr("cahlib.swarm.status._REFRESH_INTERVAL", 0.01)
    swarm, _ = made(cloud, nodes=2)
    with status_monitored(swarm, SwarmKeys(tmp_path), SwarmStatus(), str), hold(swarm):
        until(lambda: any(run.in_use for run in list_runs(swarm.accounts)))


def test_a_run_that_finds_its_servers_counts_what_they_have_cost(cloud):
    before, _ = made(cloud, nodes=2)
    before.prepare("ssh-ed25519 AAAA")
    before.fill()
    cloud.closed = {("cx23", place) for place in PLACES}  # sold out meanwhile
    swarm, _ = made(cloud, nodes=2)
    swarm.clock = lambda: time.time() + 3600
    with hold(swarm):
        assert swarm.spent() == pytest.approx(2 * 2 * 0.007)
        assert swarm.billing.hourly() == pytest.approx(2 * 0.007)
    assert nothing_is_left(cloud)


def test_what_is_known_of_the_servers_fits_together_while_two_threads_change_it(cloud):
    """One looks, as for the view of a swarm; the other puts servers in the place of lost ones."""
    swarm, _ = made(cloud, nodes=3)
    gone, ended = list[str](), threading.Event()

    def replace():
        try:
            for _ in range(3):
                lost = swarm.servers()[-1]
                swarm.remove(lost, pause=0.01)
                gone.append(lost.name)
                swarm.fill()
                assert len(swarm.listed) == 3
        finally:
            ended.set()

    def look():
        while not ended.is_set():
            before = set(gone)
            assert not before & {each.name for each in swarm.servers()}
            assert not before & swarm.listed.keys()

    with hold(swarm):
        with shaken(fleets):
            together(replace, look)
        assert swarm.billing.hourly() == pytest.approx(3 * 0.007)


def test_servers_are_let_out_to_the_web_to_names_and_to_each_other_alone(cloud):
    swarm, _ = made(cloud)
    swarm.prepare("ssh-ed25519 AAAA")
    open_ = {("out", "tcp", port) for port in ("53", "80", "443")}
    open_ |= {("out", "udp", "53"), ("out", "udp", "123"), ("out", "icmp", None)}
    assert ruled(cloud) == dict.fromkeys(open_ | {("in", "tcp", "22")}, {"0.0.0.0/0", "::/0"})
    for many in (3, 250, 1):
        networks = [f"192.0.2.{number}/32" for number in range(many)]
        swarm.allow_networks(networks)
        dask = {(way, "tcp", port) for way in ("in", "out") for port in ("8786", "9000-9099")}
        assert {each: ruled(cloud)[each] for each in dask} == dict.fromkeys(dask, set(networks))
        assert ruled(cloud).keys() == open_ | dask | {("in", "tcp", "22")}


def test_servers_that_are_taken_down_while_they_come_up_are_not_made_again(cloud):
    swarm, _ = made(cloud)
    swarm.prepare("ssh-ed25519 AAAA")
    swarm.fill()
    lifecycle.delete_swarm(swarm.accounts, swarm.labels, pause=0.01)
    with pytest.raises(Stopped, match="deleted, as `cah swarm down` does"):
        swarm.fill()
    assert nothing_is_left(cloud)
