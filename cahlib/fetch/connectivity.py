"""Whether this machine is cut off from the network, concluded from who answers, and for how long.

A host that does not answer is dead; if nobody answers, it is this machine that cannot be heard.
Nothing here asks anybody: it is told what others saw, and when.
"""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Callable
from math import inf
from threading import Lock

from cahlib.errors import Postponed

#: What a system says if nothing came back, or nothing could be sent.
UNREACHABLE_ERRNOS = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.EADDRNOTAVAIL,
    }
)


class NoAnswerCause(enum.Enum):
    """Why nobody answered a request."""

    HOST_DEAD = enum.auto()  #: it is the host
    TRANSIENT = enum.auto()  #: it may be a cut too short to be noticed: worth one more request
    OUTAGE = enum.auto()  #: this machine was cut off, and is not any more


class Connectivity:
    """Decides by signs of life; used by one thread.

    A failure says something about its host only if the network worked after it: it waits for a
    *proof*, the answer to a request that was sent later. Whoever may be cut off is *suspect*:
    requests are on their way, and nobody has answered for ``quiet`` seconds, or a failure has
    waited so long. Then those who answered before are asked whether they still do (a probe), which
    decides: at the end of a shard only dead hosts are left, and their silence means nothing.
    """

    def __init__(self, quiet: float, now: float) -> None:
        self._quiet = quiet
        self._sign = now  # when somebody answered last
        self._woke = now  # since when requests have been on their way without a break
        self._busy = 0  # requests on their way
        self._waiting = inf  # when the first of those failed that wait for a proof
        self._proof = -inf  # when the latest request was sent that was answered
        self._back = -inf  # when the last outage was over
        self._stood = -inf  # when this machine had stood still itself
        self.since: float | None = None  #: while cut off: when somebody answered last

    @property
    def offline(self) -> bool:
        """Whether this machine is cut off."""
        return self.since is not None

    def request_started(self, now: float) -> None:
        """Note that a request is on its way."""
        if not self._busy:
            self._woke = now
        self._busy += 1

    def request_ended(self) -> None:
        """Note that a request has ended, in whatever way."""
        self._busy -= 1

    def record_answer(self, begun: float, now: float) -> bool:
        """Note that somebody answered what was sent at ``begun``; return whether that is news.

        It ends no outage, only a probe does: it may be what had arrived before the cut.
        """
        self._sign, self._proof = now, max(self._proof, begun)
        news = begun >= self._waiting
        if news:
            self._waiting = inf
        return news

    def record_standstill(self, now: float) -> None:
        """Note that this machine did nothing for a while, so that all deadlines passed unused."""
        self._stood = now

    def stood_still_since(self, begun: float) -> bool:
        """Return whether this machine has stood still since then."""
        return begun <= self._stood

    def should_probe(self, now: float) -> bool:
        """Return whether a probe should decide now."""
        if self.offline or now - self._waiting >= self._quiet:
            return True
        return self._busy > 0 and now - max(self._sign, self._woke) >= self._quiet

    def record_probe(self, begun: float, now: float, *, answered: bool) -> None:
        """Note how a probe ended that was sent at ``begun``."""
        self._waiting = inf
        if answered:
            self.record_answer(begun, now)
            if self.offline:
                self._back, self.since = now, None
        elif self.since is None:
            self.since = self._sign

    def in_outage(self, begun: float) -> bool:
        """Return whether a request of that time met an outage that is over."""
        return begun <= self._back

    def no_answer_cause(self, begun: float, ended: float, *, at_once: bool) -> NoAnswerCause | None:
        """Return why nobody answered a request; None: not known yet.

        What failed ``at_once`` had no chance to outlive a short cut, as what waits has: TCP and
        name look-ups send their packets again.
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
    """The times without network, as the parts of one scraper notice them; safe for any thread."""

    def __init__(self, most: float = inf, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``most``: seconds after which an outage ends the work on the shard."""
        self._most, self._clock = most, clock
        self._lock = Lock()
        self._open: set[str] = set()  # who has noticed the present outage
        self._since = inf  # when that began
        self._past = 0.0  # seconds of outages that are over
        self._over = -inf  # when the last of them was over
        self.last_answer = -inf  #: when a host answered last
        self.crawl: tuple[str, int] | None = None  #: host and port that gave the crawl's file

    def begin(self, who: str, since: float) -> None:
        """Note an outage."""
        with self._lock:
            self._open.add(who)
            self._since = min(self._since, max(since, self._over))

    def end(self, who: str) -> None:
        """Note that an outage is over for one who noticed it; for others it may go on."""
        with self._lock:
            if self._open == {who}:
                self._past += self._lasting()
                self._over, self._since = self._clock(), inf
            self._open.discard(who)

    def current_seconds(self) -> float:
        """Return the seconds of the present outage; 0 without one."""
        with self._lock:
            return self._lasting()

    def total(self) -> float:
        """Return the seconds of all outages."""
        with self._lock:
            return self._past + self._lasting()

    def is_overdue(self) -> bool:
        """Return whether the present outage has lasted too long."""
        return self.current_seconds() > self._most

    def check_overdue(self) -> None:
        """Raise Postponed if the present outage has lasted too long."""
        if self.is_overdue():
            raise Postponed(
                f"This machine has had no network for {self._most / 60:g} minutes; check it. "
                "The shard is scraped again later."
            )

    def _lasting(self) -> float:
        return self._clock() - self._since if self._open else 0.0
