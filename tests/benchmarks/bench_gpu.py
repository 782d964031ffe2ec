"""A parcel on disk to embeddings and scores on a GPU, against the model alone and clip-retrieval.

    python -m tests.benchmarks.bench_gpu [--samples 20000] [--rounds 3] [--no-peer]
    python -m tests.benchmarks.bench_gpu --cpu    # small and on the CPU: only whether it works

ViT-B/32 and ViT-L/14 with random weights, JPEGs whose shorter side has 256 pixels, texts as in
`bench_judge`. Ours checks the parcel, reads, decodes, embeds, compares, applies the safety rules
and makes records; the peer makes embeddings of the same samples, which lie in as many WebDataset
tars as it has processes that decode. The model alone is ours with a batch that is on
the device already. Loading a model and its first batch are not counted. Scores must be those of
float32, and the peer's, within 1e-3.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch

from cahlib.config import Judge
from cahlib.curate import clip, inputs, pairs
from cahlib.curate.replica import Replica
from cahlib.curate.safety import Safety
from cahlib.records import Image, Shard, Tally
from cahlib.scrape import parcel
from tests.benchmarks import bench_judge

HOME = Path(__file__).parent.parent.parent / ".bench" / "gpu"
MODELS = ("ViT-B-32", "ViT-L-14")
SHARD = Shard(id="bench", url="/", half=0)
TOLERANCE = 1e-3
CORES = len(os.sched_getaffinity(0))
#: What is aimed at: of clip-retrieval's rate, of the model alone's, and of the time.
WANTED = "aim: 3 times clip-retrieval, 60 % of the model alone, busy for 90 % of the time"

Found = dict[str, Any]


class Work(NamedTuple):
    """What one side is to do."""

    samples: int
    batch: int
    model: str
    weights: str
    device: str

    @property
    def place(self) -> Path:
        return HOME / str(self.samples)

    @property
    def decoders(self) -> int:
        """The peer's processes that decode: each reads a tar of its own."""
        return min(16, CORES, self.samples)


def make(work: Work) -> None:
    """The same samples as a parcel and as the peer's tars."""
    work.place.mkdir(parents=True, exist_ok=True)
    tars = [tarfile.open(tar, "w") for tar in peers_tars(work)]

    def written() -> Iterator[Image]:
        drawn = bench_judge.samples(work.samples, 256, 384)
        for number, (data, text) in enumerate(drawn):
            text = f"{text} {number}"
            for name, what in ((f"{number:06}.jpg", data), (f"{number:06}.txt", text.encode())):
                bench_judge.add(tars[number % len(tars)], name, what)
            yield bench_judge.record(number, data, text)

    parcel.seal(written(), SHARD, work.place, tally=Tally())
    for tar in tars:
        tar.close()


def peers_tars(work: Work) -> list[Path]:
    return [work.place / f"{number:05}.tar" for number in range(work.decoders)]


def ours(work: Work) -> Found:
    """Judge the parcel, in this process; then what it takes to explain the rate."""
    options = Judge(
        model=work.model,
        pretrained=work.weights,
        threshold=-1,
        device=work.device,
        batch=work.batch,
    )
    model = clip.load(options)
    safety = Safety.load("", model)
    sealed = parcel.sealed(work.place, SHARD)
    some = list(itertools.islice(parcel.read(sealed), min(work.batch, model.batch)))
    pixels = [model.prepare(image.data) for image in some]
    texts = [image.candidate.text for image in some]
    model.embed(pixels, texts)
    with driver(work.device) as seen:
        start, cpu, worked = time.perf_counter(), time.process_time(), model.worked()
        parcel.check(sealed)
        images = parcel.read(sealed)
        first = next(images)
        opened = time.perf_counter() - start
        judged = pairs.pairs(
            itertools.chain([first], images), model, safety, judge=options, tally=Tally()
        )
        scores = {each.image.candidate.text: each.similarity for each in judged}
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        busy = (model.worked() - worked) / wall
    memory = torch.cuda.max_memory_allocated() >> 20 if work.device == "cuda" else 0
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    decoding = seconds(lambda: [model.prepare(image.data) for image in some], time.thread_time)
    alone, exact = plain(work, model.devices[0], pixels=pixels, texts=texts)
    return {
        "rate": work.samples / wall,
        "opened": opened,
        "busy": busy,
        "driver": statistics.mean(seen) / 100 if seen else None,
        "decoding": decoding / len(some),
        "decoding_share": decoding / len(some) * work.samples / cpu,
        "gpu": memory,
        "rss": rss,
        "alone": alone,
        "apart": max(abs(scores[text] - score) for text, score in exact.items()),
        "scores": scores,
    }


