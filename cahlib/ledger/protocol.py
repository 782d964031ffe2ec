"""The ledger of a run, whoever keeps the list of shards: this machine or a tracker.

A shard goes ``todo → leased → committed → done``: committed when its files are in the dataset on
this machine and its pairs are known, done when they are at their destination (uploaded). A failure
returns it to ``todo`` until its attempts are used up, then makes it ``failed``. A committed shard
that is no longer whole is ``damaged`` until it is whole again or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

from cahlib.core.records import Judged, Shard, Stats

#: The stored name of the state ``committed``, which databases keep from the first version.
COMMITTED = "sealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCounts:
    """The number of shards in each state."""

    todo: int
    leased: int
    committed: int
    done: int
    failed: int
    damaged: int = 0

    @property
    def open(self) -> int:
        """Shards that may still yield a parcel."""
        return self.todo + self.leased

    @property
    def total(self) -> int:
        """All shards."""
        return self.open + self.committed + self.done + self.failed + self.damaged


class Ledger(Protocol):
    """The methods that a run needs of its ledger; safe for several threads."""

    retries: bool  #: whether it leases and counts shards that retry failed links, or the crawl's

    def fill(self, list_shards: Callable[[Callable[[], Sequence[Shard]]], Iterable[Shard]]) -> None:
        """Add the crawl's shards, which ``list_shards`` lists; it may ask which are known.

        A tracker has a list of its own, so `list_shards` is not called then.
        """

    def lease(self, count: int = 1) -> Shard | None:
        """Lease the next shard, if any; the caller could take ``count`` of them now."""

    def has_more(self) -> bool:
        """Return whether there may be more shards to lease."""

    def get_parcel(self, shard: Shard) -> dict[str, Any] | None:
        """Return the location of a shard's parcel if another worker has scraped it."""

    def release(self, shard: Shard, error: str) -> None:
        """Return a leased shard to the list; the attempt does not count."""

    def fail(self, shard: Shard, error: str, *, attempts: int) -> bool:
        """Record a failed attempt; return True if it was the last."""

    def commit(self, shard: Shard, uids: Iterable[str], stats: Stats) -> None:
        """Record that a shard's files are in the dataset, with its pairs and stats."""

    def mark_done(self, shard: Shard) -> None:
        """Record that a committed shard is at its destination."""

    def has_pair(self, uid: str) -> bool:
        """Return whether a committed shard has this pair."""

    def resolve_claims(self, shard: Shard, judged: Iterator[Judged]) -> Iterator[Judged]:
        """Yield a shard's judged images once `has_pair` knows the claims of other workers."""

    def withdraw_claimed(self, withdraw: Callable[[Set[str]], None]) -> None:
        """Call ``withdraw`` with the pairs of this dataset that other workers brought first."""

    def counts(self) -> ShardCounts:
        """Return the number of shards in each state."""

    def stats(self) -> Stats:
        """Return the stats of all committed shards."""

    def in_state(self, *states: str) -> list[Shard]:
        """Return the shards in these states, or all, in order."""

    def errors(self, state: str = "failed") -> list[tuple[str, str]]:
        """Return id and last error of each shard that failed, or is damaged."""
