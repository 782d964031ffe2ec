"""A table of links to a dataset of images by `cah run --links`, against img2dataset.

    python -m tests.benchmarks.bench_tables [--images 4000] [--rounds 3] [--no-peer] [--small]

Both sides are given the same Parquet table of links and captions, which lead to JPEGs of 10 to
300 kB on a loopback web, and write tars and Parquet, at 256 px and as the images were served. Ours
does everything that it does by default without a model, but does not ask the 200 made-up hosts for
their wishes (``--consent headers``); the peer, at its best settings, gets the links straight to the
server. From CPU seconds those of a run with one link a process are subtracted: with a single link,
what the second process imports would count as work. Memory is the greatest sum of the processes'
proportional shares (PSS). Both must keep all rows.

CPU seconds compare only between runs by turns: beside other work the same run takes up to twice as
many, and what a run does each second while it waits counts for more, the longer it takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks import bench_images, inputs
from tests.benchmarks.common import CAH, Found, beside, note, parser, watched

#: Processes of both sides, one a core; each has a shard.
PROCESSES = 2


def table(path: Path, links: Sequence[str]) -> Path:
    """Write a table as LAION's, with these links."""
    texts = [inputs.text(number) for number in range(len(links))]
    pq.write_table(pa.table({"URL": links, "TEXT": texts}), path)
    return path


def ours(port: int, images: int, side: int, options: argparse.Namespace) -> Found:
    """`cah run` on a table, what it took, and the rows it kept."""
    with tempfile.TemporaryDirectory() as folder:
        links = [inputs.link(number) for number in range(images)]
        settings = {
            "links": table(Path(folder) / "links.parquet", links),
            "shard-links": max(1, images // PROCESSES),
            "output": f"{folder}/out",
            "replay": f"127.0.0.1:{port}",
            "consent": "headers",
            "resize": side,
            "per-second": 0,
            "workers": PROCESSES,
        }
        line = [f"--{name}={value}" for name, value in settings.items()]
        used = watched([*CAH, "run", "--no-judge", *line], small=options.small)
        rows = sum(pq.read_metadata(each).num_rows for each in Path(folder).glob("out/metadata/*"))
        return {**used, "kept": rows}


def peer(port: int, images: int, side: int, options: argparse.Namespace) -> Found:
    """img2dataset with as many processes."""
    with tempfile.TemporaryDirectory() as folder:
        links = [f"http://127.0.0.1:{port}/{number % 1000}" for number in range(images)]
        path = table(Path(folder) / "links.parquet", links)
        resized = ["--image_size", side, "--resize_mode", "keep_ratio", "--resize_only_if_bigger"]
        resized += ["True"]
        used = watched(
            [
                *(*bench_images.downloader(options.inputs), "--url_list", path),
                *("--input_format", "parquet", "--url_col", "URL", "--caption_col", "TEXT"),
                *("--output_folder", f"{folder}/out"),
                *("--number_sample_per_shard", max(1, images // PROCESSES)),
                *(resized if side else ["--resize_mode", "no", "--skip_reencode", "True"]),
            ]
        )
        stats = [json.loads(path.read_text()) for path in Path(folder).glob("out/*_stats.json")]
        return {**used, "kept": sum(each["successes"] for each in stats)}


def main(arguments: Sequence[str]) -> None:
    """Print what both sides took, by turns."""
    made = parser(__doc__, arguments, peer=True, images=(4000, 4), rounds=(3, 1))
    options = made.parse_args(arguments)
    folder = inputs.pictures(options.inputs, min(options.images, 2000))
    sides = {"cah run --links": ours}
    if options.peer:
        sides["img2dataset"] = peer
        bench_images.downloader(options.inputs)  # not to be made while the server waits
    print(f"{'':28}{'CPU s/1,000':>12}{'images/s':>10}{'MiB':>7}{'kept':>7}")
    with inputs.web(folder) as port:
        for side in (256, 0):
            figures = {name: Found() for name in sides}
            runs: dict[str, list[Found]] = {name: [] for name in sides}
            for _ in range(options.rounds):
                for name, run in sides.items():
                    start = run(port, PROCESSES, side, options)["cpu"]
                    used = run(port, options.images, side, options)
                    assert used["kept"] == options.images, used
                    counted = options.images - PROCESSES
                    used["cpu"] = (used["cpu"] - start) / counted * 1000
                    used |= {"rate": options.images / used["wall"], "mib": used["memory"]}
                    runs[name].append(used)
            for name, each in runs.items():
                figures[name] = {
                    what: statistics.median(used[what] for used in each)
                    for what in ("cpu", "rate", "mib")
                }
                cpu, rate, mib = figures[name].values()
                label = f"{name}, {f'{side} px' if side else 'originals'}"
                print(f"{label:28}{cpu:12.2f}{rate:10.0f}{mib:7.0f}{options.images:7}")
            found = beside(figures["cah run --links"], figures.get("img2dataset"))
            note(f"tables-{side or 'originals'}", **found)
            if options.peer:
                pairs = zip(runs["img2dataset"], runs["cah run --links"], strict=True)
                ratios = sorted(theirs["cpu"] / ours["cpu"] for theirs, ours in pairs)
                print(f"  per CPU second, {' … '.join(f'{each:.2f}' for each in ratios)} times")


if __name__ == "__main__":
    main(sys.argv[1:])
