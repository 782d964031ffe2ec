"""Looks after the nodes of a swarm while they work.

    well ──► ill ──► its services restarted over SSH ──► another server in its place

A node is ill when the scheduler does not hear of its worker, hears nothing new of its jobs, or that
its machine fails; one that fails again after a restart is replaced. A
head whose scheduler is lost is treated in the same way; the others are then told of the new one,
and the engine sends its jobs there. A server becomes a node beside the looking, unless it is the
head, without which there is nothing to see. It does not know what jobs do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto

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
    """How long to wait, in seconds, and how often to replace."""

    interval: float = 5  #: between two looks
    max_silence: float = (
        60  #: without a sign of a worker's life; the scheduler then gives up as well
    )
    stalled: float = 600  #: without anything new of a worker's jobs
    grace: float = 20  #: that a node has been ill, before anything is done
    head_grace: float = (
        120  #: the same of a head whose scheduler does not answer: perhaps we are away
    )
    restart_grace: float = 120  #: for a node whose services were restarted to be well
    drain: float = 30  #: to bring finished parcels here before a node is deleted
    min_replacements: int = (
        3  #: replacements in a run; or as many as there are nodes, if these are more
    )


class Action(Enum):
    """What is to be done with a node."""

    LEAVE = auto()
    RESTART = auto()
    REPLACE = auto()


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """A node's history."""

    fault: float | None = None  #: since when
    restarted: bool = False  #: and has not been well since


def next_action(
    health: NodeHealth, *, healthy: bool, gone: bool, now: float, rules: HealthRules
) -> tuple[NodeHealth, Action]:
    """What to do with a node, and its history from then on; ``gone``: no machine runs there."""
    if healthy:
        return NodeHealth(), Action.LEAVE
    fault = now if health.fault is None else health.fault
    if now < fault + (rules.restart_grace if health.restarted and not gone else rules.grace):
        return NodeHealth(fault, health.restarted), Action.LEAVE
    if gone or health.restarted:
        return NodeHealth(), Action.REPLACE
    return NodeHealth(now, restarted=True), Action.RESTART


class HealthMonitor:
    """The hands that do it; each look is one call."""

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
        self._provisioner, self._engine, self._rules, self._report = (
            provisioner,
            engine,
            rules,
            report,
        )
        self._firewall, self._startup = firewall, startup
        self._health: dict[str, NodeHealth] = {}
        self._restarted: set[str] = set()  #: whose machines have failed before
        self._nodes: dict[str, Server] = dict(provisioner.listed)  #: that shall be there
        self._starting = self._nodes.keys() - {*startup.up()}  #: those that were not up yet
        self._last_error = ""
        self._replacements_left = max(rules.min_replacements, len(provisioner.plan.first))
        self._creating = threading.Lock()  #: held while a server is asked for
        self._ended = threading.Event()

    def work(self) -> None:
        """Look until the end."""
        while not self._ended.wait(self._rules.interval):
            try:
                self.check()
            except (*CONNECTION_ERRORS, RunError) as error:  # the cloud is away: perhaps we are
                if str(error) != self._last_error:
                    self._last_error = str(error)
                    self._report(self._last_error)

    def end(self) -> None:
        """Make no server any more; does not wait for those that are being set up."""
        self._ended.set()
        with self._creating:
            pass

    def check(self) -> None:
        """Look once at every node. Raises RunError if the cloud does not answer."""
        if self._end_if_taken_down():
            return
        self._note_started(self._starting - self._startup.pending())
        off = {name for name, each in self._provisioner.listed.items() if each.status == "off"}
        head = next((n for n, each in self._nodes.items() if _is_head(each)), "")
        # who asks an engine whose head is off waits for its silence
        workers = None if head in off else self._workers()
        if workers is None and head not in off:
            self._firewall.follow_driver()  # perhaps it is us who are elsewhere
        there = [each for name, each in self._nodes.items() if name not in self._starting]
        fault = [each for each in there if not self._is_healthy(each, workers)]
        for name in self._health.keys() - {each.name for each in fault}:
            self._health[name] = NodeHealth()
        if (
            not fault or self._provisioner.stop.is_set()
        ):  # what is stopped needs none of them any more
            return
        listed = {server.name: server for server in self._provisioner.servers()}
        if self._end_if_taken_down():
            return
        lost = [each for each in fault if self._repair(each, listed, workers)]
        if lost:
            self._replace(lost)

    def _end_if_taken_down(self) -> bool:
        """Return whether somebody has deleted the run's servers, which then ends."""
        if not self._nodes or self._provisioner.listed or self._provisioner.stop.is_set():
            return False  # what is stopped deletes its servers itself
        if self._ended.is_set() or not self._provisioner.is_taken_down():
            return False
        self._nodes.clear()
        self._engine.fail(Stopped(TAKEN_DOWN))
        return True

    def _repair(
        self, node: Server, listed: Mapping[str, Server], workers: Sequence[WorkerState] | None
    ) -> bool:
        """Do for an ill node what can be done; whether it is to be replaced."""
        server, head = listed.get(node.name), workers is None
        off = server is not None and server.status == "off"
        why = next((each.fault for each in _workers_of(workers, node) if each.fault), "")
        if why and node.name in self._restarted:  # a restart did not help
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
                        self._firewall.login_of(node), unit=unit, timeout=self._rules.grace
                    )
            except (
                ssh.CommandFailed,
                ssh.Unreachable,
            ):  # no use in waiting for it to be well again
                fault = time.monotonic() - self._rules.restart_grace + self._rules.grace
                self._health[node.name] = NodeHealth(fault, restarted=True)
        return action is Action.REPLACE

    def _workers(self) -> list[WorkerState] | None:
        """The workers that the scheduler knows; None if there is no scheduler."""
        try:
            return self._engine.nodes()
        except RunError:
            return None

    def _is_healthy(self, server: Server, workers: Sequence[WorkerState] | None) -> bool:
        if workers is None:  # then only the head can be blamed
            return not _is_head(server)
        own = _workers_of(workers, server)
        return any(each.silence < self._rules.max_silence for each in own) and all(
            each.stalled < self._rules.stalled and not each.fault for each in own
        )

    def _replace(self, lost: Sequence[Server]) -> None:
        """Put other servers in the place of those that are lost, as long as that may be."""
        names, more = ", ".join(each.name for each in lost), self._replacements_left >= len(lost)
        then = "making others." if more else "no more servers will be made for them."
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
        self._replacements_left -= (
            len(lost) if more else 0
        )  # not before: what the cloud refused is tried again
        for each in lost:
            self._nodes.pop(each.name, None)
            self._health.pop(each.name, None)
        self._join(servers)

    def _join(self, servers: Sequence[Server]) -> None:
        """Make nodes of the servers that are new; of all, if the head is."""
        head = next(filter(_is_head, servers), None)
        if head is None:
            self._engine.fail(
                RunError(
                    "the swarm's head is lost, and no other one can be made; what is finished is "
                    "kept, so the same command goes on from here."
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
        """Note that some are up, or remove them: they will be replaced, as what is gone."""
        errors = self._startup.errors()
        for name in names:
            self._starting.discard(name)
            self._health[name] = NodeHealth(time.monotonic(), restarted=True)  # as it was just now
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
def monitored(watch: HealthMonitor) -> Iterator[None]:
    """Watch for as long as the block runs."""
    thread = threading.Thread(target=watch.work, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.end()
