"""A shard's manifest: the file that commits the shard to the dataset and describes it.

It is written last, and files that no manifest names are not part of a dataset. Reports, summaries
and checks read the manifests alone, so they cover earlier launches too. A manifest contains its own
checksum, so that damage is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.lock import is_locked
from cahlib.core.records import Shard, Stats
from cahlib.dataset.checksummed_json import decode_checksummed, encode_checksummed
from cahlib.dataset.layout import MANIFESTS, part_path
from cahlib.dataset.storage.files import DatasetFiles, files_at
from cahlib.dataset.storage.hashed_file import FileRecord

#: The names of tars; see `cahlib.dataset.maintain.numbering`.
_TAR = re.compile(r"images/[^/]+\.tar")

#: The names that Google Drive, Dropbox, OneDrive and Syncthing give to copies: `x (1).json`,
#: `x (conflicted copy 2024-01-01).json`, `x.sync-conflict-….json`. Ids of shards have no blanks.
_CONFLICTED = re.compile(r" \(|\.sync-conflict-| conflict", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
    """A pair for the gallery of the report."""

    uid: str
    url: str
    text: str
    similarity: float
    nsfw: str
    kept: bool
    jpeg: str  #: base64
    width: int  #: of the thumbnail
    height: int
    # for lists of what to purge, as a dataset has no rows of dropped pairs
    md5: str
    sha1: str
    sha256: str
    phash: str
    language: str = ""  #: "" if by an older cahlib
    #: shown for being near the threshold, not by chance
    near_threshold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedScores:
    """Columns of scores that a committed shard was given later; its tar does not have them."""

    model: str  #: that scored, as in `model` of a manifest
    columns: tuple[str, ...]
    digest: str  #: of what scored: the model's settings, a head or prompts, with their files


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardManifest:
    """A committed shard."""

    shard: Shard
    rows: int  #: pairs
    files: Mapping[str, FileRecord]  #: by path below the dataset's folder
    #: URL of the folder with the files, if they are no longer beside this manifest
    place: str | None
    funnel: Mapping[str, Any]  #: `Stats.as_dict` of all four stages
    kept: Mapping[int, int]  #: kept pairs by hundredths of similarity: 30 is 0.30 … 0.31
    dropped: Mapping[int, int]  #: the same for dropped pairs
    similarity: float  #: mean of the kept pairs; 0 if there are none
    domains: Mapping[str, int]  #: hosts of the kept images, the 100 most frequent
    gallery: tuple[GalleryItem, ...]
    optouts: int  #: images whose owners opted out; the evidence is in optouts/
    started: float  #: when its scraping began, seconds since 1970
    scraped: float  #: when its scraping ended
    finished: float  #: when it was committed
    model: str
    threshold: float
    forms: tuple[str, ...]
    versions: Mapping[str, str]
    silent: tuple[str, ...] = ()  #: domains that never answered
    cut: int = 0  #: the byte at which its WAT file is truncated; 0 if it is complete
    overruled: int = 0  #: opt-outs that the consent profile does not honour, with evidence too
    #: the digest of the settings that made it (`cahlib.core.fingerprint`); "" if by an older cahlib
    settings: str = ""
    #: kept pairs by label and by the second classifier's band: {"UNSURE": {"below 0.2": 3}}
    opinions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    scores: tuple[str, ...] = ()  #: the columns of its scores; empty if by an older cahlib
    added: tuple[AddedScores, ...] = ()  #: by further models, heads and prompts
    layout: int = 0  #: the dataset's (`Description.layout`); 0 if by an older cahlib

    @property
    def stats(self) -> Stats:
        return Stats.from_dict(self.funnel)


_decoder = msgspec.json.Decoder(ShardManifest)


def host_name(url: str) -> str:
    """Return the host of a URL, "" if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def manifest_path(shard: str) -> str:
    """Return the path of a shard's manifest, by the shard's id."""
    return f"{MANIFESTS}/{shard}.json"


