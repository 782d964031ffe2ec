"""What runs in a worker on another machine: jobs, and the pieces of files that are asked for.

A worker loads nothing of the swarm but this and `engine`: no SSH, no keys, no cloud.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
from distributed import get_worker
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import WorkerPlugin

from cahlib.errors import RunError, ShardError
from cahlib.records import Parcel
from cahlib.swarm.engine import guarded

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A file that waits to be fetched."""

    place: str  #: its path on its machine, or the URL of the shared place
    host: str  #: the machine that has it, "" at a shared place
    size: int
    sha256: str  #: hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What a job gave, and the files that belong to it."""

    result: Any
    files: tuple[Sent, ...]


def carried(job: tuple[str, Callable[..., Any], tuple[Any, ...], float], staging: str) -> Cargo:
    """Do a job, and say where its files are; with ``staging``, bring them there."""
    try:
        result = guarded(*job)
    except RunError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            host = get_address_host(get_worker().address)
            raise ShardError(f"{host}: {error}") from error  # another machine has room
        raise
    if not isinstance(result, Parcel):
        return Cargo(result=result, files=())
    seal = _offer(result.path.with_suffix(".json"), "", staging)
    return Cargo(result=result, files=(seal, _offer(result.path, result.sha256, staging)))


class Slot(WorkerPlugin):
    """Gives a worker that was started without it the resource that a job takes."""

    name = "cahlib-slot"

    async def setup(self, worker: Any) -> None:
        if "slot" not in worker.state.total_resources:
            await worker.set_resources(slot=1)


def dask_setup(worker: Any) -> None:
    """Called by Dask as nodes start: the scheduler knows of each which cahlib it runs."""
    worker.metrics["cahlib"] = lambda _: version("cahlib")


def read(path: str, start: int, length: int) -> bytes:
    """A piece of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def remove(path: str) -> None:
    """Delete a file; one that is gone is fine."""
    Path(path).unlink(missing_ok=True)


def about(dask_worker: Any) -> tuple[str, str]:
    """A worker's name, and the version of cahlib that it runs."""
    return str(dask_worker.name), version("cahlib")


def _offer(path: Path, digest: str, staging: str) -> Sent:
    """Say how a file can be fetched, or bring it to the shared place."""
    size = path.stat().st_size
    digest = digest or sha256(path.read_bytes()).hexdigest()
    if staging:
        place = f"{staging.rstrip('/')}/{path.name}"
        with path.open("rb") as source, fsspec.open(place, "wb") as target:
            shutil.copyfileobj(source, target, 16 << 20)
        path.unlink()
        return Sent(place=place, host="", size=size, sha256=digest)
    host = get_address_host(get_worker().address)
    return Sent(place=str(path.absolute()), host=host, size=size, sha256=digest)
