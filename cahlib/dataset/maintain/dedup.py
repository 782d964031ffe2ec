"""Find near-duplicate images in a finished dataset, and remove them.

Of similar images the largest is kept; of equally large ones that with the highest similarity to its
text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.purge import apply_changes
from cahlib.dataset.maintain.rewrite import ShardChange
from cahlib.dataset.manifest import read_manifests, require_dataset
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.write.columns import Row
from cahlib.image.perceptual_hash import near_pairs, same_colours

_COLUMNS = ["uid", "phash", "WIDTH", "HEIGHT", "similarity"]

#: The mean colours, which an older dataset lacks.
_COLOURS = "chroma"


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """The near-duplicates in a dataset."""

    images: int  #: in total
    extra: NDArray[Any]  #: sorted uids of the redundant ones, 16 bytes each

    def why(self, row: Row) -> DropReason | None:
        """Return the reason to remove a pair, or None."""
        uid = np.frombuffer(bytes.fromhex(row["uid"]), "S16")
        at = int(np.searchsorted(self.extra, uid[0]))
        found = at < len(self.extra) and self.extra[at] == uid[0]
        return DropReason.NEAR_DUPLICATE if found else None


def find_duplicates(place: str | Path, distance: int) -> Duplicates:
    """Find images whose perceptual hashes differ in at most ``distance`` bits of 64.

    Their mean colours must be the same too, if the dataset has them. Only the metadata is read; 10
    million images take two minutes and 1.6 GiB on one core. Raise ConfigError if there is no
    dataset, or the distance is not 0 to 8.
    """
    if not 0 <= distance <= 8:
        raise ConfigError(f"distance: {distance} is not a number of bits from 0 to 8.")
    uids, hashes, colours, rank = _read(place)
    # best first, so that the first of each group is kept
    best = np.argsort(rank, kind="stable")[::-1]
    uids, hashes, colours = uids[best], hashes[best], colours[best]
    first = _first(hashes, colours)
    stays = np.zeros(len(hashes), bool)
    stays[_apart(hashes, colours, first, distance)] = True
    return Duplicates(images=len(hashes), extra=np.sort(uids[~stays]))


def remove_duplicates(folder: Path, found: Duplicates) -> Iterator[ShardChange]:
    """Remove the duplicates, as `cahlib.dataset.maintain.purge.purge` does."""
    yield from apply_changes(folder, "dedup", found.why)


def _read(
    place: str | Path,
) -> tuple[NDArray[Any], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]:
    """Return key, hash, colours and rank of each image."""
    parts: list[tuple[Any, Any, Any, Any]] = []
    for manifest in read_manifests(place):
        path = part_path("metadata", manifest.shard.id)
        if path not in manifest.files:
            continue
        with files_at(manifest.place or place).open(path) as file:
            table = read_metadata(file, [*_COLUMNS, _COLOURS])
        uid, phash, width, height, similarity = (table[name].to_numpy() for name in _COLUMNS)
        parts.append(
            (
                np.frombuffer(bytes.fromhex("".join(uid)), "S16"),
                _words(phash),
                _words(table[_COLOURS].to_numpy())
                if _COLOURS in table.column_names
                else np.zeros(len(uid), np.uint64),
                # a pixel counts more than any similarity, which is at most 1
                width.astype(np.float64) * height + (np.nan_to_num(similarity) + 1) / 4,
            )
        )
    if not parts:
        require_dataset(Path(place))
        raise ConfigError(f"{place} holds no dataset with images: there is no shard with a pair.")
    uids, hashes, colours, rank = (np.concatenate(each) for each in zip(*parts, strict=True))
    return uids, hashes, colours, rank


def _words(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64)


def _first(hashes: NDArray[np.uint64], colours: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the positions of the first of all images with the same hash and colours."""
    left = np.argsort(hashes, kind="stable")
    found = [left[:0]]
    while len(left):  # once per set of colours that a hash has
        new = np.ones(len(left), bool)
        new[1:] = hashes[left[1:]] != hashes[left[:-1]]
        found.append(left[new])
        again, whose = left[~new], found[-1][np.cumsum(new)[~new] - 1]
        left = again[~same_colours(colours[again], colours[whose])]
    return np.sort(np.concatenate(found))


def _apart(
    hashes: NDArray[np.uint64],
    colours: NDArray[np.uint64],
    first: NDArray[np.int64],
    distance: int,
) -> NDArray[np.int64]:
    """Return which of the first are kept: each removes its neighbours, best first."""
    gone: set[int] = set()
    neighbours = []
    for places in near_pairs(hashes[first], distance) if distance else ():
        one, other = first[places].T
        alike = same_colours(colours[one], colours[other])
        neighbours.append(np.stack([one[alike], other[alike]], axis=1))
    if neighbours:
        pairs = np.unique(np.sort(np.concatenate(neighbours), axis=1), axis=0)
        for better, worse in pairs.tolist():  # in the order of the better one
            if better not in gone:
                gone.add(worse)
    return np.setdiff1d(first, np.fromiter(gone, np.int64, len(gone)))
