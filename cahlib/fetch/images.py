"""From candidates to images: hundreds of connections on one event loop, as a generator.

    candidates ─► host queue ─► client ─► validate ─► images
      a thread    by domain      loop      threads

Candidates are read and images decoded on other threads, so that neither blocks the sockets.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cahlib.core.config import Download
from cahlib.core.errors import ConfigError, ShardError
from cahlib.core.lists import load_hashes
from cahlib.core.records import (
    Candidate,
    DropReason,
    Evidence,
    Image,
    OptOut,
    Outcome,
    Stage,
    Stats,
)
from cahlib.fetch import async_thread, resolver
from cahlib.fetch.client import Fetcher, FetchTrace, open_session, user_agent
from cahlib.fetch.host_queue import HostQueue
from cahlib.fetch.network import PACE, watch_network
from cahlib.fetch.resolver import NetworkConfig
from cahlib.fetch.urls import domain_of
from cahlib.image.validate import validate_image

_CHUNK = 64  # candidates read at a time
_MAX_WAITING = 20_000  # candidates behind busy hosts: all of a shard's, about 25 MB
_DECODERS = 2  # threads
_AHEAD = 8  # images buffered for the consumer


def fetch_images(
    candidates: Iterable[Candidate],
    options: Download,
    stats: Stats,
    *,
    evidence: Evidence,
    tick: Callable[[], object] = lambda: None,
    net: NetworkConfig | None = None,
) -> Iterator[Image]:
    """Fetch and validate the images of the candidates; yield them in order of arrival.

    Fill the FETCH stage of ``stats``, and ``evidence``. ``tick`` is called about once per second in
    the consumer's thread; an exception from it ends the work. While this machine has no network,
    requests wait, and failed ones are repeated. Raise ConfigError for invalid settings,
    MachineFault if this machine runs out of sockets, Postponed if the network is away for too long,
    and at the end ShardError if many hosts were contacted and none ever answered.
    """
    net = net or resolver.network_config(options)
    user_agent(options)
    raise_open_file_limit(options.connections)
    return async_thread.iterate_in_thread(
        lambda: stream_images(candidates, options, stats, evidence=evidence, net=net),
        ahead=_AHEAD,
        tick=tick,
    )


def raise_open_file_limit(connections: int) -> None:
    """Raise the limit of open files to what the connections need, idle ones included."""
    needed = 4 * connections + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if most < connections + 64:
        raise ConfigError(
            f"connections: this machine allows a process {most} open files; "
            "use fewer connections, or raise that limit (ulimit -Hn)."
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def stream_images(
    candidates: Iterable[Candidate],
    options: Download,
    stats: Stats,
    *,
    evidence: Evidence,
    net: NetworkConfig,
) -> AsyncGenerator[Image, None]:
    """Do the work of `fetch_images` in the running loop."""
    async with (
        watch_network(net) as network,
        open_session(options, net, network.resolver) as client,
    ):
        fetcher = Fetcher(client, options, net, network)
        workers = _Workers(fetcher, options, stats, evidence)
        tasks = [asyncio.create_task(workers.read(iter(candidates)))]
        tasks += [asyncio.create_task(workers.work()) for _ in range(options.connections)]
        whole = asyncio.create_task(workers.end(tasks))
        try:
            while image := await workers.finished.get():
                yield image
            await whole
            if missing := stats.unaccounted(Stage.FETCH):
                raise RuntimeError(f"{missing} links are unaccounted for")
            if fetcher.politeness.is_cut_off():
                raise ShardError("No host answered; check this machine's network.")
        finally:
            for task in (whole, *tasks):
                task.cancel()
            await asyncio.gather(whole, *tasks, return_exceptions=True)
            await workers.close()
            if close := getattr(candidates, "close", None):
                close()


class _Workers:
    """The tasks of one stream: one reads candidates, the others fetch them."""

    def __init__(
        self, fetcher: Fetcher, options: Download, stats: Stats, evidence: Evidence
    ) -> None:
        self._fetcher, self._options = fetcher, options
        self._stats, self._evidence = stats, evidence
        self._known_harm = load_hashes(options.known_harm, "known_harm")
        self._links: Counter[str] = Counter()  # of each domain
        self._host_queue: HostQueue[Candidate] = HostQueue(options.per_host)
        self._ready: asyncio.Queue[Candidate | None] = asyncio.Queue()
        self._start_lock = asyncio.Lock()
        self._changed = asyncio.Event()  # the host queue or the ready queue has changed
        self._condition: Callable[[], bool] = lambda: (
            True
        )  # the condition that the reader waits for
        self._reader = ThreadPoolExecutor(1, "cahlib-candidates")
        self._decoders = ThreadPoolExecutor(_DECODERS, "cahlib-decoder")
        self.finished: asyncio.Queue[Image | None] = asyncio.Queue(_AHEAD)

    async def read(self, candidates: Iterator[Candidate]) -> None:
        """Read candidates as needed; return when all of them are done."""
        loop = asyncio.get_running_loop()
        while chunk := await loop.run_in_executor(self._reader, _next_chunk, candidates):
            self._stats.entered[Stage.FETCH] += len(chunk)
            for domain, candidate in chunk:
                self._enqueue(domain, candidate)
            await self._wait_until(self._wants_more)
        await self._wait_until(lambda: self._host_queue.is_idle)
        for _ in range(self._options.connections):
            self._ready.put_nowait(None)

    async def work(self) -> None:
        """Fetch candidates one after the other, with a delayed start.

        Simultaneous first requests of 512 connections would block the loop: each socket call waits
        for the interpreter's lock, and each TLS handshake takes 1 to 2 ms of CPU.
        """
        started = False
        while candidate := await self._ready.get():
            if not started:
                async with self._start_lock:  # one by one: if the loop is late, so is the next
                    await asyncio.sleep(PACE)
                started = True
            trace = FetchTrace(address=candidate.url)
            self._record(candidate, await self._fetch_image(candidate, trace), trace)
            domain = domain_of(candidate.url)
            if following := self._host_queue.finish(domain):
                self._start(domain, following)
            if self._condition():
                self._changed.set()

    async def end(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for the other tasks and mark the end of the images; raise what a task raised."""
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        await self.finished.put(None)
        for task in done:
            task.result()

    async def close(self) -> None:
        """Stop the threads, each after its current item, and collect the evidence."""
        self._evidence.silent.extend(self._fetcher.politeness.dead_domains())
        self._evidence.optouts.extend(self._fetcher.host_policies.not_honoured)
        await self._fetcher.host_policies.close()
        self._reader.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _enqueue(self, domain: str, candidate: Candidate) -> None:
        most = self._options.per_domain
        self._links[domain] += 1
        if most and self._links[domain] > most:
            trace = FetchTrace(address=candidate.url)
            self._record(candidate, DropReason.TOO_MANY_LINKS, trace)
        elif self._host_queue.add(domain, candidate):
            self._start(domain, candidate)

    def _start(self, domain: str, candidate: Candidate) -> None:
        """Pass a candidate to the workers as soon as its domain allows a request."""
        politeness = self._fetcher.politeness
        wait = 0.0 if politeness.is_skipped(domain) else politeness.reserve(domain)
        if wait:
            asyncio.get_running_loop().call_later(wait, self._ready.put_nowait, candidate)
        else:
            self._ready.put_nowait(candidate)

    def _record(self, candidate: Candidate, reason: DropReason | None, trace: FetchTrace) -> None:
        """Count a candidate that is fetched or dropped, and log what is known of it."""
        if reason:
            self._stats.dropped[reason] += 1
        else:
            self._stats.left[Stage.FETCH] += 1
        if self._evidence.outcomes:
            moved = trace.place if trace.place != candidate.url else ""
            outcome = Outcome(
                position=candidate.position,
                reason=reason,
                candidate=candidate,
                status=trace.status,
                final_url=moved or None,
                ms=trace.ms,
                bytes=trace.bytes,
                attempt=trace.attempt,
            )
            self._evidence.outcomes.add(outcome)

    async def _fetch_image(self, candidate: Candidate, trace: FetchTrace) -> DropReason | None:
        """Put a candidate's image into `finished`, or return the reason to drop it."""
        if self._fetcher.politeness.is_skipped(domain_of(candidate.url)):
            return DropReason.LEFT_ALONE
        async with self._fetcher.fetch(trace) as served:
            if isinstance(served, DropReason):
                return served
            if isinstance(served, OptOut):
                self._evidence.optouts.append(served)
                return DropReason.OPTED_OUT
            loop = asyncio.get_running_loop()
            picture = await loop.run_in_executor(
                self._decoders, validate_image, served.body, self._options
            )
            if isinstance(picture, DropReason):
                return picture
            if self._known_harm.has_any(picture["md5"], picture["sha1"], picture["sha256"]):
                return DropReason.KNOWN_HARM
            # within the context, so that images waiting for a slow consumer count as used memory
            await self.finished.put(Image(candidate=candidate, robots=served.robots, **picture))
            return None

    def _wants_more(self) -> bool:
        enough = self._ready.qsize() >= self._options.connections
        return not enough and len(self._host_queue) < _MAX_WAITING

    async def _wait_until(self, true: Callable[[], bool]) -> None:
        self._condition = true
        while not true():
            self._changed.clear()
            await self._changed.wait()


def _next_chunk(candidates: Iterator[Candidate]) -> list[tuple[str, Candidate]]:
    """Return the next candidates with their domains; the first lookup loads a list (0.1 s)."""
    return [(domain_of(each.url), each) for each in islice(candidates, _CHUNK)]
