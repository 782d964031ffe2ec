"""An index of a run's images, to find those it has already: by bytes, or by perceptual hash.

Of equal images the first that is committed stays. The index is rebuilt from the committed shards at
the start of each launch, and not stored. For 10 million images it takes 100 MB of memory; with
perceptual hashes at distance 4, 770 MB, two minutes at the start, and 0.3 ms per image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cahlib.core.config import Output
from cahlib.core.lists import DigestSet
from cahlib.core.records import DropReason, Judged, Shard
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import ShardManifest, read_manifest
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.storage.files import files_at
from cahlib.image.perceptual_hash import NearIndex, with_looks

#: The columns that identify an image.
_COLUMNS = "sha256", "phash", "chroma"


class ImageFingerprint(NamedTuple):
    """The identity of an image."""

    sha256: bytes  #: of the bytes as served
    looks: int  #: its perceptual hash
    colours: int = 0  #: its mean colours; 0 if an older cahlib did not store them


def load_duplicate_index(
    options: Output, shards: Iterable[Shard], *, seen: Callable[[str], bool]
) -> DuplicateIndex:
    """Index a run's shards; ``seen`` returns whether the run has the pair of a uid."""
    manifests = filter(None, (read_manifest(options.folder, shard.id) for shard in shards))
    return DuplicateIndex(options, _stored(options.folder, manifests), seen=seen)


class _Images:
    """An index of some images."""

    def __init__(self, distance: int | None) -> None:
        self._bytes, self._near = DigestSet(), None if distance is None else NearIndex(distance)

    def find_duplicate(self, image: ImageFingerprint) -> DropReason | None:
        if image.sha256 in self._bytes:
            return DropReason.SAME_IMAGE
        near = self._near is not None and self._near.has(image.looks, image.colours)
        return DropReason.NEAR_DUPLICATE if near else None

    def add(self, image: ImageFingerprint) -> None:
        self._bytes.add(image.sha256)
        if self._near is not None:
            self._near.add(image.looks, image.colours)


class DuplicateIndex:
    """An index of a run's images, those of the current shard apart; not thread-safe."""

    def __init__(
        self, options: Output, images: Iterable[ImageFingerprint], *, seen: Callable[[str], bool]
    ) -> None:
        """Index the images of the run so far; ``seen`` returns whether it has a uid."""
        self._kind, self._seen = options.duplicates, seen
        self._distance = options.distance if self._kind == "near" else None
        self._committed = _Images(self._distance)
        for each in images if self._kind != "keep" else ():
            self._committed.add(each)
        self.begin_shard()

    def begin_shard(self) -> None:
        """Begin a shard, and forget the uncommitted images of the last."""
        self._own, self._fresh = _Images(self._distance), list[ImageFingerprint]()

    def find_duplicate(self, judged: Judged) -> DropReason | None:
        """Return why a pair is a duplicate, or None after adding it to the current shard."""
        image = judged.image
        if self._seen(image.candidate.uid):
            return DropReason.PAIR_SEEN
        if self._kind == "keep":
            return None
        seen = ImageFingerprint(bytes.fromhex(image.sha256), 0)
        if self._kind == "near":
            image = with_looks(image)
            seen = ImageFingerprint(seen.sha256, int(image.phash, 16), int(image.chroma, 16))
        reason = self._committed.find_duplicate(seen) or self._own.find_duplicate(seen)
        if reason is None:
            self._own.add(seen)
            self._fresh.append(seen)
        return reason

    def commit_shard(self) -> None:
        """Commit the images of the current shard."""
        for each in self._fresh:
            self._committed.add(each)
        self.begin_shard()


def _stored(folder: Path, manifests: Iterable[ShardManifest]) -> Iterator[ImageFingerprint]:
    """Yield the images of committed shards, from their metadata."""
    for each in manifests:
        path = part_path("metadata", each.shard.id)
        if path not in each.files:
            continue
        with files_at(each.place or folder).open(path) as file:
            rows = read_metadata(file, _COLUMNS).to_pydict().values()
        for sha256, *looks in zip(*rows, strict=True):
            yield ImageFingerprint(bytes.fromhex(sha256), *(int(each, 16) for each in looks))
