"""Candidates to a parcel against img2dataset 1.47: the same URLs from the same loopback web.

    python -m tests.benchmarks.bench_images [--rounds 3] [--images 2000] [--mix web] [--https]
                                            [--connections 256] [--no-peer]

The web is 2,000 images of 10 to 300 kB on 200 hosts, made from a seed: baseline JPEGs, or (mix
"web") 85 % JPEG, a fifth of them progressive, 10 % PNG, 5 % WebP. Both sides keep all of them in
tars, as 256 px JPEGs or as they are. With --https each host has a certificate by an authority made
for this run, which both sides trust. CPU seconds are those of the client and its children, less
those of a run with a single image; the server is a process of its own.

Below both stands what no client that proves its images by decoding can go below: the decoding
alone, at the scale that is needed, by the library that both use (libjpeg-turbo for JPEG); and the
whole gate without any network: decoding, shrinking, encoding and three hashes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import trustme
from PIL import Image, ImageDraw, ImageFilter

from cahlib.config import Download
from cahlib.records import Candidate, Evidence, Shard, Tally
from cahlib.records import Image as Fetched
from cahlib.scrape import addresses, bridge
from cahlib.scrape.gate import prove
from cahlib.scrape.images import allow_sockets, stream
from cahlib.scrape.images import images as fetch
from cahlib.scrape.parcel import seal

BENCH = Path(__file__).parent.parent.parent / ".bench"
HOSTS = 200
#: headers: no host is asked for its robots.txt and tdmrep.json first.
CONSENT = os.environ.get("CAH_CONSENT", "strict")
PEER = ["img2dataset==1.47.0", "setuptools<81"]


def make(folder: Path, count: int, mix: str) -> None:
    """Cut pictures out of a few canvases that compress like photos, each near a size of its own."""
    folder.mkdir(parents=True)
    canvases = [canvas(random.Random(seed)) for seed in range(8)]
    for number in range(count):
        rng = random.Random(number)
        wanted = rng.uniform(12_000, 300_000)
        shares = [85, 10, 5] if mix == "web" else [1, 0, 0]
        kind, bits = rng.choices([("jpg", 2.2), ("png", 14), ("webp", 1.3)], shares)[0]
        height = int((wanted * 8 / bits / 1.3) ** 0.5)
        width = int(height * 1.3)
        x, y = rng.randrange(1800 - width), rng.randrange(1400 - height)
        image = rng.choice(canvases).crop((x, y, x + width, y + height))
        out = io.BytesIO()
        if kind == "jpg":
            progressive = mix == "web" and rng.random() < 0.2
            image.save(out, "JPEG", quality=rng.randrange(75, 90), progressive=progressive)
        else:
            image.save(out, kind.upper(), quality=75)
        (folder / f"{number}.{kind}").write_bytes(out.getvalue())


def canvas(rng: random.Random) -> Image.Image:
    """Clouds of several scales, things with edges, and grain."""
    size = (1800, 1400)
    image = Image.new("RGB", size)
    for cells, strength in ((4, 1.0), (16, 0.4), (64, 0.2), (300, 0.12)):
        noise = Image.frombytes("RGB", (cells, cells), rng.randbytes(3 * cells * cells))
        image = Image.blend(image, noise.resize(size, Image.Resampling.BICUBIC), strength)
    draw = ImageDraw.Draw(image)
    for _ in range(200):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        box = (x, y, x + rng.randrange(10, 200), y + rng.randrange(10, 200))
        draw.ellipse(box, fill=tuple(rng.randrange(256) for _ in range(3)))
    grain = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    return Image.blend(image.filter(ImageFilter.GaussianBlur(1)), grain, 0.11)


def serve(folder: Path, certificate: str) -> None:
    """Answer ``/<number>`` with that image for ever; print the port first."""
    answers, absent = {}, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    types = {".jpg": "jpeg", ".png": "png", ".webp": "webp"}
    for path in folder.iterdir():
        body = path.read_bytes()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/{types[path.suffix]}\r\n"
        answers[path.stem] = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.seen = transport, b""

        def data_received(self, data: bytes) -> None:
            self.seen += data
            while b"\r\n\r\n" in self.seen:
                request, self.seen = self.seen.split(b"\r\n\r\n", 1)
                wanted = request.split(b" ", 2)[1].decode().strip("/")
                self.transport.write(answers.get(wanted, absent))

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        tls = None
        if certificate:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(certificate)
        server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024, ssl=tls)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(listen())


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


@contextmanager
def web(folder: Path, certificate: str = "") -> Iterator[int]:
    """The server in a process of its own; its port."""
    command = [sys.executable, __file__, "--serve", str(folder), "--certificate", certificate]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


def candidates(count: int, scheme: str = "http") -> Iterator[Candidate]:
    return (
        Candidate(
            uid=hashlib.md5(str(number).encode()).hexdigest(),
            position=number,
            url=f"{scheme}://host{number % HOSTS}.example/{number}",
            text=f"Image number {number}",
            raw_text=None,
            page="http://host.example/",
            licence="?",
            language="en",
            reliable=True,
            source="alt",
        )
        for number in range(count)
    )


class Work(NamedTuple):
    """What a client is to do."""

    port: int
    images: int
    side: int  #: pixels, 0 for originals
    connections: int
    https: bool

    def fetched(self) -> tuple[Iterator[Candidate], Download, addresses.Net]:
        """Links, settings and network of ours; the name servers are left out, TLS is not."""
        options = Download(
            replay=f"127.0.0.1:{self.port}",
            resize=self.side,
            min_bytes=0,
            per_second=0,
            connections=self.connections,
            consent=CONSENT,
        )
        net = addresses.net(options)
        if self.https:
            net = replace(net, tls=True)
        return candidates(self.images, "https" if self.https else "http"), options, net


def ours(work: Work, folder: Path) -> dict[str, float]:
    """Seal a parcel of all images."""
    tally = Tally()
    links, options, net = work.fetched()
    fetched = fetch(links, options, tally, evidence=Evidence(), net=net)
    parcel = seal(fetched, Shard(id="bench", url="/", half=0), folder, tally=tally)
    return {"kept": parcel.images}


def lag(work: Work, folder: Path) -> dict[str, float]:
    """Seal a parcel as `ours` does, and see how late the event loop of its sockets is meanwhile."""
    late: list[float] = []
    links, options, net = work.fetched()

    async def watch() -> None:
        due = time.perf_counter()
        while True:  # by a timetable: what stalls the loop for 100 ms makes ten of them late
            due += 0.01
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            late.append(time.perf_counter() - due)

    async def watched() -> AsyncGenerator[Fetched, None]:
        watching = asyncio.create_task(watch())
        async for image in stream(links, options, tally, evidence=Evidence(), net=net):
            yield image
        watching.cancel()

    tally, shard = Tally(), Shard(id="bench", url="/", half=0)
    allow_sockets(work.connections)
    parcel = seal(bridge.iterate(watched, ahead=8), shard, folder, tally=tally)
    percentiles = statistics.quantiles(late, n=1000)
    return {
        "kept": parcel.images,
        "p50": percentiles[499] * 1000,
        "p99": percentiles[989] * 1000,
        "p99.9": percentiles[998] * 1000,
    }


def floor(work: Work, folder: Path) -> None:
    """Print what decoding takes by itself, and with all that the gate does."""
    options = Download(resize=work.side, min_bytes=0)

    def decode(data: bytes) -> None:
        with Image.open(io.BytesIO(data)) as image:
            scale = min(1.0, work.side / min(image.size))
            image.draft("RGB" if work.side else "L", [max(1, round(n * scale)) for n in image.size])
            image.load()

    for name, does in (("decoding alone", decode), ("the gate", lambda data: prove(data, options))):
        taken = 0.0
        paths = list(folder.iterdir())
        for path in paths:
            data = path.read_bytes()
            start = time.process_time()
            does(data)
            taken += time.process_time() - start
        print(f"  {name:22}{taken / len(paths) * 1000:12.2f}")


def measured(command: list[str]) -> dict[str, float]:
    """Run a client: what it says in its last line, and what it and its children used."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        said = client.stdout.read()
        _, status, used = os.wait4(client.pid, 0)
        if status:
            errors.seek(0)
            raise SystemExit(errors.read().decode())
    told = json.loads(said.splitlines()[-1]) if said.strip().endswith(b"}") else {}
    return {
        "wall": time.perf_counter() - start,
        "cpu": used.ru_utime + used.ru_stime,
        "rss": used.ru_maxrss / 1024,
        **told,
    }


