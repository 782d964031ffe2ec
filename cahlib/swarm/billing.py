"""The account of a run: what each server has cost, those that are gone included.

It lies in the run's state, so that a ceiling holds for all launches together. A server of which
nobody saw the end counts until somebody sees that it is gone.
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
    """What one server costs."""

    hourly: float
    since: float  #: seconds since 1970
    until: float | None = None  #: None: it still runs

    def cost(self, now: float) -> float:
        """Return the price until now; a started hour counts whole."""
        hours = ((self.until or now) - self.since) / 3600
        return self.hourly * max(1, math.ceil(hours))


@dataclass(slots=True)
class Billing:
    """The bills of one run by server's name; kept in a file, if there is one."""

    path: Path | None = None
    currency: str = "EUR"
    _bills: dict[str, ServerBill] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, state: Path) -> Billing:
        """Return the account of the run with this state; an empty one if it cannot be read."""
        found = cls(state / BILLING_FILE)
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            told = json.loads((state / BILLING_FILE).read_text(encoding="utf-8"))
            found._bills = {name: ServerBill(**each) for name, each in told["servers"].items()}
            found.currency = str(told["currency"])
        return found

    def __len__(self) -> int:
        return len(self._bills)

    def __contains__(self, name: str) -> bool:
        return name in self._bills

    def open(self, name: str, hourly: float, since: float) -> None:
        """Note that a server is there, perhaps again; a bill that runs is left as it is."""
        with self._lock:
            if not self._runs(name):
                known = self._bills.get(name, ServerBill(hourly, since))
                self._bills[name] = replace(known, until=None)
                self._store()
            elif since < self._bills[name].since:  # the cloud's clock says so
                self._bills[name] = replace(self._bills[name], since=since)

    def close(self, names: Collection[str], now: float) -> None:
        """Note that servers are gone."""
        self._change({name for name in names if self._runs(name)}, now)

    def cost(self, name: str, now: float) -> float:
        """Return what a server has cost so far; 0 if it is not known."""
        bill = self._bills.get(name)
        return bill.cost(now) if bill else 0

    def spent(self, now: float) -> float:
        """Return what all servers have cost so far."""
        return sum(bill.cost(now) for bill in self._bills.copy().values())

    def gone(self, now: float) -> float:
        """Return what the servers have cost that are not there any more."""
        return self.spent(now) - sum(bill.cost(now) for bill in self.running().values())

    def running(self) -> Mapping[str, ServerBill]:
        """Return the bills of the servers that are not known to be gone."""
        return {name: each for name, each in self._bills.copy().items() if each.until is None}

    def hourly(self) -> float:
        """Return the price of an hour of the servers that are there."""
        return sum(bill.hourly for bill in self.running().values())

    def told(self, now: float) -> str:
        """Return the whole account in words."""
        every, gone = len(self), len(self) - len(self.running())
        return (
            f"{self.currency} {self.spent(now):.4f} in all, with IPv4 and tax, for "
            f"{plural(every, 'server')}, {'all' if gone == every else gone or 'none'} of them gone."
        )

    def _runs(self, name: str) -> bool:
        bill = self._bills.get(name)
        return bill is not None and bill.until is None

    def _change(self, names: set[str], now: float) -> None:
        with self._lock:
            for name in names:
                self._bills[name] = replace(self._bills[name], until=now)
            if names:
                self._store()

    def _store(self) -> None:
        """Write the file, whole or not at all; a full disk ends no swarm."""
        if not self.path:
            return
        servers = {name: asdict(each) for name, each in self._bills.items()}
        text = json.dumps({"currency": self.currency, "servers": servers}, indent=1)
        with suppress(CahError):
            write_file(self.path, text)
