"""`cah purge`: changes a dataset that is finished."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cahlib.errors import ConfigError


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
        ("urls", "addresses of images"),
        ("uids", "uids of pairs"),
    ):
        purge.add_argument(
            f"--{name}", action="append", default=[], metavar="FILE", help=f"a list of {what}"
        )
    purge.set_defaults(act=_purge)


def _purge(chosen: argparse.Namespace) -> int:
    from cahlib.curate.purge import Lists, purge

    lists = Lists(hashes=chosen.hashes, urls=chosen.urls, uids=chosen.uids)
    if lists == Lists(hashes=[], urls=[], uids=[]):
        raise ConfigError("purge: name a list with --hashes, --urls or --uids.")
    if not Path(chosen.dataset).is_dir():
        raise ConfigError(f"{chosen.dataset} is no folder; a dataset at a URL is purged locally.")
    pairs = shards = 0
    for change in purge(Path(chosen.dataset), lists):
        pairs, shards = pairs + sum(change.lost.values()), shards + 1
        print(f"{change.shard}: {sum(change.lost.values())} pairs out, {change.left} left")
    print(f"{pairs} pairs were taken out of {shards} shards.")
    return 0
