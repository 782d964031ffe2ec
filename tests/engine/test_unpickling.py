"""A machine that was taken over gets no way into its driver, nor into the scheduler.

One real cluster over TLS: the scheduler as nodes run it, and a worker that sends pickles by every
way there is.
"""

import asyncio
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from asyncio import wait_for
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Security
from distributed.comm import CommClosedError, connect
from distributed.core import rpc
from distributed.protocol import loads
from tornado.iostream import StreamClosedError

from cahlib.core.errors import RunError, ShardError
from cahlib.engine import cluster, message_limits, unpickling, wire
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import remote_engine
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import HERE
from tests.world import command, hostile, jobs


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    keys = SwarmKeys(folder / "keys")
    (folder / "sprung").mkdir()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv(hostile.SPRUNG, str(folder / "sprung"))
        swarm = Swarm(folder, keys, stack, stack.enter_context(open(folder / "log", "wb")))
        scheduler = swarm.start("scheduler", "--scheduler-file", str(folder / "at"), "--port", "0")
        at = folder / "at"
        jobs.until(lambda: at.exists() and at.read_text().rstrip().endswith("}"))
        swarm.scheduler = scheduler
        swarm.reach = ClusterAddress(address=json.loads(at.read_text())["address"], keys=keys)
        swarm.work("node", "--preload", "tests.world.hostile")
        with cluster.connect(swarm.reach, jobs.LIMIT) as client:
            client.wait_for_workers(1, timeout=jobs.LIMIT)  # its start is no part of any flood
        yield swarm


#: Where each node is.
PLACES = {"node": "127.0.0.2", "well": "127.0.0.3"}