def plain(
    work: Work, device: str, *, pixels: list[inputs.Pixels], texts: list[str]
) -> tuple[float, dict[str, float]]:
    """Images a second of the model alone, on a batch that is there; its scores in float32."""
    loaded = open_clip.create_model(work.model, pretrained=work.weights)
    groups, rows = inputs.Tokens(open_clip.get_tokenizer(work.model), padding=None, size=256)(texts)
    dtype = torch.float16 if work.device == "cuda" else torch.float32
    replica = Replica(loaded, device, dtype=dtype)
    with torch.inference_mode():
        sent = replica.sent(pixels, groups)
        compute = seconds(lambda: replica.compute(sent, dtype), time.perf_counter)
        both = replica.compute(sent, torch.float32)
    of_images, of_texts = both[: len(pixels)], both[len(pixels) :][rows]
    scores = (of_images * of_texts).sum(axis=1).tolist()
    return len(pixels) / compute, dict(zip(texts, scores, strict=True))


def seconds(act: Callable[[], Any], clock: Callable[[], float]) -> float:
    """What a call takes, as the median of two seconds full of them; the first is not counted."""
    act()
    taken, end = [], time.perf_counter() + 2
    while not taken or time.perf_counter() < end:
        start = clock()
        act()
        taken.append(clock() - start)
    return statistics.median(taken)


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


def peer(work: Work) -> Found:
    """clip-retrieval at its best setting, with its scores."""
    tars = f"{work.place}/{{00000..{work.decoders - 1:05}}}.tar"
    with tempfile.TemporaryDirectory() as out:
        said = bench_judge.measured(
            [
                *(bench_judge.peer(), "-c", bench_judge.SCRIPT, tars, work.weights, out),
                *(work.model, work.batch, work.decoders),
            ]
        )
        return {**said, "scores": compared(Path(out))}


def compared(out: Path) -> dict[str, float]:
    """The cosines of all pairs in what the peer wrote."""
    import pyarrow.parquet as pq

    scores: dict[str, float] = {}
    parts = ("img_emb", "text_emb", "metadata")
    for image, text, table in zip(*(sorted((out / each).iterdir()) for each in parts), strict=True):
        one, two = (np.load(each).astype("float32") for each in (image, text))
        names = pq.read_table(table, columns=["caption"])["caption"].to_pylist()
        scores |= dict(zip(names, (one * two).sum(axis=1).tolist(), strict=True))
    return scores


def own(work: Work) -> Found:
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", "--ours", json.dumps(work)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stdout + ran.stderr)
    found: Found = json.loads(ran.stdout.splitlines()[-1])
    return found


def compare(work: Work, rounds: int, *, with_peer: bool) -> None:
    """Run both sides by turns, and print what came of them."""
    runs = [(own(work), peer(work) if with_peer else None) for _ in range(rounds)]

    def median(what: str) -> float:
        return statistics.median(one[what] for one, _ in runs)

    print(f"\n{work.model}, {work.samples:,} pairs, batches of {work.batch}, median of {rounds}")
    print(f"{'':18}{'images/s':>10}{'ours is':>20}{'GPU MiB':>9}{'RSS MiB':>9}")
    print(f"{'cahlib':18}{median('rate'):10.1f}{'':20}{median('gpu'):9.0f}{median('rss'):9.0f}")
    share = [one["rate"] / one["alone"] for one, _ in runs]
    print(f"{'the model alone':18}{median('alone'):10.1f}{spread(share):>20}")
    if with_peer:
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
        f"{median('decoding_share'):.0%} of our CPU seconds;\n{alike(runs)}"
    )


def spread(ratios: list[float]) -> str:
    return f"{min(ratios):.2f} … {max(ratios):.2f} x"


def alike(runs: list[tuple[Found, Found | None]]) -> str:
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
    if max(apart) > TOLERANCE:
        raise SystemExit(f"{told}: more than {TOLERANCE:g}.")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--cpu", action="store_true", help="small, to see that it works")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        return print(json.dumps(ours(Work(*json.loads(options.ours)))))
    if not options.cpu and not torch.cuda.is_available():
        return print("torch finds no CUDA device here; --cpu tries this benchmark without one.")
    samples, rounds, batch = (32, 1, 8) if options.cpu else (20_000, 3, 256)
    device = "cpu" if options.cpu else "cuda"
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'no GPU'}, {CORES} cores")
    for name in options.models:
        work = Work(
            options.samples or samples,
            options.batch or batch,
            name,
            str(HOME / f"{name}.pt"),
            device,
        )
        HOME.mkdir(parents=True, exist_ok=True)
        if not Path(work.weights).exists():
            bench_judge.weights(Path(work.weights), name)
        if not parcel.sealed(work.place, SHARD):
            make(work)
        compare(work, options.rounds or rounds, with_peer=not options.no_peer)
    print(f"\n{WANTED}")


if __name__ == "__main__":
    main()
