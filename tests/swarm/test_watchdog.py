"""The watchdog on a head: what it deletes, when, and what it leaves alone."""

import itertools
import json
import math
import operator
import time

import pytest

from cahlib.core.errors import ConfigError
from cahlib.swarm import lifecycle
from cahlib.swarm.hetzner import accounts
from cahlib.swarm.node import watchdog as head
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provider import send_heartbeat
from cahlib.swarm.provisioning import Provisioner
from cahlib.swarm.watchdog import WatchdogConfig, require_watchdog_token
from tests.world import hosts, jobs
from tests.world.cloud import Account, Cloud, No, serve

DRIVER, OWN, OTHER = "token-of-ada", "token-of-her-watchdog", "token-of-another-project"
MINUTE, HOUR = 60, 3600


class Ended(Exception):
    """The head's power is cut."""


def told_of(world, **more):
    """What the watchdog of the first run's head is told."""
    values = {
        "token": OWN, "endpoint": world.cloud.url, "labels": world.runs["r1"].labels,
        "node": world.head, "launch": "1", "silence": HOUR, "end": 0, "paid": 0, "look": 5 * MINUTE,
    }  # fmt: skip
    return head.Instructions(**values | more)


class World:
    """A run with three servers and another one with one; time passes only while somebody sleeps."""

    def __init__(self, cloud, folder):
        self.cloud, self.state, self.said = cloud, folder / "seen.json", []
        self.now, self.beats, self.events = 0.0, [], {}
        self.driver = accounts(DRIVER, endpoint=cloud.url, poll=0.001)
        self.runs = {"r1": self.made("r1", 3), "r2": self.made("r2", 1)}
        self.head = next(s for s in self.runs["r1"].servers() if s.labels["role"] == "head").name

    def made(self, run, nodes, **limits):
        swarm = Provisioner(
            run,
            plan_servers(self.driver, ServerLimits(nodes=nodes, **limits)),
            lambda name: "",
            self.said.append,
        )
        swarm.prepare("ssh-ed25519 AAAA")
        swarm.fill()
        return swarm

    def alive(self, first, last):
        """A driver gives signs of life between two moments, as far as it can."""
        self.beats += range(int(first), int(last), 100)

    def sleep(self, seconds):
        before, self.now = self.now, self.now + seconds
        for at in [each for each in self.events if before < each <= self.now]:
            self.events.pop(at)()
        if any(before < each <= self.now for each in self.beats) and not self.away:
            first = next(s for s in self.cloud.servers(DRIVER) if s["name"] == self.head)
            first["labels"] |= {"alive": str(time.time())}
        if self.now > 24 * HOUR:
            raise Ended

    @property
    def away(self):
        return self.cloud.faults(0, "") is not None

    def watch(self, **told):
        """Let a watchdog work until it has deleted all; gives when it began to, inf for never."""
        deletes = lambda: [c for c in self.cloud.calls if c.startswith("DELETE /servers")]  # noqa: E731
        self.deletes, began = deletes, []

        def report(text):
            self.said.append(text)
            if text.startswith("Deleting"):
                began.append(self.now)

        dog = head.Watchdog(
            told_of(self, **told),
            self.state,
            report=report,
            clock=lambda: self.now,
            sleep=self.sleep,
        )
        try:
            dog.work()
        except Ended:
            pass
        return began[0] if began else math.inf

    @property
    def left(self):
        return sorted(
            each["labels"].get("run", each["name"]) for each in self.cloud.servers(DRIVER)
        )


@pytest.fixture
def cloud():
    one = Account(limit=9)
    with serve(Cloud({DRIVER: one, OWN: one, OTHER: Account()})) as cloud:
        yield cloud


@pytest.fixture
def world(cloud, tmp_path):
    world = World(cloud, tmp_path)
    cloud.stranger(DRIVER)
    yield world
    assert OWN not in " ".join(world.said)


def test_a_driver_that_died_leaves_its_servers_for_an_hour_and_no_longer(world):
    world.alive(0, 30 * MINUTE)
    head_id = next(s["id"] for s in world.cloud.servers(DRIVER) if s["name"] == world.head)
    assert world.watch() == pytest.approx(90 * MINUTE, abs=11 * MINUTE)
    assert world.left == ["r2", "stranger"]
    assert world.deletes()[-1] == f"DELETE /servers/{head_id}"  # itself last
    assert not any(each.is_prepared(world.runs["r1"].labels) for each in world.driver)
    assert world.runs["r1"].is_taken_down()  # so a driver that comes back makes no others


def test_a_driver_that_never_came_is_not_waited_for(world):
    assert world.watch() == pytest.approx(HOUR, abs=11 * MINUTE)


