"""Leaves out images that look like one on a list of known harm.

The scraper compares the hashes of files; this compares what images look like, so that one which was
scaled or compressed anew is found as well. What is found is never judged, shown or written. A list
of a million takes 57 MiB, and 0.07 ms an image beside the hash itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cahlib.image.perceptual_hash import NearIndex, phash
from cahlib.lists import LOOKS, entries
from cahlib.model.inputs import DECODE_ERRORS
from cahlib.records import Image, Reason, Stage, Tally


def load_known_harm(paths: Sequence[str], setting: str, distance: int) -> NearIndex | None:
    """The hashes of some lists, None without a list; raises ConfigError for what is none."""
    found = (int(each, 16) for path in paths for each in entries(path, setting, LOOKS))
    return NearIndex(distance, found) if paths else None


def drop_known_harm(
    images: Iterable[Image], harm: NearIndex | None, tally: Tally
) -> Iterator[Image]:
    """The images that look like none of the harmful ones; the others are counted, no more."""
    for image in images:
        if harm is not None and _looks(image, harm):
            tally.entered[Stage.JUDGE] += 1
            tally.lost[Reason.HARM_LOOKS] += 1
        else:
            yield image


def _looks(image: Image, harm: NearIndex) -> bool:
    try:
        return int(phash(image.data), 16) in harm
    except DECODE_ERRORS:  # in a stranger's parcel; whoever judges it counts it as unreadable
        return False
