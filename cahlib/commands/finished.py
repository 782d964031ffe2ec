"""`cah purge` and `cah dedup`: change a dataset that is finished."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahlib.errors import ConfigError

if TYPE_CHECKING:
    from cahlib.dataset.maintain.rewrite import ShardChange


def add(commands: Any) -> None:
    """Add the command."""
    purge = commands.add_parser(
        "purge",
        help="take listed images out of a dataset",
        description="Take images out of a finished dataset, from all of its files. It may be "
        "interrupted, and given again. Lists have an entry a line, and may be packed with gzip.",
    )
    purge.add_argument("dataset", help="folder of a dataset")
    for name, what in (
        ("hashes", "md5, sha1 or sha256 in hex of images as they were served"),
        ("looks", "perceptual hashes, 16 hex digits, of images that nothing may look like"),
        ("urls", "addresses of images"),
        ("uids", "uids of pairs"),
    ):
        purge.add_argument(
            f"--{name}", action="append", default=[], metavar="FILE", help=f"a list of {what}"
        )
    purge.add_argument(
        "--distance", type=int, default=4, choices=range(9), metavar="N",
        help="for looks: bits of 64 that may differ, 0 to 8 [4]",
    )  # fmt: skip
    purge.set_defaults(act=_purge)
    dedup = commands.add_parser(
        "dedup",
        help="find images that a dataset has more than once",
        description="Find images that look alike, by the perceptual hashes in the metadata. Of "
        "each the largest stays, when --apply is given.",
    )
    dedup.add_argument("dataset", help="folder of a dataset")
    dedup.add_argument(
        "--distance", type=int, default=4, metavar="N", help="bits of 64 that may differ [4]"
    )
    dedup.add_argument("--apply", action="store_true", help="take the others out")
    dedup.set_defaults(act=_dedup)


def _purge(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.maintain.purge import PurgeLists, purge

    lists = PurgeLists(
        hashes=chosen.hashes, looks=chosen.looks, distance=chosen.distance, urls=chosen.urls,
        uids=chosen.uids,
    )  # fmt: skip
    if not (lists.hashes or lists.looks or lists.urls or lists.uids):
        raise ConfigError("purge: name a list with --hashes, --looks, --urls or --uids.")
    _follow(purge(_folder(chosen.dataset), lists))
    return 0


def _dedup(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.file_names import require_writable
    from cahlib.dataset.maintain.dedup import find_duplicates, remove_duplicates
    from cahlib.dataset.manifest import require_dataset
    from cahlib.dataset.write.shard_writer import recover_interrupted
    from cahlib.lock import held

    folder = _folder(chosen.dataset)
    if chosen.apply:
        require_dataset(folder)  # before anything is made in a folder that is somebody else's
        require_writable(folder)
        with held(folder):
            recover_interrupted(folder)  # what an interrupted change left cannot be read
    found = find_duplicates(folder, chosen.distance)
    print(f"{len(found.extra):,} of {found.images:,} images look like another of the dataset.")
    if chosen.apply:
        _follow(remove_duplicates(folder, found))
    elif len(found.extra):
        print("With --apply they are taken out; the largest of each stays.")
    return 0


def _folder(dataset: str) -> Path:
    if not Path(dataset).is_dir():
        raise ConfigError(f"{dataset} is no folder; bring the dataset here to change it.")
    return Path(dataset)


def _follow(changes: Iterable[ShardChange]) -> None:
    from cahlib.words import plural

    pairs = shards = 0
    for change in changes:
        out = sum(change.lost.values())
        pairs, shards = pairs + out, shards + 1
        print(f"{change.shard}: {plural(out, 'pair')} out, {change.left} left")
    print(f"Took {plural(pairs, 'pair')} out of {plural(shards, 'shard')}.")
