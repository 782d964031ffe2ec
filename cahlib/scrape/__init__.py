"""What a scraper does with one shard; it never imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cahlib.config import Crawl, Download
from cahlib.errors import ShardError
from cahlib.records import Evidence, Parcel, Shard, Tally
from cahlib.scrape.blocklists import Blocklists
from cahlib.scrape.candidates import candidates
from cahlib.scrape.images import images
from cahlib.scrape.parcel import seal, sealed
from cahlib.scrape.wat import pages


def scrape(
    shard: Shard,
    crawl: Crawl,
    download: Download,
    folder: Path,
    *,
    limit: float,
    report: Callable[[dict[str, Any]], None],
) -> Parcel:
    """Turn a shard into a sealed parcel in ``folder``; one that lies there is taken as it is.

    ``report`` hears the tally, as `Tally.as_dict` gives it, about once a second. Raises ShardError
    for a shard that cannot be read or takes longer than ``limit`` seconds, RunError if the crawl's
    server bans us or the disk is full.
    """
    if ready := sealed(folder, shard):
        return ready
    tally, evidence = Tally(), Evidence()
    deadline = time.monotonic() + limit

    def tick() -> None:
        report(tally.as_dict())
        if time.monotonic() > deadline:
            raise ShardError(f"{shard.id} took longer than {limit / 60:g} minutes.")

    found = candidates(
        pages(shard, tally, contact=download.contact),
        crawl,
        Blocklists.load(crawl),
        tally,
        consent=download.consent,
        optouts=evidence.optouts,
    )
    fetched = images(found, download, tally, evidence=evidence, tick=tick)
    return seal(fetched, shard, folder, tally=tally, evidence=evidence)
