"""How fast tables of links are cut into shards and read, in each format, and in what memory.

    python -m tests.benchmarks.bench_links [--rows 1000000]

Given are, for each format: CPU seconds until the first shard can be leased (all shards are listed
by then) and until all rows are cut and read as a scraper reads them, rows a CPU second, and the
largest resident memory of the process.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.core.config import Crawl
from cahlib.core.records import Stats
from cahlib.crawl.shards import list_shards
from cahlib.crawl.tables.slices import Slices, read_slice
from tests.benchmarks.common import note, parser
from tests.world import tables

#: Rows of a file that are made at a time.
_BATCH = 50_000


def rows(start: int, count: int) -> list[dict[str, Any]]:
    """Rows as LAION's: a link, a caption (one in five with quotes), and a number."""
    return [
        {
            "url": f"https://host{n % 1000}.example.com/images/{n}-some-name-of-it.jpg",
            "text": f'The "old" harbour, number {n}' if n % 5 == 0 else f"A photo of boat {n}",
            "width": n % 4000,
        }
        for n in range(start, start + count)
    ]


def write(path: Path, count: int) -> None:
    """Write a table, batch by batch, if it is not there."""
    if path.exists():
        return
    batches = (rows(start, min(_BATCH, count - start)) for start in range(0, count, _BATCH))
    if path.suffix == ".parquet":
        table = pa.concat_tables([pa.Table.from_pylist(each) for each in batches])
        pq.write_table(table, path)
    else:
        path.write_bytes(tables.FORMATS[path.name.partition(".")[2]]([*_chained(batches)]))


def _chained(batches: Iterator[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for each in batches:
        yield from each


def read(path: str, folder: str) -> str:
    """Cut a table into shards and read them; return the figures, in JSON."""
    crawl, began, count = Crawl(links=(path,)), time.process_time(), 0
    shards = list(list_shards(crawl))
    listed = time.process_time() - began
    slices = Slices(Path(folder))
    for shard in shards:
        settings = slices.cut(shard, crawl, lambda _, error: print(error))
        assert settings
        count += sum(1 for _ in read_slice(shard, settings.links[0], Stats()))
        slices.drop(shard)
    cpu = time.process_time() - began
    # not by getrusage, which counts the parent's memory as well
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return json.dumps({"rows": count, "listed": listed, "cpu": cpu, "memory": memory})


def main(arguments: Sequence[str] = ()) -> None:
    """Print the figures of each format."""
    chosen = parser(__doc__, arguments, rows=(1_000_000, 300)).parse_args(arguments)
    folder = chosen.inputs / "links"
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"mib": 0.0}
    for ending in ("parquet", "csv.gz", "jsonl"):
        path = folder / f"{chosen.rows}.{ending}"
        write(path, chosen.rows)
        if chosen.small:
            found = json.loads(read(str(path), str(folder / "slices")))
        else:  # a process for each: memory is never given back
            with multiprocessing.get_context("spawn").Pool(1) as one:
                found = json.loads(one.apply(read, (str(path), str(folder / "slices"))))
        figures[ending.replace(".", "_")] = found["rows"] / found["cpu"]
        figures["mib"] = max(figures["mib"], found["memory"])
        print(
            f"{ending:8} {found['rows']:>9,} rows: shards listed after {found['listed']:.2f} s, "
            f"{found['rows'] / found['cpu']:,.0f} rows/s of a core, {found['memory']:.0f} MiB"
        )
    note("links", **figures)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