def tar_path(manifest: ShardManifest) -> str | None:
    """Return the path of a shard's tar, named by shard or number; None if it has none."""
    return next((path for path in manifest.files if _TAR.fullmatch(path)), None)


def has_outcomes(manifest: ShardManifest) -> bool:
    """Return whether a shard has its outcomes; one without candidates has no file either."""
    return part_path("outcomes", manifest.shard.id) in manifest.files


def encode_manifest(manifest: ShardManifest) -> bytes:
    """Return a manifest as it is stored."""
    return encode_checksummed(manifest)


def decode_manifest(data: bytes) -> ShardManifest:
    """Return a stored manifest; raise ValueError if it is damaged."""
    return decode_checksummed(data, _decoder)


def read_manifest(place: str | Path, shard: str) -> ShardManifest | None:
    """Return the manifest of a shard by its id, or None if it is not committed."""
    there = files_at(place)
    return _read(there, manifest_path(shard)) if there.exists(manifest_path(shard)) else None


def read_manifests(
    place: str | Path, *, damaged: Literal["raise", "skip"] = "raise"
) -> Iterator[ShardManifest]:
    """Yield all manifests of a dataset, sorted by shard; raise RunError for a damaged one."""
    there = files_at(place)
    for id in committed_ids(there.names(MANIFESTS)):
        try:
            yield _read(there, manifest_path(id))
        except RunError:
            if damaged == "raise":
                raise


def committed_ids(names: Iterable[str]) -> list[str]:
    """Return the sorted ids of the shards with a manifest among these files."""
    found = (path for path in names if path.startswith(f"{MANIFESTS}/") and path.endswith(".json"))
    named = (path.rpartition("/")[2][:-5] for path in found)
    return sorted(each for each in named if each[:1] != "." and not is_conflicted_copy(each))


def is_conflicted_copy(path: str) -> bool:
    """Return whether a cloud drive created this file as a copy in conflict with another."""
    return bool(_CONFLICTED.search(path.rpartition("/")[2]))


def is_dataset(place: str | Path) -> bool:
    """Return whether a folder or URL holds a dataset: one manifest is enough."""
    return bool(committed_ids(files_at(place).names(MANIFESTS)))


def require_dataset(place: str | Path) -> None:
    """Raise ConfigError if a folder or URL holds no dataset."""
    if not is_dataset(place):
        raise no_dataset_error(place)


def require_place(place: str) -> None:
    """Raise ConfigError for a folder or URL where no dataset can be, whatever a command does."""
    if not place:
        raise ConfigError("Give the folder or the URL of a dataset.")
    folder = files_at(place).folder
    if folder and _no_folder(folder):
        raise no_dataset_error(place)


def no_dataset_error(place: str | Path) -> ConfigError:
    """Return the error for a place without a shard, where a run may have just begun."""
    there = files_at(place)
    if there.folder and is_locked(there.folder):
        return ConfigError(
            f"{place} holds no shard yet: a command is working on it; wait for its first shard."
        )
    why = there.folder and _no_folder(there.folder)
    return ConfigError(
        f"{there.place} holds no dataset: {why or f'no shard has a manifest in {MANIFESTS}/'}."
    )


def _no_folder(path: Path) -> str:
    """Return why a path is not a folder; "" if it is."""
    try:
        return "" if S_ISDIR(path.stat().st_mode) else "it is a file; name the dataset's folder"
    except FileNotFoundError:
        return "there is no such folder; check the path"
    except OSError as error:
        return f"it cannot be opened ({error.strerror}); check the path"


def _read(there: DatasetFiles, path: str) -> ShardManifest:
    try:
        found = decode_manifest(there.read(path))
        if manifest_path(found.shard.id) != path:
            raise ValueError(f"it belongs to {found.shard.id}")
        return found
    except ValueError as error:
        raise RunError(
            f"{there.path(path)} is damaged ({error}); `cah verify` lists all damage."
        ) from error
