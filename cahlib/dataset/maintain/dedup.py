"""Find images that a finished dataset has more than once, and remove them.

They look alike by their perceptual hashes, or mean the same by their embeddings. Of each group the
best stays: the largest, or the one most similar to its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.purge import apply_changes
from cahlib.dataset.maintain.rewrite import ShardChange
from cahlib.dataset.maintain.similar import Rows, find_similar
from cahlib.dataset.manifest import read_manifests, require_dataset
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.vectors import StoredVectors, open_vectors
from cahlib.dataset.write.columns import Row
from cahlib.image.perceptual_hash import count_bits, near_pairs, same_colours

_COLUMNS = ["uid", "phash", "WIDTH", "HEIGHT", "similarity"]

#: The mean colours, which an older dataset lacks.
_COLOURS = "chroma"

#: Which of the images that look alike, or mean the same, stays.
Preference = Literal["largest", "most-similar"]

#: The examples in a report.
_EXAMPLES = 8


class Example(NamedTuple):
    """An image that is to be removed."""

    url: str
    like: str  #: the URL of the image that stays, or the name of one of an evaluation set
    cosine: float | None = None  #: of their embeddings, if these were compared
    bits: int | None = None  #: of 64 in which their perceptual hashes differ, if these were


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """The images of a dataset that are to be removed from it."""

    images: int  #: in total
    extra: NDArray[Any]  #: sorted uids of those to be removed, 16 bytes each
    reason: DropReason
    examples: tuple[Example, ...] = ()  #: from the least alike on

    def why(self, row: Row) -> DropReason | None:
        """Return the reason to remove a pair, or None."""
        uid = np.frombuffer(bytes.fromhex(row["uid"]), "S16")
        at = int(np.searchsorted(self.extra, uid[0]))
        found = at < len(self.extra) and self.extra[at] == uid[0]
        return self.reason if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTable:
    """The values by which images are compared, row by row as in `StoredVectors`."""

    place: str | Path
    shards: tuple[tuple[str, str | Path], ...]  #: the ids of shards with pairs, and their places
    starts: Rows  #: the first row of each, and the number of all rows
    uids: NDArray[Any]  #: 16 bytes each
    hashes: NDArray[np.uint64]
    colours: NDArray[np.uint64]  #: 0 if an older cahlib did not store them
    pixels: NDArray[np.float64]
    similarity: NDArray[np.float64]

    def best_first(self, prefer: Preference) -> Rows:
        """Return all rows, the best first; the other measure decides between equals."""
        first, second = self.pixels, self.similarity
        if prefer == "most-similar":
            first, second = second, first
        return np.lexsort((second, first))[::-1]

    def urls(self, rows: Iterable[int]) -> Iterator[str]:
        """Yield the URLs of a few images."""
        for row in rows:
            number = int(np.searchsorted(self.starts, row, "right")) - 1
            id, place = self.shards[number]
            with files_at(place).open(part_path("metadata", id)) as file:
                yield str(read_metadata(file, ["URL"])["URL"][int(row - self.starts[number])])

    def removing(
        self, rows: Rows, reason: DropReason, examples: Iterable[Example] = ()
    ) -> Duplicates:
        """Return the removal of some rows."""
        return Duplicates(
            images=len(self.uids),
            extra=np.sort(self.uids[rows]),
            reason=reason,
            examples=tuple(examples),
        )

    def examples(
        self, gone: Rows, like: Rows, measured: Callable[[int], dict[str, Any]]
    ) -> Iterator[Example]:
        """Yield examples of rows that go and those that they are like, with what was measured."""
        for at in evenly(np.arange(len(gone))).tolist():
            one, other = self.urls((gone[at], like[at]))
            yield Example(one, other, **measured(at))


def find_duplicates(place: str | Path, distance: int, prefer: Preference = "largest") -> Duplicates:
    """Find images whose perceptual hashes differ in at most ``distance`` bits of 64.

    Their mean colours must be the same too, if the dataset has them. Only the metadata is read; 10
    million images take two minutes and 1.6 GiB on one core. Raise ConfigError if there is no
    dataset, or the distance is not 0 to 8.
    """
    require_distance(distance)
    table = read_image_table(place)
    # best first, so that the first of each group is kept
    best = table.best_first(prefer)
    hashes, colours = table.hashes[best], table.colours[best]
    kept = _first(hashes, colours)
    first = np.flatnonzero(kept == np.arange(len(kept)))
    kept = _apart(hashes, colours, first, distance)[kept]
    gone = np.flatnonzero(kept != np.arange(len(kept)))
    bits = count_bits(hashes[gone] ^ hashes[kept[gone]])
    order = np.argsort(bits, kind="stable")[::-1]
    gone, bits = gone[order], bits[order]
    examples = table.examples(best[gone], best[kept[gone]], lambda at: {"bits": int(bits[at])})
    return table.removing(best[gone], DropReason.NEAR_DUPLICATE, examples)


def find_same_meaning(
    place: str | Path,
    threshold: float,
    prefer: Preference = "largest",
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    model: str = "",
) -> Duplicates:
    """Find images whose embeddings have a cosine of at least ``threshold``.

    They are the dataset's own embeddings, or those by a further model. Raise ConfigError if there
    is no dataset with embeddings of that model, or the threshold is not 0.5 to 1.
    """
    require_threshold(threshold)
    table = read_image_table(place)
    vectors = vectors_of(table, model)
    found = find_similar(vectors, table.best_first(prefer), threshold, progress=progress)
    order = np.argsort(found.cosines, kind="stable")
    rows, cosines = found.rows[order], found.cosines[order].round(4)
    examples = table.examples(rows, found.kept[order], lambda at: {"cosine": float(cosines[at])})
    return table.removing(found.rows, DropReason.SAME_MEANING, examples)


def remove_duplicates(folder: Path, found: Duplicates) -> Iterator[ShardChange]:
    """Remove the duplicates, as `cahlib.dataset.maintain.purge.purge` does."""
    yield from apply_changes(folder, "dedup", found.why)


def evenly(rows: Rows) -> Rows:
    """Return a few of some rows, at equal distances from the first to the last."""
    some: Rows = np.unique(np.linspace(0, len(rows) - 1, _EXAMPLES).astype(int))
    return rows[some[: len(rows)]]


def require_distance(distance: int) -> None:
    """Raise ConfigError if a distance of perceptual hashes is not 0 to 8."""
    if not 0 <= distance <= 8:
        raise ConfigError(f"distance: {distance} is not a number of bits from 0 to 8.")


def require_threshold(threshold: float) -> None:
    """Raise ConfigError if a cosine is not 0.5 to 1."""
    if not 0.5 <= threshold <= 1:
        raise ConfigError(f"semantic: {threshold:g} is not a cosine from 0.5 to 1.")


def vectors_of(table: ImageTable, model: str = "") -> StoredVectors:
    """Return the embeddings of these images; raise RunError if they are not of the same rows."""
    vectors = open_vectors(table.place, model=model)
    if not np.array_equal(vectors.starts, table.starts):
        raise RunError(
            f"{table.place} was changed while it was read, or its files do not belong together; "
            "run this again, then see `cah verify`."
        )
    return vectors


def read_image_table(place: str | Path) -> ImageTable:
    """Return what is compared of a dataset's images; raise ConfigError if it has none."""
    shards, parts = [], list[tuple[Any, ...]]()
    for manifest in read_manifests(place):
        path = part_path("metadata", manifest.shard.id)
        if path not in manifest.files or not manifest.rows:
            continue
        with files_at(manifest.place or place).open(path) as file:
            table = read_metadata(file, [*_COLUMNS, _COLOURS])
        uid, phash, width, height, similarity = (table[name].to_numpy() for name in _COLUMNS)
        shards.append((manifest.shard.id, manifest.place or place))
        parts.append(
            (
                np.frombuffer(bytes.fromhex("".join(uid)), "S16"),
                _words(phash),
                _words(table[_COLOURS].to_numpy())
                if _COLOURS in table.column_names
                else np.zeros(len(uid), np.uint64),
                width.astype(np.float64) * height,
                np.nan_to_num(similarity.astype(np.float64)),
            )
        )
    if not parts:
        require_dataset(Path(place))
        raise ConfigError(f"{place} holds no dataset with images: none of its shards has a pair.")
    uids, hashes, colours, pixels, similarity = (
        np.concatenate(each) for each in zip(*parts, strict=True)
    )
    return ImageTable(
        place=place,
        shards=tuple(shards),
        starts=np.cumsum([0, *(len(part[0]) for part in parts)]),
        uids=uids,
        hashes=hashes,
        colours=colours,
        pixels=pixels,
        similarity=similarity,
    )


