"""Takes what must not be there out of a finished dataset, by lists of what it is."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cahlib import live
from cahlib.config import Job
from cahlib.dataset.file_names import require_writable
from cahlib.dataset.maintain.rewrite import RemovalRule, ShardChange, rewrite_shards
from cahlib.dataset.manifest import read_manifests, require_dataset
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.upload import upload_pages, upload_shards
from cahlib.dataset.write.columns import Row, canonical_json
from cahlib.errors import RunError, disk_errors
from cahlib.lists import HASH, MD5, URL, Digests, Hashes, entries, md5
from cahlib.lock import held
from cahlib.model.known_harm import load_known_harm
from cahlib.records import Reason

_log = logging.getLogger(__name__)

#: What was changed in a finished dataset, a line a shard: when, by what, and how much of it.
CHANGES_FILE = "changes.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeLists:
    """Files that name what has to go, as `cahlib.lists` reads them."""

    hashes: Sequence[str] = ()  #: of images as they were served: md5, sha1, sha256
    looks: Sequence[str] = ()  #: perceptual hashes of images
    distance: int = 4  #: bits of 64 in which an image may differ from those
    urls: Sequence[str] = ()  #: of images
    uids: Sequence[str] = ()  #: of pairs

    def why(self) -> RemovalRule:
        """Read the lists. Raises ConfigError for a file that is no such list."""
        hashes = Hashes(each for path in self.hashes for each in entries(path, "hashes", HASH))
        looks = load_known_harm(self.looks, "looks", self.distance)
        urls = Digests(md5(each) for path in self.urls for each in entries(path, "urls", URL))
        uids = Digests(
            bytes.fromhex(each) for path in self.uids for each in entries(path, "uids", MD5)
        )

        def why(row: Row) -> Reason | None:
            listed = (
                hashes.name(row["md5"], row["sha1"], row["sha256"])
                or (looks is not None and int(row["phash"], 16) in looks)
                or md5(row["URL"]) in urls
                or bytes.fromhex(row["uid"]) in uids
            )
            return Reason.PURGED if listed else None

        return why


def purge(folder: Path, lists: PurgeLists) -> Iterator[ShardChange]:
    """Take the listed pairs out, shard by shard, here and at the URL that the run brought them to.

    May be interrupted and given again. What was changed is written down, in the report and the
    card too. Raise as `rewrite` does, and RunError if the URL cannot be reached.
    """
    yield from apply_changes(folder, "purge", lists.why())


def apply_changes(folder: Path, what: str, why: RemovalRule) -> Iterator[ShardChange]:
    """Rewrite a dataset, and tell of it in the files that tell of the dataset."""
    require_dataset(folder)  # before anything is made in a folder that is somebody else's
    require_writable(folder)
    with held(folder):
        job = Job.stored(folder / "run" / "job.json")
        (folder / "run" / live.FILE).unlink(missing_ok=True)  # a killed run left pictures in it
        changes = rewrite_shards(folder, why)
        try:
            for change in changes:
                _note(folder, what, change)
                yield change
        finally:  # also if nothing was changed: an earlier launch may have been killed before this
            values = job.values() if job else {}
            write_pages(folder, values)
        if job and job.output.url:
            _bring(folder, job.output.url)


def withdraw_pairs(folder: Path, uids: Set[str], url: str | None) -> None:
    """Take out the pairs that the shards of others were first to bring, here and at the URL.

    Shards whose files are at the URL alone keep theirs, and a warning says so. Nobody else may
    write to the folder. Raises RunError if the URL is away.
    """

    def why(row: Row) -> Reason | None:
        return Reason.PAIR_SEEN if row["uid"] in uids else None

    if not uids:
        return
    if any(manifest.place for manifest in read_manifests(folder)):
        _log.warning("%s pairs stay in %s, though another dataset has them too.", len(uids), url)
        return
    for change in rewrite_shards(folder, why):
        _note(folder, "withdraw", change)
    if url:
        _bring(folder, url)


def _note(folder: Path, what: str, change: ShardChange) -> None:
    lost = {reason.value: n for reason, n in change.lost.items()}
    line = {"time": time.time(), "what": what, "shard": change.shard, "lost": lost}
    with disk_errors(folder), open(folder / CHANGES_FILE, "ab") as file:
        file.write(canonical_json(line) + b"\n")


def changed_shards(place: str | Path) -> frozenset[str]:
    """Return the ids of the shards out of which pairs were taken."""
    there, ids = files_at(place), set[str]()
    for line in there.read(CHANGES_FILE).splitlines() if there.exists(CHANGES_FILE) else ():
        with suppress(ValueError, TypeError, KeyError):  # a damaged line
            ids.add(str(json.loads(line)["shard"]))
    return frozenset(ids)


def _bring(folder: Path, url: str) -> None:
    """Have the URL hold what is here: shards that are the same there are not sent."""
    try:
        upload_shards(list(read_manifests(folder)), folder, url)
        upload_pages(folder, url)
    except RunError as error:
        raise RunError(
            f"{error} What was taken out here may still be there; give the same command again."
        ) from error
