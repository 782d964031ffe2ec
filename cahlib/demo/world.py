"""The demo's web: pages with pictures and traps, their crawl, and what must become of each link.

Everything is made from the scenes in the package, without chance and without the network:
most scenes have a caption that names them, some have that of another scene. `World.exhibits` is
the truth that a run can be held to; where no trap decides but the model, it is what a model
without fault would say.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from random import Random
from urllib.parse import urljoin

from cahlib.core.records import DropReason
from cahlib.demo import WAT_PATH, captions, wat
from cahlib.demo.traps import Exhibit, Sample, traps
from cahlib.demo.web import Answer, Web

SCENES = Path(__file__).parent / "scenes.tar"
_SEED = 400
_SITES = (
    "animals atlas bakery bazaar cinema garden gazette harbour kitchen library market museum music "
    "news nursery observatory stadium toys travel workshop"
).split()
_PER_PAGE = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A shipped picture of one thing."""

    file: str  #: its extension tells the format
    name: str  #: of the thing
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A crawl and the web that it is of."""

    wat: bytes
    exhibits: Sequence[Exhibit]  #: in the order of the WAT
    unread: Counter[DropReason]  #: records of the WAT that are no page
    answers: Mapping[str, Answer | Sequence[Answer]]  #: by URL

    @contextmanager
    def serve(self, port: int = 0, host: str = "127.0.0.1") -> Iterator[Web]:
        """The web on this machine, with the crawl at `WAT_PATH`."""
        crawl = Answer(body=self.wat, type="application/gzip")
        with Web({WAT_PATH: crawl, **self.answers}, port, host) as web:
            yield web


def scenes() -> list[Scene]:
    """The shipped scenes, in Unicode's order of what they show."""
    with tarfile.open(SCENES) as archive:
        files = {e.name: file.read() for e in archive if (file := archive.extractfile(e))}
    names = json.loads(files.pop("names.json"))
    return [Scene(file=file, name=name, data=files[file]) for file, name in names.items()]


