"""A parcel on disk to embeddings and scores on a GPU, against the model alone and clip-retrieval.

    python -m tests.benchmarks.bench_gpu [--samples 20000] [--rounds 3] [--no-peer] [--small]
    python -m tests.benchmarks.bench_gpu --cpu    # small and on the CPU: only whether it works

ViT-B/32 and ViT-L/14 with random weights, texts as in `bench_judge`, JPEGs of 300 to 900 pixels: as
they are, with a shorter side of 256, and as they are with thumbs beside them. Ours checks the
parcel, reads, decodes, embeds, compares, applies the safety rules and makes records; the peer makes
embeddings of the same samples, which lie in as many WebDataset tars as it has processes that
decode. The model alone is ours with a batch that is on the device already. Loading a model and its
first batch are not counted. Scores must be those of float32, and the peer's, within 1e-3 (from
thumbs 3e-3).
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch

from cahlib.core.config import Judge
from cahlib.core.records import Shard, Stats
from cahlib.model.clip import load_clip
from cahlib.model.device_model import DeviceModel
from cahlib.model.inputs import GroupedTokenizer, PixelArray
from cahlib.model.pairs import score_pairs
from cahlib.model.safety import Safety
from cahlib.parcel import parcel
from tests.benchmarks import bench_judge
from tests.benchmarks import inputs as made
from tests.benchmarks.common import Found, apart, kept, measured, parser, rss, timed
from tests.world.pictures import candidate

MODELS = ("ViT-B-32", "ViT-L-14")
#: What the scraper does with the images, by a word for it.
KINDS: dict[str, dict[str, int]] = {
    "originals": {}, "256 px": {"resize": 256}, "thumbs": {"thumbs": 224}
}  # fmt: skip
SHARD = Shard(id="bench", url="/", half=0)
TOLERANCE = 1e-3, 3e-3  #: of scores; from thumbs
CORES = len(os.sched_getaffinity(0))
#: What is aimed at: of clip-retrieval's rate, of the model alone's, and of the time.
WANTED = "aim: 3 times clip-retrieval, 60 % of the model alone, busy for 90 % of the time"


class Work(NamedTuple):
    """What one side is to do."""

    samples: int
    batch: int
    model: str
    weights: str
    device: str
    place: str  #: folder of the samples
    kind: str  #: of `KINDS`
    seconds: float  #: for which the model alone is measured

    @property
    def tars(self) -> list[Path]:
        """The peer's samples: each of its processes that decode reads a tar of its own."""
        decoders = min(16, CORES, self.samples)
        return [Path(self.place) / f"{number:05}.tar" for number in range(decoders)]


def make(work: Work, folder: Path) -> None:
    """The same samples as a parcel and as the peer's tars."""
    folder.mkdir()
    how = dict(KINDS[work.kind])
    if work.model == made.TINY and "thumbs" in how:
        how["thumbs"] = made.TINY_SIDE
    images = [
        made.fetched(candidate("http://a.example/", number, f"{text} {number}"), data, **how)
        for number, (data, text) in enumerate(made.drawn(work.samples))
    ]
    every = ((image.data, image.candidate.text) for image in images)
    made.webdatasets([folder / tar.name for tar in work.tars], every)
    parcel.write_parcel(iter(images), SHARD, folder, stats=Stats())


