"""Monitor the health of a swarm's nodes while they work, and repair or replace them.

    healthy ──► unhealthy ──► services restarted over SSH ──► replaced by another server

A node is unhealthy if its worker sends no heartbeat, its jobs make no progress, or its machine
reports a fault; one that fails again after a restart is replaced. A head whose scheduler is lost is
handled in the same way; the others then join the new one, and the engine sends its jobs there.
Servers are set up in the background, except the head, without which nothing can be monitored. It
does not know what jobs do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto

from cahlib.core.background import BackgroundLoop
from cahlib.core.errors import RunError, Stopped
from cahlib.engine.cluster import WorkerState, is_worker_of
from cahlib.engine.remote import CONNECTION_ERRORS, RemoteEngine
from cahlib.swarm import install, ssh
from cahlib.swarm.firewall import Firewall
from cahlib.swarm.provider import Server
from cahlib.swarm.provisioning import TAKEN_DOWN, Provisioner
from cahlib.swarm.startup import Startup


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """Timeouts in seconds, and how often to replace nodes."""

    interval: float = 5  #: between two checks
    max_silence: float = 60  #: without a worker's heartbeat, as for the scheduler
    stalled: float = 600  #: without progress of a worker's jobs
    grace: float = 20  #: for which a node must be unhealthy before anything is done
    head_grace: float = 120  #: the same for a silent scheduler: perhaps we are offline
    restart_grace: float = 120  #: for a node to become healthy after a restart
    restart_timeout: float = 20  #: for a node to answer SSH and restart its service
    drain: float = 30  #: to fetch finished parcels before a node is deleted
    min_replacements: int = 3  #: in a run, or as many as it has nodes if that is more


class Action(Enum):
    """An action on a node."""

    LEAVE = auto()
    RESTART = auto()
    REPLACE = auto()


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """A node's history."""

    unhealthy_since: float | None = None
    restarted: bool = False  #: and not healthy since


def next_action(
    health: NodeHealth, *, healthy: bool, gone: bool, now: float, rules: HealthRules
) -> tuple[NodeHealth, Action]:
    """Return a node's new history and what to do; ``gone``: its machine does not run."""
    if healthy:
        return NodeHealth(), Action.LEAVE
    since = now if health.unhealthy_since is None else health.unhealthy_since
    if now < since + (rules.restart_grace if health.restarted and not gone else rules.grace):
        return NodeHealth(since, health.restarted), Action.LEAVE
    if gone or health.restarted:
        return NodeHealth(), Action.REPLACE
    return NodeHealth(now, restarted=True), Action.RESTART


