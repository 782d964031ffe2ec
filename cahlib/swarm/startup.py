"""Set up servers as nodes: many at a time, until there is a head that the others join.

It does not know how a server is set up.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from queue import Empty, SimpleQueue

from cahlib.core.background import capture
from cahlib.core.errors import RunError, Stopped
from cahlib.swarm.install import NotReady
from cahlib.swarm.provider import Server
from cahlib.swarm.provisioning import TAKEN_DOWN, Provisioner
from cahlib.swarm.ssh import Login

#: Servers that are set up at the same time.
_THREADS = 16

#: Rounds in which servers that do not become nodes are replaced at the start.
_MAX_ROUNDS = 3

#: Seconds between two checks for a stop, and by which the head may be later than another node.
_POLL_INTERVAL, _HEAD_DELAY = 0.2, 30.0


class Startup:
    """Sets up servers in threads of its own; ``set_up`` does it for one, given the head."""

    def __init__(self, set_up: Callable[[Login, Login], object]) -> None:
        self._set_up = set_up
        self._head: Login | None = None
        self._logins: dict[str, Login] = {}
        self._pending: set[str] = set()
        self._errors: dict[str, BaseException] = {}
        self._todo: SimpleQueue[Login] = SimpleQueue()
        self._threads = 0
        self._changed = threading.Condition()

    def start(self, logins: Iterable[Login], head: Login) -> None:
        """Start with the new servers; if the head has changed, set up all of them for it."""
        with self._changed:
            fresh = {each.name: each for each in logins if each.name not in self._logins}
            self._logins |= fresh
            if head != self._head:
                busy = self._pending | self._errors.keys()
                fresh |= {n: each for n, each in self._logins.items() if n not in busy}
            self._head = head
            self._pending |= fresh.keys()
            for each in sorted(fresh.values(), key=lambda each: each.name != head.name):
                self._todo.put(each)
            more = min(len(fresh), _THREADS - self._threads)
            self._threads += more
        for _ in range(more):
            # the interpreter would wait for a pool's threads at its exit
            threading.Thread(target=self._work, daemon=True).start()

    def forget(self, name: str) -> None:
        """Forget a deleted server."""
        with self._changed:
            self._logins.pop(name, None)
            self._errors.pop(name, None)

    def pending(self) -> set[str]:
        """Return the names of the servers being set up."""
        with self._changed:
            return self._pending & self._logins.keys()

    def up(self) -> list[str]:
        """Return the names of the servers that are nodes."""
        with self._changed:
            return [n for n in self._logins if n not in self._pending and n not in self._errors]

    def errors(self) -> dict[str, BaseException]:
        """Return why servers did not become nodes, by name."""
        with self._changed:
            return dict(self._errors)

    def wait(self, names: Collection[str] | None = None, timeout: float | None = None) -> bool:
        """Wait for these servers, or for all; return whether none of them is pending."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._pending & (self._logins.keys() if names is None else {*names}),
                timeout,
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                try:
                    login = self._todo.get_nowait()
                except Empty:
                    self._threads -= 1
                    return
            self._process(login)

    def _process(self, login: Login) -> None:
        while True:
            head = self._head
            error = capture(partial(self._set_up, login, head or login)).exception()
            with self._changed:
                if error is None and head != self._head:
                    continue  # it has joined a former head
                if error and login.name in self._logins:
                    self._errors[login.name] = error
                self._pending.discard(login.name)
                self._changed.notify_all()
                return


def start_head(
    provisioner: Provisioner,
    startup: Startup,
    login_of: Callable[[Server], Login],
    *,
    report: Callable[[str], None],
    late: float = _HEAD_DELAY,
) -> Login:
    """Create servers and set them up until there is a head; others may still be pending.

    If the head is much later than another node, that becomes the head. Raise RunError if no server
    comes up.
    """
    for _ in range(_MAX_ROUNDS):
        provisioner.fill()
        while True:
            servers = provisioner.servers()
            head = next((s for s in servers if s.labels.get("role") == "head"), None)
            if head is None or (head.name not in startup.up() and startup.up()):
                head = _other_head(servers, startup)
                provisioner.set_head(head)
            startup.start(map(login_of, servers), login_of(head))
            if _is_head_up(provisioner, startup, head.name, late):
                return login_of(head)
            if not startup.up():
                break
        _remove_failed(provisioner, startup, servers, report)
    raise RunError("no head came up; see the reasons above.")


def start_others(
    provisioner: Provisioner,
    startup: Startup,
    login_of: Callable[[Server], Login],
    head: Login,
    *,
    report: Callable[[str], None],
) -> None:
    """Wait until all servers are nodes; those that do not come up are replaced, or dropped."""
    for left in reversed(range(_MAX_ROUNDS)):
        while not startup.wait(timeout=_POLL_INTERVAL):
            check_wanted(provisioner)
        failed = startup.errors()
        if not failed:
            return
        _remove_failed(provisioner, startup, provisioner.servers(), report)
        if left:
            provisioner.fill()
            startup.start(map(login_of, provisioner.servers()), head)


def _is_head_up(provisioner: Provisioner, startup: Startup, head: str, late: float) -> bool:
    """Wait for the head; return whether it is up, or False if it failed or is late."""
    first: float | None = None  #: when another node was up
    while not startup.wait([head], timeout=_POLL_INTERVAL):
        check_wanted(provisioner)
        if startup.up():
            first = first or time.monotonic()
            if time.monotonic() > first + late:
                return False
    if head in startup.up():
        return True
    while not startup.up() and not startup.wait(timeout=_POLL_INTERVAL):
        check_wanted(provisioner)
    return False


def _other_head(servers: Sequence[Server], startup: Startup) -> Server:
    """Return a server that can be the head: one that is up, if there is any."""
    up = startup.up()
    return next((each for each in servers if each.name in up), servers[0])


def _remove_failed(
    provisioner: Provisioner,
    startup: Startup,
    servers: Sequence[Server],
    report: Callable[[str], None],
) -> None:
    """Delete servers that did not come up; raise RunError if that is futile, or for a bug."""
    errors = startup.errors()
    for error in errors.values():
        if not isinstance(error, NotReady):
            raise error
    if same := common_failure(servers, errors):
        raise RunError(f"no server became a node, all for the same reason: {same}")
    for each in servers:
        if each.name in errors:
            report(str(errors[each.name]))
            provisioner.remove(each)
            startup.forget(each.name)


def common_failure(servers: Sequence[Server], errors: dict[str, BaseException]) -> str:
    """Return the error that a command raised on every server; "" if they differ.

    A server may fail to answer by chance; a command that fails everywhere would fail again.
    """
    said = [errors.get(each.name) for each in servers]
    if not said or not all(isinstance(each, NotReady) and each.is_command_failure for each in said):
        return ""
    kinds = {
        _comparable(str(each), server.name, server.address)
        for each, server in zip(said, servers, strict=True)
    }
    return str(said[0]) if len(kinds) == 1 else ""


def _comparable(text: str, *names: str) -> str:
    """Return the last line of an error without what differs between servers."""
    for each in filter(None, names):
        text = text.replace(each, "")
    *_, last = text.partition("\n--- the end of")[0].strip().splitlines()
    return re.sub(r"[0-9a-f]{8,}|\d+", "", last)


def check_wanted(provisioner: Provisioner) -> None:
    """Raise Stopped if the servers are no longer wanted, or somebody else deleted them."""
    if provisioner.stop.is_set():
        raise Stopped(
            "stopped while servers were being set up; run the same command again to continue."
        )
    if not provisioner.listed and provisioner.is_taken_down():
        raise Stopped(TAKEN_DOWN)
