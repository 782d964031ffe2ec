"""How a swarm scales, what its driver costs, and how long a node takes to come up.

    python -m tests.benchmarks.bench_swarm [--part nodes|idle|bringup] [--small]

Nodes are light hosts, with one worker each. The web is slow (each image comes after a pause), so
that a node is held by its connections and the cores of this machine are not the limit. The
smallest size is one node and no real machine. Needs root.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from cahlib.core.config import Crawl, Download
from cahlib.core.records import Stage
from cahlib.crawl.shards import make_shard
from cahlib.demo.web import Answer, Web
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import RemoteEngine, remote_engine
from cahlib.run.scrape import scrape
from cahlib.swarm import install
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import user_data
from cahlib.swarm.ssh import Login
from tests.benchmarks import inputs
from tests.benchmarks.common import Absent, parser, rss, spent
from tests.world import hosts, jobs, machines
from tests.world.pictures import picture

#: Seconds before each image, and connections of a scraper: 40 links a second a node.
PAUSE, CONNECTIONS = 0.5, 20

Options = argparse.Namespace


def main(arguments: Sequence[str]) -> None:
    if reason := hosts.lacking():
        raise Absent(reason)
    parts = {"nodes": nodes, "idle": idle, "bringup": bringup}
    made = parser(
        __doc__, arguments,
        nodes=(4, 1), files=(8, 1), links=(480, 20), workers=(50, 2), seconds=(30.0, 0.2),
    )  # fmt: skip
    made.add_argument("--part", choices=parts)
    options = made.parse_args(arguments)
    for name, act in parts.items():
        if options.part in (None, name) and not (options.small and act is bringup):
            act(options)


def nodes(options: Options) -> None:
    """Links a second of 1, 2, 4 … nodes on the same crawl; what a node's service takes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        hosts.Hosts(Path(folder)) as running,
        crawled(running, options) as crawl,
    ):
        logins = brought_up(running, options.nodes)
        with web(running, PAUSE) as images:
            scaling(logins, images, crawl)
        for login in logins[1:]:
            stopped(login)
        with web(running, 4 * PAUSE) as images, Peak() as peak:
            rate, *_ = scraped(logins[:1], images, crawl, 256)
        print(f"a node with 256 connections, the head on it: {peak.most} MiB, {rate:.0f} links/s")


def scaling(logins: list[Login], images: str, crawl: list[str]) -> None:
    """Links a second of 1, 2, 4 … nodes on the same crawl."""
    alone, count = 0.0, 1
    while count <= len(logins):
        for login in logins[count:]:
            stopped(login)
        rate, found, cores = scraped(logins[:count], images, crawl, CONNECTIONS)
        alone = alone or rate
        print(
            f"{count} nodes: {rate:.0f} links/s, {found:.0f} images/s, {rate / alone / count:.0%} "
            f"of linear; {cores:.1f} of this machine's {os.cpu_count()} cores were busy"
        )
        for login in logins[count:]:
            install.restart_service(login)
        count *= 2


