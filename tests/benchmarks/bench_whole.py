"""A shard to a dataset by `cah run`, against img2dataset, clip-retrieval and a threshold.

    python -m tests.benchmarks.bench_whole [--links 1000] [--rounds 1] [--no-peer] [--small]

A WAT whose links lead to JPEGs of 10 to 300 kB on a loopback web becomes originals in tars with
their embeddings, by ViT-B/32 with random weights on the CPU; every pair is kept, so that all stages
have all the work there can be. Ours reads the WAT and does everything that it does by default, but
does not ask the 200 made-up hosts for their wishes (``--consent headers``). The peers, at their
best settings, get links and texts as a list and do their two steps one after the other, and a few
lines of numpy compare. Random weights see minors everywhere, so the safety categories are those of
the demo, which seek nothing. Wall-clock counts from the first start to the last end. Memory is the
greatest sum of the processes' proportional shares (PSS). Both must keep the same pairs.

Below it what the measured costs mean at scale, by the assumptions it prints.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from cahlib import demo
from tests.benchmarks import bench_images, bench_judge, inputs
from tests.benchmarks.common import CAH, Found, beside, note, parser, watched

#: Both sides compare within this.
TOLERANCE = 1e-3

#: A peer's last step: the cosines of all pairs, in the order of its files.
COMPARE = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
out = Path(sys.argv[1])
for image, text, rows in zip(*(sorted(out.glob(f"{part}/*")) for part in
                               ("img_emb", "text_emb", "metadata"))):
    one, two = (np.load(each).astype("float32") for each in (image, text))
    table = pd.read_parquet(rows)
    table["similarity"] = (one * two).sum(axis=1)
    table[table.similarity >= -1].to_parquet(out / f"kept_{rows.name}")
"""
#: Its second step; the weights are a file of ours.
INFER = """
import sys
from clip_retrieval import clip_inference
clip_inference(sys.argv[1], sys.argv[3], input_format="webdataset", num_prepro_workers=1,
               batch_size=32, wds_number_file_per_input_file=1000, use_jit=False,
               clip_cache_path=None, clip_model="open_clip:ViT-B-32-quickgelu/" + sys.argv[2])
"""


def run(
    port: int, wat: Path, folder: Path, *, small: bool, model: str | Path, weights: Path | str = ""
) -> Found:
    """`cah run` on a crawl that leads to this port, what it took, and the pairs that came of it."""
    options = {
        "crawl": wat,
        "output": folder / "out",
        "replay": f"127.0.0.1:{port}",
        "consent": "headers",
        "model": model,
        "pretrained": weights,
        "threshold": -1,
        "safety": demo.SAFETY,
        "per-second": 0,
        "workers": 1,
    }
    line = [f"--{name}={value}" for name, value in options.items()]
    used = watched([*CAH, "run", *line], small=small)
    tables = [pq.read_table(path) for path in (folder / "out" / "metadata").iterdir()]
    rows = [row for table in tables for row in table.to_pylist()]
    return {**used, "pairs": {row["TEXT"]: row["similarity"] for row in rows}}


