"""Chooses a few pairs of a shard to show in the report, as small pictures.

The choice is a fair draw that is the same every time: the pairs with the least keys, which are
hashes. What is not UNLIKELY is reduced to a few blots of colour before it is stored anywhere. Pairs
dropped as possibly showing minors or animals in unsafe content are never shown, not even so.
"""

from __future__ import annotations

import base64
from bisect import insort
from dataclasses import dataclass
from io import BytesIO

from PIL import Image as Picture

from cahlib.records import Judged, Reason

#: Pairs kept for show, of each kind: 1,000 shards offer enough, and their seals stay small.
_EACH = 4
#: Longer side of what is shown, in pixels.
_SIDE = 160
#: An image above these costs more memory and time than a small picture is worth.
_MOST_BYTES, _MOST_PIXELS = 1_000_000, 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A pair as the report shows it."""

    uid: str
    url: str
    text: str
    similarity: float
    nsfw: str
    kept: bool
    jpeg: str  #: base64
    width: int  #: of the small picture
    height: int


class Gallery:
    """Draws pairs from a stream; holds eight images of at most 1 MB."""

    def __init__(self) -> None:
        self._drawn: dict[bool, list[tuple[str, Judged]]] = {True: [], False: []}

    def offer(self, judged: Judged) -> None:
        """Let a judged image take part in the draw."""
        image = judged.image
        if judged.reason not in (None, Reason.DISSIMILAR) or len(image.data) > _MOST_BYTES:
            return
        if image.width * image.height > _MOST_PIXELS:
            return
        drawn = self._drawn[judged.reason is None]
        insort(drawn, (image.candidate.uid, judged), key=lambda entry: entry[0])
        del drawn[_EACH:]

    def shown(self) -> tuple[Shown, ...]:
        """What was drawn, kept pairs first."""
        return tuple(_show(judged) for drawn in self._drawn.values() for _, judged in drawn)


def _show(judged: Judged) -> Shown:
    candidate = judged.image.candidate
    with Picture.open(BytesIO(judged.image.data)) as picture:
        small = _small(picture, blur=judged.nsfw != "UNLIKELY")
    out = BytesIO()
    small.save(out, "JPEG", quality=70)
    return Shown(
        uid=candidate.uid,
        url=candidate.url,
        text=candidate.text,
        similarity=judged.similarity,
        nsfw=judged.nsfw,
        kept=judged.reason is None,
        jpeg=base64.b64encode(out.getvalue()).decode(),
        width=small.width,
        height=small.height,
    )


def _small(picture: Picture.Image, *, blur: bool) -> Picture.Image:
    """The picture on white, with its longer side at most 160 pixels."""
    picture.draft("RGB", (_SIDE, _SIDE))
    solid = Picture.new("RGBA", picture.size, "white")
    solid.alpha_composite(picture.convert("RGBA"))
    small = solid.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    if not blur:
        return small
    # 36 colours are left of it: a blur by filter could be undone in part, this cannot.
    return small.resize((6, 6), Picture.Resampling.BOX).resize(
        small.size, Picture.Resampling.BICUBIC
    )
