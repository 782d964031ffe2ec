"""Choosing pairs: seconds over many rows, and MB/s of rewriting what was chosen.

    python -m tests.benchmarks.bench_select [--rows 1000000] [--images 2000] [--small]

The rows are metadata alone, in shards of 10,000, with as many hosts as a crawl has: a fifth of the
rows. They are filtered by a condition and a pattern, limited per domain, cut at a quantile, and
counted by language, domain and size, as `cah select` does before it writes. Rewriting removes a
tenth of a dataset of the images of `bench_write`; MB are those of the files that are read, per
second of one core.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.core.records import DropReason
from cahlib.dataset.maintain.rewrite import rewrite_shards
from cahlib.dataset.maintain.selection import Selection, SelectionRule, select_pairs
from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifests
from cahlib.dataset.query import PairQuery
from cahlib.dataset.storage.hashed_file import FileRecord
from cahlib.dataset.write.columns import Row, arrow_schema
from tests.benchmarks.bench_write import images, write
from tests.benchmarks.common import note, one_core, parser
from tests.benchmarks.inputs import pictures

SHARD = 10_000
RULE = SelectionRule(
    where=("similarity > 0.3 AND NSFW = 'UNLIKELY'", "NOT regexp_matches(TEXT, '(?i)logo|icon')"),
    caps=(("domain", 100),),
    top="30%",
    per="language",
)


def rows(folder: Path, count: int, inputs: Path) -> None:
    """Write the metadata of a dataset of this many pairs."""
    with tempfile.TemporaryDirectory() as place:
        write(images(sorted(pictures(inputs, 8).iterdir()))[:1], Path(place), ())
        manifest = next(read_manifests(place))
    for number in range(-(-count // SHARD)):
        size = min(SHARD, count - number * SHARD)
        chance, id = np.random.default_rng(number), f"shard-{number:05}"
        uids = [hashlib.md5(f"{number}/{each}".encode()).hexdigest() for each in range(size)]
        hosts = (chance.zipf(1.3, size) * 7919 + chance.integers(0, 3, size)) % (count // 5 + 1)
        texts = np.array(["a photo of a dog", "company logo", "red shoes, size 42", "Ein Haus"])
        columns = {
            "uid": uids,
            "URL": [f"https://img{h % 5}.host{h}.com/{n}.jpg" for n, h in enumerate(hosts)],
            "TEXT": texts[chance.integers(0, 4, size)],
            "similarity": chance.normal(0.31, 0.03, size),
            "NSFW": np.array(["UNLIKELY", "UNSURE"])[(chance.random(size) > 0.95).astype(int)],
            "language": np.array(["en", "de", "fr", "un"])[chance.integers(0, 4, size)],
            "WIDTH": chance.integers(100, 2000, size),
            "HEIGHT": chance.integers(100, 2000, size),
        }  # fmt: skip
        schema = arrow_schema(["similarity_by_a_model"])
        table = pa.table(
            [pa.array(columns.get(each.name, [None] * size), each.type) for each in schema],
            schema=schema,
        )
        path = folder / f"metadata/metadata_{id}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
        data = path.read_bytes()
        stored = FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        own = replace(
            manifest, shard=replace(manifest.shard, id=id), rows=size, gallery=(),
            files={path.relative_to(folder).as_posix(): stored},
        )  # fmt: skip
        (folder / "shards").mkdir(exist_ok=True)
        (folder / manifest_path(id)).write_bytes(encode_manifest(own))


def choose(folder: Path) -> Selection:
    found = select_pairs(PairQuery(folder), RULE)
    found.languages(), found.domains(), found.sides()
    return found


def rewrite(folder: Path) -> int:
    """Remove a tenth; return the bytes that were read."""
    read = sum(stored.size for each in read_manifests(folder) for stored in each.files.values())

    def why(row: Row) -> DropReason | None:
        return DropReason.DESELECTED if row["uid"][0] in "0f" else None

    assert len(list(rewrite_shards(folder, why))) == 1
    return read


def main(arguments: Sequence[str]) -> None:
    options = parser(__doc__, arguments, rows=(1_000_000, 2000), images=(2000, 8))
    chosen = options.parse_args(arguments)
    drawn = sorted(pictures(chosen.inputs, chosen.images).iterdir())
    with tempfile.TemporaryDirectory(dir=chosen.inputs) as name:
        folder = Path(name) / "rows"
        rows(folder, chosen.rows, chosen.inputs)
        start, cpu = time.perf_counter(), time.process_time()
        found = choose(folder)
        seconds, busy = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"{found.count:,} of {chosen.rows:,} rows chosen in {seconds:.1f} s, {busy:.1f} CPU s"
        )
        shutil.rmtree(folder)
        whole = Path(name) / "images"
        every = images(drawn)
        write(every, whole, ("images", "embeddings"))
        with one_core():
            start, cpu = time.perf_counter(), time.process_time()
            size = rewrite(whole) / 1e6
            wall, busy = time.perf_counter() - start, time.process_time() - cpu
        print(f"{size:.0f} MB rewritten: {size / busy:.0f} MB per CPU s, {size / wall:.0f} MB/s")
    note("select", seconds=seconds, rewriting=size / busy)


if __name__ == "__main__":
    main(sys.argv[1:])
