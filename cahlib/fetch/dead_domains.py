"""Domains that never answered: later shards of a run skip what earlier ones have found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

#: Shards that must agree: a domain may have been down during one of them.
_MIN_SHARDS = 2

#: Domains passed to each scraper: about 400 kB.
_MOST = 20_000


class DeadDomains:
    """Domains to skip; written by one thread, read by any."""

    def __init__(self, reported: Iterable[Iterable[str]] = ()) -> None:
        """Start from ``reported``, the dead domains of each shard so far."""
        self._shards = Counter[str]()
        self._confirmed: tuple[str, ...] = ()
        for domains in reported:
            self._shards.update(domains)
        self.add(())

    def add(self, domains: Iterable[str]) -> None:
        """Add the dead domains of one more shard."""
        self._shards.update(domains)
        most = self._shards.most_common(_MOST)
        self._confirmed = tuple(sorted(domain for domain, number in most if number >= _MIN_SHARDS))

    def merged_with(self, domains: Iterable[str]) -> tuple[str, ...]:
        """Return these domains and those that at least two shards found dead."""
        return tuple(dict.fromkeys((*domains, *self._confirmed)))