def _words(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64)


def _first(hashes: NDArray[np.uint64], colours: NDArray[np.uint64]) -> Rows:
    """Return for each image the position of the first one with the same hash and colours."""
    kept = np.arange(len(hashes))
    left = np.argsort(hashes, kind="stable")
    while len(left):  # once per set of colours that a hash has
        new = np.ones(len(left), bool)
        new[1:] = hashes[left[1:]] != hashes[left[:-1]]
        again, whose = left[~new], left[new][np.cumsum(new)[~new] - 1]
        same = same_colours(colours[again], colours[whose])
        kept[again[same]] = whose[same]
        left = again[~same]
    return kept


def _apart(
    hashes: NDArray[np.uint64], colours: NDArray[np.uint64], first: Rows, distance: int
) -> Rows:
    """Return for each image which one stays for it: the first remove their neighbours in turn."""
    kept = np.arange(len(hashes))
    neighbours = []
    for places in near_pairs(hashes[first], distance) if distance else ():
        one, other = first[places].T
        alike = same_colours(colours[one], colours[other])
        neighbours.append(np.stack([one[alike], other[alike]], axis=1))
    if neighbours:
        pairs = np.unique(np.sort(np.concatenate(neighbours), axis=1), axis=0)
        for better, worse in pairs.tolist():  # in the order of the better one
            if kept[better] == better and kept[worse] == worse:
                kept[worse] = better
    return kept