def test_cuts_that_are_shorter_are_stood(world):
    world.alive(0, 30 * MINUTE)
    world.alive(85 * MINUTE, 120 * MINUTE)
    world.alive(170 * MINUTE, 10 * HOUR)
    assert world.watch() == pytest.approx(11 * HOUR, abs=11 * MINUTE)


@pytest.mark.parametrize("fault", ["error", No(503, "unavailable"), No(429, "rate_limit_exceeded")])
def test_a_cloud_that_is_away_is_no_silence_of_the_driver(world, fault):
    """Nobody can give a sign of life where nobody answers."""
    world.alive(0, 20 * HOUR)
    world.events = {
        HOUR: lambda: setattr(world.cloud, "faults", lambda number, what: fault),
        9 * HOUR: lambda: setattr(world.cloud, "faults", lambda number, what: None),
    }
    assert world.watch() == pytest.approx(21 * HOUR, abs=11 * MINUTE)
    assert sum("asking again" in each for each in world.said) == 1  # said once


def test_a_clock_that_jumps_changes_nothing(world, monkeypatch):
    """Neither the head's, nor that of the driver, whose signs it makes."""
    # no generator: several threads ask
    jumps = map(operator.add, itertools.cycle((10**9, -(10**9), 0)), itertools.count())
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    world.alive(0, 30 * MINUTE)
    assert world.watch() == pytest.approx(90 * MINUTE, abs=11 * MINUTE)


def test_hours_end_whoever_drives(world):
    world.alive(0, 20 * HOUR)
    assert world.watch(end=5 * HOUR) == pytest.approx(5 * HOUR, abs=11 * MINUTE)
    assert world.left == ["r2", "stranger"]


def test_what_is_paid_for_is_the_end_only_where_nobody_drives(world):
    world.alive(0, 6 * HOUR)
    end = world.watch(paid=5 * HOUR, silence=3 * HOUR)
    assert end == pytest.approx(6 * HOUR + 5 * MINUTE, abs=11 * MINUTE)


def test_a_restart_forgets_nothing_and_a_new_launch_begins_anew(world):
    world.alive(0, 30 * MINUTE)

    def cut():
        raise Ended

    world.events = {50 * MINUTE: cut}
    assert world.watch() == math.inf
    world.now += 2 * HOUR  # it was off so long, which is no silence that it has heard
    world.events = {world.now + 30 * MINUTE: cut}
    assert world.watch() == math.inf
    began = world.now
    assert world.watch(launch="2") == pytest.approx(began + HOUR, abs=11 * MINUTE)


def test_a_restart_goes_on_counting(world):
    def cut():
        raise Ended

    world.events = {40 * MINUTE: cut}
    assert world.watch() == math.inf
    assert world.watch() == pytest.approx(HOUR, abs=11 * MINUTE)


@pytest.mark.parametrize("state", ["", "{", "[]", '{"launch": 3}'])
def test_a_damaged_state_is_none(world, state):
    world.state.write_text(state)
    assert world.watch() == pytest.approx(HOUR, abs=11 * MINUTE)


def test_a_token_that_is_refused_deletes_nothing_and_is_asked_again(world):
    account = world.cloud.accounts.pop(OWN)
    world.events = {2 * HOUR: lambda: world.cloud.accounts.update({OWN: account})}
    assert world.watch() == pytest.approx(3 * HOUR, abs=11 * MINUTE)
    assert "The token was refused (401); asking again." in world.said


def test_a_cloud_that_fails_while_they_are_deleted_is_asked_until_they_are_gone(world):
    world.cloud.lingers, calls = 2, []

    def faults(number, what):
        calls.append(what)
        again = what.startswith("DELETE") and calls.count(what) < 4
        return No(500 + len(calls) % 4, "service_error") if again else None

    world.cloud.faults = faults
    assert world.watch() < math.inf
    assert world.left == ["r2", "stranger"]


def test_answers_that_are_none_are_the_clouds_trouble(world):
    world.cloud.answer = lambda *_: []  # JSON, but nothing of Hetzner's
    assert world.watch() == math.inf
    assert any("sent an invalid answer" in each for each in world.said)


@pytest.mark.parametrize("labels", [{}, {"project": "cahlib"}, {"project": "cahlib", "run": ""}])
def test_it_never_works_without_the_name_of_a_run(world, labels):
    with pytest.raises(ValueError, match="they would select all servers"):
        told_of(world, labels=labels)


def test_a_redirect_takes_the_token_nowhere(world):
    told = told_of(world)
    with pytest.raises(head.CloudUnavailable):
        head.Cloud(told)._ask("GET", "nothing-that-is-there")
    assert head._NoRedirects().redirect_request() is None and OWN not in repr(told)


def dog(cloud, token=OWN, **more):
    return WatchdogConfig(token=token, endpoint=cloud.url, silence=HOUR, **more)


def unmade(cloud, tokens=DRIVER, **limits):
    theirs = accounts(tokens, endpoint=cloud.url, poll=0.001)
    return Provisioner(
        "r3", plan_servers(theirs, ServerLimits(nodes=1, **limits)), lambda name: "", print
    )


