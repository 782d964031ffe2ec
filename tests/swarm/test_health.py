"""Nodes that die or stand still during a run, and the head: replaced, and nothing is lost."""

from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from threading import Barrier, Event

import pytest

from cahlib.core.errors import RunError
from cahlib.core.progress import SwarmStatus
from cahlib.engine.cluster import WorkerState
from cahlib.swarm import hetzner, install, lifecycle
from cahlib.swarm.health import Action, HealthMonitor, HealthRules, NodeHealth, next_action
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner
from cahlib.swarm.startup import Startup
from tests.world import cloud as clouds
from tests.world import hosts, jobs

TOKEN = "token-of-ada"
RULES = HealthRules()
#: Soon, but not sooner than a busy machine brings a service up.
#: A node that is new has as long as a busy machine needs: one that is replaced never works.
SOON = HealthRules(
    interval=0.3, max_silence=15, stalled=600, grace=1, head_grace=6, restart_grace=jobs.LIMIT,
    drain=2,
)  # fmt: skip

needs_hosts = pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())


def acts(*looks):
    """What is done at each look: (seconds, well, gone)."""
    case, done = NodeHealth(), []
    for now, healthy, gone in looks:
        case, act = next_action(case, healthy=healthy, gone=gone, now=now, rules=RULES)
        done.append(act)
    return done


def test_an_ill_node_is_restarted_and_then_replaced():
    sure, again = RULES.grace, RULES.restart_grace
    looks = [(0, False, False), (sure - 1, False, False), (sure, False, False)]
    assert acts(*looks) == [Action.LEAVE, Action.LEAVE, Action.RESTART]
    later = [(sure + again - 1, False, False), (sure + again, False, False)]
    assert acts(*looks, *later)[-2:] == [Action.LEAVE, Action.REPLACE]


def test_a_node_that_is_well_again_starts_anew():
    looks = [(0, False, False), (RULES.grace, False, False), (RULES.grace + 9, True, False)]
    fault = [(500, False, False), (500 + RULES.grace, False, False)]
    assert acts(*looks, *fault)[-3:] == [Action.LEAVE, Action.LEAVE, Action.RESTART]


def test_a_machine_that_is_gone_is_not_restarted():
    looks = [(0, False, True), (RULES.grace - 1, False, True), (RULES.grace, False, True)]
    assert acts(*looks) == [Action.LEAVE, Action.LEAVE, Action.REPLACE]
    restarted = [(0, False, False), (RULES.grace, False, False), (RULES.grace + 1, False, True)]
    assert acts(*restarted, (2 * RULES.grace, False, True))[-1] is Action.REPLACE


class Engine:
    """As much of an engine as a watch asks: its workers are the servers that run."""

    def __init__(self, cloud):
        self.cloud, self.ended = cloud, ""

    def nodes(self):
        return [
            WorkerState(
                name=each["name"],
                host="",
                slots=1,
                silence=0,
                memory=0,
                jobs=(),
                stalled=0,
                version="",
            )
            for each in self.cloud.servers()
            if each["status"] == "running"
        ]

    def drain(self, *, timeout):
        pass

    def move(self, address):
        pass

    def fail(self, why):
        self.ended = str(why)


class Doors:
    login_of = staticmethod(lambda server: server)

    def follow_driver(self):
        pass


def listed(cloud, said, nodes=2):
    """A watch over servers that are only listed, which sees at once what is ill."""
    accounts, limits = (
        hetzner.accounts(TOKEN, endpoint=cloud.url, poll=0.01),
        ServerLimits(nodes=nodes),
    )
    made = Provisioner("r1", plan_servers(accounts, limits), lambda name: "", said.append)
    made.prepare("ssh-ed25519 AAAA")
    made.fill()
    rules = HealthRules(grace=0, head_grace=0, drain=0, min_replacements=1)
    engine = Engine(cloud)
    startup = Startup(lambda login, head: None)
    startup.start(made.servers(), made.servers()[0])
    startup.wait()
    watch = HealthMonitor(made, engine, Doors(), startup, report=said.append, rules=rules)
    look = watch.check

    def looked():
        startup.wait()
        look()

    watch.check = looked
    return engine, watch


@pytest.fixture
def paper():
    """A cloud whose servers are only listed."""
    with clouds.serve(clouds.Cloud({TOKEN: clouds.Account()})) as cloud:
        yield cloud


def off(cloud, role):
    """Cut the power of a server; gives its name."""
    server = next(each for each in cloud.servers() if each["labels"]["role"] == role)
    server["status"] = "off"
    return server["name"]


