"""CPU ms an image of the GPU's machine beside the model, by what the parcel holds.

    python -m tests.benchmarks.bench_beside [--samples 512] [--rounds 3] [--small]

Parcels of originals (JPEGs of 300 to 900 pixels), of images at 256 px, and of originals with thumbs
for ViT-B/32 are checked, read, decoded, scored and made records as in a run; the model answers at
once with the same vectors. The floor is decoding alone: libjpeg-turbo's, to pixels of the size that
lies in the parcel, without shrinking.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import simplejpeg

from cahlib.core.config import Judge
from cahlib.core.records import Stats
from cahlib.model.clip import load_clip
from cahlib.model.device_model import DeviceModel, Vectors
from cahlib.model.inputs import TokenGroup
from cahlib.model.pairs import score_pairs
from cahlib.model.safety import Safety
from cahlib.parcel import parcel
from tests.benchmarks import inputs
from tests.benchmarks.bench_gpu import KINDS, SHARD, Work, make
from tests.benchmarks.common import Found, apart, note, parser

MODEL = "ViT-B-32"


def beside(*told: object) -> Found:
    """CPU milliseconds an image, in this process."""
    work = Work(*told)
    options = Judge(model=work.model, pretrained=work.weights, threshold=-1, device="cpu")
    model = load_clip(options)
    safety = Safety.load("", model)
    with tempfile.TemporaryDirectory() as folder:
        make(work, Path(folder) / "made")
        found = parcel.find_parcel(Path(folder) / "made", SHARD)
        files = [image.thumb or image.data for image in parcel.read_images(found)]
        before = time.process_time()
        for each in files:
            simplejpeg.decode_jpeg(each)
        floor = time.process_time() - before
        width = len(model.embed_texts(["a"])[0])
        score = partial(score_pairs, clip=model, safety=safety, judge=options, stats=Stats())
        with patch.object(DeviceModel, "embed", partial(_answer, width)):
            for _ in score(islice(parcel.read_images(found), 64)):
                pass  # what is made once is not counted
            before = time.process_time()
            parcel.check_parcel(found)
            count = sum(1 for _ in score(parcel.read_images(found)))
            spent = time.process_time() - before
    assert count == len(files) == work.samples
    return {"all": spent / count * 1000, "floor": floor / count * 1000}


def _answer(width: int, pixels: Sequence[object], groups: Sequence[TokenGroup]) -> Vectors:
    """Return what `DeviceModel.embed` does, without a model."""
    rows = len(pixels) + sum(map(len, groups))
    return np.full((rows, width), width**-0.5, "float32")


def main(arguments: Sequence[str]) -> None:
    made = parser(__doc__, arguments, samples=(512, 8), rounds=(3, 1), model=(MODEL, inputs.TINY))
    options = made.parse_args(arguments)
    weights = str(inputs.weights(options.inputs, options.model))
    taken: dict[str, list[Found]] = {}
    for _ in range(options.rounds):
        for kind in KINDS:
            work = Work(options.samples, 256, options.model, weights, "cpu", "", kind, 0)
            taken.setdefault(kind, []).append(apart(beside, *work, small=options.small))
    figures: dict[str, float] = {}
    print(f"{'CPU ms an image':16}{'all':>8}{'floor':>8}")
    for kind, rounds in taken.items():
        every, floor = (
            statistics.median(each[what] for each in rounds) for what in ("all", "floor")
        )
        print(f"{kind:16}{every:8.2f}{floor:8.2f}")
        name = kind.replace("256 px", "small")
        figures |= {name: every, f"{name}_floor": floor}
    note("beside", **figures)


if __name__ == "__main__":
    main(sys.argv[1:])
