"""What is told of nodes is what the cloud, the scheduler and the jobs said of them."""

import io
import json
from dataclasses import asdict, replace

import pytest

from cahlib.commands import console
from cahlib.core.progress import NodeStatus, Snapshot, SwarmStatus, Transient, offline_seconds
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.engine import cluster
from cahlib.swarm import status
from cahlib.swarm.provider import Server
from tests.world.jobs import until

SERVER = Server(
    id=1,
    name="cah-1",
    address="198.18.0.1",
    type="cx23",
    location="fsn1",
    status="running",
    labels={},
    created=0,
)


def worker(name="cah-1-0", silence=1.0, jobs=("a-0",)):
    return cluster.WorkerState(
        name=name,
        host="",
        slots=1,
        silence=silence,
        memory=0,
        jobs=jobs,
        stalled=0,
        version="0.1.0+g1",
    )


def report(links):
    stats = Stats()
    stats.left[Stage.FETCH] = links - 1
    stats.dropped[DropReason.DNS] = 1
    return stats.as_dict()


def test_a_node_is_told_with_all_that_is_known_of_it():
    workers = [
        worker(),
        worker("cah-1-1", silence=3, jobs=("b-0",)),
        worker("cah-11", jobs=("c-0",)),
    ]
    work = workers, {"a-0": 10.0, "b-0": 5.0, "c-0": 99.0}
    node = status.describe_server(SERVER, work, cost=0.014, line="all is well")
    assert json.loads(json.dumps(asdict(node))) == {
        "name": "cah-1",
        "location": "fsn1",
        "type": "cx23",
        "state": "works",
        "job": "a-0, b-0",
        "rate": 15.0,
        "seen": 1.0,
        "cost": 0.014,
        "version": "0.1.0+g1",
        "line": "all is well",
    }


@pytest.mark.parametrize(
    ("server", "workers", "state"),
    [
        (SERVER, [], "install"),
        (SERVER, [worker(jobs=())], "idle"),
        (SERVER, [worker(silence=60)], "silent"),
        (replace(SERVER, status="off"), [worker()], "off"),
    ],
)
def test_the_state_is_the_last_thing_that_is_sure(server, workers, state):
    assert status.describe_server(server, (workers, {}), cost=0, step="install").state == state


def test_the_speed_of_a_job_is_that_of_the_last_seconds():
    heard = [(t, ("old", report(100 + t))) for t in range(10)]
    heard += [(t, ("new", report(100 + 3 * t))) for t in range(90, 101)]
    heard += [(100, ("other", {"images": 7}))]
    assert status.job_rates(heard, 100) == {"new": 3}


def test_the_way_up_is_told_by_name_for_few_and_by_number_for_many():
    node = status.describe_server(SERVER, ((), {}), cost=0, step="ssh")
    assert status.startup_progress([node, replace(node, name="cah-2", state="boot")]) == (
        "ssh: cah-1; boot: cah-2"
    )
    assert status.startup_progress([replace(node, name=f"cah-{n}") for n in range(20)]) == "ssh: 20"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def snapshot(nodes, elapsed=0.0):
    return Snapshot(
        elapsed=elapsed,
        shards=2,
        done=1,
        failed=0,
        stats=Stats(),
        rates={"links": 0, "images": 0, "judged": 0, "pairs": 0},
        queues={},
        busy=0,
        finished=False,
        nodes=tuple(nodes),
        spent=0.5,
        hourly=0.1,
    )


def test_a_terminal_shows_every_node_and_the_ends_of_their_logs_in_turn():
    node = status.describe_server(SERVER, ([worker()], {}), cost=0)
    nodes = [replace(node, name=f"cah-{n}", line=f"line {n}") for n in range(25)]
    with console.progress_view(terminal := Terminal()) as listener:
        for second in range(100):
            listener(snapshot(nodes, elapsed=second))
    shown = terminal.getvalue()
    for n in range(25):
        assert f"cah-{n} " in shown and f"cah-{n}: line {n}" in shown
    assert "works 25, EUR 0.5000 so far, 0.1000 an hour" in shown


def test_a_swarm_is_told_of_in_the_currency_that_its_accounts_pay():
    node = status.describe_server(SERVER, ([worker()], {}), cost=0)
    with console.progress_view(terminal := Terminal()) as listener:
        listener(replace(snapshot([node]), currency="USD"))
    assert "USD 0.5000 so far" in terminal.getvalue() and "EUR" not in terminal.getvalue()


def on_their_way(*states):
    return tuple(
        replace(status.describe_server(SERVER, ((), {}), cost=0), name=f"cah-{n}", state=state)
        for n, state in enumerate(states)
    )


def test_the_way_up_is_a_bar_with_an_estimate_until_somebody_works():
    line = console.startup_line(on_their_way("boot", "up", "start", "made"), 30.0, 79)
    assert line.startswith("servers come up 55 % |") and len(line) == 79
    assert line.endswith("| about 00:24 left")
    assert "no estimate yet" in console.startup_line(on_their_way("made"), 30.0, 79)
    working = replace(on_their_way("idle")[0], seen=1.0)
    for nodes in ((), on_their_way("up", "up"), (*on_their_way("boot"), working)):
        assert console.startup_line(nodes, 30.0, 79) == ""
    with console.progress_view(terminal := Terminal()) as listener:
        listener(snapshot(on_their_way("boot", "up"), elapsed=20.0))
    assert "servers come up 70 %" in terminal.getvalue()


def test_servers_that_are_brought_up_alone_are_a_bar_in_a_terminal_and_lines_elsewhere(capsys):
    swarm_status = SwarmStatus(nodes=on_their_way("install"))
    with console.startup_bar(swarm_status, terminal := Terminal()) as report:
        report("cah-1: made")
        report(Transient("install: cah-1"))
        until(lambda: "servers come up 60 %" in terminal.getvalue())
    assert "cah-1: made\n" in terminal.getvalue()
    with console.startup_bar(swarm_status, io.StringIO()) as report:
        report(Transient("install: cah-1"))
    assert capsys.readouterr().err == "install: cah-1\n"


def test_no_swarm_takes_no_lines():
    for stream in (Terminal(), io.StringIO()):
        with console.progress_view(stream) as listener:
            listener(replace(snapshot([]), spent=0))
        assert "swarm" not in stream.getvalue()


def test_who_waits_for_the_network_is_said():
    with console.progress_view(stream := io.StringIO()) as listener:
        told = [report(3), {**report(5), "offline": 35.2}]
        listener(replace(snapshot([]), offline=offline_seconds(told)))
    assert "a scraper has had no network for 35 s; work resumes" in stream.getvalue()


def test_a_headed_table_has_a_line_for_each_node():
    empty = NodeStatus(
        name="n",
        location="",
        type="",
        state="made",
        job="",
        rate=0,
        seen=None,
        cost=0,
        version="",
        line="",
    )
    heading, line = console.node_lines([empty])
    assert heading.split() == ["node", "type", "place", "state", "shard", "links/s", "seen", "EUR"]
    assert line.split() == ["n", "made", "-", "0", "-", "0.0000"]
