"""The status of a swarm's nodes, as plain records for terminals, notebooks and others.

A thread of its own collects it, and tolerates what does not answer. The only thing it changes is
the heartbeat at the cloud.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

from cahlib.core.background import BackgroundLoop
from cahlib.core.errors import RunError
from cahlib.core.progress import NodeStatus, RateMeter, SwarmStatus, Transient
from cahlib.core.records import Stage, Stats
from cahlib.engine import cluster, remote, wire
from cahlib.engine.transfer import PIECE_KEY
from cahlib.swarm import install, ssh
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.provider import Server
from cahlib.swarm.provisioning import Provisioner

#: Seconds between two refreshes, two requests to the cloud (more if its answer has many pages: it
#: allows 3,600 requests an hour), and two heartbeats.
_REFRESH_INTERVAL, _LIST_INTERVAL, _HEARTBEAT_INTERVAL = 2.0, 10.0, 100.0

#: Seconds without a heartbeat after which a node counts as silent.
_SILENT_AFTER = 20.0

#: Seconds over which the rate of a job is measured.
_RATE_WINDOW = 15.0

#: Seconds in which a node must return the end of its log.
_LOG_TIMEOUT = 5.0

#: The workers, and the links per second of each job by its key.
ClusterWork: TypeAlias = tuple[Sequence[cluster.WorkerState], Mapping[str, float]]


def describe_server(
    server: Server, work: ClusterWork, *, cost: float, step: str = "made", line: str = ""
) -> NodeStatus:
    """Return the status of one server; ``step`` is the current step of its setup."""
    workers, rates = work
    own = [each for each in workers if cluster.is_worker_of(each.name, server.name)]
    jobs = [key for each in own for key in each.jobs]
    seen = min((each.silence for each in own), default=None)
    return NodeStatus(
        name=server.name,
        location=server.location,
        type=server.type,
        state=_state(server.status, step, seen, bool(jobs)),
        job=", ".join(jobs),
        rate=sum(rates.get(key, 0) for key in jobs),
        seen=seen,
        cost=cost,
        version=", ".join(sorted({each.version for each in own if each.version})),
        line=line,
    )


def _state(cloud: str, step: str, seen: float | None, works: bool) -> str:
    if cloud not in ("running", "initializing", "starting"):
        return cloud
    if seen is None:
        return step
    if seen > _SILENT_AFTER:
        return "silent"
    return "works" if works else "idle"


def observe_cluster(address: cluster.ClusterAddress) -> ClusterWork:
    """Return what a cluster's workers do, for any driver; nothing if it does not answer."""
    with (
        suppress(RunError, *remote.CONNECTION_ERRORS),
        closing(cluster.connect(address, 5)) as client,
    ):
        workers = cluster.list_workers(client)
        assigned = client.processing()
        nodes = [
            cluster.worker_state(
                each, [k for k in assigned.get(address, ()) if PIECE_KEY not in k], stalled={}
            )
            for address, each in workers.items()
        ]
        clock = max((each.last_seen for each in workers.values()), default=0)
        return nodes, job_rates(_decoded_reports(client.get_events(wire.PROGRESS_TOPIC)), clock)
    return (), {}


def _decoded_reports(events: Iterable[tuple[float, object]]) -> Iterator[tuple[float, Any]]:
    for when, said in events:
        with suppress(wire.InvalidMessage):
            yield when, wire.decode_report(said)


def job_rates(events: Iterable[tuple[float, Any]], now: float) -> dict[str, float]:
    """Return the links per second of each job, from its reports until now."""
    samples = defaultdict[str, list[tuple[float, float]]](list)
    for when, (key, message) in events:
        if when > now - _RATE_WINDOW:
            samples[key].append((when, links_tried(message)))
    ends = ((key, heard[0], heard[-1]) for key, heard in samples.items())
    return {
        key: (many - few) / (last - first)
        for key, (first, few), (last, many) in ends
        if last > first
    }


def links_tried(report: Any) -> int:
    """Return how many links a job has tried by its report; 0 if that has no stats."""
    try:
        return Stats.from_dict(report).done(Stage.FETCH)
    except (TypeError, KeyError, AttributeError):
        return 0


def last_log_lines(logins: Sequence[ssh.Login]) -> dict[str, str]:
    """Return the last line of each node's log by its name, if the node answers soon."""
    with ThreadPoolExecutor(16) as pool:
        return dict(
            zip((each.name for each in logins), pool.map(_last_log_line, logins), strict=True)
        )


def _last_log_line(login: ssh.Login) -> str:
    with suppress(RunError):
        return install.node_log(login, lines=1, timeout=_LOG_TIMEOUT).strip()
    return ""


