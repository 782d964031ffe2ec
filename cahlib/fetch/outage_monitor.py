"""Detect outages of this machine's network, and let requests wait for their end.

`cahlib.fetch.connectivity` decides; its probes are sent from here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cahlib.fetch.connectivity import Connectivity, NoAnswerCause, Outages

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageTimings:
    """The timing, in seconds, of detecting an outage and its end."""

    quiet: float = 1.0  #: without any answer before a probe is sent
    probe: float = 2.0  #: for its answers: a lost first packet is retransmitted
    retry: float = 2.0  #: between probes during an outage


class OutageMonitor:
    """Monitors whether any of the name servers or hosts answer; for use by one event loop."""

    def __init__(
        self,
        subject: str,
        probe: Callable[[], Awaitable[bool]],
        *,
        timings: OutageTimings,
        outages: Outages,
        back: Callable[[], Awaitable[None]],
    ) -> None:
        """``probe`` contacts those that answered before; ``back`` is called after an outage."""
        self._subject, self._probe, self._back = subject, probe, back
        self._timings, self._outages = timings, outages
        self._state = Connectivity(timings.quiet, time.monotonic())
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @contextmanager
    def track_request(self) -> Iterator[float]:
        """Count a request while it is in flight; yield the time it was sent."""
        begun = time.monotonic()
        self._state.request_started(begun)
        try:
            yield begun
        finally:
            self._state.request_ended()

    def record_answer(self, begun: float) -> None:
        """Record the answer to a request sent at ``begun``."""
        if self._state.record_answer(begun, time.monotonic()):
            self._notify()

    async def no_answer_cause(self, begun: float, *, at_once: bool) -> NoAnswerCause:
        """Return why a request got no answer, as soon as that is known.

        If it was an outage, it is over by then. Raise Postponed if it lasts too long.
        """
        ended = time.monotonic()
        while (verdict := self._state.no_answer_cause(begun, ended, at_once=at_once)) is None:
            await self._wait_change()
        return verdict

    def stood_still_since(self, begun: float) -> bool:
        """Return whether this machine was suspended or far too busy since ``begun``."""
        return self._state.stood_still_since(begun)

    async def met_outage(self, begun: float) -> bool:
        """Return whether there was an outage since ``begun``, after its end."""
        await self.wait_online()
        return self._state.in_outage(begun)

    async def wait_online(self) -> bool:
        """Wait for the end of an outage; return whether there was one."""
        waited = self._state.offline
        while self._state.offline:
            await self._wait_change()
        return waited

    async def run(self) -> None:
        """Detect outages and their ends until cancelled; an error is raised in each request."""
        self._running = asyncio.current_task()
        try:
            while True:
                await self._sleep(self._timings.quiet / 4)
                if self._state.should_probe(time.monotonic()):
                    before = self._state.offline
                    answered = await self._send_probe()
                    self._notify()
                    if answered:  # at most this often, whatever fails
                        await self._sleep(self._timings.quiet / 4)
                    elif before:
                        await self._sleep(self._timings.retry)
        finally:
            asyncio.get_running_loop().call_soon(self._notify)  # then the task has its error

    async def _send_probe(self) -> bool:
        """Send a probe and record its result; return whether it was answered."""
        begun, before = time.monotonic(), self._state.offline
        overdue = self._outages.is_overdue()  # then the probe contacts others too
        probe = asyncio.ensure_future(self._probe())
        try:  # not wait_for, which before Python 3.12 may miss its own cancellation
            await asyncio.wait({probe}, timeout=self._timings.probe)
            self._check_standstill(begun + self._timings.probe)
            answered = probe.done() and probe.result()
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
        if not (answered or before) and self._state.stood_still_since(begun):
            return False  # this machine, not the network, may have been too slow; it asks again
        if answered and before:
            await self._back()
        self._state.record_probe(begun, time.monotonic(), answered=answered)
        if self._state.since is not None:
            if not before:
                _log.warning("%s do not answer; waiting for the network", self._subject)
                self._outages.begin(self._subject, self._state.since)
            if overdue:
                self._outages.check_overdue()
        elif before:
            _log.warning("%s answer again", self._subject)
            self._outages.end(self._subject)
        return answered

    async def _sleep(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        await asyncio.sleep(seconds)
        self._check_standstill(due)

    def _check_standstill(self, due: float) -> None:
        """Record a standstill if what was ``due`` comes that late."""
        if (now := time.monotonic()) >= due + self._timings.quiet:
            self._state.record_standstill(now)

    async def _wait_change(self) -> None:
        """Wait for a change of state; raise the error that ended the monitor, if any."""
        if self._running and self._running.done() and not self._running.cancelled():
            self._running.result()
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
