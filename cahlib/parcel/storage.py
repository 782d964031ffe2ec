"""Parcel storage by fsspec: CPU workers upload parcels, GPU workers download them.

`download_parcel` is a job for the engine.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cahlib.core.errors import CahError, Postponed, ShardError, disk_full_error, is_disk_full
from cahlib.core.records import Parcel, Shard
from cahlib.parcel import parcel as parcels


class StorageUnavailable(Postponed):
    """The storage does not answer as expected, which may not be the parcel's fault."""


def upload_parcel(parcel: Parcel, folder_url: str) -> dict[str, Any]:
    """Upload a parcel to a folder of the storage; return where it is, its checksum and size."""
    # A unique name, so that a late upload does not overwrite what another worker has uploaded.
    url = f"{folder_url.rstrip('/')}/{parcel.shard.id}.{secrets.token_hex(8)}.tar"
    with _storage(url) as (files, place):
        files.makedirs(place.rpartition("/")[0], exist_ok=True)
        files.put_file(str(parcel.path), place)
        # Last, as on disk: a tar without its manifest does not count.
        files.put_file(str(parcel.path.with_suffix(".json")), _manifest_place(place))
    return {"url": url, "sha256": parcel.sha256, "size": parcel.size}


def download_parcel(
    shard: Shard,
    uploaded: dict[str, Any],
    folder: Path,
    *,
    limit: float,
    report: Callable[[Any], None],
) -> Parcel:
    """Download an uploaded parcel, which is checked when it is read.

    Raise ShardError if the parcel is missing or not as described, StorageUnavailable, and RunError
    if the disk is full.
    """
    if not parcels.find_parcel(folder, shard):
        mark = secrets.token_hex(4)
        tar, manifest = (folder / f"{shard.id}.{mark}{kind}.part" for kind in ("", ".json"))
        try:
            with _storage(uploaded["url"]) as (files, place):
                folder.mkdir(parents=True, exist_ok=True)
                # First, as fsspec's size() reports an unavailable HTTP server as "not found".
                files.get_file(_manifest_place(place), str(manifest))
                if files.size(place) != uploaded["size"]:
                    raise ShardError(f"{uploaded['url']} does not have the announced size.")
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
    report(found.stats.as_dict())
    return found


def delete_upload(uploaded: dict[str, Any]) -> None:
    """Delete an uploaded parcel that is no longer needed, if permitted and if it is one."""
    with suppress(ShardError), _storage(uploaded["url"]) as (files, place):
        if json.loads(files.cat_file(_manifest_place(place)))["sha256"] == uploaded["sha256"]:
            files.rm_file(place)
            files.rm_file(_manifest_place(place))


def _manifest_place(place: str) -> str:
    return f"{place.removesuffix('.tar')}.json"


@contextmanager
def _storage(url: str) -> Iterator[tuple[Any, str]]:
    """Open the driver for a URL, and convert its errors, which may be of any kind."""
    from fsspec.core import url_to_fs

    try:
        yield url_to_fs(url)
    except CahError:
        raise
    except FileNotFoundError as error:
        raise ShardError(f"{url} does not exist.") from error
    except Exception as error:
        if is_disk_full(error):
            raise disk_full_error(url) from error
        message = " ".join(str(error).split()).rstrip(".")
        raise StorageUnavailable(
            f"{url} cannot be reached: {message} ({type(error).__name__})."
        ) from error
