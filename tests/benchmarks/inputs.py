"""What the benchmarks work on: pictures and a web of them, a crawl that leads there, models."""

from __future__ import annotations

import asyncio
import io
import json
import random
import ssl
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from cahlib.core.config import Download
from cahlib.core.records import Candidate
from cahlib.core.records import Image as Fetched
from cahlib.demo import wat
from cahlib.image.validate import validate_image
from tests.benchmarks.common import kept, serving
from tests.world.pictures import candidate

#: Hosts that links lead to.
HOSTS = 200

#: Links on each page of a crawl.
_A_PAGE = 20

#: Images; links beyond that lead to the same bytes on other hosts.
_DIFFERENT = 1000

_WORDS = (
    "a the of in with and photo image black white red blue house garden beach woman man dog cat "
    "vintage modern wooden table kitchen design wedding summer 2019 new york city car engine "
    "leather shoes dress logo vector illustration map chart recipe chicken salad mountain sunset"
).split()

#: A model of a few layers that reads open_clip's whole vocabulary.
TINY, TINY_SIDE = "tiny-vit", 32
_TINY = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": TINY_SIDE,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def pictures(folder: Path, count: int, mix: str = "jpeg") -> Path:
    """A folder of so many images, made when it is first needed."""
    return kept(folder / f"images-{mix}-{count}", partial(_draw, count=count, mix=mix))


def _draw(folder: Path, count: int, mix: str) -> None:
    """Cut pictures out of a few canvases that compress like photos, each near a size of its own."""
    folder.mkdir()
    for number in range(count):
        rng = random.Random(number)
        wanted = rng.uniform(12_000, 300_000)
        shares = [85, 10, 5] if mix == "web" else [1, 0, 0]
        kind, bits = rng.choices([("jpg", 2.2), ("png", 14), ("webp", 1.3)], shares)[0]
        height = int((wanted * 8 / bits / 1.3) ** 0.5)
        width = int(height * 1.3)
        x, y = rng.randrange(1800 - width), rng.randrange(1400 - height)
        image = _canvas(rng.choice(range(8))).crop((x, y, x + width, y + height))
        out = io.BytesIO()
        if kind == "jpg":
            progressive = mix == "web" and rng.random() < 0.2
            image.save(out, "JPEG", quality=rng.randrange(75, 90), progressive=progressive)
        else:
            image.save(out, kind.upper(), quality=75)
        (folder / f"{number}.{kind}").write_bytes(out.getvalue())


@cache
def _canvas(seed: int) -> Image.Image:
    """Clouds of several scales, things with edges, and grain."""
    rng, size = random.Random(seed), (1800, 1400)
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


def text(number: int) -> str:
    """What stands beside an image."""
    return f"A picture of the house with number {number} in our street"


def link(number: int, different: int = _DIFFERENT) -> str:
    """Where an image is; each has an address of its own."""
    return f"http://host{number // different}-{number % HOSTS}.com/{number % different}"


def wat_file(name: str, links: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """A WAT of pages with these links to images and their texts, in pieces."""
    yield wat.warcinfo(name)
    every = [{"path": "IMG@/src", "url": url, "alt": alt} for url, alt in links]
    for start in range(0, len(every), _A_PAGE):
        url = f"http://page{start}-{name}.com/"
        shown = every[start : start + _A_PAGE]
        yield from wat.members(wat.DemoPage(url=url, title="Houses", links=shown))


def crawl(path: Path, links: int, different: int = _DIFFERENT) -> Path:
    """A WAT file whose links lead to `pictures`, each with a text of its own."""
    every = ((link(number, different), text(number)) for number in range(links))
    path.write_bytes(b"".join(wat_file("bench", every)))
    return path


def serve(folder: str, certificate: str = "", address: str = "127.0.0.1", pause: float = 0) -> None:
    """Answer ``/<number>`` with that image for ever, after a pause; print the port first.

    A folder with one image is a web on which each address leads to it.
    """
    types = {".jpg": "jpeg", ".png": "png", ".webp": "webp"}
    answers, absent = {}, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    for path in Path(folder).iterdir():
        body = path.read_bytes()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/{types[path.suffix]}\r\n"
        answers[path.stem] = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    if len(answers) == 1:
        (absent,) = answers.values()

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.seen = transport, b""

        def data_received(self, data: bytes) -> None:
            self.seen += data
            while b"\r\n\r\n" in self.seen:
                request, self.seen = self.seen.split(b"\r\n\r\n", 1)
                wanted = request.split(b" ", 2)[1].decode().strip("/")
                answer = answers.get(wanted, absent)
                if pause:
                    loop = asyncio.get_running_loop()
                    loop.call_later(pause, self.transport.write, answer)
                else:
                    self.transport.write(answer)

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        tls = None
        if certificate:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(certificate)
        server = await loop.create_server(Connection, address, 0, backlog=1024, ssl=tls)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def web(
    folder: Path, certificate: str = "", *, address: str = "127.0.0.1", pause: float = 0
) -> Iterator[int]:
    """`serve` in a process of its own; its port."""
    with serving(serve, folder, certificate, address, pause) as port:
        yield int(port)


def candidates(count: int, scheme: str = "http") -> Iterator[Candidate]:
    """Links to `pictures` as the scraper has them."""
    for number in range(count):
        yield candidate(f"{scheme}://host{number % HOSTS}.example/{number}", number, text(number))


def fetched(candidate: Candidate, data: bytes, **options: int) -> Fetched:
    """An image as the scraper hands it on: what its own checks say of the bytes."""
    proven = validate_image(data, Download(min_bytes=0, **options))
    assert isinstance(proven, dict), proven
    return Fetched(candidate=candidate, robots="", **proven)


def drawn(count: int, least: int = 300, most: int = 900) -> Iterator[tuple[bytes, str]]:
    """JPEGs with sides of so many pixels, and texts with as many words as alt texts have."""
    chance = random.Random(0)
    for number in range(count):
        size = chance.randrange(least, most), chance.randrange(least, most)
        rough = Image.frombytes("RGB", (24, 24), chance.randbytes(24 * 24 * 3))
        grain = Image.frombytes("RGB", (150, 150), chance.randbytes(150 * 150 * 3))
        picture = Image.blend(rough.resize(size), grain.resize(size), 0.2)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        words = 60 if number % 40 == 0 else min(2 + int(chance.expovariate(1 / 8)), 40)
        yield file.getvalue(), " ".join(chance.choices(_WORDS, k=words))


def webdatasets(tars: list[Path], samples: Iterable[tuple[bytes, str]]) -> None:
    """Samples as WebDataset tars of ``<number>.jpg`` and ``<number>.txt``, by turns."""
    opened = [tarfile.open(tar, "w") for tar in tars]
    for number, (data, text) in enumerate(samples):
        for name, what in ((f"{number:06}.jpg", data), (f"{number:06}.txt", text.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(what)
            opened[number % len(tars)].addfile(info, io.BytesIO(what))
    for tar in opened:
        tar.close()


def weights(folder: Path, model: str) -> Path:
    """A file of a model's weights as they are before training, always the same."""

    def make(path: Path) -> None:
        import open_clip
        import torch

        torch.manual_seed(0)
        torch.save(open_clip.create_model(model).state_dict(), path)

    if model == TINY:
        import open_clip

        config = kept(folder / f"{TINY}.json", lambda path: path.write_text(json.dumps(_TINY)))
        open_clip.add_model_config(config)
    return kept(folder / f"{model}.pt", make)
