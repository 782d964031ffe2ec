"""Where the files of a dataset lie in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

#: Where the parts of a shard lie, by form; the metadata and the evidence are always there. A tar
#: may have a number instead: its manifest tells.
LAYOUT: Mapping[str, str] = {
    "metadata": "metadata/metadata_{}.parquet",
    "images": "images/{}.tar",
    "img_emb": "img_emb/img_emb_{}.npy",
    "text_emb": "text_emb/text_emb_{}.npy",
    "tfrecords": "tfrecords/{}.tfrecord",
    "optouts": "optouts/{}.jsonl",
}

#: How columns of scores and tars are called in a dataset that begins today, and which columns it
#: has. A dataset keeps the layout that it began with, so that none is mixed; 1 is what an older
#: cahlib made.
CURRENT_LAYOUT = 2

#: Where the manifests of the shards are.
MANIFESTS = "shards"

#: The folders of a dataset.
FOLDERS = (*(path.split("/")[0] for path in LAYOUT.values()), MANIFESTS)

#: What tells of the whole dataset, and is made anew each time; and what only ours has in it.
PAGES: Mapping[str, re.Pattern[bytes]] = {
    "report.html": re.compile(rb'<meta name="generator" content="cahlib">'),
    "README.md": re.compile(rb"\d shards? of Common Crawl, found by cahlib\. "),
}

#: Ids of shards whose files are on another machine, a line each: a session elsewhere took only
#: their manifests along.
ELSEWHERE = "run/elsewhere"

#: Which session elsewhere a folder belongs to, where it is in one.
SESSION = "run/session"

_NUMBERED = re.compile(r"images/(\d{5,})\.tar")

#: The form that re-encodes what is not a JPEG, so that all samples have the same extension.
ONE_EXTENSION = "images:jpg"


def has_images(forms: Collection[str]) -> bool:
    """Return whether these forms store pictures in tars."""
    return "images" in forms or ONE_EXTENSION in forms


def tar_number(path: str) -> int | None:
    """Return the number of a tar, or None if it has the name of its shard."""
    found = _NUMBERED.fullmatch(path)
    return int(found[1]) if found else None


def part_path(form: str, shard: str) -> str:
    """Return where a shard's part lies in the dataset."""
    return LAYOUT[form].format(shard)
