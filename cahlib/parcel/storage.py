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

from cahlib.errors import CahError, Postponed, ShardError, is_full, no_space
from cahlib.parcel import parcel as parcels
from cahlib.records import Parcel, Shard


class StorageUnavailable(Postponed):
    """The storage does not answer, or not as it should: that may be no parcel's fault."""


def upload_parcel(parcel: Parcel, folder_url: str) -> dict[str, Any]:
    """Upload a parcel to a folder of the storage; return where it is, its checksum and size."""
    # A unique name, so that a late upload does not overwrite what another worker has uploaded.
    url = f"{folder_url.rstrip('/')}/{parcel.shard.id}.{secrets.token_hex(8)}.tar"
    with _storage(url) as (files, place):
        files.makedirs(place.rpartition("/")[0], exist_ok=True)
        files.put_file(str(parcel.path), place)
        # Last, as on disk: a tar without its manifest does not count.
        files.put_file(str(parcel.path.with_suffix(".json")), _manifest(place))
    return {"url": url, "sha256": parcel.sha256, "size": parcel.size}


def download_parcel(
    shard: Shard,
    uploaded: dict[str, Any],
    folder: Path,
    *,
    limit: float,
    report: Callable[[Any], None],
) -> Parcel:
    """A parcel that somebody brought; it is checked when it is read.

    Raises ShardError for a parcel that is not there or not what it was said to be, StorageAway,
    and RunError where the disk is full.
    """
    if not parcels.find_parcel(folder, shard):
        mark = secrets.token_hex(4)
        tar, manifest = (folder / f"{shard.id}.{mark}{kind}.part" for kind in ("", ".json"))
        try:
            with _storage(uploaded["url"]) as (files, place):
                folder.mkdir(parents=True, exist_ok=True)
                # First: asked for a size, fsspec says of an HTTP server that is away "not found".
                files.get_file(_manifest(place), str(manifest))
                if files.size(place) != uploaded["size"]:
                    raise ShardError(f"{uploaded['url']} is not as long as it was said to be.")
                files.get_file(place, str(tar))
                tar.rename(folder / f"{shard.id}.tar")
                manifest.rename(folder / f"{shard.id}.json")
        finally:
            for part in (tar, manifest):
                part.unlink(missing_ok=True)
    found = parcels.find_parcel(folder, shard)
    if found is None or found.sha256 != uploaded["sha256"]:
        parcels.delete_parcel(folder, shard)
        raise ShardError(f"{uploaded['url']} is not the parcel of {shard.id}.")
    report(found.tally.as_dict())
    return found


def delete_upload(uploaded: dict[str, Any]) -> None:
    """Remove a parcel that has served; where that is not allowed, or it is none, it stays."""
    with suppress(ShardError), _storage(uploaded["url"]) as (files, place):
        if json.loads(files.cat_file(_manifest(place)))["sha256"] == uploaded["sha256"]:
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
        raise StorageUnavailable(
            f"{url} cannot be reached: {said} ({type(error).__name__})."
        ) from error
