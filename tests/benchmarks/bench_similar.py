"""Find images that mean the same among a million of embeddings: time, memory and recall.

    python -m tests.benchmarks.bench_similar [--rows 1000000] [--width 512] [--small]

The embeddings are those of a dataset of many shards: around some thousand directions, a fifth of
them near another one with a cosine of 0.94 to 1. Recall is estimated from a sample of those that
stay, each compared with all better ones that stay: how many have one within the threshold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cahlib.dataset.maintain.similar import find_similar
from cahlib.dataset.vectors import StoredVectors, VectorFile, unit_rows
from tests.benchmarks.common import Found, apart, kept, note, parser

THRESHOLD, SHARD, SAMPLE = 0.95, 5000, 2000


def make(folder: Path, rows: int, width: int) -> None:
    """Write the embeddings, shard by shard."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    mean = unit_rows(chance.normal(size=(1, width)).astype("f4"))
    topics = chance.normal(size=(max(100, rows // 50), width)).astype("f4")
    before = np.empty((0, width), "f4")
    for low in range(0, rows, SHARD):
        count = min(SHARD, rows - low)
        made = 0.8 * topics[chance.integers(0, len(topics), count)]
        made = unit_rows(made + chance.normal(size=made.shape).astype("f4"))
        made = unit_rows(0.8 * made + 0.6 * mean)  # those of CLIP have much in common
        if len(before):
            copies = chance.permutation(count)[: count // 5]
            noise = unit_rows(chance.normal(size=(len(copies), width)).astype("f4"))
            cosine = chance.uniform(0.94, 1, (len(copies), 1)).astype("f4")
            of = before[chance.integers(0, len(before), len(copies))]
            made[copies] = of * cosine + noise * np.sqrt(1 - cosine**2)
        np.save(folder / f"{low:09}.npy", made.astype("f2"))
        before = np.concatenate([before, made[:100]])


def opened(folder: Path) -> StoredVectors:
    """Return them as a dataset has them."""
    files = sorted(folder.glob("*.npy"))
    each = [VectorFile(f.stem, len(np.load(f, mmap_mode="r")), folder, f.name) for f in files]
    return StoredVectors(each, "bench/none")


def find(folder: str, exact: int) -> Found:
    """Find them; and how many of a sample were missed."""
    vectors = opened(Path(folder))
    order = np.random.default_rng(1).permutation(len(vectors))
    started, before = time.perf_counter(), time.process_time()
    found = find_similar(vectors, order, THRESHOLD, exact=exact)
    wall, cpu = time.perf_counter() - started, time.process_time() - before
    peak = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    rank = np.argsort(order)
    stay = np.setdiff1d(order, found.rows)
    sample = np.random.default_rng(2).choice(stay, min(SAMPLE, len(stay)), replace=False)
    asked, missed = vectors.take(sample), np.zeros(len(sample), bool)
    staying = np.zeros(len(vectors), bool)
    staying[stay] = True
    for start, block in vectors.blocks():
        rows = np.arange(start, start + len(block))
        better = staying[rows] & (rank[rows] < rank[sample][:, None])
        missed |= ((asked @ block.T >= THRESHOLD) & better).any(axis=1)
    lost = float(missed.mean()) * len(stay)
    return {
        "removed": len(found.rows), "recall": len(found.rows) / max(1, len(found.rows) + lost),
        "wall": wall, "cpu": cpu, "mib": int(peak[0].split()[1]) / 1024,
    }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    made = parser(__doc__, arguments, rows=(1_000_000, 6000), width=(512, 32))
    options = made.parse_args(arguments)
    folder = kept(
        options.inputs / f"similar-{options.rows}-{options.width}",
        lambda path: make(path, options.rows, options.width),
    )
    # at the smallest size with clusters, too
    found = apart(find, folder, 0 if options.small else 50_000, small=options.small)
    print(
        f"{options.rows:,} embeddings of {options.width}: {found['removed']:,} removed in "
        f"{found['wall']:.0f} s, {found['cpu']:.0f} CPU s, {found['mib']:.0f} MiB with mapped "
        f"files; recall {found['recall']:.2%}"
    )
    note("similar", **{what: found[what] for what in ("recall", "wall", "cpu", "mib")})


if __name__ == "__main__":
    main(sys.argv[1:])
