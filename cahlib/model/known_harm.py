"""Drop images that look like one on a list of known harm.

The scraper compares hashes of files; this compares perceptual hashes, so scaled or recompressed
images are found as well. They are never scored, shown or written. A list of a million takes 57 MiB,
and 0.07 ms per image beside the hash itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cahlib.core.lists import PERCEPTUAL_HASH, read_entries
from cahlib.core.records import DropReason, Image, Stage, Stats
from cahlib.image.perceptual_hash import NearIndex, with_looks
from cahlib.model.inputs import DECODE_ERRORS


def load_known_harm(paths: Sequence[str], setting: str, distance: int) -> NearIndex | None:
    """Return the hashes of lists, None without any; raise ConfigError if a file is not a list."""
    found = (
        int(each, 16) for path in paths for each in read_entries(path, setting, PERCEPTUAL_HASH)
    )
    return NearIndex(distance, found) if paths else None


def drop_known_harm(
    images: Iterable[Image], harm: NearIndex | None, stats: Stats
) -> Iterator[Image]:
    """Yield the images that look like none of the listed ones; only count the others."""
    for image in images:
        image = _with_looks(image) if harm is not None else image
        if harm is not None and image.phash and int(image.phash, 16) in harm:
            stats.entered[Stage.JUDGE] += 1
            stats.drop_unscored(image, DropReason.HARM_LOOKS)
        else:
            yield image


def _with_looks(image: Image) -> Image:
    try:
        return with_looks(image)
    except DECODE_ERRORS:  # in a stranger's parcel; scoring counts it as unreadable
        return image
