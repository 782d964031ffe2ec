"""Thumbs: what they cost and spare an image, and how far similarities move from open_clip's own.

    python -m tests.benchmarks.bench_thumbs [--files 2000] [--compared 200] [--small]

Files as on the web (mix "web" of `bench_images`) and real ones, where they are, are scored by plain
open_clip on the original, by ours on the original, and by ours on the thumb; each image with 16
texts. ViT-B/32 has random weights, in float32. Encodings of thumbs are compared on some files.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from cahlib.core.config import Download
from cahlib.image import jpeg
from cahlib.image.thumbs import read_thumb
from cahlib.image.validate import validate_image
from cahlib.model.inputs import fast_step, preprocess
from tests.benchmarks import inputs
from tests.benchmarks.common import ROOT, note, parser

MODEL = "ViT-B-32"
REAL = ROOT.parent / "shared/data/real/images"
#: Image files, each with its thumb.
Kept = list[tuple[bytes, bytes]]
Pixels = np.ndarray


def files(folder: Path) -> Iterator[bytes]:
    for place in (REAL, folder):
        for path in sorted(place.iterdir()) if place.exists() else ():
            yield path.read_bytes()


def spent(act: Callable[[], list]) -> tuple[list, float]:
    """What it gives, and CPU milliseconds for each."""
    start = time.thread_time()
    made = act()
    return made, (time.thread_time() - start) / len(made) * 1000


class Plain:
    """open_clip's own model and steps; similarities of images with 16 texts."""

    def __init__(self, name: str, weights: Path) -> None:
        self.model, _, self.transform = open_clip.create_model_and_transforms(
            name, pretrained=str(weights)
        )
        self.model.eval()
        texts = [inputs.text(number) for number in range(16)]
        with torch.inference_mode():
            tokens = open_clip.get_tokenizer(name)(texts)
            self.texts = self.model.encode_text(tokens, normalize=True)

    def original(self, data: bytes) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(data)))

    def ready(self, pixels: Pixels) -> torch.Tensor:
        """Pixels that have the model's size already, after the rest of its steps."""
        to_tensor, normalize = self.transform.transforms[-2:]
        return normalize(to_tensor(pixels.copy()))

    def similarities(self, images: Iterator[torch.Tensor]) -> Pixels:
        found = []
        with torch.inference_mode():
            while batch := list(islice(images, 64)):
                vectors = self.model.encode_image(torch.stack(batch), normalize=True)
                found.append(vectors @ self.texts.T)
        return torch.cat(found).numpy()


def lossless(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, quality=0, method=0)
    return out.getvalue()


def opened(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)))


ENCODINGS: dict[str, tuple[Callable[[Pixels], bytes], Callable[[bytes], Pixels]]] = {
    "raw": (np.ndarray.tobytes, lambda data: np.frombuffer(data, np.uint8)),
    "WebP, lossless": (lossless, opened),
    **{
        f"JPEG, quality {quality}": (
            lambda pixels, quality=quality: jpeg.encode_jpeg(pixels, quality),
            lambda data: read_thumb(data, jpeg_side(data)),
        )
        for quality in (95, 97, 98, 100)
    },
}


def jpeg_side(data: bytes) -> int:
    return Image.open(io.BytesIO(data)).width


def told(apart: Pixels) -> str:
    return f"largest {apart.max():.5f}, median {np.median(apart):.5f}"


def encodings(plain: Plain, every: Kept, steps: Sequence[Callable]) -> None:
    """Print what each encoding takes, and how far it moves similarities by itself."""
    pixels = [preprocess(data, steps) for data, _ in every]
    exact = plain.similarities(map(plain.ready, pixels))
    print(f"\n{len(pixels)} of them{'':12}{'kB':>7}{'encoding ms':>13}{'decoding ms':>13}")
    for name, (encode, decode) in ENCODINGS.items():
        coded, one = spent(lambda encode=encode: [encode(each) for each in pixels])
        back, other = spent(lambda decode=decode, coded=coded: [decode(each) for each in coded])
        shown = [each.reshape(pixels[0].shape) for each in back]
        apart = np.abs(plain.similarities(map(plain.ready, shown)) - exact)
        size = sum(map(len, coded)) / len(coded) / 1000
        print(f"{name:20}{size:10.1f}{one:13.2f}{other:13.2f}   {told(apart)}")


def main(arguments: Sequence[str]) -> None:
    made = parser(
        __doc__, arguments, files=(2000, 8), compared=(200, 4), model=(MODEL, inputs.TINY)
    )
    options = made.parse_args(arguments)
    plain = Plain(options.model, inputs.weights(options.inputs, options.model))
    steps = [fast_step(step) for step in plain.transform.transforms[:-2]]
    side = plain.transform.transforms[0].size
    served = list(files(inputs.pictures(options.inputs, options.files, "web")))
    _, proving = spent(lambda: [validate_image(each, Download(min_bytes=0)) for each in served])
    kept, both = spent(
        lambda: [validate_image(each, Download(min_bytes=0, thumbs=side)) for each in served]
    )
    every: Kept = [(each["data"], each["thumb"]) for each in kept if isinstance(each, dict)]
    small: Kept = [(data, thumb) for data, thumb in every if not thumb]
    every = [(data, thumb) for data, thumb in every if thumb]
    originals, opening = spent(lambda: [preprocess(data, steps) for data, _ in every])
    thumbs, reading = spent(lambda: [read_thumb(thumb, side) for _, thumb in every])
    sizes = [sum(map(len, each)) / len(every) / 1000 for each in zip(*every, strict=True)]
    print(
        f"{len(every)} files with thumbs of {side} px, {len(small)} that are too small for one\n"
        f"CPU ms an image: validated {proving:.2f}, with its thumb {both:.2f};\n"
        f"for the model from the original {opening:.2f}, from the thumb {reading:.2f}\n"
        f"kB: originals {sizes[0]:.1f}, thumbs {sizes[1]:.1f}",
        flush=True,
    )
    exact = plain.similarities(plain.original(data) for data, _ in (*every, *small))
    rest = [preprocess(data, steps) for data, _ in small]
    moved = {}
    for name, pixels in (("original", originals), ("thumb", thumbs)):
        apart = np.abs(plain.similarities(map(plain.ready, (*pixels, *rest))) - exact)
        moved |= {f"{name}_largest": apart.max(), f"{name}_median": np.median(apart)}
        print(f"similarities from the {name}: {told(apart)} from open_clip's", flush=True)
    cost = {"proving": proving, "both": both, "opening": opening, "reading": reading}
    note("thumbs", **cost, original_kb=sizes[0], thumb_kb=sizes[1], **moved)
    encodings(plain, every[:: max(1, len(every) // options.compared)], steps)


if __name__ == "__main__":
    main(sys.argv[1:])