def ours(*told: str) -> Found:
    """Judge the parcel, in this process; then what it takes to explain the rate."""
    work = Work(*told)
    options = Judge(
        model=work.model,
        pretrained=work.weights,
        threshold=-1,
        device=work.device,
        batch=work.batch,
    )
    model = load_clip(options)
    safety = Safety.load("", model)
    found = parcel.find_parcel(Path(work.place), SHARD)
    some = list(itertools.islice(parcel.read_images(found), min(work.batch, model.batch)))
    pixels = [model.prepare(image.data) for image in some]
    texts = [image.candidate.text for image in some]
    model.embed(pixels, texts)
    with driver(work.device) as seen:
        start, cpu, worked = time.perf_counter(), time.process_time(), model.worked()
        parcel.check_parcel(found)
        images = parcel.read_images(found)
        first = next(images)
        opened = time.perf_counter() - start
        judged = score_pairs(
            itertools.chain([first], images), model, safety, judge=options, stats=Stats()
        )
        scores = {each.image.candidate.text: each.similarity for each in judged}
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        busy = (model.worked() - worked) / wall
    memory = torch.cuda.max_memory_allocated() >> 20 if work.device == "cuda" else 0
    memory_here = rss()
    decoding = seconds(
        lambda: [model.prepare(image.data, image.thumb) for image in some], work, time.thread_time
    )
    alone, exact = plain(work, model.devices[0], pixels=pixels, texts=texts)
    return {
        "rate": work.samples / wall,
        "opened": opened,
        "busy": busy,
        "driver": statistics.mean(seen) / 100 if seen else None,
        "decoding": decoding / len(some),
        "decoding_share": decoding / len(some) * work.samples / cpu,
        "gpu": memory,
        "rss": memory_here,
        "alone": alone,
        "apart": max(abs(scores[text] - score) for text, score in exact.items()),
        "scores": scores,
    }


def plain(
    work: Work, device: str, *, pixels: list[PixelArray], texts: list[str]
) -> tuple[float, dict[str, float]]:
    """Images a second of the model alone, on a batch that is there; its scores in float32."""
    loaded = open_clip.create_model(work.model, pretrained=work.weights)
    groups, rows = GroupedTokenizer(open_clip.get_tokenizer(work.model), padding=None, size=256)(
        texts
    )
    dtype = torch.float16 if work.device == "cuda" else torch.float32
    replica = DeviceModel(loaded, device, dtype=dtype)
    with torch.inference_mode():
        sent = replica.send(pixels, groups)
        compute = seconds(lambda: replica.compute(sent, dtype), work)
        both = replica.compute(sent, torch.float32)
    of_images, of_texts = both[: len(pixels)], both[len(pixels) :][rows]
    scores = (of_images * of_texts).sum(axis=1).tolist()
    return len(pixels) / compute, dict(zip(texts, scores, strict=True))


def seconds(
    act: Callable[[], object], work: Work, clock: Callable[[], float] = time.perf_counter
) -> float:
    """What a call takes, as the median of two seconds full of them; the first is not counted."""
    act()
    return statistics.median(timed(act, work.seconds, clock=clock))


@contextmanager
def driver(device: str) -> Iterator[list[int]]:
    """How busy the GPU is by its driver, in percent, ten times a second; needs nvidia-ml-py."""
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            seen.append(torch.cuda.utilization())

    if device != "cuda" or not find_spec("pynvml"):
        yield seen
        return
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def peer(work: Work, home: Path) -> Found:
    """clip-retrieval at its best setting, with its scores."""
    tars = f"{work.place}/{{00000..{len(work.tars) - 1:05}}}.tar"
    with tempfile.TemporaryDirectory() as out:
        line = [bench_judge.peer(home), "-c", bench_judge.SCRIPT, tars, work.weights, out]
        said = measured([*line, work.model, work.batch, len(work.tars)])
        rate = said["sample_count"] / said["total_duration"]
        return {**said, "rate": rate, "scores": compared(Path(out))}


def compared(out: Path) -> dict[str, float]:
    """The cosines of all pairs in what the peer wrote."""
    scores: dict[str, float] = {}
    parts = ("img_emb", "text_emb", "metadata")
    for image, text, table in zip(*(sorted((out / each).iterdir()) for each in parts), strict=True):
        one, two = (np.load(each).astype("float32") for each in (image, text))
        names = pq.read_table(table, columns=["caption"])["caption"].to_pylist()
        scores |= dict(zip(names, (one * two).sum(axis=1).tolist(), strict=True))
    return scores


