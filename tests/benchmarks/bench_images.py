"""Candidates to a parcel against img2dataset 1.47: the same URLs from the same loopback web.

    python -m tests.benchmarks.bench_images [--rounds 3] [--images 2000] [--mix web] [--https]
                                            [--connections 256] [--most 512] [--no-peer] [--small]

The web is 2,000 images of 10 to 300 kB on 200 hosts, made from a seed: baseline JPEGs, or (mix
"web") 85 % JPEG, a fifth of them progressive, 10 % PNG, 5 % WebP. Both sides keep all of them in
tars, as 256 px JPEGs or as they are. With --https each host has a certificate by an authority made
for this run, which both sides trust. CPU seconds are those of the client and its children, less
those of a run with a single image; the server is a process of its own.

How late our event loop is meanwhile is measured with as many connections, and with the most.

Below both stands what no client that proves its images by decoding can go below: the requests
alone, by aiohttp; what the libraries alone take to decode at the scale that is needed, to shrink
and encode, and for three hashes; and beside the latter our whole validation without any network.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import aiohttp
import trustme
from PIL import Image

from cahlib.core.config import Download
from cahlib.core.records import Candidate, Evidence, Shard, Stats
from cahlib.core.records import Image as Fetched
from cahlib.fetch import async_thread, resolver
from cahlib.fetch.images import fetch_images as fetch
from cahlib.fetch.images import raise_open_file_limit, stream_images
from cahlib.image.pixels import resize_picture
from cahlib.image.validate import validate_image
from cahlib.parcel.parcel import write_parcel
from tests.benchmarks.common import Found, apart, beside, measured, note, parser, venv
from tests.benchmarks.inputs import HOSTS, candidates, pictures, web

#: headers: no host is asked for its robots.txt and tdmrep.json first.
CONSENT = os.environ.get("CAH_CONSENT", "strict")
SHARD = Shard(id="bench", url="/", half=0)


@contextmanager
def trusted(https: bool) -> Iterator[str]:
    """A certificate's file for all hosts, whose authority every client trusts; "" for http."""
    if not https:
        yield ""
        return
    authority = trustme.CA()
    names = ["127.0.0.1", *(f"host{number}.example" for number in range(HOSTS))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "server.pem"
        authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(file))
        authority.cert_pem.write_to_path(f"{folder}/authority.pem")
        os.environ["SSL_CERT_FILE"] = f"{folder}/authority.pem"
        yield str(file)


class Work(NamedTuple):
    """What a client is to do."""

    port: int
    images: int
    side: int  #: pixels, 0 for originals
    connections: int
    https: bool

    @property
    def place(self) -> str:
        return f"{'https' if self.https else 'http'}://127.0.0.1:{self.port}"

    def fetched(self) -> tuple[Iterator[Candidate], Download, resolver.NetworkConfig]:
        """Links, settings and network of ours; the name servers are left out, TLS is not."""
        options = Download(
            replay=f"127.0.0.1:{self.port}",
            resize=self.side,
            min_bytes=0,
            per_second=0,
            connections=self.connections,
            consent=CONSENT,
        )
        net = resolver.network_config(options)
        if self.https:
            net = replace(net, tls=True)
        return candidates(self.images, "https" if self.https else "http"), options, net


def ours(*work: int) -> Found:
    """Seal a parcel of all images."""
    stats = Stats()
    links, options, net = Work(*work).fetched()
    fetched = fetch(links, options, stats, evidence=Evidence(), net=net)
    with tempfile.TemporaryDirectory() as folder:
        return {"kept": write_parcel(fetched, SHARD, Path(folder), stats=stats).images}


