"""A dataset scored again (`cah score`) beside the judging of the same images from memory.

    python -m tests.benchmarks.bench_score [--samples 256] [--shards 4] [--rounds 3] [--small]

ViT-B/32 with random weights on the CPU, the pictures and texts of `bench_judge`. Scoring again
reads the images from the tars, checks their sums, and writes the column and both vectors; judging
has the images at hand, applies the safety rules and makes records. Loading the model is not
counted.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

from cahlib.core.config import Judge
from cahlib.core.records import Image, Stats
from cahlib.dataset.write.shard_writer import DatasetSpec, ScoredParcel, write_shard
from cahlib.model.scorer import NoScorer
from tests.benchmarks import inputs
from tests.benchmarks.bench_judge import MODEL, _tar, read
from tests.benchmarks.common import Found, apart, kept, note, parser
from tests.world.judged import parcel


def compare(tar: str, folder: str, model: str, weights: str) -> Found:
    """Judge all images of a tar, then score the dataset that has them; seconds of each."""
    from cahlib.model.clip import load_clip
    from cahlib.model.pairs import score_pairs
    from cahlib.model.safety import Safety
    from cahlib.run.score_again import score_dataset

    options = Judge(model=model, pretrained=weights, threshold=-1, device="cpu")
    loaded = load_clip(options)
    safety = Safety.load("", loaded)
    images = [*read(Path(tar))]
    loaded.embed([loaded.prepare(images[0].data)], [images[0].candidate.text])
    start, cpu = time.perf_counter(), time.process_time()
    every = score_pairs(images, loaded, safety, judge=options, stats=Stats())
    judged = {each.image.data: each.similarity for each in every}
    judging, judging_cpu = time.perf_counter() - start, time.process_time() - cpu
    with mock.patch("cahlib.model.clip.load_clip", return_value=loaded):
        start, cpu = time.perf_counter(), time.process_time()
        found = [*score_dataset(Path(folder), options, embeddings=True)]
        scoring, scoring_cpu = time.perf_counter() - start, time.process_time() - cpu
    assert len(judged) == len(images) == sum(each.pairs for each in found)
    return {
        "judging": judging, "scoring": scoring, "judging_cpu": judging_cpu,
        "scoring_cpu": scoring_cpu,
    }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    made = parser(
        __doc__, arguments, samples=(256, 8), shards=(4, 2), rounds=(3, 1),
        model=(MODEL, inputs.TINY),
    )  # fmt: skip
    options = made.parse_args(arguments)
    weights = inputs.weights(options.inputs, options.model)
    tar = kept(
        options.inputs / f"judge-{options.samples}.tar", partial(_tar, count=options.samples)
    )
    name = f"score-{options.samples}-{options.shards}"
    dataset = kept(options.inputs / name, partial(_dataset, tar=tar, shards=options.shards))
    best: Found = {}
    for _ in range(options.rounds):
        copy = options.inputs / "scored"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(dataset, copy)
        found = apart(compare, tar, copy, options.model, weights, small=options.small)
        sides = ("judging", "scoring", "judging_cpu", "scoring_cpu")
        rates = {side: options.samples / found[side] for side in sides}
        print(
            f"judging {rates['judging']:.1f}, scoring again {rates['scoring']:.1f} pairs/s; "
            f"per CPU second {rates['judging_cpu']:.1f} and {rates['scoring_cpu']:.1f}",
            flush=True,
        )
        best = {side: max(best.get(side, 0.0), rate) for side, rate in rates.items()}
    share, of_cpu = (best[f"scoring{of}"] / best[f"judging{of}"] for of in ("", "_cpu"))
    print(f"scoring again has {share:.0%} of judging's rate, {of_cpu:.0%} per CPU second")
    note("score", rate=best["scoring"], judging=best["judging"])


def _dataset(folder: Path, tar: Path, shards: int) -> None:
    """Write the images of a tar as the shards of a dataset that no model has judged."""
    images = [*_numbered(tar)]
    spec = DatasetSpec(model=NoScorer.name, threshold=-1, scores={}, forms=("images",), versions={})
    for number in range(shards):
        part, stats = images[number::shards], Stats()
        judged = NoScorer().judged(part, Judge(no_judge=True), stats)
        scored = ScoredParcel(parcel=parcel(f"s-{number}", images=len(part)), stats=stats)
        write_shard(folder, judged, scored, spec=spec, again=lambda _: None)


def _numbered(tar: Path) -> Iterator[Image]:
    """Yield the images with keys of their own."""
    for number, image in enumerate(read(tar)):
        yield replace(image, candidate=replace(image.candidate, uid=f"{number:032x}"))


if __name__ == "__main__":
    main(sys.argv[1:])
