"""Domains that never answered: what the shards of a run learn, for those that come later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

#: Shards that must agree: one of them may have met a domain on a bad day.
_SURE = 2

#: Domains that are handed to each scraper: about 400 kB.
_MOST = 20_000


class DeadDomains:
    """Filled by one thread, asked by any."""

    def __init__(self, told: Iterable[Iterable[str]] = ()) -> None:
        """``told``: of each shard so far, the domains that never answered."""
        self._shards = Counter[str]()
        self._sure: tuple[str, ...] = ()
        for domains in told:
            self._shards.update(domains)
        self.add(())

    def add(self, domains: Iterable[str]) -> None:
        """What a further shard says."""
        self._shards.update(domains)
        most = self._shards.most_common(_MOST)
        self._sure = tuple(sorted(domain for domain, number in most if number >= _SURE))

    def merged_with(self, domains: Iterable[str]) -> tuple[str, ...]:
        """These domains, and those of which two shards agree that they never answer."""
        return tuple(dict.fromkeys((*domains, *self._sure)))