def test_what_is_not_replaced_any_more_is_deleted_and_without_a_head_the_run_ends(paper):
    said = []
    engine, watch = listed(paper, said)
    for _ in range(2):  # as often as there are nodes
        victim = off(paper, "node")
        watch.check()
        assert f"{victim}: lost; creating others." in said and len(paper.servers()) == 2
    victim = off(paper, "node")
    watch.check()
    assert f"{victim}: lost; no more servers will be created for them." in said
    [head] = paper.servers()
    assert head["labels"]["role"] == "head" and not engine.ended
    watch.check()  # of what was dropped nothing more is said
    assert said[-1].startswith(victim)
    off(paper, "head")
    watch.check()
    assert not paper.servers()
    assert (
        "head is lost and cannot be replaced" in engine.ended and "the same command" in engine.ended
    )


def test_a_head_for_which_there_is_no_other_ends_the_run(paper):
    said = []
    engine, watch = listed(paper, said)
    paper.accounts[TOKEN].limit = 0
    off(paper, "head")
    watch.check()
    assert "the swarm's head is lost" in engine.ended
    assert [each["labels"]["role"] for each in paper.servers()] == ["node"]


def test_a_node_whose_machine_fails_is_restarted_and_at_the_second_time_replaced(
    paper, monkeypatch
):
    said, restarted = [], []
    engine, watch = listed(paper, said)
    monkeypatch.setattr(install, "restart_service", lambda node, **how: restarted.append(node.name))
    victim = next(s["name"] for s in paper.servers() if s["labels"]["role"] == "node")
    nodes = engine.nodes

    def fault():
        why = "198.18.0.2: its disk is full"
        return [replace(n, fault=why) if n.name == victim else n for n in nodes()]

    engine.nodes = fault
    watch.check()
    assert restarted == [victim]
    assert f"{victim} fails (198.18.0.2: its disk is full); restarting its service." in said
    engine.nodes = nodes  # the restarted worker takes jobs again
    watch.check()
    engine.nodes = fault
    watch.check()
    assert f"{victim} fails again: 198.18.0.2: its disk is full." in said
    assert f"{victim}: lost; creating others." in said
    assert victim not in {each["name"] for each in paper.servers()} and restarted == [victim]


def test_a_server_that_was_late_at_the_start_is_waited_for_and_then_replaced(paper):
    said, go = [], Event()
    accounts = hetzner.accounts(TOKEN, endpoint=paper.url, poll=0.01)
    made = Provisioner(
        "r1", plan_servers(accounts, ServerLimits(nodes=2)), lambda name: "", said.append
    )
    made.fill()
    head, late = sorted(made.servers(), key=lambda each: each.labels["role"])

    def bring_up(login, head):
        if login.name == late.name:
            assert go.wait(jobs.LIMIT)
            raise install.NotReady("no SSH within 180 s")

    startup = Startup(bring_up)
    startup.start([head, late], head)
    startup.wait([head.name])
    rules = HealthRules(grace=0, drain=0)
    watch = HealthMonitor(made, Engine(paper), Doors(), startup, report=said.append, rules=rules)
    watch.check()
    assert [each["name"] for each in paper.servers()] == [head.name, late.name]
    go.set()
    startup.wait()
    watch.check()
    assert "no SSH within 180 s" in said and f"{late.name}: lost; creating others." in said
    names = [each["name"] for each in paper.servers()]
    assert len(names) == 2 and late.name not in names
    startup.wait()
    assert {*startup.up()} == {*names}


def test_a_head_that_is_off_is_replaced_before_its_silence_is_noticed(paper):
    said = []
    engine, watch = listed(paper, said)
    watch._rules = HealthRules(grace=600, head_grace=600, drain=0)
    victim = off(paper, "head")
    engine.nodes = lambda: pytest.fail("who is asked waits for the head")
    watch._provisioner.servers()  # as the view of the swarm does
    watch.check()
    assert f"{victim}: lost; creating others." in said and not engine.ended


@pytest.mark.parametrize("seen", [False, True])
def test_a_run_whose_servers_are_taken_down_ends_instead_of_making_others(paper, seen):
    said = []
    engine, watch = listed(paper, said)
    lifecycle.delete_swarm(watch._provisioner.accounts, watch._provisioner.labels, pause=0.01)
    if seen:  # by the view of the swarm, long before the scheduler's silence is noticed
        watch._rules = HealthRules()
        watch._provisioner.servers()
    watch.check()
    assert "deleted, as `cah swarm down` does" in engine.ended and not paper.servers()
    watch.check()
    assert paper.calls.count("POST /servers") == 2