def build() -> World:
    """Make the world; it is the same every time."""
    random = Random(_SEED)
    shown = scenes()
    sites = list(_sites(shown))
    for n, trap in enumerate(traps(_samples(shown), random)):
        sites[n % len(sites)].exhibits.append(trap)
    random.shuffle(sites)
    _repeat(sites)
    sites.insert(3, _refused(shown))
    exhibits = [exhibit for site in sites for exhibit in site.exhibits]
    crawl, unread = _wat(sites)
    answers = {url: answer for each in exhibits for url, answer in each.answers.items()}
    return World(wat=crawl, exhibits=exhibits, unread=unread, answers=answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """A page before it is written: its address, and what hangs on it."""

    url: str
    base: str
    exhibits: list[Exhibit]
    robots: str = ""  #: its meta robots


def _sites(shown: Sequence[Scene]) -> Iterator[_Site]:
    """The pages with their own pictures, some of which have another picture's caption."""
    exhibits = [_exhibit(n, shown) for n in range(len(shown))]
    for site in range(len(_SITES)):
        own = exhibits[site :: len(_SITES)]
        for start in range(0, len(own), _PER_PAGE):
            number = start // _PER_PAGE
            yield _Site(
                url=f"http://{_host(site)}/stories/{number}.html",
                base="/pictures/" if number else "",
                exhibits=own[start : start + _PER_PAGE],
            )


def _refused(shown: Sequence[Scene]) -> _Site:
    """A page whose owner refuses for all its pictures."""
    host = "private.example.org"
    exhibits = [
        replace(each, url=(url := f"http://{host}/{n}.jpg"), reason=DropReason.PAGE_OPTED_OUT,
                answers={url: next(iter(each.answers.values()))})
        for n, each in enumerate(_exhibit(n, shown) for n in (0, 2, 3))
    ]  # fmt: skip
    return _Site(url=f"http://{host}/", base="", exhibits=exhibits, robots="noai, noimageai")


def _exhibit(n: int, shown: Sequence[Scene]) -> Exhibit:
    scene = shown[n]
    swapped = n % 3 == 1
    name = shown[(n + 97) % len(shown)].name if swapped else scene.name
    url = f"http://{_host(n)}/pictures/{scene.file}"
    return Exhibit(
        url=url,
        alt=captions.WEB[n % len(captions.WEB)].format(name=name),
        reason=DropReason.DISSIMILAR if swapped else None,
        answers={url: _sample(n, scene).answer},
    )


def _samples(shown: Sequence[Scene]) -> Iterator[Sample]:
    return cycle(_sample(n, scene) for n, scene in enumerate(shown))


def _sample(n: int, scene: Scene) -> Sample:
    caption = captions.WEB[(n * 5 + 3) % len(captions.WEB)].format(name=scene.name)
    return Sample(data=scene.data, kind=scene.file.rpartition(".")[2], caption=caption)


def _host(n: int) -> str:
    return f"{_SITES[n % len(_SITES)]}.example.{('com', 'net', 'org')[n % len(_SITES) % 3]}"


def _repeat(sites: Sequence[_Site]) -> None:
    """Show some pairs twice on one page, and again in the other half of the crawl."""
    first, last = sites[0].exhibits, sites[-1].exhibits
    again = [replace(each, written="", answers={}) for each in first if each.reason is None][:3]
    first += [replace(each, reason=DropReason.DUPLICATE) for each in again]
    last += [replace(each, reason=DropReason.PAIR_SEEN) for each in again]


def _wat(sites: Sequence[_Site]) -> tuple[bytes, Counter[DropReason]]:
    """The crawl, with some rotten records in it, and the count of what is no page."""
    parts = [wat.warcinfo("demo")]
    for site in sites:
        parts += wat.members(_page(site))
    unread = Counter({DropReason.NOT_A_PAGE: len(parts) - len(sites)})
    paper = {"HTTP-Response-Metadata": {"Headers": {"Content-Type": "application/pdf"}}}
    parts.insert(20, wat.described("http://library.example.org/paper.pdf", "response", paper))
    parts.insert(30, wat.member("metadata", sites[0].url, "application/json", b'{"Envelope":{"Pay'))
    rotten = bytearray(parts[2])
    rotten[len(rotten) // 2 : len(rotten) // 2 + 40] = bytes(40)
    parts.insert(40, bytes(rotten))
    unread += Counter((DropReason.NOT_A_PAGE, DropReason.BROKEN_RECORD, DropReason.BROKEN_MEMBER))
    return b"".join(parts), unread


def _page(site: _Site) -> wat.DemoPage:
    """The page of a shelf, with the other things that pages have."""
    links = [{"path": "A@/href", "url": "/", "text": "Home"}]
    for n, exhibit in enumerate(site.exhibits):
        link = {"path": "IMG@/src", "url": exhibit.written or _spelt(exhibit.url, site, n)}
        links.append(link if exhibit.alt is None else {**link, "alt": exhibit.alt})
    deed = "https://creativecommons.org/licenses/by/4.0/"
    links.append({"path": "A@/href", "url": deed, "text": "CC BY", "rel": "license"})
    metas = [
        {"property": "og:image", "content": f"http://{_host(0)}/pictures/000.jpg"},
        {"property": "og:description", "content": "All the stories that our editors like best"},
    ]
    if site.robots:
        metas.append({"name": "robots", "content": site.robots})
    cookies = {"Set-Cookie": ["a=1", "b=2"], "Content-Type": ["text/html", "text/html"]}
    return wat.DemoPage(
        url=site.url,
        links=links,
        title="Stories",
        metas=metas,
        base=site.base,
        headers=cookies if site.base else {},
    )


def _spelt(url: str, site: _Site, n: int) -> str:
    """An address in one of the ways that pages write it; one of another host stays as it is."""
    here = urljoin(site.url, "/pictures/")
    if not url.startswith(here):
        return url
    file = url.removeprefix(here)
    if site.base:
        return file
    return (url, url.removeprefix("http:"), f"/pictures/{file}", f"../pictures/{file}")[n % 4]
