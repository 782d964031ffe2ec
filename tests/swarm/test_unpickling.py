"""A machine that was taken over gets no way into its driver, nor into the scheduler.

One real cluster over TLS: the scheduler as nodes run it, and a worker that sends pickles by every
way there is.
"""

import json
import os
import pickle
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
from distributed.core import rpc
from distributed.utils import LoopRunner

from cahlib.errors import RunError, ShardError
from cahlib.swarm import cluster, unpickling, wire
from cahlib.swarm.cluster import Reach
from cahlib.swarm.keys import Keys
from cahlib.swarm.node import HERE
from cahlib.swarm.remote import remote
from tests.world import command, hostile, jobs


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    keys = Keys(folder / "keys")
    own, ca = keys.node("node", "127.0.0.1"), keys.authority().public
    settings = (HERE / "dask.yaml").read_text()
    for name, path in ("node.crt", own.public), ("node.key", own.private), (ca.name, ca):
        settings = settings.replace(f"/home/crawl/tls/{name}", str(path))
    (folder / "dask").mkdir()
    (folder / "dask" / "dask.yaml").write_text(settings)
    (folder / "sprung").mkdir()
    environment = command.environment() | {
        "DASK_CONFIG": str(folder / "dask"),
        hostile.SPRUNG: str(folder / "sprung"),
    }
    at, host = folder / "at", ["--protocol", "tls", "--host", "127.0.0.1", "--no-dashboard"]
    lines = {
        "scheduler": ["--scheduler-file", str(at), "--port", "0"],
        "worker": ["--no-nanny", "--nthreads", "2", "--resources", "slot=1",
                   "--preload", "tests.world.hostile"],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv(hostile.SPRUNG, str(folder / "sprung"))
        log = stack.enter_context(open(folder / "log", "wb"))

        def start(kind, *more):
            line = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *host, *lines[kind]]
            process = subprocess.Popen([*line, *more], env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process.pid

        scheduler = start("scheduler")
        jobs.until(lambda: at.exists() and at.read_text().rstrip().endswith("}"))
        address = json.loads(at.read_text())["address"]
        start("worker", address)
        yield Swarm(Reach(address=address, keys=keys), folder / "sprung", scheduler)


class Swarm:
    def __init__(self, reach, folder, scheduler):
        self.reach, self.folder, self.scheduler = reach, folder, scheduler

    def sprung(self):
        """By which ways code ran where it must not."""
        safe = {os.getpid(), self.scheduler}
        found = [path.name.split(".") for path in self.folder.iterdir()]
        return [way for way, process in found if int(process) in safe]


def test_nothing_that_a_worker_sends_runs_at_its_driver(swarm, tmp_path, monkeypatch):
    monkeypatch.setattr("cahlib.swarm.remote._TRIES", 2)
    with remote(swarm.reach, tmp_path) as scrapers:
        jobs.until(lambda: scrapers.slots)
        for way in ("result", "type", "exception", "traceback", "nothing"):
            scrapers.submit(way, jobs.double, 1, limit=jobs.LIMIT)
            assert isinstance(scrapers.take(timeout=jobs.LIMIT)[1], ShardError | RuntimeError), way
        assert scrapers.told() == []
        [node] = scrapers.nodes()
        assert "not read" in node.ill
    with remote(replace(swarm.reach, patience=1), tmp_path) as scrapers:
        scrapers.submit("peer", jobs.double, 1, limit=jobs.LIMIT)
        assert isinstance(scrapers.take(timeout=jobs.LIMIT)[1], ShardError)
    with cluster.connected(swarm.reach, jobs.LIMIT) as client:
        assert client.get_events("warn")
    assert swarm.sprung() == []


def test_nothing_that_a_node_asks_of_the_scheduler_runs_there(swarm):
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
    connection = cluster._security(swarm.reach.keys).get_connection_args("client")

    async def ask(way, named):
        node = rpc(swarm.reach.address, connection_args=connection)
        try:
            await getattr(node, way)(**named)
        except Exception as error:  # noqa: BLE001 - whatever comes of it
            return error
        finally:
            await node.close_rpc()

    loop = LoopRunner()
    loop.start()
    try:
        for way, named in ways.items():
            error = loop.run_sync(ask, way, named, callback_timeout=jobs.LIMIT)
            assert "Refused" in str(error), way
    finally:
        loop.stop()
    with cluster.connected(swarm.reach, jobs.LIMIT) as client:
        client.wait_for_workers(1, timeout=jobs.LIMIT)  # it goes on
        graph = client.submit(hostile.spring, "graph")
        assert "deserialization" in str(graph.exception(timeout=jobs.LIMIT))
    assert swarm.sprung() == []


@pytest.mark.parametrize(
    "data", [b"", b"garbage.", b"\x80\x05cos\nsystem\n(S'id'\ntR.", b"\x80\x05\x82\x01."]
)
def test_a_pickle_of_anything_else_is_refused(data):
    with pytest.raises(wire.Refused):
        unpickling.loads(data)


def test_an_error_comes_as_its_name_and_message():
    told = unpickling.loads(pickle.dumps(OSError(2, "not there\x1b[31m")))
    assert isinstance(told, wire.Foreign) and told.kind == "FileNotFoundError"
    assert str(told) == "FileNotFoundError: 2: not there?[31m"


def test_a_version_of_dask_that_unpickles_elsewhere_is_refused(monkeypatch):
    monkeypatch.setattr("distributed.core.clean_exception", lambda error, _: pickle.loads(error))
    monkeypatch.setattr(unpickling._Trap, "tried", False)
    with pytest.raises(RunError, match="cannot be kept from unpickling .*errors are unpickled"):
        unpickling.restrict()
