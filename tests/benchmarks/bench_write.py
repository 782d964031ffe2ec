"""Images to a parcel, and judged images to a dataset: MB of images per CPU second.

    python -m tests.benchmarks.bench_write [--images 2000] [--rounds 3] [--small]

The images of `bench_images`, 114 kB each, kept as they are, with embeddings of ViT-B/32's width. On
one core; writing and syncing are counted, reading and hashing of what was served are not. Beside
them what the bytes cost by themselves, one SHA-256 and one write, and the perceptual hash: the
scraper makes it of the pixels that it decodes anyway; an image of a stranger's parcel is decoded
once more for it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from cahlib.core.records import Image, Judged, Parcel, Shard, Stats
from cahlib.dataset.write.shard_writer import DatasetSpec, ScoredParcel, write_shard
from cahlib.image.perceptual_hash import looks_of_file
from cahlib.parcel.parcel import check_parcel, read_images, write_parcel
from tests.benchmarks.common import note, one_core, parser
from tests.benchmarks.inputs import candidates, fetched, pictures

WIDTH = 512
SHARD = Shard(id="bench", url="/", half=0)


def images(paths: list[Path]) -> list[Image]:
    pairs = zip(candidates(len(paths)), paths, strict=True)
    return [fetched(candidate, path.read_bytes()) for candidate, path in pairs]


def judged(every: list[Image]) -> Iterator[Judged]:
    vector = np.full(WIDTH, WIDTH**-0.5, np.float16)
    for image in every:
        yield Judged(
            image=image, similarity=0.3, nsfw="UNLIKELY", scores={"similarity": 0.3},
            image_embedding=vector, text_embedding=vector, reason=None,
        )  # fmt: skip


def bare(every: list[Image], folder: Path) -> None:
    digest = sha256()
    with open(folder / "bare", "wb") as file:
        for image in every:
            file.write(image.data)
            digest.update(image.data)
        os.fsync(file.fileno())


def parcel(every: list[Image], folder: Path) -> Parcel:
    return write_parcel(iter(every), SHARD, folder, stats=Stats())


def write(every: list[Image], folder: Path, forms: tuple[str, ...]) -> None:
    spec = DatasetSpec(
        model="ViT-B-32/none",
        threshold=0.3,
        scores={"similarity": "similarity"},
        forms=forms,
        versions={},
    )
    found = replace(parcel([], folder), images=len(every))
    write_shard(
        folder,
        judged(every),
        ScoredParcel(parcel=found, stats=Stats()),
        spec=spec,
        again=lambda _: None,
    )


def strange(every: list[Image]) -> list[Image]:
    """The images as a stranger's parcel has them: how they look is not taken from it."""
    return [replace(each, phash="", chroma="") for each in every]


def main(arguments: Sequence[str]) -> None:
    options = parser(__doc__, arguments, images=(2000, 8), rounds=(3, 1)).parse_args(arguments)
    every = images(sorted(pictures(options.inputs, options.images).iterdir()))
    size = sum(len(each.data) for each in every) / 1e6
    with tempfile.TemporaryDirectory(dir=options.inputs) as folder:
        whole = parcel(every, Path(folder))
        check_parcel(whole)
        assert list(read_images(whole)) == every
        write(every[:1], Path(folder), ("images", "embeddings"))  # imports what it needs
    places: dict[str, Callable[[Path], object]] = {
        "one SHA-256, one write": lambda folder: bare(every, folder),
        "perceptual hash": lambda _: [looks_of_file(each.data) for each in every],
        "parcel": lambda folder: parcel(every, folder),
        "dataset of a stranger's parcel": lambda folder: write(
            strange(every), folder, ("images", "embeddings")
        ),
        "dataset: tar, parquet, embeddings": lambda folder: write(
            every, folder, ("images", "embeddings")
        ),
        "dataset: and TFRecords": lambda folder: write(
            every, folder, ("images", "embeddings", "tfrecords")
        ),
    }
    speeds: list[float] = []
    print(f"{len(every)} images, {size:.0f} MB{'':14}{'MB/CPU s':>10}{'MB/s':>8}")
    for name, work in places.items():
        taken = []
        for _ in range(options.rounds):
            with one_core(), tempfile.TemporaryDirectory(dir=options.inputs) as folder:
                start, cpu = time.perf_counter(), time.process_time()
                work(Path(folder))
                taken.append((time.process_time() - cpu, time.perf_counter() - start))
        cpu, wall = (statistics.median(each) for each in zip(*taken, strict=True))
        print(f"{name:36}{size / cpu:10.0f}{size / wall:8.0f}")
        speeds.append(size / cpu)
    names = ("bare", "hash", "parcel", "strange", "dataset", "tfrecords")
    note("write", **dict(zip(names, speeds, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
