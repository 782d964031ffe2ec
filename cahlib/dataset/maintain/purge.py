"""Remove listed pairs from a finished dataset."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahlib.core.config import Job
from cahlib.core.errors import ConfigError, RunError, disk_errors
from cahlib.core.lists import FILE_HASH, MD5, URL, DigestSet, HashSet, md5_digest, read_entries
from cahlib.core.lock import lock_dataset
from cahlib.core.records import DropReason
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.file_names import require_writable
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.rewrite import RemovalRule, ShardChange, rewrite_shards
from cahlib.dataset.manifest import read_manifests, require_dataset
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.read_pairs import DAMAGE
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.upload import upload_pages, upload_shards
from cahlib.dataset.write.columns import Row, canonical_json
from cahlib.model.known_harm import load_known_harm

_log = logging.getLogger(__name__)

#: The columns that rules of lists use.
_LISTED = ("uid", "URL", "md5", "sha1", "sha256", "phash")

#: The log of changes to a finished dataset, one line per shard: time, command and numbers.
CHANGES_FILE = "changes.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeLists:
    """Files that list what to remove, as `cahlib.core.lists` reads them."""

    hashes: Sequence[str] = ()  #: of images as they were served: md5, sha1, sha256
    looks: Sequence[str] = ()  #: perceptual hashes of images
    distance: int = 4  #: bits of 64 in which an image may differ from these
    urls: Sequence[str] = ()  #: of images
    uids: Sequence[str] = ()  #: of pairs

    def rules(self) -> tuple[RemovalRule, RemovalRule]:
        """Return the rules for rows of the metadata and of the outcomes.

        Raise ConfigError if a file is not such a list.
        """
        hashes = HashSet(
            each for path in self.hashes for each in read_entries(path, "hashes", FILE_HASH)
        )
        looks = load_known_harm(self.looks, "looks", self.distance)
        urls = DigestSet(
            md5_digest(each) for path in self.urls for each in read_entries(path, "urls", URL)
        )
        uids = DigestSet(
            bytes.fromhex(each) for path in self.uids for each in read_entries(path, "uids", MD5)
        )

        def why(row: Row) -> DropReason | None:
            listed = (
                hashes.has_any(row["md5"], row["sha1"], row["sha256"])
                or (looks is not None and int(row["phash"], 16) in looks)
                or md5_digest(row["URL"]) in urls
                or bytes.fromhex(row["uid"]) in uids
            )
            return DropReason.PURGED if listed else None

        def why_outcome(row: Row) -> DropReason | None:
            links = [each for each in (row["url"], row["final_url"]) if each]
            listed = any(md5_digest(each) in urls for each in links)
            return DropReason.PURGED if listed or bytes.fromhex(row["uid"]) in uids else None

        return why, why_outcome


def purge(folder: Path, lists: PurgeLists) -> Iterator[ShardChange]:
    """Remove the listed pairs, shard by shard, here and at the URL that the run uploaded to.

    Listed links that did not become pairs are removed from the outcomes. Safe to interrupt and
    repeat. The changes are logged, and the report and the card updated. Raise as `rewrite_shards`
    does, and RunError if the URL cannot be reached.
    """
    why, why_outcome = lists.rules()
    pairs: Set[str] | None = None if lists.hashes or lists.looks else set()

    def why_link(row: Row) -> DropReason | None:
        # shards that failed to fetch a pair, or had it again, name its link too; their rows go
        # before the pair itself does, as an earlier attempt comes first: killed, it is found again
        nonlocal pairs
        if pairs is None:
            pairs = _listed_pairs(folder, why)
        return DropReason.PURGED if row["uid"] in pairs else why_outcome(row)

    yield from apply_changes(folder, "purge", why, why_link)


def _listed_pairs(folder: Path, why: RemovalRule) -> set[str]:
    """Return the pairs for which there is a reason, by uid; a damaged shard has none."""
    found = set[str]()
    for manifest in read_manifests(folder, damaged="skip"):
        path = folder / part_path("metadata", manifest.shard.id)
        with suppress(*DAMAGE):
            rows = read_metadata(path, _LISTED).to_pylist() if manifest.rows else []
            found |= {row["uid"] for row in rows if why(row)}
    return found


def apply_changes(
    folder: Path, what: str, why: RemovalRule, why_outcome: RemovalRule | None = None
) -> Iterator[ShardChange]:
    """Rewrite a dataset, and update the log of changes, the report and the card."""
    with change_dataset(folder):
        yield from rewrite_shards(folder, why, why_outcome, ChangeLog(folder, what).note)


@contextmanager
def change_dataset(folder: Path) -> Iterator[None]:
    """Hold the lock of a finished dataset, and at the end update its pages and what is at its URL.

    Raise ConfigError if it is no dataset or in use, RunError if the URL cannot be reached.
    """
    require_dataset(folder)  # before anything is written to a folder that is not a dataset
    require_writable(folder)
    with lock_dataset(folder):
        job = Job.stored(RunDirectory(folder).job)
        # a killed run left thumbnails in it
        RunDirectory(folder).status.unlink(missing_ok=True)
        with ExitStack() as last:
            # even if nothing changed: an earlier launch may have been killed before this
            last.callback(write_pages, folder, job.values() if job else {})
            try:
                yield
            except ConfigError:  # nothing was begun
                last.pop_all()
                raise
        if job and job.output.url:
            _bring(folder, job.output.url)


def withdraw_pairs(folder: Path, uids: Set[str], url: str | None) -> None:
    """Remove pairs that others committed first, here and at the URL.

    Shards whose files are at the URL alone keep theirs, with a warning. Nobody else may write to
    the folder. Raise RunError if the URL cannot be reached.
    """

    def why(row: Row) -> DropReason | None:
        return DropReason.PAIR_SEEN if row["uid"] in uids else None

    if not uids:
        return
    if any(manifest.place for manifest in read_manifests(folder)):
        _log.warning("%s pairs stay in %s, though another dataset has them too.", len(uids), url)
        return
    for _ in rewrite_shards(folder, why, note=ChangeLog(folder, "withdraw").note):
        pass
    if url:
        _bring(folder, url)


def change_line(what: str, change: ShardChange, about: Mapping[str, Any] | None = None) -> bytes:
    """Return the line of a change in the log of changes; ``about`` is added to it."""
    lost = {reason.value: n for reason, n in change.lost.items()}
    line = {"time": time.time(), "what": what, "shard": change.shard, "lost": lost}
    if change.manifest:
        line["manifest"] = change.manifest
    if change.links:
        line["links"] = change.links
    return canonical_json(line | dict(about or {})) + b"\n"


class ChangeLog:
    """The log of changes, to which one command appends a line for each shard."""

    def __init__(self, folder: Path, what: str, about: Mapping[str, Any] | None = None) -> None:
        self._folder, self._what, self._about = folder, what, about
        *_, self._last = "", *(str(each.get("manifest")) for each in _changes(folder))

    def note(self, change: ShardChange) -> None:
        """Append the line of a change that is about to be made.

        A launch that was killed just before it made that change has written the line already.
        """
        if change.manifest == self._last:
            return
        with disk_errors(self._folder), open(self._folder / CHANGES_FILE, "ab") as file:
            file.write(change_line(self._what, change, self._about))


def changed_shards(place: str | Path) -> frozenset[str]:
    """Return the ids of the shards from which pairs were removed."""
    return frozenset(str(each["shard"]) for each in _changes(place) if "shard" in each)


def _changes(place: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of the log of changes, but damaged ones."""
    there = files_at(place)
    for line in there.read(CHANGES_FILE).splitlines() if there.exists(CHANGES_FILE) else ():
        with suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                yield found


def _bring(folder: Path, url: str) -> None:
    """Upload the changed shards, the report and the card to the URL."""
    try:
        upload_shards(list(read_manifests(folder)), folder, url)
        upload_pages(folder, url)
    except RunError as error:
        raise RunError(
            f"{error} What was removed here may still be there; run the same command again."
        ) from error
