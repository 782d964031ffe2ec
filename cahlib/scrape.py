"""What a scraper does with one shard; it never imports torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cahlib.config import Crawl, Download
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.wat import read_pages
from cahlib.errors import ShardError
from cahlib.fetch.images import fetch_images
from cahlib.fetch.resolver import network_config
from cahlib.parcel import storage
from cahlib.parcel.parcel import delete_parcel, find_parcel, write_parcel
from cahlib.records import Evidence, Parcel, Shard, Stage, Tally

#: Seconds between two lines of the log: what `tail -f crawl.log` shows on a node.
_TELL = 15.0

log = logging.getLogger(__name__)


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

    ``report`` hears the tally, as `Tally.as_dict` gives it, about once a second, and as "offline"
    for how many seconds there has been no network; that time does not count towards ``limit``.
    Raises ShardError for a shard that cannot be read or takes longer than ``limit`` seconds,
    Postponed if there is no network for too long, RunError if the crawl's server bans us or the
    disk is full.
    """
    if ready := find_parcel(folder, shard):
        return ready
    tally, evidence, network = Tally(), Evidence(), network_config(download)
    outages = network.outages
    started = told = time.monotonic()

    def tell(how: str) -> None:
        nonlocal told
        told = time.monotonic()
        seen, got = tally.done(Stage.FETCH), tally.left[Stage.FETCH]
        log.info("%s %s: %d links, %d images, %.0f s", shard.id, how, seen, got, told - started)

    def tick() -> None:
        offline = outages.current_seconds()
        report(tally.as_dict() | ({"offline": offline} if offline else {}))
        if time.monotonic() > told + _TELL:
            tell("waits for the network" if offline else "goes on")
        if time.monotonic() > started + limit + outages.total():
            raise ShardError(f"{shard.id} took longer than {limit / 60:g} minutes.")

    found = find_candidates(
        read_pages(shard, tally, contact=download.contact, outages=outages, evidence=evidence),
        crawl,
        Blocklists.load(crawl),
        tally,
        consent=download.consent,
        optouts=evidence.optouts,
    )
    fetched = fetch_images(found, download, tally, evidence=evidence, tick=tick, net=network)
    tell("begins")
    parcel = write_parcel(fetched, shard, folder, tally=tally, evidence=evidence)
    tell("is done")
    return parcel


def scrape_and_upload(
    shard: Shard,
    settings: tuple[Crawl, Download],
    folder: Path,
    upload: str,
    *,
    limit: float,
    report: Callable[[dict[str, Any]], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scrape a shard and upload its parcel; return where it is (`upload_parcel`) and its tally."""
    parcel = scrape(shard, *settings, folder, limit=limit, report=report)
    uploaded = storage.upload_parcel(parcel, upload)
    delete_parcel(folder, shard)
    return uploaded, parcel.tally.as_dict()