def idle(options: Options) -> None:
    """What the driver itself takes while many workers idle."""
    before, workers = rss(), options.workers
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        line = [sys.executable, "-c", _CLUSTER, str(workers)]
        cluster = stack.enter_context(
            subprocess.Popen(
                line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        address = cluster.stdout.readline().strip()
        with remote_engine(ClusterAddress(address=address), Path(folder)) as scrapers:
            jobs.until(lambda: scrapers.slots == workers)
            cpu, started = spent(), time.monotonic()
            while time.monotonic() < started + options.seconds:
                assert len(scrapers.nodes()) == workers  # as the status of a run does
                time.sleep(min(2, options.seconds))
            share = (spent() - cpu) / (time.monotonic() - started)
        print(
            f"{workers} idle workers: driver {share:.1%} of a core, {rss()} MiB ({before} before)"
        )
        cluster.communicate("")


def bringup(_: Options) -> None:
    """Seconds until a real machine is a node, step by step."""
    image = machines.IMAGES[0]
    if reason := image.lacking():
        print(f"bring-up was not measured: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder, machines.Machines(Path(folder), image) as running:
        keys = SwarmKeys(Path(folder) / "keys")
        machine = running.boot("node", user_data(keys, "node"))
        login = Login(name="node", address=machine.address, keys=keys)
        package = install.make_package(Path(folder) / "wheel", wheelhouse=image.wheels)
        took = install.set_up_node(login, package, head=login, networks_for=hosts.admitted([login]))
        started = time.monotonic()
        with remote_engine(reached(login), Path(folder) / "home") as scrapers:
            scrapers.await_nodes([login.name], timeout=60)
        took["worker"] = time.monotonic() - started
        after = sum(seconds for step, seconds in took.items() if step != "ssh")
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in took.items())
        print(f"a machine is a node {after:.1f} s after its SSH answers ({steps})")


def scraped(
    logins: list[Login], images: str, crawl: list[str], connections: int
) -> tuple[float, float, float]:
    """Links and images a second over all shards, and the cores that were busy meanwhile."""
    download = Download(
        contact="bench@example.org",
        replay=images,
        connections=connections,
        consent="headers",
        per_host=256,
        per_second=0,
        max_failures=0,
    )
    reach = reached(logins[0])
    with tempfile.TemporaryDirectory() as home, remote_engine(reach, Path(home)) as scrapers:
        jobs.until(lambda: {n.name for n in scrapers.nodes()} == {each.name for each in logins})
        jobs.until(lambda: scrapers.slots == len(logins))
        psutil.cpu_percent()
        started = time.monotonic()
        links, found = worked(scrapers, crawl, download)
        seconds = time.monotonic() - started
        return links / seconds, found / seconds, psutil.cpu_percent() / 100 * (os.cpu_count() or 1)


def worked(scrapers: RemoteEngine, crawl: list[str], download: Download) -> tuple[int, int]:
    """Links and images of all shards, handed out as a run does."""
    todo = [make_shard(url, half) for url in crawl for half in (0, 1)]
    links = found = 0
    options = Crawl(languages=("all",))
    while todo or scrapers:
        while todo and len(scrapers) < 2 * scrapers.slots:
            each = todo.pop()
            scrapers.submit(each.id, scrape, each, options, download, scrapers.folder, limit=600)
        if finished := scrapers.take(timeout=0.2):
            parcel = finished[1]
            if isinstance(parcel, Exception):
                raise parcel
            links += parcel.stats.done(Stage.FETCH)
            found += parcel.images
            parcel.path.unlink()
    assert 0 < found == links, (links, found)  # each leads to an image
    return links, found


def brought_up(running: hosts.Hosts, count: int) -> list[Login]:
    """So many nodes that are up; the first is the head."""
    keys = SwarmKeys(running.folder / "keys")
    for n in range(count):
        running.boot(f"node{n}", user_data(keys, f"node{n}"))
    logins = [Login(name=h.name, address=h.address, keys=keys) for h in running.all.values()]
    package = install.make_package(running.folder / "wheel")
    if failed := hosts.set_up(logins, package):
        raise next(iter(failed.values()))
    return logins


@contextmanager
def crawled(running: hosts.Hosts, options: Options) -> Iterator[list[str]]:
    """The URLs of WAT files whose links lead to an address each, on few hosts."""
    files = {
        f"/{n}.warc.wat.gz": Answer(body=b"".join(pages(n, options.links)), ranges=True)
        for n in range(options.files)
    }
    with Web(files, host=running.address) as web:
        yield [f"http://{web.address}{path}" for path in files]


def pages(file: int, links: int) -> Iterator[bytes]:
    numbers = range(file * links, (file + 1) * links)
    return inputs.wat_file(str(file), ((inputs.link(n), inputs.text(n)) for n in numbers))


@contextmanager
def web(running: hosts.Hosts, pause: float) -> Iterator[str]:
    """A web of slow images; its HOST:PORT."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one.jpg").write_bytes(picture())
        with inputs.web(Path(folder), address=running.address, pause=pause) as port:
            yield f"{running.address}:{port}"


def stopped(login: Login) -> None:
    """Take a node out of the swarm; its restart brings it back."""
    with install.ssh_session(login) as node:
        node.run(["sudo", "systemctl", "stop", "crawl"])


def reached(head: Login) -> ClusterAddress:
    return ClusterAddress(
        address=f"tls://{head.address}:{install.SCHEDULER_PORT}",
        keys=head.keys,
        parcel_folder="/home/crawl/parcels",
        file_folder="/home/crawl/files",
    )


class Peak:
    """The most memory that the Dask processes of light hosts took together, in MiB of RSS."""

    def __enter__(self) -> Peak:
        self.most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            total = 0
            for process in psutil.process_iter(["cmdline"]):
                if any("/home/crawl/venv" in word for word in process.info["cmdline"] or ()):
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:
                        continue
            self.most = max(self.most, total >> 20)


#: A scheduler and workers in one process, which a driver cannot tell from many machines.
_CLUSTER = """
import asyncio, sys
from distributed import Scheduler, Worker
async def main():
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address=None) as scheduler:
        workers = [
            Worker(scheduler.address, host="127.0.0.1", nthreads=2, resources={"slot": 1},
                   dashboard_address=None, name=f"node{n}")
            for n in range(int(sys.argv[1]))
        ]
        for worker in workers:
            await worker
        print(scheduler.address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for worker in workers:
            await worker.close()
asyncio.run(main())
"""


if __name__ == "__main__":
    main(sys.argv[1:])
