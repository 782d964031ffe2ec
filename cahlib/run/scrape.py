"""Scrape one shard: from its WAT file or rows to a parcel of images. Does not import torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cahlib.core.config import Crawl, Download
from cahlib.core.errors import ShardError
from cahlib.core.records import Evidence, Parcel, Shard, Stage, Stats
from cahlib.core.retry_shards import parse_retry
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.failed_links import read_failed_links
from cahlib.crawl.tables.slices import read_slice
from cahlib.crawl.wat import read_pages
from cahlib.fetch.images import fetch_images
from cahlib.fetch.resolver import network_config
from cahlib.parcel import storage
from cahlib.parcel.outcomes import PackedOutcomes
from cahlib.parcel.parcel import delete_parcel, find_parcel, write_parcel

#: Seconds between log lines, as `tail -f crawl.log` shows them on a node.
_LOG_INTERVAL = 15.0

_log = logging.getLogger(__name__)


def scrape(
    shard: Shard,
    crawl: Crawl,
    download: Download,
    folder: Path,
    *,
    limit: float,
    report: Callable[[dict[str, Any]], None],
) -> Parcel:
    """Scrape a shard into a committed parcel in ``folder``; return an existing one unchanged.

    About once per second ``report`` receives the counts (`Stats.as_dict`), and under "offline" the
    seconds without network so far, which do not count toward ``limit``. Raise ShardError if the
    shard cannot be read or takes longer than ``limit`` seconds, Postponed if the network is away
    for too long, RunError if the crawl's server bans this address or the disk is full.
    """
    if ready := find_parcel(folder, shard):
        return ready
    evidence = Evidence(outcomes=PackedOutcomes() if download.outcomes else None)
    stats, network = Stats(), network_config(download)
    outages = network.outages
    started = logged = time.monotonic()

    def log_progress(state: str) -> None:
        nonlocal logged
        logged = time.monotonic()
        seen, got = stats.done(Stage.FETCH), stats.left[Stage.FETCH]
        _log.info(
            "%s %s: %d links, %d images, %.0f s", shard.id, state, seen, got, logged - started
        )

    def tick() -> None:
        offline = outages.current_seconds()
        report(stats.as_dict() | ({"offline": offline} if offline else {}))
        if time.monotonic() > logged + _LOG_INTERVAL:
            log_progress("waits for the network" if offline else "continues")
        if time.monotonic() > started + limit + outages.total():
            raise ShardError(f"{shard.id} took longer than {limit / 60:g} minutes.")

    if parse_retry(shard):
        found = read_failed_links(crawl.links[0], stats)
    else:
        pages = (
            read_slice(shard, crawl.links[0], stats)
            if crawl.links
            else read_pages(
                shard, stats, contact=download.contact, outages=outages, evidence=evidence
            )
        )
        found = find_candidates(
            pages, crawl, Blocklists.load(crawl), stats, consent=download.consent,
            optouts=evidence.optouts,
        )  # fmt: skip
    fetched = fetch_images(found, download, stats, evidence=evidence, tick=tick, net=network)
    log_progress("starts")
    parcel = write_parcel(fetched, shard, folder, stats=stats, evidence=evidence)
    log_progress("is done")
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
    """Scrape a shard and upload its parcel; return where it is (`upload_parcel`) and its stats."""
    parcel = scrape(shard, *settings, folder, limit=limit, report=report)
    uploaded = storage.upload_parcel(parcel, upload)
    delete_parcel(folder, shard)
    return uploaded, parcel.stats.as_dict()
