"""What runs in a worker on another machine: jobs, and the pieces of files that are asked for.

A worker loads nothing of the swarm but this and `engine`: no SSH, no keys, no cloud.
"""

from __future__ import annotations

import os
import pickle
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
from distributed import get_worker
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import WorkerPlugin

from cahlib.core.path_map import map_paths
from cahlib.engine import wire
from cahlib.engine.local import job_result, run_guarded
from cahlib.engine.quarantine import quarantined, require_healthy


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file of the driver's machine that a job names."""

    path: str  #: by which the job names it
    size: int
    sha256: str  #: hex

    def place(self, folder: str) -> str:
        """Where it lies on other machines: a change makes it another file; its ending tells."""
        return f"{folder.rstrip('/')}/{self.sha256[:32]}-{Path(self.path).name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What a job works with, and the way its files go."""

    files: tuple[FileRef, ...]
    folder: str  #: where they lie
    staging: str  #: a shared place by which files come and go, "" = from machine to machine


def run_remote_job(job: bytes) -> bytes:
    """Do a job that `pickle` packed with its `JobContext`; gives the bytes of a `JobResult`."""
    return wire.run_and_encode(lambda: _run(*pickle.loads(job)))


def _run(
    job: tuple[str, Callable[..., Any], tuple[Any, ...], float], means: JobContext
) -> wire.JobResult:
    """Do a job, and say where its files are, or which it lacks; with staging, by way of that."""
    host = get_address_host(get_worker().address)
    if lacks := tuple(n for n, each in enumerate(means.files) if not _has_input(each, means)):
        return wire.JobResult(lacks=lacks, host=host)
    map_paths({each.path: each.place(means.folder) for each in means.files})
    require_healthy()
    with quarantined():
        said = job_result(run_guarded(*job))
        if not (parcel := said.parcel):
            return said
        seal = _offer_file(parcel.path.with_suffix(".json"), "", means.staging)
        files = (seal, _offer_file(parcel.path, parcel.sha256, means.staging))
        return wire.JobResult(parcel=parcel, host=host, files=files)


class SlotPlugin(WorkerPlugin):
    """Gives a worker that was started without it the resource that a job takes."""

    name = "cahlib-slot"

    async def setup(self, worker: Any) -> None:
        if "slot" not in worker.state.total_resources:
            await worker.set_resources(slot=1)


def dask_setup(worker: Any) -> None:
    """Called by Dask as nodes start: the scheduler knows of each which cahlib it runs."""
    worker.metrics["cahlib"] = lambda _: version("cahlib")


def read_piece(path: str, start: int, length: int) -> bytes:
    """A piece of a file."""
    with quarantined(), open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def write_piece(path: str, start: int, piece: bytes) -> None:
    """Write a piece of a file; its folder is made."""
    with quarantined():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, piece, start)
        finally:
            os.close(file)


def finish_file(part: str, path: str, digest: str) -> bool:
    """Give a file that was written in pieces its name, if it is what it shall be."""
    if has_file(part, digest):
        os.replace(part, path)
    return has_file(path, digest)


def has_file(path: str, digest: str) -> bool:
    """Whether a file is there and has this sha256; read once a process."""
    try:
        known = os.stat(path)
    except OSError:
        return False
    return _digest(path, known.st_mtime_ns, known.st_size) == digest


def remove_file(path: str) -> None:
    """Delete a file; one that is gone is fine."""
    Path(path).unlink(missing_ok=True)


def _has_input(needed: FileRef, means: JobContext) -> bool:
    """Whether a file is on this machine, if need be fetched from the shared place."""
    path = needed.place(means.folder)
    if has_file(path, needed.sha256):
        return True
    if not means.staging:
        return False
    part = f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        with fsspec.open(needed.place(means.staging), "rb") as source:
            write_piece(part, 0, b"")
            with open(part, "wb") as target:
                shutil.copyfileobj(source, target, 16 << 20)
        return finish_file(part, path, needed.sha256)
    except FileNotFoundError:  # it was not brought there yet
        return False
    finally:
        remove_file(part)


@lru_cache(maxsize=64)
def _digest(path: str, changed: int, size: int) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _offer_file(path: Path, digest: str, staging: str) -> wire.OfferedFile:
    """Say how a file can be fetched, or bring it to the shared place."""
    size = path.stat().st_size
    digest = digest or sha256(path.read_bytes()).hexdigest()
    if staging:
        place = f"{staging.rstrip('/')}/{path.name}"
        with path.open("rb") as source, fsspec.open(place, "wb") as target:
            shutil.copyfileobj(source, target, 16 << 20)
        path.unlink()
    return wire.OfferedFile(
        name=path.name, folder=str(path.parent.absolute()), size=size, sha256=digest
    )
