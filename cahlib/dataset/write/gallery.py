"""Sample a few pairs of a shard for the report, as thumbnails.

The sample is random but reproducible: the pairs with the least keys, which are hashes. Beside it
are those nearest to the threshold, on both sides of it. What is not UNLIKELY is reduced to a few
blots of colour before it is stored. Pairs dropped as possibly showing minors or animals in unsafe
content are never shown, not even like that.
"""

from __future__ import annotations

import base64
from bisect import insort
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image as Picture

from cahlib.core.records import DropReason, Judged
from cahlib.dataset.manifest import GalleryItem
from cahlib.image.perceptual_hash import with_looks
from cahlib.image.pixels import flatten_on_white, to_plain_mode

#: Samples of kept and of dropped pairs: few, so that the manifests of 1,000 shards stay small.
_EACH, _NEAR = 4, 2
#: The longer side of a thumbnail, in pixels.
_SIDE = 160
#: Images above these cost more memory and time than a thumbnail is worth.
_MOST_BYTES, _MOST_PIXELS = 1_000_000, 4_000_000


class Gallery:
    """A sample of the pairs in a stream: at most twelve images of at most 1 MB each."""

    def __init__(self) -> None:
        self._drawn: dict[bool, list[tuple[str, Judged]]] = {True: [], False: []}
        self._near: dict[bool, list[tuple[float, str, Judged]]] = {True: [], False: []}

    def offer(self, judged: Judged) -> None:
        """Consider a scored image for the sample."""
        if not _presentable(judged):
            return
        kept, uid = judged.reason is None, judged.image.candidate.uid
        insort(self._drawn[kept], (uid, judged), key=lambda entry: entry[0])
        del self._drawn[kept][_EACH:]
        if judged.similarity is not None:
            distance = judged.similarity if kept else -judged.similarity
            insort(self._near[kept], (distance, uid, judged), key=lambda entry: entry[:2])
            del self._near[kept][_NEAR:]

    def shown(self) -> tuple[GalleryItem, ...]:
        """Return the sample, kept pairs first."""
        found = list[GalleryItem]()
        for kept in (True, False):
            drawn = dict(self._drawn[kept])
            found += (_show(judged) for judged in drawn.values())
            found += (
                replace(_show(judged), near_threshold=True)
                for _, uid, judged in self._near[kept]
                if uid not in drawn
            )
        return tuple(found)


class LatestPairs:
    """The pairs scored last, for a run's live view; thread-safe."""

    def __init__(self) -> None:
        # so few that their thumbnails take no more than some hundredths of a second
        self._new: dict[bool, deque[Judged]] = {kept: deque(maxlen=2) for kept in (True, False)}
        self._shown: dict[bool, deque[Mapping[str, Any]]] = {
            kept: deque(maxlen=8) for kept in (True, False)
        }

    def offer(self, judged: Judged) -> None:
        """Consider a scored image."""
        if _presentable(judged):
            self._new[judged.reason is None].append(judged)

    def shown(self) -> tuple[Mapping[str, Any], ...]:
        """Return eight of each kind, kept pairs first: `GalleryItem` as values, and ``clear``.

        ``clear`` is the thumbnail of an unsafe pair without blur, base64, shown on request.
        """
        for kept, new in self._new.items():
            while new:
                judged = new.popleft()
                unsafe = judged.nsfw != "UNLIKELY"
                clear = _show(judged, blur=False).jpeg if unsafe else ""
                self._shown[kept].appendleft(asdict(_show(judged)) | {"clear": clear})
        return (*self._shown[True], *self._shown[False])


def _presentable(judged: Judged) -> bool:
    """Return whether a pair may be shown and its thumbnail is cheap."""
    image = judged.image
    return judged.reason in (None, DropReason.DISSIMILAR) and is_cheap(
        len(image.data), image.width * image.height
    )


class Thumbnail(NamedTuple):
    """A small JPEG."""

    jpeg: str  #: base64
    width: int
    height: int


def make_thumbnail(data: bytes, *, blur: bool) -> Thumbnail:
    """Return the thumbnail of an image; with ``blur``, it is unrecognizable."""
    with Picture.open(BytesIO(data)) as picture:
        small = _small(picture, blur=blur)
    out = BytesIO()
    small.save(out, "JPEG", quality=70)
    return Thumbnail(base64.b64encode(out.getvalue()).decode(), small.width, small.height)


def is_cheap(size: int, pixels: int) -> bool:
    """Return whether the thumbnail of an image of so many bytes and pixels is worth its cost."""
    return size <= _MOST_BYTES and pixels <= _MOST_PIXELS


def _show(judged: Judged, *, blur: bool = True) -> GalleryItem:
    """Return a pair with its thumbnail; with ``blur``, an unsafe one is unrecognizable."""
    candidate = judged.image.candidate
    small = make_thumbnail(judged.image.data, blur=blur and judged.nsfw != "UNLIKELY")
    return GalleryItem(
        uid=candidate.uid,
        url=candidate.url,
        text=candidate.text,
        similarity=judged.similarity or 0,
        nsfw=judged.nsfw,
        kept=judged.reason is None,
        jpeg=small.jpeg,
        width=small.width,
        height=small.height,
        md5=judged.image.md5,
        sha1=judged.image.sha1,
        sha256=judged.image.sha256,
        phash=with_looks(judged.image).phash,
        language=candidate.language,
    )


def _small(picture: Picture.Image, *, blur: bool) -> Picture.Image:
    """Return the image on white, its longer side at most 160 pixels."""
    picture.draft("RGB", (_SIDE, _SIDE))
    small = flatten_on_white(to_plain_mode(picture)).copy()
    small.thumbnail((_SIDE, _SIDE))
    if not blur:
        return small
    # 36 colours are left: a blur by filter could be undone in part, this cannot.
    return small.resize((6, 6), Picture.Resampling.BOX).resize(
        small.size, Picture.Resampling.BICUBIC
    )