@pytest.mark.parametrize("role", ["node", "head"])
@pytest.mark.parametrize("lingers", [0, 1])
def test_what_is_lost_is_replaced_in_an_account_at_its_limit(paper, role, lingers):
    paper.accounts[TOKEN].limit, paper.lingers, said = 3, lingers, []
    engine, watch = listed(paper, said, nodes=5)
    assert any("raise the limit" in sentence for sentence in said)
    victim = off(paper, role)
    watch.check()
    assert f"{victim}: lost; creating others." in said and not engine.ended
    roles = [each["labels"]["role"] for each in paper.servers() if each["name"] != victim]
    assert sorted(roles) == ["head", "node", "node"]


def test_what_was_sold_out_is_asked_for_again(paper):
    said = []
    engine, watch = listed(paper, said)
    paper.empty = {(kind, place) for kind in clouds.TYPES for place in clouds.PLACES}
    off(paper, "node")
    watch.check()
    assert len(paper.servers()) == 1
    paper.empty = set()
    off(paper, "head")
    watch.check()
    assert len(paper.servers()) == 2 and not engine.ended


def test_an_answer_that_does_not_come_costs_no_replacement(paper):
    said = []
    _, watch = listed(paper, said)
    victim = off(paper, "node")
    paper.faults = lambda number, what: what == "POST /servers" and "error"
    for _ in range(3):  # more often than there are replacements
        with pytest.raises(RunError, match="a fault asked for"):
            watch.check()
    paper.faults = lambda number, what: None
    watch.check()
    assert said[-2].startswith(f"{victim}: lost; creating others.") and len(paper.servers()) == 2


@pytest.fixture
def cloud(tmp_path):
    with hosts.Hosts(tmp_path / "hosts") as machines:
        accounts = {TOKEN: clouds.Account(limit=4)}
        with clouds.serve(clouds.Cloud(accounts, hosts=machines)) as cloud:
            cloud.stranger(TOKEN)
            yield cloud


@contextmanager
def scraping(cloud, folder, said, rules, nodes=2):
    """An engine on nodes that are looked after."""
    config = lifecycle.SwarmConfig(
        limits=ServerLimits(nodes=nodes), state=folder / "run/swarm", rules=rules
    )
    accounts = hetzner.accounts(TOKEN, endpoint=cloud.url)
    with lifecycle.swarm_engine(
        accounts,
        config,
        folder / "parcels",
        report=said.append,
        stop=Event(),
        swarm_status=SwarmStatus(),
    ) as engine:
        yield engine
    assert [server["name"] for server in cloud.servers()] == ["stranger"]


def ours(cloud, role):
    return [server["name"] for server in cloud.servers() if server["labels"].get("role") == role]


def running(engine, folder, count):
    """Jobs that wait for a file "go", each begun."""
    # Dask moves no job that waits for a busy node to one that comes later
    jobs.until(lambda: engine.slots >= count)
    for n in range(count):
        (folder / str(n)).mkdir()
        engine.submit(f"job{n}", jobs.note_and_wait, folder / str(n), limit=jobs.LIMIT)
        jobs.wait_for(folder / str(n) / "1")


def done(engine, folder, count):
    for n in range(count):
        (folder / str(n) / "go").touch()
    return {key: result for key, result in (engine.take(timeout=jobs.LIMIT) for _ in range(count))}


@needs_hosts
@pytest.mark.parametrize("deleted", [False, True])
def test_a_node_that_dies_is_replaced(cloud, tmp_path, deleted):
    said = []
    with scraping(cloud, tmp_path, said, SOON) as engine:
        running(engine, tmp_path, 2)
        [victim] = ours(cloud, "node")
        if deleted:  # by somebody at the cloud's console
            [account] = hetzner.accounts(TOKEN, endpoint=cloud.url)
            account.delete(next(s for s in account.servers({}) if s.name == victim))
        else:
            cloud.hosts.all[victim].off()
        jobs.until(lambda: ours(cloud, "node") not in ([victim], []))
        [fresh] = ours(cloud, "node")
        assert not engine.await_nodes([fresh], timeout=jobs.LIMIT)
        assert done(engine, tmp_path, 2) == {"job0": "done", "job1": "done"}
    assert f"{victim}: lost; creating others." in said


@needs_hosts
def test_a_server_that_does_not_come_up_keeps_no_other_waiting(cloud, tmp_path):
    said, [account] = [], cloud.accounts.values()
    account.limit = 5
    with scraping(cloud, tmp_path, said, SOON, nodes=3) as engine:
        one, other = ours(cloud, "node")
        cloud.hosts.dark = True
        cloud.hosts.all[one].off()
        jobs.until(lambda: {*ours(cloud, "node")} - {one, other})
        [late] = {*ours(cloud, "node")} - {one, other}
        cloud.hosts.dark = False
        cloud.hosts.all[other].off()
        jobs.until(lambda: f"{other}: lost; creating others." in said)
        jobs.until(lambda: {*ours(cloud, "node")} - {other, late})
        [fresh] = {*ours(cloud, "node")} - {other, late}
        assert not engine.await_nodes([fresh], timeout=jobs.LIMIT)
        cloud.hosts.all[late].cable(plugged=True)
        assert not engine.await_nodes([late], timeout=jobs.LIMIT)


