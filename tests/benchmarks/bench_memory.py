"""The memory of a whole `cah run` on a shard, and on one that is ten times larger.

    python -m tests.benchmarks.bench_memory [--images 1000]

Both shards lead to the images of `bench_images`, one of its own for each link; the tiny CLIP keeps
them all, so every stage has all the work there can be. Sampled five times a second, of the judging
process and of the largest scraping process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

from cahlib import demo
from cahlib.demo import wat
from tests.benchmarks.bench_images import BENCH, make, web

A_PAGE = 20  #: links on each page
DIFFERENT = 1000  #: images; links beyond that come to the same bytes on other hosts


def crawl(path: Path, links: int) -> Path:
    """A WAT of pages with so many links to images, each with a text of its own."""
    with path.open("wb") as file:
        file.write(wat.warcinfo(path.name))
        for page in range(links // A_PAGE):
            shown = [
                {
                    "path": "IMG@/src",
                    "url": f"http://host{number // DIFFERENT}-{number % 200}.com"
                    f"/{number % DIFFERENT}",
                    "alt": f"A picture of the house with number {number} in our street",
                }
                for number in range(page * A_PAGE, (page + 1) * A_PAGE)
            ]
            url = f"http://page{page}.com/"
            file.writelines(wat.members(wat.Page(url=url, title="Houses", links=shown)))
    return path


def measured(port: int, crawl: Path, folder: Path) -> tuple[float, int, int, int]:
    """Seconds of a run, kept pairs, and the largest RSS of the judge and of a scraper in MiB."""
    options = {
        "crawl": crawl,
        "output": folder,
        "replay": f"127.0.0.1:{port}",
        "model": demo.MODEL,
        "threshold": -1,
        "safety": demo.SAFETY,
        "workers": 1,
    }
    line = [f"--{name}={value}" for name, value in options.items()]
    start = time.perf_counter()
    judge = scraper = 0
    with tempfile.TemporaryFile("w+") as said:
        run = psutil.Popen(
            [sys.executable, "-m", "cahlib.cli", "run", *line], stdout=said, stderr=said
        )
        while run.poll() is None:
            judge = max(judge, run.memory_info().rss)
            for child in run.children(recursive=True):
                try:
                    scraper = max(scraper, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.2)
        said.seek(0)
        if run.returncode:
            raise SystemExit(said.read())
        pairs = next(line for line in said if " pairs from " in line).split()[0]
    seconds = time.perf_counter() - start
    return seconds, int(pairs.replace(",", "")), judge >> 20, scraper >> 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    folder = BENCH / f"images-jpeg-{DIFFERENT}"
    if not folder.exists():
        make(folder, DIFFERENT, "jpeg")
    print(f"{'links':>8}{'pairs':>8}{'s':>7}{'judge MiB':>11}{'scraper MiB':>13}")
    with web(folder) as port, tempfile.TemporaryDirectory() as work:
        for links in (options.images, 10 * options.images):
            path = crawl(Path(work) / f"{links}.warc.wat.gz", links)
            seconds, pairs, judge, scraper = measured(port, path, Path(work) / str(links))
            print(f"{links:8}{pairs:8}{seconds:7.0f}{judge:11}{scraper:13}")


if __name__ == "__main__":
    main()