def lag(*work: int) -> Found:
    """Seal a parcel as `ours` does, and see how late the event loop of its sockets is meanwhile."""
    late: list[float] = []
    links, options, net = Work(*work).fetched()

    async def watch() -> None:
        due = time.perf_counter()
        while True:  # by a timetable: what stalls the loop for 100 ms makes ten of them late
            due += 0.01
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            late.append(time.perf_counter() - due)

    async def watched() -> AsyncGenerator[Fetched, None]:
        watching = asyncio.create_task(watch())
        async for image in stream_images(links, options, stats, evidence=Evidence(), net=net):
            yield image
        watching.cancel()

    stats = Stats()
    raise_open_file_limit(options.connections)
    with tempfile.TemporaryDirectory() as folder:
        parcel = write_parcel(
            async_thread.iterate_in_thread(watched, ahead=8), SHARD, Path(folder), stats=stats
        )
    percentiles = statistics.quantiles(late, n=1000)
    return {
        "kept": parcel.images,
        "p50": percentiles[499] * 1000,
        "p99": percentiles[989] * 1000,
        "p99.9": percentiles[998] * 1000,
    }


def requests(*work: int) -> Found:
    """Fetch all images by aiohttp alone, and keep none."""
    job = Work(*work)

    async def fetch_all() -> int:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            turn = asyncio.Semaphore(job.connections)

            async def one(number: int) -> bool:
                async with turn, client.get(f"{job.place}/{number}") as answer:
                    return bool(await answer.read())

            return sum(await asyncio.gather(*map(one, range(job.images))))

    return {"kept": asyncio.run(fetch_all())}


