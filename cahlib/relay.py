"""Parcels by way of storage that both sides reach (fsspec): CPU workers bring, GPU workers fetch.

These are jobs for the engine; they know nothing of trackers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cahlib.config import Crawl, Download
from cahlib.errors import CahError, Postponed, ShardError, is_full, no_space
from cahlib.records import Parcel, Shard
from cahlib.scrape import parcel as parcels
from cahlib.scrape import scrape


class StorageAway(Postponed):
    """The storage does not answer, or not as it should: that may be no parcel's fault."""


def bring(
    shard: Shard,
    settings: tuple[Crawl, Download],
    folder: Path,
    upload: str,
    *,
    limit: float,
    report: Callable[[Any], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scrape a shard and bring its parcel to ``upload``; where it is, and its tally."""
    parcel = scrape(shard, *settings, folder, limit=limit, report=report)
    # A name of its own: who comes late does not write over what another has brought meanwhile.
    url = f"{upload.rstrip('/')}/{shard.id}.{secrets.token_hex(8)}.tar"
    with _storage(url) as (files, place):
        files.makedirs(place.rpartition("/")[0], exist_ok=True)
        files.put_file(str(parcel.path), place)
        # Last, as on disk: without its manifest a tar is rubbish.
        files.put_file(str(parcel.path.with_suffix(".json")), _manifest(place))
    parcels.discard(folder, shard)
    return {"url": url, "sha256": parcel.sha256, "size": parcel.size}, parcel.tally.as_dict()


def fetch(
    shard: Shard,
    brought: dict[str, Any],
    folder: Path,
    *,
    limit: float,
    report: Callable[[Any], None],
) -> Parcel:
    """A parcel that somebody brought; it is checked when it is read.

    Raises ShardError for a parcel that is not there or not what it was said to be, StorageAway,
    and RunError where the disk is full.
    """
    if not parcels.sealed(folder, shard):
        mark = secrets.token_hex(4)
        tar, manifest = (folder / f"{shard.id}.{mark}{kind}.part" for kind in ("", ".json"))
        try:
            with _storage(brought["url"]) as (files, place):
                folder.mkdir(parents=True, exist_ok=True)
                # First: asked for a size, fsspec says of an HTTP server that is away "not found".
                files.get_file(_manifest(place), str(manifest))
                if files.size(place) != brought["size"]:
                    raise ShardError(f"{brought['url']} is not as long as it was said to be.")
                files.get_file(place, str(tar))
                tar.rename(folder / f"{shard.id}.tar")
                manifest.rename(folder / f"{shard.id}.json")
        finally:
            for part in (tar, manifest):
                part.unlink(missing_ok=True)
    found = parcels.sealed(folder, shard)
    if found is None or found.sha256 != brought["sha256"]:
        parcels.discard(folder, shard)
        raise ShardError(f"{brought['url']} is not the parcel of {shard.id}.")
    report(found.tally.as_dict())
    return found


def drop(brought: dict[str, Any]) -> None:
    """Remove a parcel that has served; where that is not allowed, or it is none, it stays."""
    with suppress(ShardError), _storage(brought["url"]) as (files, place):
        if json.loads(files.cat_file(_manifest(place)))["sha256"] == brought["sha256"]:
            files.rm_file(place)
            files.rm_file(_manifest(place))


def _manifest(place: str) -> str:
    return f"{place.removesuffix('.tar')}.json"


@contextmanager
def _storage(url: str) -> Iterator[tuple[Any, str]]:
    """The driver for a URL; each has errors of its own, of any kind, which become ours."""
    from fsspec.core import url_to_fs

    try:
        yield url_to_fs(url)
    except CahError:
        raise
    except FileNotFoundError as error:
        raise ShardError(f"{url} is not there.") from error
    except Exception as error:
        if is_full(error):
            raise no_space(url) from error
        said = " ".join(str(error).split()).rstrip(".")
        raise StorageAway(f"{url} cannot be reached: {said} ({type(error).__name__}).") from error