def peer(port: int, weights: Path, folder: Path, options: argparse.Namespace) -> Found:
    """The steps of the peers one after the other; time and CPU are sums, memory the greatest."""
    table, links = folder / "links.csv", options.links
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows(listed(port, links))
    images, out = folder / "images", folder / "embeddings"
    python = bench_judge.peer(options.inputs)
    steps = [
        [
            *(*bench_images.downloader(options.inputs), "--url_list", table, "--input_format"),
            *("csv", "--caption_col", "caption", "--output_folder", images),
            *("--number_sample_per_shard", max(1, links // 2)),
            *("--resize_mode", "no", "--skip_reencode", "True"),
        ],
        [python, "-c", INFER, f"{images}/{{00000..00001}}.tar", weights, out],
        [python, "-c", COMPARE, out],
    ]
    used = [watched(step) for step in steps]
    rows = [row for path in out.glob("kept_*") for row in pq.read_table(path).to_pylist()]
    return {
        "wall": sum(each["wall"] for each in used),
        "cpu": sum(each["cpu"] for each in used),
        "memory": max(each["memory"] for each in used),
        "steps": [each["wall"] for each in used],
        "pairs": {row["caption"]: row["similarity"] for row in rows},
    }


def listed(port: int, links: int) -> Iterator[tuple[str, str]]:
    """The links of the WAT as a list, straight to the server."""
    for number in range(links):
        yield f"http://127.0.0.1:{port}/{number}", inputs.text(number)


def same(one: dict[str, float], other: dict[str, float]) -> str:
    """How well the pairs of both sides agree; ends the benchmark where they do not."""
    if one.keys() != other.keys():
        raise SystemExit(f"{len(one.keys() ^ other.keys())} pairs are on one side only.")
    apart = max(abs(one[text] - other[text]) for text in one)
    if apart > TOLERANCE:
        raise SystemExit(f"A similarity differs by {apart:.4f}.")
    return f"the same {len(one):,} pairs, similarities within {apart:.5f}"


def at_scale(options: argparse.Namespace, scraped: float) -> None:
    """What swarms would bring; ``scraped`` is a core's measured CPU seconds for a link."""
    cpu, sockets = options.cores / scraped, options.connections / options.seconds
    rate = min(cpu, sockets)
    print(
        f"\nA node of {options.cores} cores could scrape {cpu:.0f} links/s by its CPU and "
        f"{sockets:.0f} by {options.connections} connections of {options.seconds:g} s a link;\n"
        f"{options.kept:.1%} of the links become pairs, {options.arrived:.0%} images to judge; "
        f"a node costs {options.euros:g} EUR an hour, a GPU judges {options.gpu} images/s."
    )
    print(f"{'nodes':>6}{'links/s':>10}{'pairs a day':>14}{'EUR a million pairs':>21}{'GPUs':>6}")
    for nodes in (20, 100, 1000):
        links = nodes * rate
        pairs = links * options.kept
        euros = nodes * options.euros / (pairs * 3600) * 1e6
        gpus = -(-links * options.arrived // options.gpu)
        print(f"{nodes:6}{links:10,.0f}{pairs * 86_400:14,.0f}{euros:21.2f}{gpus:6.0f}")


def compare(options: argparse.Namespace) -> list[tuple[Found, Found | None]]:
    """What both sides took, by turns."""
    folder = inputs.pictures(options.inputs, options.links)
    weights = inputs.weights(options.inputs, options.model)
    if options.peer:  # its environments are not to be made while the server waits
        bench_images.downloader(options.inputs), bench_judge.peer(options.inputs)
    rounds: list[tuple[Found, Found | None]] = []
    with inputs.web(folder) as port:
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as work:
                wat = inputs.crawl(Path(work) / "bench.warc.wat.gz", options.links)
                own = run(
                    port, wat, Path(work),
                    small=options.small, model=options.model, weights=weights,
                )  # fmt: skip
                assert len(own["pairs"]) == options.links, own
                other = peer(port, weights, Path(work), options) if options.peer else None
                rounds.append((own, other))
    return rounds


def main(arguments: Sequence[str]) -> None:
    models = (bench_judge.MODEL, inputs.TINY)
    made = parser(__doc__, arguments, peer=True, links=(1000, 8), rounds=(1, 1), model=models)
    scale = made.add_argument_group("assumptions about a swarm")
    scale.add_argument("--cores", type=int, default=2)
    scale.add_argument("--connections", type=int, default=256)
    scale.add_argument("--seconds", type=float, default=2.0, help="a link, on the real web")
    scale.add_argument("--arrived", type=float, default=0.7, help="share of links with an image")
    scale.add_argument("--kept", type=float, default=0.07, help="share of links that become pairs")
    scale.add_argument("--euros", type=float, default=0.01, help="a node's hour with its IPv4")
    scale.add_argument("--gpu", type=int, default=500, help="images a second on one GPU")
    options = made.parse_args(arguments)
    rounds = compare(options)
    print(f"{'':28}{'s':>7}{'links/s':>9}{'pairs/s':>9}{'CPU s/1,000 pairs':>19}{'MiB':>7}")
    for name, runs in (
        ("cah run", [one for one, _ in rounds]),
        ("peers", [two for _, two in rounds]),
    ):
        for found in filter(None, runs):
            pairs = len(found["pairs"])
            print(
                f"{name:28}{found['wall']:7.1f}{options.links / found['wall']:9.1f}"
                f"{pairs / found['wall']:9.1f}{found['cpu'] / pairs * 1000:19.1f}"
                f"{found['memory']:7}"
            )
    for own, other in rounds:
        scraped = (own["cpu"] - own["own"]) / len(own["pairs"]) * 1000
        judged = own["own"] / len(own["pairs"]) * 1000
        stage = "scraping" if scraped > judged else "judging"
        print(
            f"ours, CPU s/1,000 pairs: scraping {scraped:.1f}, judging and writing {judged:.1f}:"
            f" {stage} is the bottleneck"
        )
        if other:
            steps = ", ".join(f"{each:.1f}" for each in other["steps"])
            print(
                f"{other['wall'] / own['wall']:.2f} times as fast as the peers, whose steps take "
                f"{steps} s; {same(own['pairs'], other['pairs'])}"
            )
    sides = [
        {
            **{what: statistics.median(run[what] for run in runs) for what in ("wall", "cpu")},
            "gib": statistics.median(run["memory"] for run in runs) / 1024,
        }
        for runs in zip(*rounds, strict=True)
        if all(runs)
    ]
    note("whole", **beside(sides[0], sides[1] if sides[1:] else None))
    at_scale(
        options, statistics.median((one["cpu"] - one["own"]) for one, _ in rounds) / options.links
    )


if __name__ == "__main__":
    main(sys.argv[1:])