class Swarm:
    def __init__(self, folder, keys, stack, log):
        self.top, self.folder, self.keys, self.stack, self.log = (
            folder, folder / "sprung", keys, stack, log,
        )  # fmt: skip
        self.reach = self.scheduler = None

    def start(self, kind, *line, node="node", stack=None):
        """Start a process of Dask's as nodes do, with the settings of a node."""
        at = "127.0.0.1" if kind == "scheduler" else PLACES[node]
        pem, own = self.top / "scheduler.pem", self.keys.node(node, PLACES[node])
        made = self.keys.scheduler("127.0.0.1")
        pem.write_bytes(made.public.read_bytes() + made.private.read_bytes())
        text = (HERE / "dask.yaml").read_text().replace("/etc/cahlib/scheduler.pem", str(pem))
        ca = self.keys.authority().public
        for name, path in ("node.crt", own.public), ("node.key", own.private), (ca.name, ca):
            text = text.replace(f"/home/crawl/tls/{name}", str(path))
        settings = self.top / f"dask-{node}"
        settings.mkdir(exist_ok=True)
        (settings / "dask.yaml").write_text(text)
        words = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--protocol", "tls"]
        environment = command.environment() | {
            "DASK_CONFIG": str(settings),
            hostile.SPRUNG: str(self.folder),
        }
        process = subprocess.Popen(
            [*words, "--host", at, "--no-dashboard", *line],
            env=environment, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        (stack or self.stack).callback(process.wait)
        (stack or self.stack).callback(process.kill)
        return process.pid

    def work(self, node, *line, stack=None):
        """Start a worker; it ends with the stack."""
        given = ["--no-nanny", "--nthreads", "2", "--resources", "slot=1", "--name", node, *line]
        return self.start("worker", self.reach.address, *given, node=node, stack=stack)

    def security(self, pair):
        """Return how to connect by this certificate."""
        files = {"tls_client_cert": str(pair.public), "tls_client_key": str(pair.private)}
        ca = str(self.keys.authority().public)
        security = Security(require_encryption=True, tls_ca_file=ca, **files)
        return security.get_connection_args("client")

    def ask(self, pair, address, *asked):
        """Return what comes of calls, each a name with its arguments, by this certificate."""

        async def ask(way, named):
            node = rpc(address, connection_args=self.security(pair))
            try:
                return await getattr(node, way)(**named)
            except Exception as error:  # noqa: BLE001 - whatever comes of it
                return error
            finally:
                await node.close_rpc()

        async def ask_all():
            return [await wait_for(ask(*each), jobs.LIMIT) for each in asked]

        return asyncio.run(ask_all())

    def held(self):
        """Fail at once if code has run where it must not: then all else may hang."""
        assert self.sprung() == []
        return True

    def taken(self, scrapers):
        """What a job comes to."""
        while (end := scrapers.take(timeout=0.1)) is None:
            self.held()
        return end[1]

    def sprung(self):
        """By which ways code ran where it must not."""
        safe = {os.getpid(), self.scheduler}
        found = [path.name.split(".") for path in self.folder.iterdir()]
        return [way for way, process in found if int(process) in safe]


def test_nothing_that_a_worker_sends_runs_at_its_driver(swarm, tmp_path, monkeypatch):
    monkeypatch.setattr("cahlib.engine.remote._MAX_ATTEMPTS", 2)
    before = peak(os.getpid(), anew=True)
    with remote_engine(swarm.reach, tmp_path) as scrapers:
        jobs.until(lambda: swarm.held() and scrapers.slots)
        ways = ("result", "type", "exception", "traceback", "nothing", "bomb", "flood")
        for way in (*ways, *hostile.ELSEWHERE):
            scrapers.submit(way, jobs.double, 1, limit=jobs.LIMIT)
            assert isinstance(swarm.taken(scrapers), ShardError | RuntimeError), way
        assert scrapers.reports() == []
        [node] = scrapers.nodes()
        assert "invalid message" in node.fault
    with remote_engine(replace(swarm.reach, piece_timeout=1), tmp_path) as scrapers:
        scrapers.submit("peer", jobs.double, 1, limit=jobs.LIMIT)
        assert isinstance(swarm.taken(scrapers), ShardError)
    with cluster.connect(swarm.reach, jobs.LIMIT) as client:
        assert all(isinstance(told, bytes) for _, told in client.get_events(wire.PROGRESS_TOPIC))
        assert not client.get_events("warn") and not client.get_events("print")
    assert swarm.sprung() == []
    assert peak(os.getpid()) < before + 64


def peak(process, *, anew=False):
    """Return the most MiB that a process ever had, or has had since this was called ``anew``."""
    if anew:
        Path(f"/proc/{process}/clear_refs").write_text("5")
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10


@pytest.mark.parametrize("before", [0, 100])
def test_a_node_does_not_fill_the_memory_of_the_scheduler(swarm, before):
    pair = swarm.keys.node("node", PLACES["node"])

    async def flood():
        comm = await connect(swarm.reach.address, **swarm.security(pair))
        with pytest.raises(StreamClosedError):
            await asyncio.wait_for(hostile.flood(comm.stream, before), jobs.LIMIT)

    known = peak(swarm.scheduler, anew=True)
    asyncio.run(flood())
    assert peak(swarm.scheduler) < known + 16
    said = "announced 2,147,483,648 bytes, where at most 262,"  # once the connection is closed
    jobs.until(lambda: said in (swarm.top / "log").read_text())


def test_nothing_that_is_asked_of_the_scheduler_runs_there(swarm):
    trap = pickle.dumps(hostile.Trap("scheduler"))
    ways = {
        "run_function": {"function": trap, "args": trap},
        "feed": {"function": trap, "setup": trap, "teardown": trap},
        "register_scheduler_plugin": {"plugin": trap, "idempotent": False},
        "workers_to_close": {"key": trap, "n": 1, "memory_ratio": 1.0},
        "log_event": {"topic": "x", "msg": hostile.pickle_me(hostile.Trap("message"))},
        "identity": {"n_workers": hostile.pickle_me(hostile.Trap("argument"))},
        "gather": {"keys": hostile.Trap("fallback")},
        "who_has": {
            "keys": {
                "__Enum__": True,
                "__module__": "tests.world.hostile",
                "__name__": "spring",
                "name": "x",
            }
        },
    }
    for pair in swarm.keys.driver(), swarm.keys.node("node", PLACES["node"]):
        said = swarm.ask(pair, swarm.reach.address, *ways.items())
        for way, error in zip(ways, said, strict=True):
            assert "InvalidMessage" in str(error), way
    with cluster.connect(swarm.reach, jobs.LIMIT) as client:
        client.wait_for_workers(1, timeout=jobs.LIMIT)  # it goes on
        graph = client.submit(hostile.spring, "graph")
        assert "deserialization" in str(graph.exception(timeout=jobs.LIMIT))
    assert swarm.sprung() == []


#: Of all that a scheduler does, what no node may have done, whatever it is told with it.
DRIVEN = [
    "broadcast", "proxy", "scatter", "gather", "feed", "terminate", "restart", "run_function",
    "restart_workers", "retire_workers", "update_data", "add_keys", "set_metadata", "replicate",
    "register_scheduler_plugin", "register_worker_plugin", "register_nanny_plugin", "rebalance",
    "set_restrictions", "retry", "get_cluster_state", "events", "who_has", "adaptive_target",
    "register-client", "worker_logs", "dump_cluster_state_to_url",
]  # fmt: skip


def test_a_node_drives_nothing(swarm):
    node = swarm.keys.node("node", PLACES["node"])
    said = swarm.ask(node, swarm.reach.address, *((way, {}) for way in DRIVEN))
    for way, error in zip(DRIVEN, said, strict=True):
        assert "node may not ask for" in str(error), way


def registered(**changed):
    """What a worker says of itself as it begins."""
    at = f"tls://{PLACES['node']}"
    return {
        "op": "register-worker", "address": f"{at}:9", "nanny": f"{at}:8", "name": "node-7",
        "status": "running", "server_id": "x", "nthreads": 2, "now": 0.0, "pid": 1, "versions": {},
        "resources": {"slot": 1}, "memory_limit": 0, "services": {}, "local_directory": "/",
        "extra": {}, "stimulus_id": "x", "metrics": {}, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ("heartbeat_worker", {"address": "tls://127.0.0.3:9", "metrics": {}}),
        ("unregister", {"address": "tls://127.0.0.3:9"}),
        ("unregister", {"address": None}),
        ("register_nanny", {"address": "tls://127.0.0.1:9"}),
        ("register-worker", registered(address="tls://127.0.0.3:9")),
        ("register-worker", registered(address="tls://localhost:9")),
        ("register-worker", registered(nanny="tls://127.0.0.3:9")),
        ("register-worker", registered(name="well-0")),
        ("register-worker", registered(resources={"slot": 1000})),
        ("set_resources", {"worker": "tls://127.0.0.3:9", "resources": {"slot": 0}}),
        ("set_resources", {"worker": f"tls://{PLACES['node']}:9", "resources": {"slot": 1000}}),
    ],
)
def test_a_node_speaks_for_itself_alone(swarm, op, said):
    node = swarm.keys.node("node", PLACES["node"])
    named = {name: value for name, value in said.items() if name != "op"}
    [error] = swarm.ask(node, swarm.reach.address, (op, named))
    assert "InvalidMessage" in str(error)


