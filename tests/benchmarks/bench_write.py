"""Images to a parcel, and judged images to a dataset: MB of images per CPU second.

    python -m tests.benchmarks.bench_write [--images 2000] [--rounds 3]

The images of `bench_images`, 114 kB each, kept as they are, with embeddings of ViT-B/32's width. On
one core; writing and syncing are counted, reading and hashing of what was served are not. Beside
them what the bytes cost by themselves, one SHA-256 and one write, and the perceptual hash: for it
each kept image is decoded, which is most of what a dataset costs, so a dataset is written without
it too. (To hash every judged image while it is decoded for the model anyway would take 0.7 ms each
instead of 2.6 ms for each that is kept: more, as long as less than a quarter of them is kept.)
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from unittest import mock

import numpy as np

from cahlib.curate import dataset
from cahlib.curate.perceptual import phash
from cahlib.records import Image, Judged, Parcel, Shard, Tally
from cahlib.scrape.parcel import seal
from tests.benchmarks.bench_images import BENCH, candidates, make

WIDTH = 512
SHARD = Shard(id="bench", url="/", half=0)


def images(paths: list[Path]) -> list[Image]:
    return [
        Image(
            candidate=candidate,
            data=path.read_bytes(),
            format="jpg",
            width=400,
            height=300,
            original_width=400,
            original_height=300,
            md5="0" * 32,
            sha1="0" * 40,
            sha256="0" * 64,
            robots="",
        )  # fmt: skip
        for candidate, path in zip(candidates(len(paths)), paths, strict=True)
    ]


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
    return seal(iter(every), SHARD, folder, tally=Tally())


def write(every: list[Image], folder: Path, forms: tuple[str, ...]) -> None:
    recipe = dataset.Recipe(
        model="ViT-B-32/none", threshold=0.3, scores=("similarity",), forms=forms, versions={}
    )
    sealed = replace(parcel([], folder), images=len(every))
    dataset.write(
        folder, judged(every), parcel=sealed, recipe=recipe, tally=Tally(), again=lambda _: None
    )


def unhashed(every: list[Image], folder: Path) -> None:
    with (
        mock.patch("cahlib.curate.rows.phash", lambda _: "0" * 16),
        mock.patch("cahlib.curate.gallery.phash", lambda _: "0" * 16),
    ):
        write(every, folder, ("images", "embeddings"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    source = BENCH / f"images-jpeg-{options.images}"
    if not source.exists():
        make(source, options.images, "jpeg")
    every = images(sorted(source.iterdir()))
    size = sum(len(each.data) for each in every) / 1e6
    with tempfile.TemporaryDirectory(dir=BENCH) as folder:
        write(every[:1], Path(folder), ("images", "embeddings"))  # imports what it needs
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    places: dict[str, Callable[[Path], object]] = {
        "one SHA-256, one write": lambda folder: bare(every, folder),
        "perceptual hash": lambda _: [phash(each.data) for each in every],
        "parcel": lambda folder: parcel(every, folder),
        "dataset without that hash": lambda folder: unhashed(every, folder),
        "dataset: tar, parquet, embeddings": lambda folder: write(
            every, folder, ("images", "embeddings")
        ),
        "dataset: and TFRecords": lambda folder: write(
            every, folder, ("images", "embeddings", "tfrecords")
        ),
    }
    print(f"{len(every)} images, {size:.0f} MB{'':14}{'MB/CPU s':>10}{'MB/s':>8}")
    for name, work in places.items():
        taken = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory(dir=BENCH) as folder:
                start, cpu = time.perf_counter(), time.process_time()
                work(Path(folder))
                taken.append((time.process_time() - cpu, time.perf_counter() - start))
        cpu, wall = (statistics.median(each) for each in zip(*taken, strict=True))
        print(f"{name:36}{size / cpu:10.0f}{size / wall:8.0f}")


if __name__ == "__main__":
    main()
