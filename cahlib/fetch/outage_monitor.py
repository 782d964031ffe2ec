"""Waits out the times in which this machine is cut off, for all requests of one kind.

`cahlib.fetch.connectivity` decides; here its probes are sent, and requests wait for what it says.
It does not know what a request or a probe is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cahlib.fetch.connectivity import Connectivity, NoAnswerCause, Outages

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageTimings:
    """Seconds that it takes to find an outage and its end."""

    quiet: float = 1.0  #: without any answer before those who answered are asked whether they do
    probe: float = 2.0  #: in which they answer: a first packet may be lost, and is sent again
    retry: float = 2.0  #: between two such questions while nobody answers


class OutageMonitor:
    """Name servers or hosts, and whether any of them answers; used by one event loop."""

    def __init__(
        self,
        what: str,
        probe: Callable[[], Awaitable[bool]],
        *,
        patience: OutageTimings,
        outages: Outages,
        back: Callable[[], Awaitable[None]],
    ) -> None:
        """``probe`` asks those who answered before; ``back`` is called when an outage is over."""
        self._what, self._probe, self._back = what, probe, back
        self._patience, self._outages = patience, outages
        self._state = Connectivity(patience.quiet, time.monotonic())
        self._changed = asyncio.Event()
        self._error: Exception | None = None

    @contextmanager
    def track_request(self) -> Iterator[float]:
        """Count a request while it is on its way; gives when it was sent."""
        begun = time.monotonic()
        self._state.request_started(begun)
        try:
            yield begun
        finally:
            self._state.request_ended()

    def record_answer(self, begun: float) -> None:
        """Note that somebody answered what was sent then."""
        if self._state.record_answer(begun, time.monotonic()):
            self._wake()

    async def no_answer_cause(self, begun: float, *, at_once: bool) -> NoAnswerCause:
        """Return why nobody answered a request, as soon as that is known.

        If it is an outage, that is over. Raises Postponed if it lasts too long.
        """
        ended = time.monotonic()
        while (verdict := self._state.no_answer_cause(begun, ended, at_once=at_once)) is None:
            await self._change()
        return verdict

    def stood_still_since(self, begun: float) -> bool:
        """Return whether this machine has stood still since then: suspended, or far too busy."""
        return self._state.stood_still_since(begun)

    async def met_outage(self, begun: float) -> bool:
        """Return whether there has been an outage since then, when it is over."""
        await self.wait_online()
        return self._state.in_outage(begun)

    async def wait_online(self) -> bool:
        """Wait for the end of an outage; returns whether there was one."""
        waited = self._state.offline
        while self._state.offline:
            await self._change()
        return waited

    async def run(self) -> None:
        """Find outages and their ends until cancelled."""
        try:
            while True:
                due = time.monotonic() + self._patience.quiet / 4
                await asyncio.sleep(self._patience.quiet / 4)
                if (now := time.monotonic()) >= due + self._patience.quiet:
                    self._state.record_standstill(now)
                if self._state.should_probe(now):
                    before = self._state.offline
                    answered = await self._decide()
                    self._wake()
                    if answered:  # no more often, whatever fails
                        await asyncio.sleep(self._patience.quiet)
                    elif before:
                        await asyncio.sleep(self._patience.retry)
        except Exception as error:  # noqa: BLE001 - raised again by each request that waits
            self._error = error
            self._wake()

    async def _decide(self) -> bool:
        """Send a probe, and note what it says."""
        begun, before = time.monotonic(), self._state.offline
        overdue = self._outages.is_overdue()  # then the probe asks others too
        probe = asyncio.ensure_future(self._probe())
        try:  # not by wait_for, which until Python 3.12 may miss that it is cancelled itself
            await asyncio.wait({probe}, timeout=self._patience.probe)
            answered = probe.done() and probe.result()
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
        if answered and before:
            await self._back()
        self._state.record_probe(begun, time.monotonic(), answered=answered)
        if self._state.since is not None:
            if not before:
                log.warning("%s do not answer: waiting for the network", self._what)
                self._outages.begin(self._what, self._state.since)
            if overdue:
                self._outages.check_overdue()
        elif before:
            log.warning("%s answer again", self._what)
            self._outages.end(self._what)
        return answered

    async def _change(self) -> None:
        """Wait for news."""
        if self._error is not None:
            raise self._error
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
