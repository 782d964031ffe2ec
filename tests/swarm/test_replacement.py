"""Nodes and heads of a real swarm that die or stand still: replaced while the run goes on."""

from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from threading import Barrier, Event

import pytest

from cahlib.core.progress import SwarmStatus
from cahlib.swarm import hetzner, install, lifecycle
from cahlib.swarm.health import HealthRules
from cahlib.swarm.planner import ServerLimits
from tests.world import cloud as clouds
from tests.world import hosts, jobs

TOKEN = "token-of-ada"
RULES = HealthRules()
#: Soon, but not sooner than a busy machine brings a service up.
#: A node that is new has as long as a busy machine needs: one that is replaced never works.
SOON = HealthRules(
    interval=0.3, max_silence=15, stalled=600, grace=1, head_grace=6, restart_grace=jobs.LIMIT,
    restart_timeout=jobs.LIMIT, drain=2,
)  # fmt: skip

needs_hosts = pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())


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
    said = []
    rules = HealthRules(
        interval=0.3, max_silence=600, stalled=3, grace=1, restart_grace=jobs.LIMIT,
        restart_timeout=jobs.LIMIT,
    )  # fmt: skip
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
