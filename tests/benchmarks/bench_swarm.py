"""How a swarm scales, what its driver costs, and how long a node takes to come up.

    python -m tests.benchmarks.bench_swarm [--part scaling|memory|idle|bringup]

Nodes are light hosts, with one worker each. The web is slow (each image comes after a pause), so
that a node is held by its connections and the cores of this machine are not the limit. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from PIL import Image

from cahlib.config import Crawl, Download
from cahlib.demo import wat
from cahlib.demo.web import Answer, Web
from cahlib.records import Stage
from cahlib.scrape import scrape
from cahlib.scrape.shards import shard
from cahlib.swarm import install
from cahlib.swarm.cluster import Reach
from cahlib.swarm.keys import Keys
from cahlib.swarm.node import user_data
from cahlib.swarm.remote import Remote, remote
from cahlib.swarm.ssh import Login
from tests.world import hosts, jobs, machines

HOSTS = 200
#: Seconds before each image, and connections of a scraper: 40 links a second a node.
PAUSE, CONNECTIONS = 0.5, 20
#: WAT files, and links in each: two shards a file.
FILES, LINKS = 8, 480


def main() -> None:
    if reason := hosts.lacking():
        sys.exit(reason)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"scaling": scaling, "memory": memory, "idle": idle, "bringup": bringup}
    parser.add_argument("--part", choices=parts)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve[0], float(chosen.serve[1]))
    for name, act in parts.items():
        if chosen.part in (None, name) and not chosen.serve:
            act()


def scaling() -> None:
    """Links a second of 1, 2 and 4 nodes on the same crawl."""
    with crawled(nodes=4) as (logins, reach, images, crawl):
        alone = 0.0
        for count in (1, 2, 4):
            for login in logins[count:]:
                stopped(login)
            rate, found, cores = scraped(reach, logins[:count], images, crawl, CONNECTIONS)
            alone = alone or rate
            linear = rate / alone / count
            print(
                f"{count} nodes: {rate:.0f} links/s, {found:.0f} images/s, {linear:.0%} "
                f"of linear; {cores:.1f} of this machine's {os.cpu_count()} cores were busy"
            )
            for login in logins[count:]:
                install.restart(login)


def memory() -> None:
    """What one node's service takes with 256 connections, in MiB."""
    with crawled(nodes=1, pause=2) as (logins, reach, images, crawl):
        with Peak() as peak:
            rate, *_ = scraped(reach, logins, images, crawl, 256)
        print(f"a node with 256 connections, the head on it: {peak.most} MiB, {rate:.0f} links/s")


def idle(workers: int = 50, seconds: float = 30) -> None:
    """What the driver itself takes while many workers idle."""
    before = rss()
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
        with remote(Reach(address=address), Path(folder)) as scrapers:
            jobs.until(lambda: scrapers.slots == workers, seconds=120)
            spent, started = cpu(), time.monotonic()
            while time.monotonic() < started + seconds:
                scrapers.nodes()  # as the status of a run does
                time.sleep(2)
            share = (cpu() - spent) / (time.monotonic() - started)
        print(
            f"{workers} idle workers: driver {share:.1%} of a core, {rss()} MiB ({before} before)"
        )
        cluster.communicate("")


def bringup() -> None:
    """Seconds until a real machine is a node, step by step."""
    if reason := machines.lacking():
        print(f"bring-up was not measured: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder, machines.Machines(Path(folder)) as running:
        keys = Keys(Path(folder) / "keys")
        machine = running.boot("node", user_data(keys, "node"))
        login = Login(name="node", address=machine.address, keys=keys)
        goods = install.package(Path(folder) / "wheel", wheelhouse=machines.WHEELS)
        took = install.bring_up(login, goods, head=login)
        started = time.monotonic()
        with remote(reached(login), Path(folder) / "home") as scrapers:
            scrapers.gather([login.name], timeout=60)
        took["worker"] = time.monotonic() - started
        after = sum(seconds for step, seconds in took.items() if step != "ssh")
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in took.items())
        print(f"a machine is a node {after:.1f} s after its SSH answers ({steps})")


