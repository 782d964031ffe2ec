"""The seal of a shard: the file that says that a shard is in the dataset, and all about it.

A seal is written last. Files that no seal names are not part of a dataset. Reports, summaries and
checks are made from the seals alone, so they cover earlier launches too. Its own checksum stands
in it, so that a damaged seal is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cahlib.dataset.checksummed_json import decode_checksummed, encode_checksummed
from cahlib.dataset.layout import MANIFESTS
from cahlib.dataset.storage.files import DatasetFiles, files_at
from cahlib.dataset.storage.hashed_file import FileRecord
from cahlib.errors import ConfigError, RunError
from cahlib.lock import is_held
from cahlib.records import Shard, Tally

#: How tars are called; see `cahlib.dataset.maintain.numbering`.
_TAR = re.compile(r"images/[^/]+\.tar")

#: How Google Drive, Dropbox, OneDrive and Syncthing name a copy: `x (1).json`,
#: `x (conflicted copy 2024-01-01).json`, `x.sync-conflict-….json`. No id of a shard has a blank.
_CONFLICTED = re.compile(r" \(|\.sync-conflict-| conflict", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
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
    # what lists may name it by, for a dataset does not hold the rows of what was dropped
    md5: str
    sha1: str
    sha256: str
    phash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardManifest:
    """A shard that is in the dataset."""

    shard: Shard
    rows: int  #: pairs
    files: Mapping[str, FileRecord]  #: by path below the dataset's folder
    #: URL of the folder that holds the files, if they are not beside this seal any more
    place: str | None
    funnel: Mapping[str, Any]  #: `Tally.as_dict` of all four stages
    kept: Mapping[int, int]  #: kept pairs by hundredths of similarity: 30 is 0.30 … 0.31
    dropped: Mapping[int, int]  #: the same of the pairs that were dropped
    similarity: float  #: mean of the kept pairs; 0 if there is none
    domains: Mapping[str, int]  #: hosts of the kept images, the 100 most frequent
    gallery: tuple[GalleryItem, ...]
    optouts: int  #: images whose owners refused; the evidence is in optouts/
    started: float  #: when its scraping began, seconds since 1970
    scraped: float  #: when its images were there
    finished: float  #: when it was sealed
    model: str
    threshold: float
    forms: tuple[str, ...]
    versions: Mapping[str, str]
    silent: tuple[str, ...] = ()  #: domains that never answered
    cut: int = 0  #: the byte at which its WAT file is cut off; 0 if it is whole
    overruled: int = 0  #: refusals that the profile of consent does not honour; evidence as well
    #: the digest of the settings that made it (`cahlib.fingerprint`); "" by an older cahlib
    settings: str = ""
    #: kept pairs by label and by what the second classifier says: {"UNSURE": {"below 0.2": 3}}
    opinions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    scores: tuple[str, ...] = ()  #: the columns of its scores; empty by an older cahlib

    @property
    def tally(self) -> Tally:
        return Tally.from_dict(self.funnel)


def manifest_path(shard: str) -> str:
    """The path of a shard's seal, by the shard's id."""
    return f"{MANIFESTS}/{shard}.json"


def tar_path(manifest: ShardManifest) -> str | None:
    """Return where a shard's tar lies, by the shard's name or by a number; None if it has none."""
    return next((path for path in manifest.files if _TAR.fullmatch(path)), None)


def encode_manifest(manifest: ShardManifest) -> bytes:
    """A seal as it is stored."""
    return encode_checksummed(manifest)


def decode_manifest(data: bytes) -> ShardManifest:
    """The inverse of `encode_manifest`. Raises ValueError for a damaged seal."""
    return decode_checksummed(data, ShardManifest)


def read_manifest(place: str | Path, shard: str) -> ShardManifest | None:
    """The seal of a shard by its id, or None if the shard is not in the dataset."""
    there = files_at(place)
    return _read(there, manifest_path(shard)) if there.exists(manifest_path(shard)) else None


def read_manifests(
    place: str | Path, *, damaged: Literal["raise", "skip"] = "raise"
) -> Iterator[ShardManifest]:
    """All seals of a dataset, in the order of the shards. Raises RunError for a damaged one."""
    there = files_at(place)
    for id in committed_ids(there.names(MANIFESTS)):
        try:
            yield _read(there, manifest_path(id))
        except RunError:
            if damaged == "raise":
                raise


def committed_ids(names: Iterable[str]) -> list[str]:
    """Return the ids of the shards that have a manifest among these files, in order."""
    found = (path for path in names if path.startswith(f"{MANIFESTS}/") and path.endswith(".json"))
    named = (path.rpartition("/")[2][:-5] for path in found)
    return sorted(each for each in named if each[:1] != "." and not is_conflicted_copy(each))


def is_conflicted_copy(path: str) -> bool:
    """Whether a cloud drive made this file beside another one: it has two and knows not which."""
    return bool(_CONFLICTED.search(path.rpartition("/")[2]))


def is_dataset(folder: Path) -> bool:
    """Whether a folder of this machine holds a dataset: one seal is enough."""
    return bool(committed_ids(files_at(folder).names(MANIFESTS)))


def require_dataset(folder: Path) -> None:
    """Raise ConfigError for a folder of this machine that holds no dataset."""
    if not is_dataset(folder):
        raise no_dataset_error(folder)


def no_dataset_error(place: str | Path) -> ConfigError:
    """Return the error for a place without a shard; a run that has just begun is told of."""
    if is_held(Path(place)):
        return ConfigError(
            f"{place} holds no shard yet: a command is working on it; wait for its first shard."
        )
    return ConfigError(f"{place} holds no dataset: there is no shard's seal in {MANIFESTS}/.")


def _read(there: DatasetFiles, path: str) -> ShardManifest:
    try:
        found = decode_manifest(there.read(path))
        if manifest_path(found.shard.id) != path:
            raise ValueError(f"it is that of {found.shard.id}")
        return found
    except ValueError as error:
        raise RunError(
            f"{there.path(path)} is damaged ({error}); `cah verify` tells what else is."
        ) from error