def compare(work: Work, runs: Sequence[tuple[Found, Found | None]]) -> None:
    """Print what came of both sides."""

    def median(what: str) -> float:
        return statistics.median(one[what] for one, _ in runs)

    named = f"{work.model}, {work.kind}, {work.samples:,} pairs"
    print(f"\n{named}, batches of {work.batch}, median of {len(runs)}")
    print(f"{'':18}{'images/s':>10}{'ours is':>20}{'GPU MiB':>9}{'RSS MiB':>9}")
    print(f"{'cahlib':18}{median('rate'):10.1f}{'':20}{median('gpu'):9.0f}{median('rss'):9.0f}")
    share = [one["rate"] / one["alone"] for one, _ in runs]
    print(f"{'the model alone':18}{median('alone'):10.1f}{spread(share):>20}")
    if all(two for _, two in runs):
        rate, gpu, rss = (
            statistics.median(two[what] for _, two in runs) for what in ("rate", "gpu", "rss")
        )
        faster = [one["rate"] / two["rate"] for one, two in runs]
        print(f"{'clip-retrieval':18}{rate:10.1f}{spread(faster):>20}{gpu:9.0f}{rss:9.0f}")
    by_driver = [one["driver"] for one, _ in runs if one["driver"] is not None]
    said = f"{statistics.median(by_driver):.0%}" if by_driver else "not asked"
    print(
        f"busy by our own count {median('busy'):.0%}, by the driver {said}; "
        f"the parcel checked and opened in {median('opened'):.2f} s;\n"
        f"decoding {median('decoding') * 1000:.2f} ms of a core an image, "
        f"{median('decoding_share'):.0%} of our CPU seconds;\n{alike(runs, work.kind)}"
    )


def spread(ratios: list[float]) -> str:
    return f"{min(ratios):.2f} … {max(ratios):.2f} x"


def alike(runs: Sequence[tuple[Found, Found | None]], kind: str) -> str:
    """How far the scores are from others; ends the benchmark where they are not the same."""
    exact = max(one["apart"] for one, _ in runs)
    told = f"scores within {exact:.5f} of float32's"
    apart = [exact]
    for one, two in runs:
        if two:
            if one["scores"].keys() != two["scores"].keys():
                raise SystemExit("The two sides did not judge the same samples.")
            apart += [abs(score - two["scores"][text]) for text, score in one["scores"].items()]
            told = f"scores within {exact:.5f} of float32's and {max(apart[1:]):.5f} of the peer's"
    if max(apart) > TOLERANCE[kind == "thumbs"]:
        raise SystemExit(f"{told}: more than {TOLERANCE[kind == 'thumbs']:g}.")
    return told


def main(arguments: Sequence[str]) -> None:
    cpu = "--cpu" in arguments or "--small" in arguments
    small = "--small" in arguments
    sizes = {"samples": (32 if cpu else 20_000, 8), "rounds": (1 if cpu else 3, 1)}
    sizes |= {"batch": (8 if cpu else 256, 4), "seconds": (2.0, 0.0)}
    options = parser(__doc__, arguments, peer=True, **sizes)
    options.add_argument("--models", nargs="+", default=MODELS)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS][2 * small :])
    options.add_argument("--cpu", action="store_true", help="few samples, to see that it works")
    chosen = options.parse_args(arguments)
    if not cpu and not torch.cuda.is_available():
        return print("torch finds no CUDA device here; --cpu tries this benchmark without one.")
    print(f"{'no GPU' if cpu else torch.cuda.get_device_name()}, {CORES} cores")
    models = [made.TINY] if chosen.small else chosen.models
    for name, kind in itertools.product(models, chosen.kinds):
        place = chosen.inputs / f"gpu-{chosen.samples}-{kind.replace(' ', '')}"
        work = Work(
            samples=chosen.samples,
            batch=chosen.batch,
            model=name,
            weights=str(made.weights(chosen.inputs, name)),
            device="cpu" if cpu else "cuda",
            place=str(place),
            seconds=chosen.seconds,
            kind=kind,
        )
        kept(place, lambda folder, work=work: make(work, folder))
        runs = [
            (
                apart(ours, *work, small=chosen.small),
                peer(work, chosen.inputs) if chosen.peer else None,
            )
            for _ in range(chosen.rounds)
        ]
        compare(work, runs)
    print(f"\n{WANTED}")


if __name__ == "__main__":
    main(sys.argv[1:])
