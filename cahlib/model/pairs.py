"""Score images with their texts by the model, in order.

    images ─► prepared ─► batches ─► embedded ─► judged
              threads                devices

Threads decode one batch ahead while the devices compute, and no further, so that memory stays flat.
Nothing here knows where images come from, or what becomes of pairs.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from cahlib.core.config import Judge
from cahlib.core.records import DropReason, Image, Judged, Stage, Stats
from cahlib.model.heads import Head
from cahlib.model.inputs import PixelArray
from cahlib.model.safety import Safety
from cahlib.model.score_names import SIMILARITY

if TYPE_CHECKING:
    from cahlib.model.clip import Clip
    from cahlib.model.device_model import Vectors

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Most bytes of images in a batch, so that huge originals do not fill the memory.
_BATCH_BYTES = 128 * 2**20

_Prepared: TypeAlias = tuple[Image, PixelArray]
#: A batch of prepared images, with the embeddings of the images and of their texts.
EmbeddedBatch: TypeAlias = "tuple[list[_Prepared], tuple[Vectors, Vectors]]"


def score_pairs(
    images: Iterable[Image],
    clip: Clip,
    safety: Safety,
    *,
    judge: Judge,
    stats: Stats,
    heads: Sequence[Head] = (),
) -> Iterator[Judged]:
    """Yield every decodable image with its scores and, if it is dropped, the reason.

    ``stats`` counts stage JUDGE: images that entered, that were kept, and dropped by reason. Raise
    RunError if a device's memory is too small for the model.
    """
    *_, threshold = judge.chosen()
    for batch, (of_images, of_texts) in embed_pairs(images, clip, judge.batch, stats):
        similarities = (of_images * of_texts).sum(axis=1).tolist()
        verdicts = safety.judge(of_images, [image.candidate.text for image, _ in batch])
        stored = of_images.astype("float16"), of_texts.astype("float16")
        scored = {head: head.scores(stored[0]).tolist() for head in heads}
        rows = zip(batch, similarities, verdicts, *stored, strict=True)
        for row, ((image, _), similarity, verdict, of_image, of_text) in enumerate(rows):
            by_head = {head: found[row] for head, found in scored.items()}
            # safety first: what is merely dissimilar may be shown
            reason = verdict.reason or (None if similarity >= threshold else DropReason.DISSIMILAR)
            reason = reason or _by_heads(by_head)
            if reason is None:
                stats.left[Stage.JUDGE] += 1
            else:
                stats.dropped[reason] += 1
            yield Judged(
                image=image,
                similarity=similarity,
                nsfw=verdict.nsfw,
                scores={SIMILARITY: similarity, **verdict.scores, **_named(by_head)},
                image_embedding=of_image,
                text_embedding=of_text,
                reason=reason,
            )


def score_names(safety: Safety, heads: Sequence[Head] = ()) -> tuple[str, ...]:
    """Return the names of an image's scores: similarity, safety rules and heads."""
    return SIMILARITY, *safety.scores, *(head.score for head in heads)


def _by_heads(scored: Mapping[Head, float]) -> DropReason | None:
    return (
        DropReason.HEAD_SCORE if any(head.drops(score) for head, score in scored.items()) else None
    )


def _named(scored: Mapping[Head, float]) -> dict[str, float]:
    return {head.score: score for head, score in scored.items()}


def embed_pairs(
    images: Iterable[Image], clip: Clip, size: int, stats: Stats
) -> Iterator[EmbeddedBatch]:
    """Yield batches of the decodable images with their embeddings, while the next are decoded."""
    size = min(size, clip.batch)
    least = _BATCH_BYTES // size  # an image's least weight, so that `size` of them fill a batch

    def weigh(image: Image) -> int:
        return max(len(image.data), least)

    def prepare(image: Image) -> PixelArray | None:
        return clip.prepare(image.data, image.thumb)

    def embed(batch: list[_Prepared]) -> tuple[Vectors, Vectors]:
        texts = [image.candidate.text for image, _ in batch]
        return clip.embed([pixels for _, pixels in batch], texts)

    with _threads(os.cpu_count() or 1) as decoders, _threads(clip.slots) as devices:
        taken, full = _counted(images, stats), least * size
        prepared = _ahead(prepare, taken, decoders, weigh=weigh, full=full)
        batches = _batches(_readable(prepared, stats), weigh=weigh, full=full)
        yield from _ahead(embed, batches, devices, weigh=lambda _: 1, full=clip.slots)


def _counted(images: Iterable[Image], stats: Stats) -> Iterator[Image]:
    for image in images:
        stats.entered[Stage.JUDGE] += 1
        yield image


def _readable(
    prepared: Iterable[tuple[Image, PixelArray | None]], stats: Stats
) -> Iterator[_Prepared]:
    for image, pixels in prepared:
        if pixels is None:
            stats.drop_unscored(image, DropReason.UNREADABLE)
        else:
            yield image, pixels


def _batches(
    prepared: Iterable[_Prepared], *, weigh: Callable[[Image], int], full: int
) -> Iterator[list[_Prepared]]:
    batch: list[_Prepared] = []
    weight = 0
    for image, pixels in prepared:
        batch.append((image, pixels))
        weight += weigh(image)
        if weight >= full:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def _ahead(
    function: Callable[[_T], _R],
    items: Iterable[_T],
    threads: ThreadPoolExecutor,
    *,
    weigh: Callable[[_T], int],
    full: int,
) -> Iterator[tuple[_T, _R]]:
    """Yield each item with its result, in order; up to ``full`` of weight are in progress."""
    working: deque[tuple[_T, Future[_R]]] = deque()
    weight = 0
    for item in items:
        working.append((item, threads.submit(function, item)))
        weight += weigh(item)
        while weight > full:
            first, future = working.popleft()
            weight -= weigh(first)
            yield first, future.result()
    for first, future in working:
        yield first, future.result()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Provide threads until the ``with`` ends; what is queued then is cancelled."""
    executor = ThreadPoolExecutor(count)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
