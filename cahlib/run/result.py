"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahlib.core.records import Stats
from cahlib.ledger.protocol import ShardCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run."""

    folder: Path  #: of the dataset on this machine
    shards: ShardCounts
    stats: Stats  #: of all shards in the dataset
    errors: tuple[tuple[str, str], ...]  #: of shards that were given up: id and last error
    stopped: bool  #: before all was done
    warnings: tuple[str, ...]  #: about what was read, a sentence each
    faults: tuple[str, ...]  #: about committed shards that are not whole