class StatusMonitor:
    """Monitors a run's servers while they are set up and work, and updates a `SwarmStatus`."""

    def __init__(
        self, provisioner: Provisioner, keys: SwarmKeys, swarm_status: SwarmStatus
    ) -> None:
        self._provisioner, self._keys, self._swarm_status = provisioner, keys, swarm_status
        swarm_status.currency = provisioner.billing.currency
        self._engine: remote.RemoteEngine | None = None
        self._steps: dict[str, str] = {}
        self._logs: dict[str, str] = {}
        self._speeds: dict[str, RateMeter] = {}
        self._listed_at, self._heartbeat_at = time.monotonic(), -math.inf
        self._reported = ""  #: of the progress of the setup
        self._turn = 0  #: of the nodes whose logs are read

    def step(self, name: str, step: str) -> None:
        """Note that a node begins a step of its setup."""
        self._steps[name] = step

    def attach(self, engine: remote.RemoteEngine) -> None:
        """Set the engine whose workers run on the nodes."""
        self._engine = engine

    def write(self) -> None:
        """Update the status once."""
        work = self._work()
        self._swarm_status.nodes = tuple(
            describe_server(
                server,
                work,
                cost=self._provisioner.billing.cost(server.name, self._provisioner.clock()),
                step=self._step(server.name),
                line=self._logs.get(server.name, ""),
            )
            for server in list(self._provisioner.listed.values())
        )
        self._swarm_status.spent, self._swarm_status.hourly = (
            self._provisioner.spent(),
            self._provisioner.billing.hourly(),
        )

    def look(self, report: Callable[[str], None]) -> None:
        """Update the status; ``report`` gets the progress of the setup."""
        listed, now = self._provisioner.listed, time.monotonic()
        with suppress(RunError):  # the cloud does not answer: its last answer stays
            if now > self._listed_at + max(_LIST_INTERVAL, len(listed) / 5):
                self._listed_at = now
                self._provisioner.servers()
            if self._provisioner.listed and now > self._heartbeat_at + _HEARTBEAT_INTERVAL:
                self._heartbeat_at = now
                self._provisioner.heartbeat()
        self.write()
        progress = startup_progress(self._swarm_status.nodes)
        if not self._engine and progress != self._reported:
            self._reported = progress
            report(progress)

    def read_log(self) -> None:
        """Read the end of the log of one node, the next one each time."""
        names = [name for name in self._provisioner.listed if self._step(name) in ("up", "absent")]
        if names:
            name = names[self._turn % len(names)]
            server = self._provisioner.listed.get(name)
            if server and (line := _last_log_line(_login(server, self._keys))):
                self._logs[name] = line
        self._turn += 1

    def _step(self, name: str) -> str:
        step = self._steps.get(name, "made")
        return "absent" if step == "up" and self._engine else step

    def _work(self) -> ClusterWork:
        if not self._engine:
            return (), {}
        reports = self._engine.reports_by_job()
        self._speeds = {key: self._speeds.get(key) or RateMeter() for key in reports}
        rates = {
            key: self._speeds[key].rates({"links": links_tried(samples)})["links"]
            for key, samples in reports.items()
        }
        with suppress(RunError):
            return self._engine.nodes(), rates
        return (), {}


def startup_progress(nodes: Sequence[NodeStatus]) -> Transient:
    """Return the setup progress of nodes as a line; with names if there are few."""
    at = defaultdict[str, list[str]](list)
    for each in nodes:
        at[each.state].append(each.name)
    samples = (
        f"{state}: {', '.join(names) if len(nodes) <= 4 else len(names)}"
        for state, names in at.items()
    )
    return Transient("; ".join(samples))


@contextmanager
def status_monitored(
    provisioner: Provisioner,
    keys: SwarmKeys,
    swarm_status: SwarmStatus,
    report: Callable[[str], None],
) -> Iterator[StatusMonitor]:
    """Monitor a run's servers while the block runs."""
    view = StatusMonitor(provisioner, keys, swarm_status)
    # a thread of its own, since a node that does not answer blocks for a while
    logs = BackgroundLoop(_REFRESH_INTERVAL, view.read_log, name="logs")
    logs.start()
    try:
        with BackgroundLoop(_REFRESH_INTERVAL, partial(view.look, report), name="view"):
            yield view
    finally:
        logs.stop(timeout=0)
        swarm_status.nodes, swarm_status.spent, swarm_status.hourly = (
            (),
            provisioner.spent(),
            provisioner.billing.hourly(),
        )


def _login(server: Server, keys: SwarmKeys) -> ssh.Login:
    return ssh.Login(name=server.name, address=server.address, keys=keys)