class HealthMonitor:
    """Checks all nodes regularly, and carries out the actions."""

    def __init__(
        self,
        provisioner: Provisioner,
        engine: RemoteEngine,
        firewall: Firewall,
        startup: Startup,
        *,
        report: Callable[[str], None],
        rules: HealthRules,
    ) -> None:
        self._provisioner, self._engine, self._firewall = provisioner, engine, firewall
        self._startup, self._rules, self._report = startup, rules, report
        self._health: dict[str, NodeHealth] = {}
        self._restarted: set[str] = set()  #: nodes restarted for a fault of their machine
        self._nodes: dict[str, Server] = dict(provisioner.listed)  #: that should exist
        self._starting = self._nodes.keys() - {*startup.up()}  #: nodes not up at the last check
        self._last_error = ""
        self._replacements_left = max(rules.min_replacements, len(provisioner.plan.first))
        self._creating = threading.Lock()  #: held while servers are created
        self._loop = BackgroundLoop(rules.interval, self._look, name="watch")
        self._ended = self._loop.stopping

    def start(self) -> None:
        """Start checking."""
        self._loop.start()

    def end(self) -> None:
        """Stop creating servers; do not wait for those that are being set up."""
        self._loop.stop(timeout=0)
        with self._creating:
            pass

    def _look(self) -> None:
        try:
            self.check()
        except (*CONNECTION_ERRORS, RunError) as error:  # perhaps we are offline
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._report(self._last_error)

    def check(self) -> None:
        """Check every node once; raise RunError if the cloud does not answer."""
        if self._end_if_taken_down():
            return
        self._note_started(self._starting - self._startup.pending())
        off = {name for name, each in self._provisioner.listed.items() if each.status == "off"}
        head = next((n for n, each in self._nodes.items() if _is_head(each)), "")
        # asking an engine whose head is off would wait for its timeout
        workers = None if head in off else self._workers()
        if workers is None and head not in off:
            self._firewall.follow_driver()  # perhaps our own address has changed
        there = [each for name, each in self._nodes.items() if name not in self._starting]
        unhealthy = [each for each in there if not self._is_healthy(each, workers)]
        for name in self._health.keys() - {each.name for each in unhealthy}:
            self._health[name] = NodeHealth()
        if not unhealthy or self._provisioner.stop.is_set():  # a stopped run needs no nodes
            return
        listed = {server.name: server for server in self._provisioner.servers()}
        if self._end_if_taken_down():
            return
        lost = [each for each in unhealthy if self._repair(each, listed, workers)]
        if lost:
            self._replace(lost)

    def _end_if_taken_down(self) -> bool:
        """Return whether somebody has deleted the run's servers; if so, end the run."""
        if not self._nodes or self._provisioner.listed or self._provisioner.stop.is_set():
            return False  # a stopped run deletes its servers itself
        if self._ended.is_set() or not self._provisioner.is_taken_down():
            return False
        self._nodes.clear()
        self._engine.fail(Stopped(TAKEN_DOWN))
        return True

    def _repair(
        self, node: Server, listed: Mapping[str, Server], workers: Sequence[WorkerState] | None
    ) -> bool:
        """Repair an unhealthy node if possible; return whether to replace it."""
        server, head = listed.get(node.name), workers is None
        off = server is not None and server.status == "off"
        why = next((each.fault for each in _workers_of(workers, node) if each.fault), "")
        if why and node.name in self._restarted:  # the restart did not help
            self._report(f"{node.name} fails again: {why}.")
            return True
        sure = 0 if off else self._rules.head_grace if head else self._rules.grace
        self._health[node.name], action = next_action(
            self._health.get(node.name, NodeHealth()),
            healthy=False,
            gone=server is None or off,
            now=time.monotonic(),
            rules=replace(self._rules, grace=sure),
        )
        if action is Action.RESTART:
            self._restarted |= {node.name} if why else set()
            said = f"fails ({why})" if why else "does not work"
            self._report(f"{node.name} {said}; restarting its service.")
            try:
                for unit in ("crawl-head", "crawl") if head else ("crawl",):
                    install.restart_service(
                        self._firewall.login_of(node),
                        unit=unit,
                        timeout=self._rules.restart_timeout,
                    )
            except (ssh.CommandFailed, ssh.Unreachable):  # waiting for it would be futile
                since = time.monotonic() - self._rules.restart_grace + self._rules.grace
                self._health[node.name] = NodeHealth(since, restarted=True)
        return action is Action.REPLACE

    def _workers(self) -> list[WorkerState] | None:
        """Return the workers that the scheduler knows; None if it does not answer."""
        try:
            return self._engine.nodes()
        except RunError:
            return None

    def _is_healthy(self, server: Server, workers: Sequence[WorkerState] | None) -> bool:
        if workers is None:  # then only the head is at fault
            return not _is_head(server)
        own = _workers_of(workers, server)
        return any(each.silence < self._rules.max_silence for each in own) and all(
            each.stalled < self._rules.stalled and not each.fault for each in own
        )

    def _replace(self, lost: Sequence[Server]) -> None:
        """Replace lost servers, as long as that is allowed."""
        names, more = ", ".join(each.name for each in lost), self._replacements_left >= len(lost)
        then = "creating others." if more else "no more servers will be created for them."
        self._report(f"{names}: lost; {then}")
        self._engine.drain(timeout=self._rules.drain)
        for each in lost:
            self._provisioner.remove(each)
            self._startup.forget(each.name)
        with self._creating:
            if self._ended.is_set():
                return
            if more:
                self._provisioner.fill()
        servers = self._provisioner.servers()
        if more:  # not before: what the cloud denied is tried again
            self._replacements_left -= len(lost)
        for each in lost:
            self._nodes.pop(each.name, None)
            self._health.pop(each.name, None)
        self._join(servers)

    def _join(self, servers: Sequence[Server]) -> None:
        """Set up the new servers, or all of them if the head is new."""
        head = next(filter(_is_head, servers), None)
        if head is None:
            self._engine.fail(
                RunError(
                    "the swarm's head is lost and cannot be replaced; finished work is kept, so "
                    "run the same command again to continue."
                )
            )
            return
        moved = head.name not in self._nodes
        fresh = [each for each in servers if moved or each.name not in self._nodes]
        if not fresh:
            return
        self._nodes |= {each.name: each for each in fresh}
        self._starting |= {each.name for each in fresh}
        self._startup.start(map(self._firewall.login_of, fresh), self._firewall.login_of(head))
        if moved:
            self._startup.wait([head.name])
            if head.name in self._startup.up():
                self._engine.move(f"tls://{head.address}:{install.SCHEDULER_PORT}")

    def _note_started(self, names: Iterable[str]) -> None:
        """Note which servers are up, and delete failed ones, which are replaced later."""
        errors = self._startup.errors()
        for name in names:
            self._starting.discard(name)
            self._health[name] = NodeHealth(
                time.monotonic(), restarted=True
            )  # as it has just started
            if (error := errors.get(name)) and not self._ended.is_set():
                if not isinstance(error, install.NotReady):
                    raise error
                self._report(str(error))
                self._provisioner.remove(self._nodes[name])
                self._startup.forget(name)


def _workers_of(workers: Sequence[WorkerState] | None, server: Server) -> list[WorkerState]:
    return [each for each in workers or () if is_worker_of(each.name, server.name)]


def _is_head(server: Server) -> bool:
    return server.labels.get("role") == "head"


@contextmanager
def monitored(monitor: HealthMonitor) -> Iterator[None]:
    """Monitor while the block runs."""
    monitor.start()
    try:
        yield
    finally:
        monitor.end()
