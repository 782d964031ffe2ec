"""Takes what must not be there out of a finished dataset, by lists of what it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahlib import live
from cahlib.curate import card, dataset, harm, report
from cahlib.curate.formats import disk
from cahlib.curate.rewrite import Change, Why, rewrite
from cahlib.curate.rows import Row, as_json
from cahlib.lists import HASH, MD5, URL, Digests, Hashes, entries, md5
from cahlib.records import Reason

#: What was changed in a finished dataset, a line each time: when, why, and how much of which shard.
CHANGES = "changes.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Files that name what has to go, as `cahlib.lists` reads them."""

    hashes: Sequence[str] = ()  #: of images as they were served: md5, sha1, sha256
    looks: Sequence[str] = ()  #: perceptual hashes of images
    distance: int = 4  #: bits of 64 in which an image may differ from those
    urls: Sequence[str] = ()  #: of images
    uids: Sequence[str] = ()  #: of pairs

    def why(self) -> Why:
        """Read the lists. Raises ConfigError for a file that is no such list."""
        hashes = Hashes(each for path in self.hashes for each in entries(path, "hashes", HASH))
        looks = harm.listed(self.looks, "looks", self.distance)
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


def purge(folder: Path, lists: Lists) -> Iterator[Change]:
    """Take the listed pairs out, shard by shard; may be interrupted and given again.

    What was changed is written down at the end, in the report and the card too. Raises as
    `cahlib.curate.rewrite.rewrite` does.
    """
    yield from changed(folder, "purge", lists.why())


def changed(folder: Path, what: str, why: Why) -> Iterator[Change]:
    """Rewrite a dataset, and tell of it in the files that tell of the dataset."""
    with dataset.held(folder):
        (folder / "run" / live.FILE).unlink(missing_ok=True)  # a killed run left pictures in it
        shards: dict[str, Any] = {}
        try:
            for change in rewrite(folder, why):
                shards[change.shard] = {reason.value: n for reason, n in change.lost.items()}
                yield change
        finally:
            if shards:
                _tell(folder, {"time": time.time(), "what": what, "shards": shards})


def _tell(folder: Path, line: dict[str, Any]) -> None:
    with disk(folder), open(folder / CHANGES, "ab") as file:
        file.write(as_json(line) + b"\n")
    job = folder / "run" / "job.json"
    values = json.loads(job.read_text(encoding="utf-8")) if job.exists() else {}
    report.write(folder, values)
    card.write(folder, values)
