"""Limit the request rate per domain, and skip domains that keep failing or refusing.

Domains are registered domains (example.co.uk, by the Public Suffix List). Pauses that a server asks
for are honoured. For use by one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from math import inf

from publicsuffixlist import PublicSuffixList

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.core.retry import retry_after

#: Longest pause in seconds that a server may ask for; for a longer one its domain is skipped.
_MAX_PAUSE = 60.0

#: Failures after which a domain that never answered counts as dead.
_DEAD_AFTER = 3

#: If this many domains fail and none answers, this machine is cut off.
_CUT_OFF_AFTER = 20

#: Consecutive results that count against a domain. An invalid response is not one of them: it costs
#: little, and others of the domain may be valid.
FAILURE_REASONS = frozenset({
    DropReason.DNS, DropReason.REFUSED, DropReason.TIMEOUT, DropReason.TLS,
    DropReason.DISCONNECTED, DropReason.HTTP_5XX, DropReason.NO_ROBOTS,
})  # fmt: skip

#: Failures without any sign of a server.
_NO_CONTACT = frozenset(
    {DropReason.DNS, DropReason.REFUSED, DropReason.TIMEOUT, DropReason.NO_ROBOTS}
)

#: Statuses by which a server refuses us: forbidden, and too many requests.
REFUSAL_STATUSES = frozenset({403, 429})


@dataclass(slots=True)
class _Domain:
    """The state of a domain."""

    next_allowed: float = 0.0  #: time of the next request
    failures: int = 0  #: consecutive
    silent: bool = True  #: whether it has never answered
    skipped: bool = False


class Politeness:
    """The state of all domains of a shard, some 200 bytes each."""

    def __init__(self, options: Download, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_failures, self._clock = options.max_failures, clock
        self._gap = 1 / options.per_second if options.per_second else 0.0
        self._domains: dict[str, _Domain] = {}
        self._skipped = frozenset(options.skipped_domains)

    def is_skipped(self, domain: str) -> bool:
        """Return whether a domain is skipped."""
        known = self._domains.get(domain)
        if known is None:
            return domain in self._skipped
        return known.skipped

    def reserve(self, domain: str, most: float = inf) -> float:
        """Return the seconds until the next request is allowed, and count it as sent.

        If they exceed ``most``, it is not counted, as it will not be sent.
        """
        known, now = self._state(domain), self._clock()
        start = max(known.next_allowed, now)
        if start - now <= most:
            known.next_allowed = start + self._gap
        return start - now

    def honour_retry_after(self, domain: str, header: str) -> None:
        """Delay the next request by a Retry-After header."""
        known, seconds = self._state(domain), retry_after(header)
        if seconds > _MAX_PAUSE:
            known.skipped = True
        known.next_allowed = max(known.next_allowed, self._clock() + seconds)

    def record_result(self, domain: str, result: object, status: int = 0) -> None:
        """Record the result of a request."""
        known = self._state(domain)
        self.record_contact(domain, result)
        if result not in FAILURE_REASONS and status not in REFUSAL_STATUSES:
            known.failures = 0
            return
        known.failures += 1
        if self._max_failures and known.failures >= self._max_failures:
            known.skipped = True

    def record_contact(self, domain: str, result: object) -> None:
        """Record whether a request was answered at all, without counting its result."""
        known = self._state(domain)
        known.silent = known.silent and result in _NO_CONTACT

    def dead_domains(self) -> tuple[str, ...]:
        """Return the domains that failed at least three times and never answered."""
        return tuple(
            sorted(
                name
                for name, known in self._domains.items()
                if name and known.silent and known.failures >= _DEAD_AFTER
            )
        )

    def is_cut_off(self) -> bool:
        """Return whether many domains failed and none ever answered."""
        failed = [known for known in self._domains.values() if known.failures]
        return len(failed) >= _CUT_OFF_AFTER and all(
            known.silent for known in self._domains.values()
        )

    def _state(self, domain: str) -> _Domain:
        return self._domains.setdefault(domain, _Domain())


@lru_cache(maxsize=50_000)
def registered_domain(host: str) -> str:
    """Return the registered domain of a host: example.co.uk for a.b.example.co.uk."""
    host = host.rstrip(".").lower()
    if host.replace(".", "").isdecimal() or ":" in host:
        return host
    return _suffixes().privatesuffix(host) or host


@cache
def _suffixes() -> PublicSuffixList:
    """Return the bundled list, with its private section (blogspot.com, s3.amazonaws.com …)."""
    return PublicSuffixList()
