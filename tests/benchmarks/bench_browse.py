"""How soon `cah browse` shows a large dataset, and how fast it searches, sorts and filters.

    python -m tests.benchmarks.bench_browse [--pairs 1000000] [--indexed 200000]

The dataset has shards of 3,000 pairs with vectors of 512 numbers, but no pictures. Given are, as a
browser awaits them: seconds until the address is served, until the first page is complete, for the
first search (which copies the vectors) and in the median for further ones with their pairs, for
sorting and filtering all pairs, for a histogram, and the memory beside the mapped files.

Then an index is made for a dataset of its own (`cah browse --index`), whose vectors lie around some
thousand directions: seconds for that, and how many of the ten nearest that brute force finds are
found by it too.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.browse.browsed import BrowsedDataset
from cahlib.browse.server import BrowseSettings, open_browser, serving_page
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifest
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.hashed_file import FileRecord
from tests.benchmarks.common import Found, apart, kept, note, parser
from tests.world import judged

_WIDTH = 512


def make(folder: Path, pairs: int, each: int, *, directions: int = 0) -> None:
    """Write a dataset of so many pairs: one shard by the real writer, the others like it.

    The vectors lie around some directions, or anywhere.
    """
    made = [judged.judged(number, similarity=0.3, format="png") for number in range(20)]
    judged.write_these(folder, made, shard="s-00000", spec=judged.with_forms("embeddings"))
    manifest = read_manifest(folder, "s-00000")
    assert manifest
    table = pq.read_table(folder / part_path("metadata", "s-00000"))
    chance = np.random.default_rng(0)
    (folder / part_path("text_emb", "s-00000")).unlink()
    for number in range(-(-pairs // each)):
        shard, count = f"s-{number:05}", min(each, pairs - number * each)
        rows = table.take(chance.integers(0, len(table), count))
        uids = [chance.bytes(16).hex() for _ in range(count)]
        similar = chance.uniform(0.2, 0.6, count)
        for name, values in (("uid", uids), ("similarity", similar)):
            rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
        paths = {form: part_path(form, shard) for form in ("metadata", "img_emb")}
        pq.write_table(rows, folder / paths["metadata"], row_group_size=1000, compression="zstd")
        vectors = chance.standard_normal((count, _WIDTH), np.float32)
        if directions:
            centres = np.random.default_rng(1).standard_normal((directions, _WIDTH), np.float32)
            vectors += centres[chance.integers(0, directions, count)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(folder / paths["img_emb"], vectors.astype("<f2"))
        files = {
            path: FileRecord(size=(folder / path).stat().st_size, sha256="0" * 64)
            for path in paths.values()
        }
        like = replace(manifest, shard=replace(manifest.shard, id=shard), rows=count, files=files)
        files_at(folder).write(manifest_path(shard), encode_manifest(like))


def look(folder: str, searches: int) -> Found:
    """Open the page of a dataset, ask as a browser does, and return how long that took."""
    start = time.perf_counter()
    browser = open_browser(folder, BrowseSettings())
    with serving_page(browser, BrowseSettings()) as address:
        found: Found = {"opened": time.perf_counter() - start}

        def asked(path: str, **query: Any) -> tuple[float, Any]:
            began, parts = time.perf_counter(), urlsplit(address)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
            connection.request("GET", f"{path}?{parts.query}&{urlencode(query)}")
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            assert answer.status == 200, body
            return time.perf_counter() - began, body

        found["page"] = sum(asked(path)[0] for path in ("/", "/api/about", "/api/pairs"))
        found["first_search"] = asked("/api/pairs", like=1)[0]
        total = json.loads(asked("/api/about")[1])["pairs"]
        rows = np.random.default_rng(1).integers(0, total, searches).tolist()
        found["search"] = median(asked("/api/pairs", like=row)[0] for row in rows)
        found["sort"] = asked("/api/pairs", sort="similarity")[0]
        found["filter"] = asked("/api/pairs", where="similarity > 0.5 AND language = 'en'")[0]
        found["histogram"] = asked("/api/histogram", column="similarity")[0]
        found["cut"] = median(asked("/api/cut", column="similarity", at=at)[0] for at in (0.3, 0.4))
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    found["gib"] = int(status.partition("RssAnon:")[2].split()[0]) / 2**20
    return found


def index(folder: str, searches: int) -> Found:
    """Make an index, search with and without it, and return how long and how well that went."""
    dataset = BrowsedDataset(folder)
    start, cpu = time.perf_counter(), time.process_time()
    dataset.make_index(lambda _: None)
    found: Found = {
        "made": time.perf_counter() - start,
        "made_cpu": time.process_time() - cpu,
    }
    whole = np.concatenate([block for _, block in dataset.vectors.blocks()])
    rows = np.random.default_rng(2).integers(0, len(dataset), searches).tolist()
    hits, seconds = 0, list[float]()
    for row in rows:
        start = time.perf_counter()
        near, _ = dataset.nearest.nearest(whole[row], 10)
        seconds.append(time.perf_counter() - start)
        hits += len({*near.tolist()} & {*np.argsort(-(whole @ whole[row]))[:10].tolist()})
    found["search"], found["recall"] = median(seconds), hits / (10 * searches)
    return found


def main(arguments: Sequence[str] = ()) -> None:
    """Print the figures of each size."""
    made = parser(
        __doc__, arguments, pairs=(1_000_000, 60), each=(3_000, 40), searches=(9, 1),
        indexed=(200_000, 120),
    )  # fmt: skip
    chosen = made.parse_args(arguments)
    for pairs in sorted({max(chosen.pairs // 10, 1), chosen.pairs}):
        folder = kept(
            chosen.inputs / f"browse-{pairs}", lambda path, n=pairs: make(path, n, chosen.each)
        )  # fmt: skip
        found = apart(look, str(folder), chosen.searches, small=chosen.small)
        named = {name: found[name] for name in found if name not in ("wall", "cpu", "rss")}
        print(f"{pairs:,} pairs:", ", ".join(f"{name} {each:.3f}" for name, each in named.items()))
        ms = {name: 1000 * each for name, each in named.items() if name != "gib"}
        note(f"browse-{pairs}", gib=named["gib"], **ms)
    if chosen.indexed:
        folder = kept(
            chosen.inputs / f"indexed-{chosen.indexed}",
            lambda path: make(path, chosen.indexed, chosen.each, directions=1000),
        )
        found = apart(index, str(folder), 10 * chosen.searches, small=chosen.small)
        print(
            f"index of {chosen.indexed:,} pairs: made in {found['made']:.1f} s, "
            f"{found['made_cpu']:.1f} CPU s, search {found['search']:.3f} s, "
            f"recall of the ten nearest {found['recall']:.3f}"
        )
        note(
            "browse-index", made=found["made"], search=1000 * found["search"],
            recall=100 * found["recall"],
        )  # fmt: skip


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
