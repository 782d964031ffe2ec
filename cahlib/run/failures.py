"""The handling of failed shards: release, count an attempt, or end the run."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Protocol

from cahlib.core.errors import (
    CahError,
    MachineFault,
    Postponed,
    RunError,
    describe_machine_fault,
    disk_full_error,
    is_disk_full,
)
from cahlib.core.records import Shard

#: Machines that may fail at one shard before that counts as the shard's own failure.
_MACHINES = 3


class FailureLedger(Protocol):
    """The part of a ledger that records failures."""

    def release(self, shard: Shard, error: str) -> None: ...

    def fail(self, shard: Shard, error: str, *, attempts: int) -> bool: ...


class FailureHandler:
    """Handles the failures of one launch."""

    def __init__(self, ledger: FailureLedger, folder: Path, *, attempts: int) -> None:
        self._ledger, self._folder, self._attempts = ledger, folder, attempts
        self._in_a_row = 0  #: faults of machines since a shard was scraped
        self._slots = 1  #: the most that there were
        self._of_machines: Counter[str] = Counter()  #: by shard

    def scraped(self, shard: Shard) -> None:
        """Record that a machine has scraped a shard."""
        self._in_a_row = 0
        del self._of_machines[shard.id]

    def failed(self, shard: Shard, error: Exception, *, slots: int = 1) -> None:
        """Record a failed attempt in the ledger, a bug with its traceback.

        Raise RunError for a full disk, and if all ``slots`` fail through no shard's fault.
        """
        known = isinstance(error, CahError)
        if not known and is_disk_full(error):
            raise disk_full_error(self._folder) from error
        text = str(error) if known else "".join(traceback.format_exception(error))
        if isinstance(error, MachineFault) or not known and describe_machine_fault(error):
            self._by_machine(shard, text, slots)
        elif isinstance(error, Postponed):
            self._ledger.release(shard, text)
        else:
            self._ledger.fail(shard, text, attempts=self._attempts)

    def _by_machine(self, shard: Shard, text: str, slots: int) -> None:
        self._in_a_row += 1
        self._slots = max(self._slots, slots)
        self._of_machines[shard.id] += 1
        if self._of_machines[shard.id] > _MACHINES:
            self._ledger.fail(shard, text, attempts=self._attempts)
        else:
            self._ledger.release(shard, text)
        # all those in flight, twice the slots, may have waited at one machine
        if self._in_a_row > 4 * self._slots:
            last = text.strip().splitlines()[-1].rstrip(".")
            raise RunError(
                f"No shard can be scraped, because the machines fail: {last}. Fix that, then run "
                "the same command again; finished work is kept."
            )
