"""The reports that a worker has yet to send to its tracker: one for each leased shard.

No method raises for a shard without a report, because a lease may be lost or ended at any moment;
each documents what the absence means. It does not know how a report is sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingReport:
    """A leased shard, and how its lease ended once it has ended."""

    number: int
    parcel: dict[str, Any] | None = None  #: the one to judge, or the uploaded one
    act: str = ""  #: "" while in progress, then the call that ends the lease
    reason: str = ""


class PendingReports:
    """Reports by shard id, saved at each change; safe for several threads.

    A report is finished once: from then on it is due, and only `discard` removes it. ``with`` keeps
    other threads out, so that several operations count as one.
    """

    def __init__(self, save: Callable[[Mapping[str, PendingReport]], None]) -> None:
        self._save = save
        self._reports: dict[str, PendingReport] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> PendingReports:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def get(self, id: str) -> PendingReport | None:
        """Return a shard's report; None if it is not leased."""
        with self._lock:
            return self._reports.get(id)

    def in_progress(self) -> dict[str, PendingReport]:
        """Return a copy of the reports of shards that are being worked on."""
        with self._lock:
            return {id: each for id, each in self._reports.items() if not each.act}

    def due(self) -> dict[str, PendingReport]:
        """Return a copy of the reports that the tracker is to be sent."""
        with self._lock:
            return {id: each for id, each in self._reports.items() if each.act}

    def start(self, id: str, report: PendingReport) -> bool:
        """Record a new lease; return False if the previous one's report is still to be sent."""
        with self._lock:
            if (known := self._reports.get(id)) and known.act:
                return False
            self._reports[id] = report
            self.save()
            return True

    def finish(
        self, id: str, act: str, *, reason: str = "", parcel: dict[str, Any] | None = None
    ) -> bool:
        """Record how a lease ended; return False, changing nothing, if it is not in progress."""
        with self._lock:
            known = self._reports.get(id)
            if known is None or known.act:
                return False
            parcel = parcel or known.parcel
            self._reports[id] = replace(known, act=act, reason=reason, parcel=parcel)
            self.save()
            return True

    def discard(self, id: str, report: PendingReport) -> bool:
        """Forget this report; return False, changing nothing, if another has replaced it."""
        with self._lock:
            if self._reports.get(id) is not report:
                return False
            self._reports.pop(id, None)
            self.save()
            return True

    def load(self, reports: Mapping[str, PendingReport]) -> None:
        """Set the reports that an earlier launch saved."""
        with self._lock:
            self._reports = dict(reports)

    def save(self) -> None:
        """Save all reports as they are."""
        with self._lock:
            self._save(self._reports)
