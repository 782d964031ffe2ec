"""Which images a run has already: by their bytes, and by what they look like.

Of images that are the same the first that is sealed stays. What is known is made again from the
sealed shards at the start of each launch, so nothing of it is kept in a file of its own. For 10
million images that takes 100 MB of memory; where looks count, with the distance 4, 770 MB, two
minutes at the start, and 0.3 ms an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from cahlib.config import Output
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import ShardManifest, read_manifest
from cahlib.dataset.storage.files import files_at
from cahlib.image.perceptual_hash import NearIndex, chroma, phash
from cahlib.lists import Digests
from cahlib.records import Judged, Reason, Shard

#: What an image is known by, in the metadata.
_COLUMNS = "sha256", "phash", "chroma"


class ImageFingerprint(NamedTuple):
    """What an image is known by."""

    sha256: bytes  #: of the bytes as served
    looks: int  #: its perceptual hash
    colours: int = 0  #: its mean colours; 0 where an older cahlib did not store them


def load_duplicate_index(
    options: Output, shards: Iterable[Shard], *, seen: Callable[[str], bool]
) -> DuplicateIndex:
    """What a run has in these shards; ``seen`` says of a uid whether it has that pair."""
    manifest = filter(None, (read_manifest(options.folder, shard.id) for shard in shards))
    return DuplicateIndex(options, _stored(options.folder, manifest), seen=seen)


class _Images:
    """Some images, and whether another is one of them."""

    def __init__(self, distance: int | None) -> None:
        self._bytes, self._near = Digests(), None if distance is None else NearIndex(distance)

    def why(self, seen: ImageFingerprint) -> Reason | None:
        if seen.sha256 in self._bytes:
            return Reason.SAME_IMAGE
        near = self._near is not None and self._near.has(seen.looks, seen.colours)
        return Reason.NEAR_DUPLICATE if near else None

    def add(self, seen: ImageFingerprint) -> None:
        self._bytes.add(seen.sha256)
        if self._near is not None:
            self._near.add(seen.looks, seen.colours)


class DuplicateIndex:
    """The images of a run, those of the shard in the making apart; of one thread."""

    def __init__(
        self, options: Output, images: Iterable[ImageFingerprint], *, seen: Callable[[str], bool]
    ) -> None:
        """``images`` of the run so far, and whether it has ``seen`` the uid of a pair."""
        self._kind, self._seen = options.duplicates, seen
        self._distance = options.distance if self._kind == "near" else None
        self._manifest = _Images(self._distance)
        for each in images if self._kind != "keep" else ():
            self._manifest.add(each)
        self.begin()

    def begin(self) -> None:
        """A shard begins; what was not kept is forgotten."""
        self._own, self._fresh = _Images(self._distance), list[ImageFingerprint]()

    def again(self, judged: Judged) -> Reason | None:
        """Why a pair is not needed; if it is, its image belongs to the shard in the making."""
        image = judged.image
        if self._seen(image.candidate.uid):
            return Reason.PAIR_SEEN
        if self._kind == "keep":
            return None
        seen = ImageFingerprint(bytes.fromhex(image.sha256), 0)
        if self._kind == "near":
            looks = (int(each(image.data), 16) for each in (phash, chroma))
            seen = ImageFingerprint(seen.sha256, *looks)
        reason = self._manifest.why(seen) or self._own.why(seen)
        if reason is None:
            self._own.add(seen)
            self._fresh.append(seen)
        return reason

    def keep(self) -> None:
        """The shard in the making is sealed."""
        for each in self._fresh:
            self._manifest.add(each)
        self.begin()


def _stored(folder: Path, manifest: Iterable[ShardManifest]) -> Iterator[ImageFingerprint]:
    """The images of sealed shards, from their metadata."""
    for each in manifest:
        path = part_path("metadata", each.shard.id)
        if path not in each.files:
            continue
        with files_at(each.place or folder).open(path) as file:
            table = pq.ParquetFile(file)
            names = [name for name in _COLUMNS if name in table.schema_arrow.names]
            rows = table.read(columns=names).select(names).to_pydict().values()
        for sha256, *looks in zip(*rows, strict=True):
            yield ImageFingerprint(bytes.fromhex(sha256), *(int(each, 16) for each in looks))