def floor(work: Work, folder: Path, options: argparse.Namespace) -> Found:
    """Print what the parts take by themselves; return the least that a client can take."""
    settings = Download(resize=work.side, min_bytes=0)

    def decode(data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as image:
            scale = min(1.0, work.side / min(image.size))
            size = [max(1, round(n * scale)) for n in image.size]
            image.draft("RGB" if work.side else "L", size)
            image.load()
            return resize_picture(image, (size[0], size[1])) if work.side else image

    def process(data: bytes) -> None:
        picture = decode(data)
        if work.side:
            picture.save(io.BytesIO(), "JPEG", quality=settings.resize_quality)
        for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
            digest(data)

    def each(does: Callable[[bytes], object]) -> float:
        taken = 0.0
        for path in paths:
            data = path.read_bytes()
            start = time.process_time()
            does(data)
            taken += time.process_time() - start
        return taken / len(paths) * 1000

    paths = list(folder.iterdir())
    start = apart(requests, *work._replace(images=1), small=options.small)["cpu"]
    asked = apart(requests, *work, small=options.small)["cpu"]
    parts = {
        "requests by aiohttp": (asked - start) / work.images * 1000,
        "decoding and the like": each(process),
        "our validation": each(lambda data: validate_image(data, settings)),
    }
    for name, taken in parts.items():
        print(f"  {name:22}{taken:12.2f}")
    return {"floor": parts["requests by aiohttp"] + parts["decoding and the like"]}


def peer(home: Path, work: Work) -> Found:
    """img2dataset at its best setting: 256 threads in each of two processes."""
    resized = ["--image_size", str(work.side), "--resize_mode", "keep_ratio"]
    resized += ["--resize_only_if_bigger", "True"]
    with tempfile.TemporaryDirectory() as folder:
        urls = Path(folder) / "urls.txt"
        urls.write_text("".join(f"{work.place}/{number}\n" for number in range(work.images)))
        used = measured(
            [
                *(*downloader(home), "--url_list", urls, "--output_folder", f"{folder}/out"),
                *("--number_sample_per_shard", max(1, work.images // 2)),
                *(resized if work.side else ["--resize_mode", "no", "--skip_reencode", "True"]),
            ]
        )
        stats = [json.loads(path.read_text()) for path in Path(folder).glob("out/*_stats.json")]
        return {**used, "kept": sum(each["successes"] for each in stats)}


def downloader(home: Path) -> list[object]:
    """The peer's command, in an environment of its own that is made when it is first needed."""
    python = venv(home / "img2dataset", "img2dataset==1.47.0", "setuptools<81")
    return [
        *(python, python.with_name("img2dataset"), "--processes_count", 2, "--thread_count", 256),
        *("--output_format", "webdataset", "--enable_wandb", "False"),
    ]


def compare(work: Work, folder: Path, options: argparse.Namespace) -> None:
    """Print what both sides took, by turns."""

    def own(work: Work) -> Found:
        return apart(ours, *work, small=options.small)

    sides: dict[str, Callable[[Work], Found]] = {"cahlib": own}
    if options.peer:
        sides["img2dataset"] = lambda work: peer(options.inputs, work)
    print(f"{'':24}{'CPU s/1,000':>12}{'images/s':>10}{'RSS MiB':>9}{'kept':>7}")
    for side in (256, 0):
        runs: dict[str, list[Found]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, run in sides.items():
                start = run(work._replace(side=side, images=1))["cpu"]
                used = run(work._replace(side=side))
                assert name != "cahlib" or used["kept"] == work.images, used
                used["cpu"] = (used["cpu"] - start) / work.images * 1000
                used["rate"] = work.images / used["wall"]
                runs[name].append(used)
        figures: dict[str, Found] = {}
        for name, each in runs.items():
            cpu, rate, rss, kept = (
                statistics.median(used[what] for used in each)
                for what in ("cpu", "rate", "rss", "kept")
            )
            label = f"{name}, {f'{side} px' if side else 'originals'}"
            print(f"{label:24}{cpu:12.2f}{rate:10.0f}{rss:9.0f}{kept:7.0f}")
            figures[name] = {"cpu": cpu, "rate": rate, "mib": rss}
        kind = f"{'-https' if work.https else ''}{'-asked' if CONSENT == 'strict' else ''}"
        both = beside(figures["cahlib"], figures.get("img2dataset"))
        if options.peer:
            pairs = zip(runs["img2dataset"], runs["cahlib"], strict=True)
            ratios = sorted(theirs["cpu"] / ours["cpu"] for theirs, ours in pairs)
            print(f"  per CPU second, {' … '.join(f'{ratio:.2f}' for ratio in ratios)} times")
        both |= floor(work._replace(side=side), folder, options)
        note(f"images{kind}-{side or 'originals'}", **both)


def lateness(work: Work, options: argparse.Namespace) -> None:
    """Print how late our event loop is."""
    print(
        f"\n{'':32}{'lag of the loop, ms: p50':>24}{'p99':>7}{'p99.9':>7}{'RSS MiB':>9}{'kept':>7}"
    )
    for side in (256, 0):
        for connections in sorted({options.connections, options.most}):
            job = work._replace(side=side, connections=connections)
            late = [apart(lag, *job, small=options.small) for _ in range(options.rounds)]
            assert {each["kept"] for each in late} == {work.images}, late
            p50, p99, rare, rss, kept = (
                statistics.median(used[what] for used in late)
                for what in ("p50", "p99", "p99.9", "rss", "kept")
            )
            label = f"{connections} connections, {f'{side} px' if side else 'originals'}"
            print(f"{label:32}{p50:24.1f}{p99:7.1f}{rare:7.1f}{rss:9.0f}{kept:7.0f}")
    print("wanted at 512 connections: p99 of at most 50 ms, RSS of at most 200 MiB")


def main(arguments: Sequence[str]) -> None:
    made = parser(
        __doc__, arguments, peer=True,
        images=(2000, 8), rounds=(3, 1), connections=(256, 16), most=(512, 16),
    )  # fmt: skip
    made.add_argument("--mix", choices=["jpeg", "web"], default="jpeg")
    made.add_argument("--https", action="store_true")
    options = made.parse_args(arguments)
    folder = pictures(options.inputs, options.images, options.mix)
    with trusted(options.https) as certificate, web(folder, certificate) as port:
        work = Work(port, options.images, 0, options.connections, options.https)
        compare(work, folder, options)
        lateness(work, options)


if __name__ == "__main__":
    main(sys.argv[1:])
