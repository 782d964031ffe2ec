"""From candidates to images: hundreds of connections on one event loop, offered as a generator.

    candidates ─► turns ──► fetch ─► prove ─► images
      a thread  by domain   loop    threads

Reading candidates and decoding happen on other threads, so neither stalls the sockets. All async
code is here, in `fetch`, `addresses` and `bridge`. It does not know shards or parcels.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cahlib.config import Download
from cahlib.errors import ConfigError, ShardError
from cahlib.fetch import addresses, async_thread
from cahlib.fetch.addresses import NetworkConfig
from cahlib.fetch.client import Fetcher, open_session, user_agent
from cahlib.fetch.host_queue import HostQueue
from cahlib.fetch.network import watch_network
from cahlib.fetch.urls import domain_of
from cahlib.image.validate import validate_image
from cahlib.lists import hashes
from cahlib.records import Candidate, Evidence, Image, OptOut, Reason, Stage, Tally

_CHUNK = 64  # candidates read at once
_PACE = 0.004  # seconds between the first requests of two connections, see `_Workers.work`
_MOST_WAITING = 20_000  # candidates behind busy hosts: a whole shard's, about 25 MB
_DECODERS = 2  # threads
_AHEAD = 8  # images that wait for the consumer


def fetch_images(
    candidates: Iterable[Candidate],
    options: Download,
    tally: Tally,
    *,
    evidence: Evidence,
    tick: Callable[[], None] = async_thread.do_nothing,
    net: NetworkConfig | None = None,
) -> Iterator[Image]:
    """Fetch and prove what the candidates point at; images come in the order of their arrival.

    Fills the FETCH stage of ``tally``, and ``evidence`` with what was found out. ``tick`` is
    called about once a second while the consumer waits or takes; what it raises ends the work.
    While this machine has no network, nothing is asked; what that time lost is asked again.
    Raises ConfigError for settings that cannot be, MachineFault if this machine runs out of
    sockets, Postponed if there is no network for too long, and at the end ShardError if many hosts
    were asked and none ever answered.
    """
    net = net or addresses.network_config(options)
    user_agent(options)
    raise_open_file_limit(options.connections)
    return async_thread.iterate_in_thread(
        lambda: stream_images(candidates, options, tally, evidence=evidence, net=net),
        ahead=_AHEAD,
        tick=tick,
    )


def raise_open_file_limit(connections: int) -> None:
    """Let this process open as many files as the connections need, idle ones included."""
    needed = 4 * connections + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if most < connections + 64:
        raise ConfigError(
            f"connections: this machine allows a process {most} open files; "
            "give fewer connections, or raise that limit (ulimit -Hn)."
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def stream_images(
    candidates: Iterable[Candidate],
    options: Download,
    tally: Tally,
    *,
    evidence: Evidence,
    net: NetworkConfig,
) -> AsyncGenerator[Image, None]:
    """`fetch_images` for a loop that is there already."""
    async with (
        watch_network(net) as network,
        open_session(options, net, network.resolver) as client,
    ):
        fetcher = Fetcher(client, options, net, network)
        workers = _Workers(fetcher, options, tally, evidence)
        tasks = [asyncio.create_task(workers.read(iter(candidates)))]
        tasks += [asyncio.create_task(workers.work()) for _ in range(options.connections)]
        whole = asyncio.create_task(workers.end(tasks))
        try:
            while image := await workers.finished.get():
                yield image
            await whole
            if missing := tally.unaccounted(Stage.FETCH):
                raise RuntimeError(f"nobody knows what became of {missing} links")
            if fetcher.politeness.is_cut_off():
                raise ShardError("Of all hosts none answered; check this machine's network.")
        finally:
            for task in (whole, *tasks):
                task.cancel()
            await asyncio.gather(whole, *tasks, return_exceptions=True)
            await workers.close()
            if close := getattr(candidates, "close", None):
                close()


class _Workers:
    """The tasks of one stream: one reads candidates, the others take them in turn."""

    def __init__(
        self, fetcher: Fetcher, options: Download, tally: Tally, evidence: Evidence
    ) -> None:
        self._fetcher, self._options = fetcher, options
        self._tally, self._evidence = tally, evidence
        self._harm = hashes(options.known_harm, "known_harm")
        self._links: Counter[str] = Counter()  # of each domain
        self._host_queue: HostQueue[Candidate] = HostQueue(options.per_host)
        self._ready: asyncio.Queue[Candidate | None] = asyncio.Queue()
        self._beginning = asyncio.Lock()
        self._moved = asyncio.Event()  # something in the two above has changed
        self._awaited: Callable[[], bool] = lambda: True  # what the reader waits for
        self._reader = ThreadPoolExecutor(1, "cahlib-candidates")
        self._decoders = ThreadPoolExecutor(_DECODERS, "cahlib-decoder")
        self.finished: asyncio.Queue[Image | None] = asyncio.Queue(_AHEAD)

    async def read(self, candidates: Iterator[Candidate]) -> None:
        """Bring candidates in as they are needed; ends when all of them are done."""
        loop = asyncio.get_running_loop()
        while chunk := await loop.run_in_executor(self._reader, _some, candidates):
            self._tally.entered[Stage.FETCH] += len(chunk)
            for domain, candidate in chunk:
                self._arrive(domain, candidate)
            await self._until(self._hungry)
        await self._until(lambda: self._host_queue.is_idle)
        for _ in range(self._options.connections):
            self._ready.put_nowait(None)

    async def work(self) -> None:
        """Turn candidates into images, one after the other; first wait for this connection's turn.

        Side by side, the first requests of 512 connections hold up the loop: each call of a socket
        waits for the interpreter's lock, and each handshake of TLS computes for 1 to 2 ms.
        """
        begun = False
        while candidate := await self._ready.get():
            if not begun:
                async with self._beginning:  # in a row: if the loop is late, so is the next one
                    await asyncio.sleep(_PACE)
                begun = True
            if reason := await self._image(candidate):
                self._tally.lost[reason] += 1
            else:
                self._tally.left[Stage.FETCH] += 1
            domain = domain_of(candidate.url)
            if following := self._host_queue.finish(domain):
                self._start(domain, following)
            if self._awaited():
                self._moved.set()

    async def end(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for the other tasks, and put an end behind the images; raises what a task raises."""
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        await self.finished.put(None)
        for task in done:
            task.result()

    async def close(self) -> None:
        """End the threads; each finishes what it has in hand."""
        self._evidence.silent.extend(self._fetcher.politeness.dead_domains())
        self._evidence.optouts.extend(self._fetcher.host_policies.not_honoured)
        await self._fetcher.host_policies.close()
        self._reader.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _arrive(self, domain: str, candidate: Candidate) -> None:
        most = self._options.per_domain
        self._links[domain] += 1
        if most and self._links[domain] > most:
            self._tally.lost[Reason.TOO_MANY_LINKS] += 1
        elif self._host_queue.add(domain, candidate):
            self._start(domain, candidate)

    def _start(self, domain: str, candidate: Candidate) -> None:
        """Hand a candidate to the workers as soon as its domain may be asked again."""
        politeness = self._fetcher.politeness
        wait = 0.0 if politeness.is_skipped(domain) else politeness.reserve(domain)
        if wait:
            asyncio.get_running_loop().call_later(wait, self._ready.put_nowait, candidate)
        else:
            self._ready.put_nowait(candidate)

    async def _image(self, candidate: Candidate) -> Reason | None:
        """Hand a candidate's image on, or say why there is none."""
        if self._fetcher.politeness.is_skipped(domain_of(candidate.url)):
            return Reason.LEFT_ALONE
        async with self._fetcher.fetch(candidate.url) as served:
            if isinstance(served, Reason):
                return served
            if isinstance(served, OptOut):
                self._evidence.optouts.append(served)
                return Reason.OPTED_OUT
            loop = asyncio.get_running_loop()
            picture = await loop.run_in_executor(
                self._decoders, validate_image, served.body, self._options
            )
            if isinstance(picture, Reason):
                return picture
            if self._harm.name(picture["md5"], picture["sha1"], picture["sha256"]):
                return Reason.KNOWN_HARM
            # in here: what waits for the consumer counts as held, however slow its disk is
            await self.finished.put(Image(candidate=candidate, robots=served.robots, **picture))
            return None

    def _hungry(self) -> bool:
        enough = self._ready.qsize() >= self._options.connections
        return not enough and len(self._host_queue) < _MOST_WAITING

    async def _until(self, true: Callable[[], bool]) -> None:
        self._awaited = true
        while not true():
            self._moved.clear()
            await self._moved.wait()


def _some(candidates: Iterator[Candidate]) -> list[tuple[str, Candidate]]:
    """The next candidates, each behind its domain, whose first look-up loads a list (0.1 s)."""
    return [(domain_of(each.url), each) for each in islice(candidates, _CHUNK)]
