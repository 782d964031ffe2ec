"""Nodes that die or stand still during a run, and the head: replaced, and nothing is lost."""

from dataclasses import replace
from threading import Event

import pytest

from cahlib.core.errors import RunError
from cahlib.engine.cluster import WorkerState
from cahlib.swarm import hetzner, install, lifecycle
from cahlib.swarm.health import Action, HealthMonitor, HealthRules, NodeHealth, next_action
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner
from cahlib.swarm.startup import Startup
from tests.world import cloud as clouds
from tests.world import jobs

TOKEN = "token-of-ada"
RULES = HealthRules()


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
