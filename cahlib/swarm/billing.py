"""The costs of a run: what each of its servers has cost, including deleted ones.

They are stored in the run's state, so that a cost limit holds for all launches together. A server
whose deletion nobody saw is billed until somebody sees that it is gone.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cahlib.core.atomic import write_file
from cahlib.core.errors import CahError
from cahlib.core.wording import plural

BILLING_FILE = "account.json"


@dataclass(frozen=True, slots=True)
class ServerBill:
    """The cost of one server."""

    hourly: float
    since: float  #: seconds since 1970
    until: float | None = None  #: None: it still runs

    def cost(self, now: float) -> float:
        """Return the cost so far; a started hour is billed in full."""
        hours = ((self.until or now) - self.since) / 3600
        return self.hourly * max(1, math.ceil(hours))


@dataclass(slots=True)
class Billing:
    """The bills of one run by server name; stored in a file, if ``path`` is given."""

    path: Path | None = None
    currency: str = "EUR"
    _servers: dict[str, ServerBill] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, state: Path) -> Billing:
        """Return the bills of the run with this state; none if they cannot be read."""
        found = cls(state / BILLING_FILE)
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            stored = json.loads((state / BILLING_FILE).read_text(encoding="utf-8"))
            found._servers = {name: ServerBill(**each) for name, each in stored["servers"].items()}
            found.currency = str(stored["currency"])
        return found

    def __len__(self) -> int:
        return len(self._servers)

    def __contains__(self, name: str) -> bool:
        return name in self._servers

    def open(self, name: str, hourly: float, since: float) -> None:
        """Note that a server exists, perhaps again; a running bill is not changed."""
        with self._lock:
            if not self._is_running(name):
                known = self._servers.get(name, ServerBill(hourly, since))
                self._servers[name] = replace(known, until=None)
                self._save()
            elif since < self._servers[name].since:  # the cloud's clock says so
                self._servers[name] = replace(self._servers[name], since=since)

    def close(self, names: Collection[str], now: float) -> None:
        """Note that servers are gone."""
        self._end({name for name in names if self._is_running(name)}, now)

    def cost(self, name: str, now: float) -> float:
        """Return what a server has cost so far; 0 if it is unknown."""
        server_bill = self._servers.get(name)
        return server_bill.cost(now) if server_bill else 0

    def spent(self, now: float) -> float:
        """Return what all servers have cost so far."""
        return sum(server_bill.cost(now) for server_bill in self._servers.copy().values())

    def past_cost(self, now: float) -> float:
        """Return what the deleted servers have cost."""
        return self.spent(now) - sum(
            server_bill.cost(now) for server_bill in self.running().values()
        )

    def running(self) -> Mapping[str, ServerBill]:
        """Return the bills of the servers that still exist, as far as is known."""
        return {name: each for name, each in self._servers.copy().items() if each.until is None}

    def hourly(self) -> float:
        """Return the hourly price of the servers that exist."""
        return sum(server_bill.hourly for server_bill in self.running().values())

    def summary(self, now: float) -> str:
        """Return the total costs in words."""
        every, gone = len(self), len(self) - len(self.running())
        return (
            f"{self.currency} {self.spent(now):.4f} in total, with IPv4 and tax, for "
            f"{plural(every, 'server')}, {'all' if gone == every else gone or 'none'} of them "
            "deleted."
        )

    def _is_running(self, name: str) -> bool:
        server_bill = self._servers.get(name)
        return server_bill is not None and server_bill.until is None

    def _end(self, names: set[str], now: float) -> None:
        with self._lock:
            for name in names:
                self._servers[name] = replace(self._servers[name], until=now)
            if names:
                self._save()

    def _save(self) -> None:
        """Write the file atomically; a full disk does not end the swarm."""
        if not self.path:
            return
        servers = {name: asdict(each) for name, each in self._servers.items()}
        text = json.dumps({"currency": self.currency, "servers": servers}, indent=1)
        with suppress(CahError):
            write_file(self.path, text)