@pytest.mark.parametrize(
    ("token", "sentence"),
    [("nobody's", "unable to authenticate"), (OTHER, "is not of the project of HCLOUD_TOKEN")],
)
def test_a_token_that_does_not_reach_the_servers_is_refused_before_any_is_made(
    cloud, token, sentence
):
    with pytest.raises(ConfigError, match=f"watchdog: CAH_WATCHDOG_TOKEN.*{sentence}"):
        dog(cloud, token).check_token(unmade(cloud), "ssh-ed25519 AAAA")
    things = [t for each in cloud.accounts.values() for t in each.things.values()]
    assert not any(things)


def test_a_token_that_only_reads_is_refused(cloud):
    cloud.accounts[OWN] = Account(writes=False)
    with pytest.raises(ConfigError, match="permission to read and write"):
        dog(cloud).check_token(unmade(cloud), "ssh-ed25519 AAAA")


def test_a_project_with_other_servers_is_refused(cloud):
    cloud.stranger(DRIVER)
    with pytest.raises(ConfigError, match=r"other servers \(stranger\), .* for cahlib only"):
        dog(cloud).check_token(unmade(cloud), "ssh-ed25519 AAAA")
    with pytest.raises(ConfigError, match="supports only one project"):
        dog(cloud).check_token(unmade(cloud, f"{DRIVER} {OTHER}"), "ssh-ed25519 AAAA")


@pytest.mark.parametrize("token", ["", " ", DRIVER, f"{OWN},{OTHER}"])
def test_the_drivers_own_token_is_never_given_away(token):
    with pytest.raises(ConfigError, match="watchdog: .*CAH_WATCHDOG_TOKEN"):
        require_watchdog_token(token, f"{DRIVER}, another")
    assert require_watchdog_token(f" {OWN}\n", DRIVER) == OWN


def test_hours_and_ceiling_become_spans(cloud):
    swarm = unmade(cloud, hours=3, max_cost=1)
    swarm.billing.open("a", 0.25, swarm.clock() - 0.5 * HOUR)
    told = head.Instructions(
        **json.loads(dog(cloud, began=time.monotonic() - HOUR).instructions("a", swarm))
    )
    assert told.end == pytest.approx(2.5 * HOUR, abs=60)  # two are left, and one half to finish
    assert told.paid == pytest.approx(2 * HOUR, abs=60)
    swarm.billing.open("b", 0.25, swarm.clock() - 0.5 * HOUR)
    told = head.Instructions(**json.loads(dog(cloud).instructions("a", swarm)))
    assert told.paid == pytest.approx(1.5 * HOUR, abs=180)  # 4 hours are paid, two of each
    assert (
        OWN not in repr(dog(cloud))
        and told.launch
        != head.Instructions(**json.loads(dog(cloud).instructions("a", swarm))).launch
    )


def test_without_limits_there_are_no_spans(cloud):
    told = head.Instructions(**json.loads(dog(cloud).instructions("a", unmade(cloud))))
    assert (told.end, told.paid, told.silence) == (0, 0, HOUR)


@pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())
def test_a_head_deletes_a_swarm_that_nobody_drives(tmp_path):
    one, state = Account(limit=4), tmp_path / "run/swarm"
    with hosts.Hosts(tmp_path / "hosts") as machines:
        world = Cloud({DRIVER: one, OWN: one}, hosts=machines)
        with serve(world, host=machines.address) as cloud:
            theirs = accounts(DRIVER, endpoint=cloud.url, poll=0.01)

            def up(guard):
                config = lifecycle.SwarmConfig(
                    limits=ServerLimits(nodes=1), state=state, watchdog=guard
                )
                lifecycle.create_swarm(theirs, config, report=lambda _: None)
                return next(iter(machines.all.values()))

            machine = up(dog(cloud))
            seen, told = machine.base / "seen.json", machine.base / "etc/watchdog.json"
            jobs.until(seen.exists)
            up(None)  # a launch without one ends that of the launch before
            assert told.read_text() == ""
            jobs.until(lambda: not machine.processes("watchdog.py"))
            up(dog(cloud, look=0.2))
            before = json.loads(seen.read_text())["heard"]
            send_heartbeat(theirs, lifecycle.run_labels(state), 7)
            jobs.until(lambda: json.loads(seen.read_text())["heard"] != before)
            for each in machine.home.rglob("*"):  # where the crawl may read
                assert not (each.is_file() and OWN.encode() in each.read_bytes()), each
            told.write_text(json.dumps(json.loads(told.read_text()) | {"silence": 1}))
            machine.kill("watchdog.py")  # and it is started again
            jobs.until(lambda: not cloud.servers(DRIVER))
            assert not one.things["ssh_keys"]
