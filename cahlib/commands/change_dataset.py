"""`cah purge` and `cah dedup`: change a dataset that is finished."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahlib.commands.console import print_json
from cahlib.core.errors import ConfigError, MissingSetting
from cahlib.core.terminal import print_note

if TYPE_CHECKING:
    from cahlib.dataset.maintain.rewrite import ShardChange


def add(commands: Any) -> None:
    """Add the commands."""
    purge = commands.add_parser(
        "purge",
        help="remove listed images from a dataset",
        description="Remove images from a finished dataset, from all of its files. Safe to "
        "interrupt and rerun.\nLists have one entry per line, and may be compressed with gzip.",
        example="cah purge demo-dataset --urls take-downs.txt",
    )
    purge.add_dataset("folder of a dataset")
    for name, what in (
        ("hashes", "hashes (hex md5, sha1 or sha256) of images as they were served"),
        ("looks", "perceptual hashes (16 hex digits); images that look like one are removed"),
        ("urls", "image URLs"),
        ("uids", "uids of pairs"),
    ):
        purge.add_argument(
            f"--{name}", action="append", default=[], metavar="FILE", help=f"list of {what}"
        )
    purge.add_argument(
        "--distance", type=int, default=4, choices=range(9), metavar="N",
        help="for --looks: how many bits of 64 may differ, 0 to 8 [4]",
    )  # fmt: skip
    purge.set_defaults(act=_purge)
    dedup = commands.add_parser(
        "dedup",
        help="find images that a dataset has more than once",
        description="Find images that look alike, by the perceptual hashes in the metadata. With "
        "--apply, keep\nonly the largest of each.",
        example="cah dedup demo-dataset",
    )
    dedup.add_dataset("folder of a dataset")
    dedup.add_argument(
        "--distance", type=int, default=4, metavar="N",
        help="how many bits of 64 may differ, 0 to 8 [4]",
    )  # fmt: skip
    dedup.add_argument("--apply", action="store_true", help="remove all but the largest")
    dedup.add_json()
    dedup.set_defaults(act=_dedup)


def _purge(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.maintain.purge import PurgeLists, purge

    lists = PurgeLists(
        hashes=chosen.hashes, looks=chosen.looks, distance=chosen.distance, urls=chosen.urls,
        uids=chosen.uids,
    )  # fmt: skip
    if not (lists.hashes or lists.looks or lists.urls or lists.uids):
        raise MissingSetting("purge: give a list with --hashes, --looks, --urls or --uids.")
    print(_removed(*_applied(purge(dataset_folder(chosen.dataset), lists))))
    return 0


def _dedup(chosen: argparse.Namespace) -> int:
    from cahlib.core.lock import lock_dataset
    from cahlib.dataset.file_names import require_writable
    from cahlib.dataset.maintain.dedup import find_duplicates, remove_duplicates
    from cahlib.dataset.manifest import require_dataset
    from cahlib.dataset.write.shard_writer import recover_interrupted

    folder = dataset_folder(chosen.dataset)
    if chosen.apply:
        require_dataset(folder)  # before anything is made in a folder that is somebody else's
        require_writable(folder)
        with lock_dataset(folder):
            recover_interrupted(folder)  # what an interrupted change left cannot be read
    found = find_duplicates(folder, chosen.distance)
    if not chosen.json:
        print(f"{len(found.extra):,} of {found.images:,} images look like another of the dataset.")
    pairs = shards = 0
    if chosen.apply:
        pairs, shards = _applied(remove_duplicates(folder, found))
    elif len(found.extra):
        print_note("Run it with --apply to remove them; the largest of each stays.")
    if chosen.json:
        print_json(
            {
                "dataset": chosen.dataset,
                "distance": chosen.distance,
                "images": found.images,
                "duplicates": len(found.extra),
                "applied": chosen.apply,
                "pairs_removed": pairs,
                "shards_changed": shards,
            }
        )
    elif chosen.apply:
        print(_removed(pairs, shards))
    return 0


def dataset_folder(dataset: str) -> Path:
    """Return the folder of a dataset; raise ConfigError if it is not on this machine."""
    if not Path(dataset).is_dir():
        raise ConfigError(
            f"{dataset} is not a folder on this machine; check the path, or download the dataset "
            "first."
        )
    return Path(dataset)


def _applied(changes: Iterable[ShardChange]) -> tuple[int, int]:
    """Make changes, and return how many pairs went out of how many shards."""
    from cahlib.core.wording import plural

    pairs = shards = 0
    for change in changes:
        out = sum(change.lost.values())
        pairs, shards = pairs + out, shards + 1
        print_note(f"{change.shard}: {plural(out, 'pair')} removed, {change.left} left")
    return pairs, shards


def _removed(pairs: int, shards: int) -> str:
    from cahlib.core.wording import plural

    return f"Removed {plural(pairs, 'pair')} from {plural(shards, 'shard')}."
