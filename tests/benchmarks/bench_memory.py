"""The memory of a whole `cah run` on a shard, and on one that is ten times larger.

    python -m tests.benchmarks.bench_memory [--images 1000] [--times 10] [--small]

Both shards lead to the images of `bench_images`, one of its own for each link; the tiny CLIP keeps
them all, so every stage has all the work there can be. Sampled five times a second, of the judging
process and of the largest scraping process.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cahlib import demo
from tests.benchmarks.bench_whole import run
from tests.benchmarks.common import parser
from tests.benchmarks.inputs import crawl, pictures, web


def main(arguments: Sequence[str]) -> None:
    made = parser(__doc__, arguments, images=(1000, 8), times=(10, 1))
    options = made.parse_args(arguments)
    different = min(options.images, 1000)
    folder = pictures(options.inputs, different)
    print(f"{'links':>8}{'pairs':>8}{'s':>7}{'judge MiB':>11}{'scraper MiB':>13}")
    with web(folder) as port, tempfile.TemporaryDirectory() as work:
        for links in sorted({options.images, options.times * options.images}):
            wat = crawl(Path(work) / f"{links}.warc.wat.gz", links, different)
            found = run(port, wat, Path(work) / str(links), small=options.small, model=demo.MODEL)
            pairs = len(found["pairs"])
            assert pairs == links, found
            print(f"{links:8}{pairs:8}{found['wall']:7.0f}{found['rss']:11}{found['child']:13}")


if __name__ == "__main__":
    main(sys.argv[1:])
