"""Find images that look alike: their perceptual hashes, mean colours, and which are near.

The hash is pHash: the signs of an image's lowest frequencies against their median (C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, 3.2.1). Scaling,
recompression and slight changes of colour alter a few of its 64 bits. So does another program's way
of shrinking: the phash of the package ImageHash differs by 0 to 6 bits, except for transparent
pictures and 16-bit grey: it ignores shapes that are drawn by transparency alone.

The hash ignores colours, so it is complemented by the mean Cb and Cr (ITU-R BT.601) of an image's
four quarters: no mean may differ by more than 8 of 255, nor may all be rotated the same way.
Measured on 190 drawings and photos whose hash stayed within 4 bits: recompressed, scaled, cropped
by 1 to 3 % per side or 10 % brighter, darker or higher in contrast, 2,420 of 2,420 have the same
colours (15 % more or less saturated 256 of 262); with all hues rotated by 20 degrees 13 of 259 (110
by the difference alone), by 30 degrees 7 of 260, by 60 and more 6 of 388: the nearly grey ones.
"""

from __future__ import annotations

import io
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from cahlib.core.records import Image
from cahlib.image.colours import to_srgb
from cahlib.image.jpeg import jpeg_factor
from cahlib.image.pixels import flatten_on_white

#: The side of the picture that is hashed, and how many of its frequencies count.
LOOKS_SIDE, _LOW = 32, 8
#: How far the mean colours of a quarter may differ, all be rotated (of 255), and by what angle.
_COLOUR, _TURN, _ANGLE = 8, 3.5, np.tan(np.radians(16))
#: Bits of a band that select its bucket; more would give more buckets than images.
_MAX_KEY = 16
#: The cosines of a DCT-II, as many as are wanted: (8, 32).
_COSINES = np.cos(np.pi / LOOKS_SIDE * (np.arange(LOOKS_SIDE) + 0.5) * np.arange(_LOW)[:, None])


class Looks(TypedDict):
    """The looks of an image: its hashes and colours."""

    phash: str  #: its perceptual hash, 64 bits in hex
    #: the mean Cb and Cr of its quarters, 8 bytes in hex: top left, top right, bottom left, bottom
    #: right
    chroma: str


def scaled_for_looks(whole: Picture.Image) -> Picture.Image:
    """Return the pixels of a whole JPEG as libjpeg scales them down, for the same looks."""
    return whole.reduce(jpeg_factor(whole.size, (LOOKS_SIDE, LOOKS_SIDE)))


def looks(picture: Picture.Image, profile: bytes | None) -> Looks:
    """Return how a loaded picture looks, a JPEG that was scaled down for it."""
    shown = to_srgb(picture, profile)
    small = flatten_on_white(shown.resize((LOOKS_SIDE, LOOKS_SIDE), Picture.Resampling.BOX))
    low = _COSINES @ np.asarray(small.convert("L"), np.float64) @ _COSINES.T
    quarters = small.resize((2, 2), Picture.Resampling.BOX).convert("YCbCr")
    means = np.asarray(quarters)[..., 1:].tobytes()
    bits = np.packbits(low > np.median(low))
    return Looks(phash=bits.tobytes().hex(), chroma=means.hex())


def looks_of_file(data: bytes) -> Looks:
    """Return how an image file that can be decoded looks."""
    with Picture.open(io.BytesIO(data)) as picture:
        profile = picture.info.get("icc_profile")
        picture.draft(picture.mode, (LOOKS_SIDE, LOOKS_SIDE))
        picture.load()
        return looks(picture, profile)


def with_looks(image: Image) -> Image:
    """Return an image with its looks; its file is decoded only if they are missing."""
    return image if image.phash else replace(image, **looks_of_file(image.data))