@needs_hosts
def test_a_node_that_stands_still_is_restarted(cloud, tmp_path):
    said, rules = (
        [],
        HealthRules(interval=0.3, max_silence=600, stalled=3, grace=1, restart_grace=jobs.LIMIT),
    )
    with scraping(cloud, tmp_path, said, rules) as engine:
        before = ours(cloud, "node")
        engine.submit("still", jobs.hang, tmp_path, limit=600)
        assert engine.take(timeout=jobs.LIMIT) == ("still", "done")
        assert ours(cloud, "node") == before
    assert any("restarting its service" in sentence for sentence in said)


@needs_hosts
def test_a_head_that_is_lost_is_replaced_and_its_jobs_are_done_again(cloud, tmp_path):
    said = []
    with scraping(cloud, tmp_path, said, SOON) as engine:
        running(engine, tmp_path, 2)
        [victim] = ours(cloud, "head")
        cloud.hosts.all[victim].off()
        jobs.until(lambda: ours(cloud, "head") not in ([victim], []))
        assert not engine.await_nodes(ours(cloud, "head") + ours(cloud, "node"), timeout=jobs.LIMIT)
        assert done(engine, tmp_path, 2) == {"job0": "done", "job1": "done"}
        engine.submit("more", jobs.double, 21, limit=jobs.LIMIT)
        assert engine.take(timeout=jobs.LIMIT) == ("more", 42)


@needs_hosts
def test_the_ceiling_holds_while_a_run_takes_its_time_to_finish(cloud, tmp_path, monkeypatch):
    """Half an hour before the second one, which is as near to it as the settings say."""
    for name, seconds in {
        "_COST_INTERVAL": 0.1, "_DRAIN_TIMEOUT": 2000, "_DELETE_BEFORE": 1900, "_LOGS_TIMEOUT": 60,
    }.items():  # fmt: skip
        monkeypatch.setattr(lifecycle, name, seconds)
    together, fetch_log = Barrier(2, timeout=jobs.LIMIT), install.fetch_log

    def fetched(login, target, **settings):
        together.wait()  # in vain, if they are asked one after the other
        fetch_log(login, target, **settings)

    monkeypatch.setattr(install, "fetch_log", fetched)
    config = lifecycle.SwarmConfig(
        limits=ServerLimits(nodes=2, max_cost=0.014), state=tmp_path / "run/swarm"
    )
    accounts, stop, swarm_status = (
        hetzner.accounts(TOKEN, endpoint=cloud.url),
        Event(),
        SwarmStatus(),
    )
    lifecycle.create_swarm(accounts, config, report=lambda _: None)
    began = datetime.now(timezone.utc) - timedelta(minutes=30)
    mine = [each for each in cloud.servers() if each["name"] != "stranger"]
    with lifecycle.swarm_engine(
        accounts, config, tmp_path, report=lambda _: None, stop=stop, swarm_status=swarm_status
    ):
        for server in mine:  # not before: a slow machine would lose them while it connects
            server["created"] = began.isoformat()
        assert stop.wait(jobs.LIMIT)
        jobs.until(lambda: [each["name"] for each in cloud.servers()] == ["stranger"])
    assert swarm_status.spent == pytest.approx(0.014)
    logs = {path.name for path in (config.state / "logs").iterdir()}
    assert logs == {f"{each['name']}.log" for each in mine}


@needs_hosts
def test_the_ceiling_holds_without_a_terminal(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr(lifecycle, "_COST_INTERVAL", 0.1)
    limits = ServerLimits(nodes=1, max_cost=0.01)
    config = lifecycle.SwarmConfig(limits=limits, state=tmp_path / "run/swarm", rules=RULES)
    accounts, stop = hetzner.accounts(TOKEN, endpoint=cloud.url), Event()
    lifecycle.create_swarm(accounts, config, report=lambda _: None)
    for server in cloud.servers():
        server["created"] = "2026-01-01T00:00:00+00:00"

    def report(sentence):
        if "the cost limit of EUR 0.01" in sentence:
            raise OSError("there is no terminal any more")

    with lifecycle.swarm_engine(
        accounts, config, tmp_path, report=report, stop=stop, swarm_status=SwarmStatus()
    ):
        assert stop.wait(jobs.LIMIT)
    assert [server["name"] for server in cloud.servers()] == ["stranger"]
