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

    look: float = 5  #: between two looks
    silent: float = 60  #: without a sign of a worker's life; the scheduler then gives up as well
    still: float = 600  #: without anything new of a worker's jobs
    sure: float = 20  #: that a node has been ill, before anything is done
    lost: float = 120  #: the same of a head whose scheduler does not answer: perhaps we are away
    again: float = 120  #: for a node whose services were restarted to be well
    drain: float = 30  #: to bring finished parcels here before a node is deleted
    least: int = 3  #: replacements in a run; or as many as there are nodes, if these are more


class Action(Enum):
    """What is to be done with a node."""

    LEAVE = auto()
    RESTART = auto()
    REPLACE = auto()


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """A node's history."""

    ill: float | None = None  #: since when
    restarted: bool = False  #: and has not been well since


def next_action(
    case: NodeHealth, *, well: bool, gone: bool, now: float, rules: HealthRules
) -> tuple[NodeHealth, Action]:
    """What to do with a node, and its history from then on; ``gone``: no machine runs there."""
    if well:
        return NodeHealth(), Action.LEAVE
    ill = now if case.ill is None else case.ill
    if now < ill + (rules.again if case.restarted and not gone else rules.sure):
        return NodeHealth(ill, case.restarted), Action.LEAVE
    if gone or case.restarted:
        return NodeHealth(), Action.REPLACE
    return NodeHealth(now, restarted=True), Action.RESTART