def scraped(
    reach: Reach, logins: list[Login], images: str, crawl: list[str], connections: int
) -> tuple[float, float, float]:
    """Links and images a second over all shards, and the cores that were busy meanwhile."""
    download = Download(
        contact="bench@example.org",
        replay=images,
        connections=connections,
        consent="headers",
        per_host=256,
        per_second=0,
        patience=0,
    )
    with tempfile.TemporaryDirectory() as home, remote(reach, Path(home)) as scrapers:
        jobs.until(lambda: {n.name for n in scrapers.nodes()} == {each.name for each in logins})
        jobs.until(lambda: scrapers.slots == len(logins))
        psutil.cpu_percent()
        started = time.monotonic()
        links, found = worked(scrapers, crawl, download)
        seconds = time.monotonic() - started
        return links / seconds, found / seconds, psutil.cpu_percent() / 100 * (os.cpu_count() or 1)


def worked(scrapers: Remote, crawl: list[str], download: Download) -> tuple[int, int]:
    """Links and images of all shards, handed out as a run does."""
    todo = [shard(url, half) for url in crawl for half in (0, 1)]
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
            links += parcel.tally.done(Stage.FETCH)
            found += parcel.images
            parcel.path.unlink()
    return links, found


@contextmanager
def crawled(
    nodes: int, pause: float = PAUSE
) -> Iterator[tuple[list[Login], Reach, str, list[str]]]:
    """Nodes that are up, a web of slow images, and a crawl that leads to them."""
    with tempfile.TemporaryDirectory() as folder, hosts.Hosts(Path(folder)) as running:
        keys = Keys(Path(folder) / "keys")
        for n in range(nodes):
            running.boot(f"node{n}", user_data(keys, f"node{n}"))
        logins = [Login(name=h.name, address=h.address, keys=keys) for h in running.all.values()]
        failed = install.bring_up_all(
            logins, install.package(Path(folder) / "wheel"), head=logins[0]
        )
        if failed:
            raise next(iter(failed.values()))
        files = {f"/{n}.warc.wat.gz": Answer(body=pages(n), ranges=True) for n in range(FILES)}
        line = [sys.executable, "-m", "tests.benchmarks.bench_swarm"]
        line += ["--serve", running.address, str(pause)]
        with (
            Web(files, host=running.address) as web,
            subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=hosts.ROOT) as images,
        ):
            port = images.stdout.readline().strip()
            try:
                crawl = [f"http://{web.address}{path}" for path in files]
                yield logins, reached(logins[0]), f"{running.address}:{port}", crawl
            finally:
                images.terminate()


def pages(number: int) -> bytes:
    """A WAT file with links to images, each on its own address."""
    parts = [wat.warcinfo(f"{number}")]
    for page in range(0, LINKS, 20):
        links = [
            {
                "path": "IMG@/src",
                "url": f"http://host{n % HOSTS}.example.com/{number}-{n}",
                "alt": f"A picture of the house with number {n} in our street {number}",
            }
            for n in range(page, page + 20)
        ]
        url = f"http://page{number}-{page}.example.com/"
        parts += wat.members(wat.Page(url=url, title="Houses", links=links))
    return b"".join(parts)


def serve(address: str, pause: float) -> None:
    """Answer every request with an image, after a pause; print the port first."""
    out = io.BytesIO()
    Image.frombytes("RGB", (160, 120), os.urandom(3 * 160 * 120)).save(out, "JPEG", quality=80)
    body = out.getvalue()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = head.encode() + body

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.seen = transport, b""

        def data_received(self, data: bytes) -> None:
            self.seen += data
            while b"\r\n\r\n" in self.seen:
                self.seen = self.seen.split(b"\r\n\r\n", 1)[1]
                asyncio.get_running_loop().call_later(pause, self.transport.write, answer)

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Connection, address, 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(listen())


def stopped(login: Login) -> None:
    """Take a node out of the swarm; its restart brings it back."""
    with install.session(login) as node:
        node.run(["sudo", "systemctl", "stop", "crawl"])


def reached(head: Login) -> Reach:
    return Reach(
        address=f"tls://{head.address}:{install.PORT}",
        keys=head.keys,
        away="/home/crawl/parcels",
        files="/home/crawl/files",
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


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss() -> int:
    return psutil.Process().memory_info().rss >> 20


if __name__ == "__main__":
    main()
