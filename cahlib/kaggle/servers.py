"""The swarm of a session on Kaggle, created and deleted by this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from cahlib.core.config import Job
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.secret_store import run_name
from cahlib.core.signals import defer_signals
from cahlib.run.scrapers import swarm_config, swarm_directory
from cahlib.swarm import lifecycle
from cahlib.swarm.planner import plan_servers
from cahlib.swarm.provider import Account, send_heartbeat
from cahlib.swarm.watchdog import WatchdogConfig

_MARK = 100.0  # seconds between two notes that the servers are in use


class SessionServers:
    """The servers of a job, for as long as the kernel needs them."""

    def __init__(
        self,
        job: Job,
        accounts: Sequence[Account],
        report: Callable[[str], None],
        *,
        pause: float = 1,
        watchdog: WatchdogConfig | None = None,
    ) -> None:
        self._pause = pause  #: seconds between two looks at what is left
        self._accounts: Sequence[Account] = accounts
        self._report = report
        self._config = swarm_config(job, watchdog)
        self._labels = lifecycle.run_labels(
            swarm_directory(job), run=run_name(swarm_directory(job))
        )
        self._settled = True  #: no request for a server may be unanswered
        self._marked = 0.0

    def planned(self, hours: float) -> str:
        """Return the plan and its cost, for people; raise ConfigError if it exceeds the limit."""
        limits = replace(self._config.limits, hours=hours)
        wanted = plan_servers(self._accounts, limits)
        self._accounts = wanted.accounts  # what a bad token reaches can be neither made nor deleted
        cost, money = wanted.hourly() * math.ceil(hours), wanted.currency
        if limits.max_cost and cost > limits.max_cost:
            raise ConfigError(
                f"max_cost: {len(wanted.first)} nodes cost {money} {cost:.2f} in {hours:g} hours, "
                f"more than the limit of {money} {limits.max_cost:g}; raise it, or order fewer."
            )
        return f"{wanted.table()}\n{wanted.terms()}\n{wanted.crash_note()}"

    def up(self, hours: float) -> bytes:
        """Create the servers; return a ticket for ``hours``."""
        self._settled = False
        wanted = replace(self._config, limits=replace(self._config.limits, hours=hours))
        head, *_ = lifecycle.create_swarm(self._accounts, wanted, report=self._report, guests=True)
        self._settled = True
        return lifecycle.swarm_ticket(head, hours=hours)

    def tend(self) -> None:
        """Send a heartbeat to the cloud now and then: the servers are in use."""
        if time.monotonic() > self._marked + _MARK:
            self._marked = time.monotonic()
            with suppress(RunError):  # the cloud is away, not the servers
                send_heartbeat(self._accounts, self._labels, time.time())

    def down(self) -> None:
        """Delete them until the cloud confirms that none is left; Ctrl-C is deferred."""
        with defer_signals(lambda: "waiting until the servers are deleted."):
            lifecycle.delete_swarm(self._accounts, self._labels, pause=self._pause)
            if not self._settled:
                time.sleep(self._config.late)  # what was asked for may be made only now
                lifecycle.delete_swarm(self._accounts, self._labels, pause=self._pause)
        if account := lifecycle.close_billing(self._config.state, self._labels):
            self._report(f"the servers are deleted. {account}")