class HealthMonitor:
    """The hands that do it; each look is one call."""

    def __init__(
        self,
        made: Provisioner,
        engine: RemoteEngine,
        doors: Firewall,
        startup: Startup,
        *,
        tell: Callable[[str], None],
        rules: HealthRules,
    ) -> None:
        self._made, self._engine, self._rules, self._tell = made, engine, rules, tell
        self._doors, self._startup = doors, startup
        self._cases: dict[str, NodeHealth] = {}
        self._fallen: set[str] = set()  #: whose machines have failed before
        self._nodes: dict[str, Server] = dict(made.listed)  #: that shall be there
        self._coming = self._nodes.keys() - {*startup.up()}  #: those that were not up yet
        self._said = ""
        self._left = max(rules.least, len(made.plan.first))
        self._making = threading.Lock()  #: held while a server is asked for
        self._ended = threading.Event()

    def work(self) -> None:
        """Look until the end."""
        while not self._ended.wait(self._rules.look):
            try:
                self.look()
            except (*CONNECTION_ERRORS, RunError) as error:  # the cloud is away: perhaps we are
                if str(error) != self._said:
                    self._said = str(error)
                    self._tell(self._said)

    def end(self) -> None:
        """Make no server any more; does not wait for those that are being set up."""
        self._ended.set()
        with self._making:
            pass

    def look(self) -> None:
        """Look once at every node. Raises RunError if the cloud does not answer."""
        if self._taken_down():
            return
        self._come(self._coming - self._startup.pending())
        off = {name for name, each in self._made.listed.items() if each.status == "off"}
        head = next((n for n, each in self._nodes.items() if _is_head(each)), "")
        # who asks an engine whose head is off waits for its silence
        workers = None if head in off else self._workers()
        if workers is None and head not in off:
            self._doors.follow()  # perhaps it is us who are elsewhere
        there = [each for name, each in self._nodes.items() if name not in self._coming]
        ill = [each for each in there if not self._well(each, workers)]
        for name in self._cases.keys() - {each.name for each in ill}:
            self._cases[name] = NodeHealth()
        if not ill or self._made.stop.is_set():  # what is stopped needs none of them any more
            return
        listed = {server.name: server for server in self._made.servers()}
        if self._taken_down():
            return
        lost = [each for each in ill if self._treated(each, listed, workers)]
        if lost:
            self._replace(lost)

    def _taken_down(self) -> bool:
        """Return whether somebody has deleted the run's servers, which then ends."""
        if not self._nodes or self._made.listed or self._made.stop.is_set():
            return False  # what is stopped deletes its servers itself
        if self._ended.is_set() or not self._made.taken_down():
            return False
        self._nodes.clear()
        self._engine.give_up(Stopped(TAKEN_DOWN))
        return True

    def _treated(
        self, node: Server, listed: Mapping[str, Server], workers: Sequence[WorkerState] | None
    ) -> bool:
        """Do for an ill node what can be done; whether it is to be replaced."""
        server, head = listed.get(node.name), workers is None
        off = server is not None and server.status == "off"
        why = next((each.ill for each in _workers_of(workers, node) if each.ill), "")
        if why and node.name in self._fallen:  # a restart did not help
            self._tell(f"{node.name} fails again: {why}.")
            return True
        sure = 0 if off else self._rules.lost if head else self._rules.sure
        self._cases[node.name], act = next_action(
            self._cases.get(node.name, NodeHealth()),
            well=False,
            gone=server is None or off,
            now=time.monotonic(),
            rules=replace(self._rules, sure=sure),
        )
        if act is Action.RESTART:
            self._fallen |= {node.name} if why else set()
            said = f"fails ({why})" if why else "does not work"
            self._tell(f"{node.name} {said}; restarting its service.")
            try:
                for unit in ("crawl-head", "crawl") if head else ("crawl",):
                    install.restart_service(
                        self._doors.reached(node), unit=unit, timeout=self._rules.sure
                    )
            except (
                ssh.CommandFailed,
                ssh.Unreachable,
            ):  # no use in waiting for it to be well again
                ill = time.monotonic() - self._rules.again + self._rules.sure
                self._cases[node.name] = NodeHealth(ill, restarted=True)
        return act is Action.REPLACE

    def _workers(self) -> list[WorkerState] | None:
        """The workers that the scheduler knows; None if there is no scheduler."""
        try:
            return self._engine.nodes()
        except RunError:
            return None

    def _well(self, server: Server, workers: Sequence[WorkerState] | None) -> bool:
        if workers is None:  # then only the head can be blamed
            return not _is_head(server)
        own = _workers_of(workers, server)
        return any(each.seen < self._rules.silent for each in own) and all(
            each.still < self._rules.still and not each.ill for each in own
        )

    def _replace(self, lost: Sequence[Server]) -> None:
        """Put other servers in the place of those that are lost, as long as that may be."""
        names, more = ", ".join(each.name for each in lost), self._left >= len(lost)
        then = "making others." if more else "no more servers will be made for them."
        self._tell(f"{names}: lost; {then}")
        self._engine.drain(timeout=self._rules.drain)
        for each in lost:
            self._made.remove(each)
            self._startup.forget(each.name)
        with self._making:
            if self._ended.is_set():
                return
            if more:
                self._made.fill()
        servers = self._made.servers()
        self._left -= len(lost) if more else 0  # not before: what the cloud refused is tried again
        for each in lost:
            self._nodes.pop(each.name, None)
            self._cases.pop(each.name, None)
        self._join(servers)

    def _join(self, servers: Sequence[Server]) -> None:
        """Make nodes of the servers that are new; of all, if the head is."""
        head = next(filter(_is_head, servers), None)
        if head is None:
            self._engine.give_up(
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
        self._coming |= {each.name for each in fresh}
        self._startup.start(map(self._doors.reached, fresh), self._doors.reached(head))
        if moved:
            self._startup.wait([head.name])
            if head.name in self._startup.up():
                self._engine.move(f"tls://{head.address}:{install.SCHEDULER_PORT}")

    def _come(self, names: Iterable[str]) -> None:
        """Note that some are up, or remove them: they will be replaced, as what is gone."""
        errors = self._startup.errors()
        for name in names:
            self._coming.discard(name)
            self._cases[name] = NodeHealth(time.monotonic(), restarted=True)  # as it was just now
            if (error := errors.get(name)) and not self._ended.is_set():
                if not isinstance(error, install.NotReady):
                    raise error
                self._tell(str(error))
                self._made.remove(self._nodes[name])
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
