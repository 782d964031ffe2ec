"""Servers that nobody works with any more: looked for at the cloud, and deleted when asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cahlib.core.errors import CahError
from cahlib.notebook.process import RunProcess

if TYPE_CHECKING:
    from cahlib.swarm.runs import SwarmRun

#: Seconds after which the cloud is asked again while no run goes on: a driver on another machine
#: that has just died is known to be dead after five minutes.
_AGAIN = 300.0


@dataclass(slots=True)
class OrphanMonitor:
    """The servers that are left, as the cloud listed them last, and the time to ask again."""

    found: Sequence[SwarmRun] = ()
    trouble: str = ""  #: why the cloud could not be asked
    _asked: tuple[str, Path, bool] = ("", Path(), False)  #: of which token, run and state
    _at: float = 0
    _alive: dict[Path, float] = field(default_factory=dict)  #: when runs were seen alive last
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_due(self, process: RunProcess, token: str, *, running: bool) -> bool:
        """Return whether to ask now; whoever is told so does it."""
        asked = (token, process.home, running)
        with self._lock:
            if running:
                self._alive[process.home] = time.time()
            late = not running and time.monotonic() - self._at > _AGAIN
            if not token or (asked == self._asked and not late):
                return False
            self._asked, self._at = asked, time.monotonic()
            return True

    def look(self, process: RunProcess, token: str) -> None:
        """Ask the cloud; without its client there is nothing to ask for."""
        try:
            self.found, self.trouble = self._orphans(process, token), ""
        except CahError as error:
            self.trouble = str(error)
        except ModuleNotFoundError:
            return

    def delete(self, process: RunProcess, token: str) -> None:
        """Delete what was found, until the cloud says that it is gone; raises RunError."""
        from cahlib.run.scrapers import cloud_accounts
        from cahlib.swarm import lifecycle

        shown = {each.run for each in self.found}
        for each in self._orphans(process, token):
            if each.run not in shown:
                continue  # nobody has seen its name
            lifecycle.delete_swarm(
                cloud_accounts(token), lifecycle.run_labels(_state(process), run=each.run)
            )
        self.look(process, token)

    def own(self, process: RunProcess) -> int:
        """Return how many of the servers are of this panel's run, which can go on with them."""
        name = _name(process)
        return sum(each.servers for each in self.found if each.run == name)

    def _orphans(self, process: RunProcess, token: str) -> list[SwarmRun]:
        """Return the servers of all runs that are over, that of this panel included if it is."""
        from cahlib.run.scrapers import cloud_accounts
        from cahlib.swarm.runs import orphaned_runs

        own = _name(process)
        if own and process.running():
            return orphaned_runs(cloud_accounts(token), but={own})
        died = max(float(process.live().get("written", 0)), self._alive.get(process.home, 0))
        return orphaned_runs(cloud_accounts(token), died={own: died} if own else {})


def _name(process: RunProcess) -> str:
    """Return by which name the cloud knows the servers of a run; "" if it had none."""
    path = process.directory.swarm_name
    return path.read_text() if path.exists() else ""


def _state(process: RunProcess) -> Path:
    return process.directory.swarm
