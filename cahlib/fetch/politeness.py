"""How often a domain may be asked, and when it is left alone.

By registered domain (example.co.uk, by the Public Suffix List): requests a second, pauses that a
server asks for, and an end to asking those that fail or refuse again and again. It knows neither
requests nor queues; it is used by one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from math import inf

from publicsuffixlist import PublicSuffixList

from cahlib.config import Download
from cahlib.records import Reason
from cahlib.retry import retry_after

#: Seconds that are waited when a server asks for them; who asks for more is left alone.
_MAX_PAUSE = 60.0

#: Failures that tell a domain that never answers from one that had a bad moment.
_SURE = 3

#: Domains of which not one answers: then it is this machine that cannot be heard.
_MANY = 20

#: What a domain says or does that counts against it, if nothing else comes between. An answer that
#: cannot be read is an answer: it costs little, and others of the domain may be sound.
FAILURE_REASONS = frozenset(
    {
        Reason.DNS,
        Reason.REFUSED,
        Reason.TIMEOUT,
        Reason.TLS,
        Reason.DISCONNECTED,
        Reason.HTTP_5XX,
        Reason.NO_ROBOTS,
    }
)

#: Failures after which it is not even sure that there is a server.
_SILENCE = frozenset({Reason.DNS, Reason.REFUSED, Reason.TIMEOUT, Reason.NO_ROBOTS})

#: Statuses that tell us to go: forbidden, and too many requests.
REFUSAL_STATUSES = frozenset({403, 429})


@dataclass(slots=True)
class _Domain:
    """What is known of a domain."""

    due: float = 0.0  #: when it may be asked next
    failures: int = 0  #: one after the other
    silent: bool = True  #: whether it never answered
    closed: bool = False


class Politeness:
    """The state of all domains of a shard, some 200 bytes each."""

    def __init__(self, options: Download, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = options.patience, clock
        self._gap = 1 / options.per_second if options.per_second else 0.0
        self._domains: dict[str, _Domain] = {}
        self._left_alone = frozenset(options.left_alone)

    def is_skipped(self, domain: str) -> bool:
        """Whether a domain is left alone."""
        known = self._domains.get(domain)
        if known is None:
            return domain in self._left_alone
        return known.closed

    def reserve(self, domain: str, most: float = inf) -> float:
        """Seconds until a further request may be sent, which is counted as sent then.

        If they are more than ``most``, nobody waits for them, and nothing is counted.
        """
        known, now = self._of(domain), self._clock()
        start = max(known.due, now)
        if start - now <= most:
            known.due = start + self._gap
        return start - now

    def honour_retry_after(self, domain: str, header: str) -> None:
        """Obey a Retry-After."""
        known, seconds = self._of(domain), retry_after(header)
        if seconds > _MAX_PAUSE:
            known.closed = True
        known.due = max(known.due, self._clock() + seconds)

    def record_result(self, domain: str, result: object, status: int = 0) -> None:
        """Count what came of a request."""
        known = self._of(domain)
        self.record_contact(domain, result)
        if result not in FAILURE_REASONS and status not in REFUSAL_STATUSES:
            known.failures = 0
            return
        known.failures += 1
        if self._patience and known.failures >= self._patience:
            known.closed = True

    def record_contact(self, domain: str, result: object) -> None:
        """Note whether a request was answered at all, without counting what came of it."""
        known = self._of(domain)
        known.silent = known.silent and result in _SILENCE

    def dead_domains(self) -> tuple[str, ...]:
        """The domains that failed at least three times, and never answered."""
        return tuple(
            sorted(
                name
                for name, known in self._domains.items()
                if name and known.silent and known.failures >= _SURE
            )
        )

    def is_cut_off(self) -> bool:
        """Whether many domains failed, and nobody ever answered."""
        failed = [known for known in self._domains.values() if known.failures]
        return len(failed) >= _MANY and all(known.silent for known in self._domains.values())

    def _of(self, domain: str) -> _Domain:
        return self._domains.setdefault(domain, _Domain())


@lru_cache(maxsize=50_000)
def registered_domain(host: str) -> str:
    """The domain that somebody registered: a.b.example.co.uk is example.co.uk's."""
    host = host.rstrip(".").lower()
    if host.replace(".", "").isdecimal() or ":" in host:
        return host
    return _suffixes().privatesuffix(host) or host


@cache
def _suffixes() -> PublicSuffixList:
    """The list in its package, private sections (blogspot.com, s3.amazonaws.com …) included."""
    return PublicSuffixList()