def same_colours(
    some: NDArray[np.uint64], others: NDArray[np.uint64] | np.uint64
) -> NDArray[np.bool_]:
    """Return whether mean colours are the same; 0, which no picture has, matches any."""
    one, two = (np.asarray(each, np.uint64) for each in (some, others))
    parts = [each[..., None].view(np.uint8).astype(np.int32) - 128 for each in (one, two)]
    near = np.abs(parts[0] - parts[1]).max(axis=-1) <= _COLOUR
    (a, b), (c, d) = ((each[..., ::2], each[..., 1::2]) for each in parts)
    straight, across = (a * c + b * d).sum(axis=-1), np.abs((a * d - b * c).sum(axis=-1))
    paler = np.sqrt(np.minimum(*((each**2).sum(axis=-1) for each in parts)))
    turned = (across > _TURN * paler) & (across > _ANGLE * straight)
    return np.asarray(near & ~turned | (one == 0) | (two == 0))


class NearIndex:
    """An index of perceptual hashes with mean colours, which finds near ones.

    If 64 bits are divided into one more band than bits may differ, two near hashes share at least
    one band, so a hash is compared only with those that share a band with it.
    """

    def __init__(self, distance: int, hashes: Iterable[int] = ()) -> None:
        """``distance``: bits that may differ, 0 to 8."""
        self._distance = distance
        edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
        self._bands = [
            (low, (1 << min(high - low, _MAX_KEY)) - 1)
            for low, high in zip(edges, edges[1:], strict=False)
        ]
        self._hashes, self._colours = array("Q"), array("Q")
        #: indices into those, by band
        self._buckets: list[defaultdict[int, array[int]]] = [
            defaultdict(lambda: array("I")) for _ in self._bands
        ]
        for each in hashes:
            self.add(each)

    def __contains__(self, looks: int) -> bool:
        return self.has(looks)

    def has(self, looks: int, colours: int = 0) -> bool:
        """Return whether a near hash is known; colours 0, which no picture has, match any."""
        return any(self._close(bucket, looks, colours) for bucket in self._mine(looks))

    def add(self, looks: int, colours: int = 0) -> None:
        """Add a hash."""
        for bucket in self._mine(looks):
            bucket.append(len(self._hashes))
        self._hashes.append(looks)
        self._colours.append(colours)

    def _mine(self, looks: int) -> Iterator[array[int]]:
        """Yield the buckets of a hash, one per band."""
        for (low, mask), buckets in zip(self._bands, self._buckets, strict=True):
            yield buckets[looks >> low & mask]

    def _close(self, bucket: array[int], looks: int, colours: int) -> bool:
        places = np.frombuffer(bucket, np.uint32)
        different = np.frombuffer(self._hashes, np.uint64)[places] ^ np.uint64(looks)
        places = places[count_bits(different) <= self._distance]
        known = np.frombuffer(self._colours, np.uint64)[places]
        return bool(same_colours(known, np.uint64(colours)).any())


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[NDArray[np.int64]]:
    """Yield the index pairs of hashes that differ in at most ``distance`` bits: arrays (pairs, 2).

    A pair may occur twice. If the 64 bits are divided into two more bands than bits may differ, the
    hashes of such a pair share at least two bands, so only those that do are compared (G. S. Manku
    et al., "Detecting Near-Duplicates for Web Crawling", 2007).
    """
    for mask in _masks(distance + 2):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        keys, sorted_ = keys[order], hashes[order]
        at, step = np.arange(len(hashes)), 0
        while len(at):
            step += 1  # compare each with the one ``step`` further on in its bucket
            at = at[at + step < len(hashes)]
            at = at[keys[at] == keys[at + step]]
            close = at[count_bits(sorted_[at] ^ sorted_[at + step]) <= distance]
            if len(close):
                yield np.stack([order[close], order[close + step]], axis=1)


def _masks(bands: int) -> Iterator[np.uint64]:
    """Yield a mask for each two of the bands."""
    edges = np.linspace(0, 64, bands + 1).astype(int).tolist()
    each = [(1 << high) - (1 << low) for low, high in zip(edges, edges[1:], strict=False)]
    yield from (np.uint64(one | other) for one, other in combinations(each, 2))


def count_bits(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the number of set bits (numpy has `bitwise_count` from 2.0 on)."""
    m1, m2, m4 = (
        np.uint64(m) for m in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
    )
    words = words - ((words >> np.uint64(1)) & m1)
    words = (words & m2) + ((words >> np.uint64(2)) & m2)
    words = (words + (words >> np.uint64(4))) & m4
    counts: NDArray[np.uint64] = (words * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return counts