@pytest.mark.parametrize(
    "said",
    [
        {"op": "update-graph", "client": "x", "keys": ["a"]},
        {"op": "add-keys", "keys": ["a"]},
        {"op": "task-finished", "worker": "tls://127.0.0.3:9", "key": "a"},
        {"op": "cancel-keys", "client": "x", "keys": ["a"]},
        {"op": ["update-graph"]},
        "anything",
    ],
)
def test_a_worker_that_tells_more_than_of_itself_is_gone(swarm, said):
    pair = swarm.keys.node("node", PLACES["node"])
    metrics = {
        "bandwidth": {"total": 1, "workers": {}, "types": {}}, "memory": 1,
        "digests_total_since_heartbeat": {}, "spilled_bytes": {"memory": 0},
    }  # fmt: skip

    async def tell():
        comm = await connect(swarm.reach.address, **swarm.security(pair))
        try:
            await comm.write(registered(metrics=metrics))
            assert (await comm.read())["status"] == "OK"
            await comm.write([{"op": "keep-alive"}, said])
            with pytest.raises(CommClosedError):
                while True:
                    await comm.read()
        finally:
            comm.abort()

    asyncio.run(asyncio.wait_for(tell(), jobs.LIMIT))
    with cluster.connect(swarm.reach, jobs.LIMIT) as client:
        jobs.until(
            lambda: [each.name for each in cluster.list_workers(client).values()] == ["node"]
        )


def test_a_worker_knows_no_other_node(swarm):
    with ExitStack() as stack, cluster.connect(swarm.reach, jobs.LIMIT) as client:
        swarm.work("well", "--preload", "cahlib.engine.worker_preload", stack=stack)
        client.wait_for_workers(2, timeout=jobs.LIMIT)
        [address] = [at for at, each in cluster.list_workers(client).items() if each.name == "well"]
        spring = ("run", {"function": pickle.dumps(hostile.spring), "args": pickle.dumps(["run"])})
        [said] = swarm.ask(swarm.keys.driver(), address, spring)
        assert said["status"] == "OK"  # it does what drivers ask
        node = swarm.keys.node("node", PLACES["node"])
        before = set(swarm.folder.iterdir())
        [error] = swarm.ask(node, address, spring)
        assert isinstance(error, OSError) and set(swarm.folder.iterdir()) == before


def test_of_more_than_a_few_megabytes_no_objects_are_made():
    with pytest.raises(wire.InvalidMessage, match="It sent 9,000,"):
        unpickling.safe_loads(pickle.dumps([])[:-1] + b"]" * 9_000_000 + b".")
    unpickling.restrict()
    message_limits.limit_messages()
    with pytest.raises(wire.InvalidMessage, match="It sent 9,000,005"):
        loads([b"\xdd" + struct.pack(">I", 9_000_000) + b"\x90" * 9_000_000])


@pytest.mark.parametrize(
    "data", [b"", b"garbage.", b"\x80\x05cos\nsystem\n(S'id'\ntR.", b"\x80\x05\x82\x01."]
)
def test_a_pickle_of_anything_else_is_refused(data):
    with pytest.raises(wire.InvalidMessage):
        unpickling.safe_loads(data)


def test_an_error_comes_as_its_name_and_message():
    told = unpickling.safe_loads(pickle.dumps(OSError(2, "not there\x1b[31m")))
    assert isinstance(told, wire.RemoteError) and told.kind == "FileNotFoundError"
    assert str(told) == "FileNotFoundError: 2: not there?[31m"


def test_a_version_of_dask_that_unpickles_elsewhere_is_refused(monkeypatch):
    monkeypatch.setattr("distributed.core.clean_exception", lambda error, _: pickle.loads(error))
    monkeypatch.setattr(unpickling._Trap, "tried", False)
    with pytest.raises(RunError, match="cannot be kept from unpickling .*errors are unpickled"):
        unpickling.restrict()
