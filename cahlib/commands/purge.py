"""`cah purge`: takes pairs out of a finished dataset, by lists of hashes, addresses or keys."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from cahlib.errors import ConfigError

_UID = re.compile(r"\s*([0-9a-fA-F]{32})?\s*(?:#.*)?\n?")
_URL = re.compile(r"\s*([^\s#]\S*)?\s*(?:#.*)?\n?")


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "purge",
        help="take pairs out of a dataset, by hashes, addresses or uids",
        description="Write every shard anew without the pairs that a list names; what is "
        "interrupted goes on with the same command. Lists have one entry a line, gzip is fine.",
    )
    parser.add_argument("dataset", help="folder of a dataset")
    parser.add_argument("--hashes", metavar="FILE", help="md5 or sha256 of the images as served")
    parser.add_argument("--urls", metavar="FILE", help="addresses of images, as in column URL")
    parser.add_argument("--uids", metavar="FILE", help="keys of pairs, as in column uid")
    parser.set_defaults(act=_purge)


def _purge(chosen: argparse.Namespace) -> int:
    from cahlib.curate.purge import LOG, purge
    from cahlib.scrape import hashes
    from cahlib.scrape.blocklists import entries

    if "://" in chosen.dataset:
        raise ConfigError(f"{chosen.dataset}: pairs are taken out of datasets in folders only.")
    if not (chosen.hashes or chosen.urls or chosen.uids):
        raise ConfigError("purge: say what has to go, by --hashes, --urls or --uids.")
    digests = hashes.read(chosen.hashes, "hashes") if chosen.hashes else set()
    urls = set(entries(chosen.urls, "urls", _URL, "address")) if chosen.urls else set()
    uids = set[str]()
    if chosen.uids:
        uids = {each.lower() for each in entries(chosen.uids, "uids", _UID, "uid")}
    used = set[str]()

    def doomed(row: dict[str, Any]) -> bool:
        named = {row["md5"], row["sha256"]} & digests
        named |= ({row["URL"]} & urls) | ({row["uid"]} & uids)
        used.update(named)
        return bool(named)

    taken = purge(
        Path(chosen.dataset),
        doomed,
        # of a picture that was not kept no hash is known: none stays where hashes are purged
        hide=lambda shown: (
            shown.uid in uids or shown.url in urls or (bool(digests) and not shown.kept)
        ),
    )
    print(f"{sum(taken.values()):,} pairs of {len(taken):,} shards were taken out: see {LOG}.")
    listed = len(digests) + len(urls) + len(uids)
    print(f"{listed - len(used):,} of {listed:,} entries are of no pair in this dataset.")
    if sha1 := sum(len(each) == 40 for each in digests):
        print(f"{sha1:,} of them are sha1, which a dataset does not hold: they match nothing here.")
    return 0
