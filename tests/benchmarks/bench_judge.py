"""Images and texts to judged pairs against clip-retrieval 2.45: the same tar, the same weights.

    python -m tests.benchmarks.bench_judge [--samples 512] [--rounds 2] [--no-peer] [--small]

ViT-B/32 as OpenAI trained it (QuickGELU), with random weights, on the CPU. The pictures are JPEGs
of 300 to 900 pixels; the texts have as many words as alt texts have, most of them 4 to 15, a few
60. The peer makes embeddings; ours also compares them, applies the safety rules and makes records.
Loading the model is not counted. The peer borrows this environment's torch, so that both compute
alike, but for the bfloat16 of `cahlib.model.device_model`.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cahlib.core.config import Judge
from cahlib.core.records import Image, Stats
from tests.benchmarks import inputs
from tests.benchmarks.common import Found, apart, beside, kept, measured, note, parser, venv
from tests.world.pictures import candidate

MODEL = "ViT-B-32-quickgelu"

#: What the peer's process runs. Its model is loaded before, and its own logger measures the time;
#: the CPU seconds leave out its processes that decode.
SCRIPT = """
import json, resource, sys, time
import torch
from all_clip import load_clip
from clip_retrieval import clip_inference
tars, weights, out, name, batch, workers = sys.argv[1:]
model = dict(clip_model=f"open_clip:{name}/{weights}", use_jit=False, clip_cache_path=None)
load_clip(warmup_batch_size=int(batch), **model)
start = time.process_time()
clip_inference(tars, out, input_format="webdataset", num_prepro_workers=int(workers),
               batch_size=int(batch), wds_number_file_per_input_file=10, **model)
said = json.load(open(out + "/stats/0.json"))
said["cpu"] = time.process_time() - start
said["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
said["gpu"] = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0
print("\\n" + json.dumps(said))
"""


def ours(tar: str, model: str, weights: str) -> Found:
    """Judge all samples, in this process."""
    from cahlib.model.clip import load_clip
    from cahlib.model.pairs import score_pairs  # what imports torch stays out of the peer's way
    from cahlib.model.safety import Safety

    options = Judge(model=model, pretrained=weights, threshold=0.3, device="cpu")
    loaded = load_clip(options)
    safety = Safety.load("", loaded)
    start, cpu, worked = time.perf_counter(), time.process_time(), loaded.worked()
    every = score_pairs(read(Path(tar)), loaded, safety, judge=options, stats=Stats())
    count = sum(1 for _ in every)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    busy = (loaded.worked() - worked) / wall
    return {"sample_count": count, "total_duration": wall, "cpu": cpu, "busy": busy}


def read(tar: Path) -> Iterator[Image]:
    """The samples as records."""
    with tarfile.open(tar) as samples:
        while (picture := samples.next()) is not None:
            data = samples.extractfile(picture).read()
            text = samples.extractfile(samples.next()).read().decode()
            yield inputs.fetched(candidate("http://a.example/", text=text), data)


def peer(home: Path) -> Path:
    """A Python with the peer in it."""
    packages = ("clip-retrieval==2.45.0", "transformers<5", "setuptools<81")
    return venv(home / "clip-retrieval", *packages, borrows=True)


def main(arguments: Sequence[str]) -> None:
    made = parser(
        __doc__, arguments, peer=True,
        samples=(512, 8), rounds=(2, 1), model=(MODEL, inputs.TINY),
    )  # fmt: skip
    options = made.parse_args(arguments)
    weights = inputs.weights(options.inputs, options.model)
    make = partial(_tar, count=options.samples)
    tar = kept(options.inputs / f"judge-{options.samples}.tar", make)
    best: dict[str, Found] = {}
    for _ in range(options.rounds):
        found = {"cahlib": apart(ours, tar, options.model, weights, small=options.small)}
        if options.peer:
            with tempfile.TemporaryDirectory() as place:
                line = [peer(options.inputs), "-c", SCRIPT, tar, weights, place]
                found["clip-retrieval"] = measured([*line, options.model, 32, 1])
        for side, each in found.items():
            assert each["sample_count"] == options.samples, each
            each["rate"] = each["sample_count"] / each["total_duration"]
            each["each"] = each["cpu"] / each["sample_count"]
            print(
                f"{side}: {each['rate']:.1f} samples/s, {each['each']:.3f} CPU s each", flush=True
            )
            best[side] = max(best.get(side, each), each, key=lambda one: one["rate"])
    print(f"\n{options.samples} pairs, {os.cpu_count()} cores, the best of {options.rounds}")
    print("                samples/s   ours is   CPU s each   ours takes")
    own = best["cahlib"]
    for side, each in best.items():
        faster, cheaper = own["rate"] / each["rate"], own["each"] / each["each"]
        print(f"{side:<16}{each['rate']:9.1f}{faster:9.2f}x{each['each']:13.3f}{cheaper:12.2f}x")
    rates = {side: {"rate": each["rate"], "cpu": each["each"]} for side, each in best.items()}
    note("judge", **beside(rates["cahlib"], rates.get("clip-retrieval")))
    print(f"our model was busy {own['busy']:.0%} of the time")


def _tar(path: Path, count: int) -> None:
    inputs.webdatasets([path], inputs.drawn(count))


if __name__ == "__main__":
    main(sys.argv[1:])
