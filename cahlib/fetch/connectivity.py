"""Decide from responses whether this machine is offline, and for how long.

A host that does not answer is dead; if no host answers, this machine is offline. Nothing here uses
the network: callers report what they saw, and when.
"""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Callable
from math import inf
from threading import Lock

from cahlib.core.errors import Postponed

#: Errors of the system if nothing came back, or nothing could be sent.
UNREACHABLE_ERRNOS = frozenset({
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT,
    errno.ECONNABORTED, errno.EADDRNOTAVAIL,
})  # fmt: skip


class NoAnswerCause(enum.Enum):
    """The cause for which a request got no answer."""

    HOST_DEAD = enum.auto()  #: the host is down
    TRANSIENT = enum.auto()  #: maybe an outage too short to notice: worth one more request
    OUTAGE = enum.auto()  #: this machine was offline, and no longer is


class Connectivity:
    """Decides whether this machine is offline; for use by one thread.

    A failure shows that its host is down only if the network worked afterwards, so it waits for
    *proof*: the answer to a request sent later. If requests are in flight and no host has answered
    for ``quiet`` seconds, or a failure has waited that long or is all there is, a *probe* decides:
    hosts that answered before are contacted again. At the end of a shard only dead hosts are left,
    and their silence means nothing.
    """

    def __init__(self, quiet: float, now: float) -> None:
        self._quiet = quiet
        self._last_answer = now  # when a host last answered
        self._busy_since = now  # since when requests have been in flight without a break
        self._busy = 0  # requests in flight
        self._waiting = inf  # when the first failure that waits for proof happened
        self._proof = -inf  # when the latest answered request was sent
        self._back = -inf  # when the last outage ended
        self._standstill = -inf  # when this machine last stood still itself
        self.since: float | None = None  #: while offline: when a host last answered

    @property
    def offline(self) -> bool:
        """Return whether this machine is offline."""
        return self.since is not None

    def request_started(self, now: float) -> None:
        """Record that a request is in flight."""
        if not self._busy:
            self._busy_since = now
        self._busy += 1

    def request_ended(self) -> None:
        """Record that a request has ended, in whatever way."""
        self._busy -= 1

    def record_answer(self, begun: float, now: float) -> bool:
        """Record the answer to a request sent at ``begun``; return whether it is proof.

        It ends no outage, only a probe does: it may have arrived before the outage.
        """
        self._last_answer, self._proof = now, max(self._proof, begun)
        news = begun >= self._waiting
        if news:
            self._waiting = inf
        return news

    def record_standstill(self, now: float) -> None:
        """Record that this machine was suspended for a while, so that deadlines passed unused."""
        self._standstill = now

    def stood_still_since(self, begun: float) -> bool:
        """Return whether this machine has been suspended since ``begun``."""
        return begun <= self._standstill

    def should_probe(self, now: float) -> bool:
        """Return whether a probe is due."""
        if self.offline or now - self._waiting >= self._quiet:
            return True
        if not self._busy and self._waiting < inf:  # nothing else can prove anything
            return True
        return self._busy > 0 and now - max(self._last_answer, self._busy_since) >= self._quiet

    def record_probe(self, begun: float, now: float, *, answered: bool) -> None:
        """Record the result of a probe sent at ``begun``."""
        self._waiting = inf
        if answered:
            self.record_answer(begun, now)
            if self.offline:
                self._back, self.since = now, None
        elif self.since is None:
            self.since = self._last_answer

    def in_outage(self, begun: float) -> bool:
        """Return whether an outage that has ended affected a request sent at ``begun``."""
        return begun <= self._back

    def no_answer_cause(self, begun: float, ended: float, *, at_once: bool) -> NoAnswerCause | None:
        """Return why a request got no answer, None if that is not known yet.

        A request that failed ``at_once`` could not survive a short outage, as one that waits can:
        TCP retransmits. No lookup can.
        """
        if self.offline:
            return None
        if self.in_outage(begun):
            return NoAnswerCause.OUTAGE
        if self._proof < ended:
            self._waiting = min(self._waiting, ended)
            return None
        return (
            NoAnswerCause.TRANSIENT
            if at_once or self.stood_still_since(begun)
            else NoAnswerCause.HOST_DEAD
        )


class Outages:
    """The times without network, as noticed by the parts of a scraper; thread-safe."""

    def __init__(self, most: float = inf, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``most``: seconds after which an outage ends the work on the shard."""
        self._most, self._clock = most, clock
        self._lock = Lock()
        self._open: set[str] = set()  # observer has noticed the current outage
        self._since = inf  # when it began
        self._past = 0.0  # seconds of past outages
        self._over = -inf  # when the last one ended
        self.last_answer = -inf  #: when a host last answered
        self.crawl: tuple[str, int] | None = None  #: host and port of the crawl's file

    def begin(self, observer: str, since: float) -> None:
        """Record an outage that ``observer`` has noticed."""
        with self._lock:
            self._open.add(observer)
            self._since = min(self._since, max(since, self._over))

    def end(self, observer: str) -> None:
        """Record that an outage is over for ``observer``; for others it may continue."""
        with self._lock:
            if self._open == {observer}:
                self._past += self._seconds()
                self._over, self._since = self._clock(), inf
            self._open.discard(observer)

    def current_seconds(self) -> float:
        """Return the seconds of the current outage, 0 without one."""
        with self._lock:
            return self._seconds()

    def total(self) -> float:
        """Return the seconds of all outages."""
        with self._lock:
            return self._past + self._seconds()

    def is_overdue(self) -> bool:
        """Return whether the current outage has lasted too long."""
        return self.current_seconds() > self._most

    def check_overdue(self) -> None:
        """Raise Postponed if the current outage has lasted too long."""
        if self.is_overdue():
            raise Postponed(
                f"This machine has had no network for {self._most / 60:g} minutes; check it. "
                "The shard will be scraped again later."
            )

    def _seconds(self) -> float:
        return self._clock() - self._since if self._open else 0.0