def own(work: Work, does: str = "--client") -> dict[str, float]:
    return measured([sys.executable, __file__, does, json.dumps(work)])


def peer(work: Work) -> dict[str, float]:
    """img2dataset at its best setting: 256 threads in each of two processes."""
    resized = ["--image_size", str(work.side), "--resize_mode", "keep_ratio"]
    resized += ["--resize_only_if_bigger", "True"]
    place = f"{'https' if work.https else 'http'}://127.0.0.1:{work.port}"
    with tempfile.TemporaryDirectory() as folder:
        urls = Path(folder) / "urls.txt"
        urls.write_text("".join(f"{place}/{number}\n" for number in range(work.images)))
        used = measured(
            [
                *(str(venv() / "bin" / name) for name in ("python", "img2dataset")),
                *("--url_list", str(urls), "--output_folder", f"{folder}/out"),
                *("--output_format", "webdataset", "--enable_wandb", "False"),
                *("--processes_count", "2", "--thread_count", "256"),
                *("--number_sample_per_shard", str(max(1, work.images // 2))),
                *(resized if work.side else ["--resize_mode", "no", "--skip_reencode", "True"]),
            ]
        )
        stats = [json.loads(path.read_text()) for path in Path(folder).glob("out/*_stats.json")]
        return {**used, "kept": sum(each["successes"] for each in stats)}


def venv() -> Path:
    """The peer's own environment, made when it is first needed."""
    folder = BENCH / "img2dataset"
    if not (folder / "bin" / "img2dataset").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", *PEER], check=True)
    return folder


def compare(port: int, folder: Path, options: argparse.Namespace) -> None:
    sides = {"cahlib": own} if options.no_peer else {"cahlib": own, "img2dataset": peer}
    count = options.images
    work = Work(port, count, 256, options.connections, options.https)
    print(f"{'':24}{'CPU s/1,000':>12}{'images/s':>10}{'RSS MiB':>9}{'kept':>7}")
    for side in (256, 0):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, run in sides.items():
                start = run(work._replace(side=side, images=1))["cpu"]
                used = run(work._replace(side=side))
                used["cpu"] = (used["cpu"] - start) / count * 1000
                used["rate"] = count / used["wall"]
                runs[name].append(used)
        for name, each in runs.items():
            cpu, rate, rss, kept = (
                statistics.median(used[what] for used in each)
                for what in ("cpu", "rate", "rss", "kept")
            )
            label = f"{name}, {f'{side} px' if side else 'originals'}"
            print(f"{label:24}{cpu:12.2f}{rate:10.0f}{rss:9.0f}{kept:7.0f}")
        if not options.no_peer:
            pairs = zip(runs["img2dataset"], runs["cahlib"], strict=True)
            ratios = sorted(theirs["cpu"] / ours["cpu"] for theirs, ours in pairs)
            print(f"  per CPU second, {' … '.join(f'{ratio:.2f}' for ratio in ratios)} times")
        floor(work._replace(side=side), folder)
    print(
        f"\n{'':32}{'lag of the loop, ms: p50':>24}{'p99':>7}{'p99.9':>7}{'RSS MiB':>9}{'kept':>7}"
    )
    for side in (256, 0):
        for connections in sorted({options.connections, 512}):
            job = work._replace(side=side, connections=connections)
            late = [own(job, "--lag") for _ in range(options.rounds)]
            p50, p99, rare, rss, kept = (
                statistics.median(used[what] for used in late)
                for what in ("p50", "p99", "p99.9", "rss", "kept")
            )
            label = f"{connections} connections, {f'{side} px' if side else 'originals'}"
            print(f"{label:32}{p50:24.1f}{p99:7.1f}{rare:7.1f}{rss:9.0f}{kept:7.0f}")
    print("wanted at 512 connections: p99 of at most 50 ms, RSS of at most 200 MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--mix", choices=["jpeg", "web"], default="jpeg")
    parser.add_argument("--https", action="store_true")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--no-peer", action="store_true")
    for hidden in ("--serve", "--certificate", "--client", "--lag"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve), options.certificate)
    elif options.client:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(ours(Work(*json.loads(options.client)), Path(folder))))
    elif options.lag:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(lag(Work(*json.loads(options.lag)), Path(folder))))
    else:
        folder = BENCH / f"images-{options.mix}-{options.images}"
        if not folder.exists():
            make(folder, options.images, options.mix)
        with trusted(options.https) as certificate, web(folder, certificate) as port:
            compare(port, folder, options)


if __name__ == "__main__":
    main()
