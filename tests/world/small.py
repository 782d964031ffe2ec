"""Small crawls of a web whose pictures cost nothing: for runs in which something else counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cahlib import demo
from cahlib.core.config import Crawl, Download, Job, Judge, Output, Resources
from cahlib.core.progress import SwarmStatus
from cahlib.demo import wat
from cahlib.demo.web import Answer, Web
from tests.world.pictures import picture

CAPTION = "A photo of the old harbour with boats, number {} of them all"


#: A link that crawls may have again and again: its URL, its text.
SHARED = "http://host0.example.com/shared.jpg", CAPTION.format("again and again, of many")


def file(name: int, links: int, dead: str = "example.com", *, shared: bool = False) -> bytes:
    """A WAT file with so many links in each of its halves, all different from another file's.

    Every seventh link is on the domain ``dead``; with ``shared``, the last one of each half is
    SHARED.
    """
    parts = [wat.warcinfo("small")]
    for half in range(2):
        shown = [
            {
                "path": "IMG@/src",
                "url": f"http://host{number % 7}.{'example.com' if number % 7 else dead}"
                f"/{name}-{half}-{number}.jpg",
                "alt": CAPTION.format(f"{name} {half} {number}"),
            }
            for number in range(links)
        ]
        if shared:
            shown[-1] |= dict(zip(("url", "alt"), SHARED, strict=True))
        parts += wat.members(wat.DemoPage(url=f"http://page{half}.example.com/{name}", links=shown))
    return b"".join(parts)


def write(folder: Path, files: int, links: int, dead: str = "example.com") -> Path:
    """Such files in a folder; says which they are, as a glob."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in range(files):
        (folder / f"{name:05}.warc.wat.gz").write_bytes(file(name, links, dead))
    return folder / "*.warc.wat.gz"


class Pictures(Web):
    """A web on which every address ending in .jpg is one picture."""

    def __init__(self, **place: Any) -> None:
        super().__init__({}, **place)
        self._picture = Answer(body=picture(), type="image/jpeg")
        self._nothing = Answer(status=404)

    def answer(self, request: object) -> Answer:
        return self._picture if str(getattr(request, "url", "")).endswith(".jpg") else self._nothing


def job(crawl: Path, folder: Path, web: Web, **place: float) -> Job:
    """A run of such a crawl that keeps every picture."""
    return Job(
        crawl=Crawl(crawl=str(crawl)),
        download=Download(
            contact="tests@example.org", replay=web.address, per_second=0, max_failures=0,
            connect_timeout=60, read_timeout=60, total_timeout=60,  # nothing hangs in its web
        ),
        judge=Judge(model=str(demo.MODEL), threshold=-1, safety=str(demo.SAFETY)),
        output=Output(output=str(folder)),
        place=Resources(workers=1, **place),  # type: ignore[arg-type]
    )  # fmt: skip


class Here:
    """An engine that does a job where it is asked for its result: no process has to start."""

    slots = 1

    def __init__(self) -> None:
        self._jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...], float]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any, limit: float) -> None:
        self._jobs.append((key, function, arguments, limit))

    def take(self, *, timeout: float) -> tuple[str, Any] | None:
        if not self._jobs:
            time.sleep(0.05)  # asked again at once, the ledger would cost more than all else
            return None
        key, function, arguments, limit = self._jobs.pop(0)
        try:
            return key, function(*arguments, limit=limit, report=lambda told: None)
        except Exception as error:  # noqa: BLE001 - as a worker's comes back
            return key, error

    def reports(self) -> list[Any]:
        return []


@contextmanager
def scraping(
    job: Job, *, stop: threading.Event, swarm_status: SwarmStatus
) -> Iterator[tuple[Here, Path]]:
    """For `cahlib.run.pipeline.run`: scrape in its own process."""
    yield Here(), job.output.folder / "run" / "parcels"
