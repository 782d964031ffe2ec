"""A shard to a dataset by `cah run`, against img2dataset, clip-retrieval and a threshold.

    python -m tests.benchmarks.bench_whole [--links 1000] [--rounds 1] [--no-peer]

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
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from cahlib import demo
from tests.benchmarks import bench_images, bench_judge
from tests.benchmarks.bench_images import BENCH
from tests.benchmarks.bench_memory import crawl

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

Found = dict[str, Any]


def ours(port: int, wat: Path, weights: Path, folder: Path) -> Found:
    """`cah run`, and what came of it."""
    options = {
        "crawl": wat,
        "output": folder / "out",
        "replay": f"127.0.0.1:{port}",
        "consent": "headers",
        "model": "ViT-B-32-quickgelu",
        "pretrained": weights,
        "threshold": -1,
        "safety": demo.SAFETY,
        "per-second": 0,
        "workers": 1,
    }
    line = [f"--{name}={value}" for name, value in options.items()]
    used = measured([sys.executable, "-m", "cahlib.cli", "run", *line])
    tables = [pq.read_table(path) for path in (folder / "out" / "metadata").iterdir()]
    rows = [row for table in tables for row in table.to_pylist()]
    return {**used, "pairs": {row["TEXT"]: row["similarity"] for row in rows}}


def peer(port: int, links: int, weights: Path, folder: Path) -> Found:
    """The steps of the peers one after the other; time and CPU are sums, memory the greatest."""
    table = folder / "links.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows(listed(port, links))
    images, out = folder / "images", folder / "embeddings"
    python = bench_judge.peer()
    downloader = [bench_images.venv() / "bin" / name for name in ("python", "img2dataset")]
    steps = [
        [
            *(*downloader, "--url_list", table, "--input_format", "csv", "--caption_col"),
            *("caption", "--output_folder", images, "--output_format", "webdataset"),
            *("--processes_count", 2, "--thread_count", 256, "--enable_wandb", "False"),
            *("--number_sample_per_shard", max(1, links // 2)),
            *("--resize_mode", "no", "--skip_reencode", "True"),
        ],
        [python, "-c", INFER, f"{images}/{{00000..00001}}.tar", weights, out],
        [python, "-c", COMPARE, out],
    ]
    used = [measured(step) for step in steps]
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
        text = f"A picture of the house with number {number} in our street"
        yield f"http://127.0.0.1:{port}/{number}", text


def measured(command: list[Any]) -> Found:
    """Run a program: seconds, CPU seconds (its own, and with its children's), most MiB."""
    quiet = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    start, memory, own, status = time.perf_counter(), 0, 0.0, None
    with tempfile.TemporaryFile("w+") as said:
        line = [str(part) for part in command]
        run = subprocess.Popen(line, stdout=said, stderr=said, env=quiet)
        watched = psutil.Process(run.pid)
        while status is None:
            with suppress(psutil.NoSuchProcess):
                own = sum(watched.cpu_times()[:2])
                memory = max(memory, sum(map(share, [watched, *watched.children(recursive=True)])))
            time.sleep(0.3)
            ended, code, used = os.wait4(run.pid, os.WNOHANG)
            status = code if ended else None
        run.returncode = status
        if status:
            said.seek(0)
            raise SystemExit(said.read())
    wall, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    return {"wall": wall, "cpu": cpu, "own": own, "memory": memory >> 20}


def share(process: psutil.Process) -> int:
    """A process's proportional share of the memory that it and others use, bytes."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true")
    scale = parser.add_argument_group("assumptions about a swarm")
    scale.add_argument("--cores", type=int, default=2)
    scale.add_argument("--connections", type=int, default=256)
    scale.add_argument("--seconds", type=float, default=2.0, help="a link, on the real web")
    scale.add_argument("--arrived", type=float, default=0.7, help="share of links with an image")
    scale.add_argument("--kept", type=float, default=0.07, help="share of links that become pairs")
    scale.add_argument("--euros", type=float, default=0.01, help="a node's hour with its IPv4")
    scale.add_argument("--gpu", type=int, default=500, help="images a second on one GPU")
    options = parser.parse_args()
    folder, weights = BENCH / f"images-jpeg-{options.links}", BENCH / "judge" / "random.pt"
    if not folder.exists():
        bench_images.make(folder, options.links, "jpeg")
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        bench_judge.weights(weights)
    if not options.no_peer:
        bench_images.venv(), bench_judge.peer()
    rounds: list[tuple[Found, Found | None]] = []
    with bench_images.web(folder) as port:
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as work:
                wat = crawl(Path(work) / "bench.warc.wat.gz", options.links)
                own = ours(port, wat, weights, Path(work))
                other = None
                if not options.no_peer:
                    other = peer(port, options.links, weights, Path(work))
                rounds.append((own, other))
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
    at_scale(
        options, statistics.median((one["cpu"] - one["own"]) for one, _ in rounds) / options.links
    )


if __name__ == "__main__":
    main()
