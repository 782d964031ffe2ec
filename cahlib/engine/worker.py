"""The tasks that run in workers on other machines: jobs, and the transfer of pieces of files.

A worker imports nothing of the swarm: no SSH, no keys, no cloud.
"""

from __future__ import annotations

import os
import pickle
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
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
from cahlib.engine.job import job_result, run_guarded
from cahlib.engine.quarantine import quarantined, require_healthy


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file of the driver's machine that a job names."""

    path: str  #: as the job names it
    size: int
    sha256: str  #: hex

    def path_in(self, folder: str) -> str:
        """Return its path on other machines, made from its content; its extension is kept."""
        return f"{folder.rstrip('/')}/{self.sha256[:32]}-{Path(self.path).name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """The input files of a job, and how files are transferred."""

    files: tuple[FileRef, ...]
    folder: str  #: where they are stored
    staging: str  #: a URL that all machines share; "" = from machine to machine


def run_remote_job(job: bytes) -> bytes:
    """Run a pickled job with its `JobContext`; return the bytes of a `JobResult`."""
    return wire.run_and_encode(lambda: _run(*pickle.loads(job)))


def _run(
    job: tuple[str, Callable[..., Any], tuple[Any, ...], float], context: JobContext
) -> wire.JobResult:
    """Run a job, and return where its files are, or which input files are missing."""
    worker = get_worker()
    host = get_address_host(worker.address)
    if missing := tuple(n for n, each in enumerate(context.files) if not _has_input(each, context)):
        return wire.JobResult(missing=missing, host=host)
    map_paths({each.path: each.path_in(context.folder) for each in context.files})
    require_healthy()
    with quarantined():
        result = job_result(run_guarded(*job, partial(worker.log_event, wire.PROGRESS_TOPIC)))
        if not (parcel := result.parcel):
            return result
        written = {parcel.path.with_suffix(".json"): "", parcel.path: parcel.sha256}
        if _is_released(worker, job[0]):  # else they would stay on this machine's disk
            for path in written:
                remove_file(str(path))
            return wire.JobResult(host=host)
        files = tuple(_offer_file(path, sha, context.staging) for path, sha in written.items())
        return wire.JobResult(parcel=parcel, host=host, files=files)


def _is_released(worker: Any, key: str) -> bool:
    """Return whether a running job was taken back or its driver is gone: nobody asks for its end.

    Dask lets what runs go on, and discards its result.
    """
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled"


class SlotPlugin(WorkerPlugin):
    """Gives a worker the resource that a job takes, if it was started without it."""

    name = "cahlib-slot"

    async def setup(self, worker: Any) -> None:
        if "slot" not in worker.state.total_resources:
            await worker.set_resources(slot=1)


def dask_setup(worker: Any) -> None:
    """Add the version of cahlib to a worker's metrics; Dask calls this as it starts."""
    installed = version("cahlib")  # it reads a file, and metrics are asked for at each heartbeat
    worker.metrics["cahlib"] = lambda _: installed


def read_piece(path: str, start: int, length: int) -> bytes:
    """Return a piece of a file."""
    with quarantined(), open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def write_piece(path: str, start: int, piece: bytes) -> None:
    """Write a piece of a file, and create its folder."""
    with quarantined():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, piece, start)
        finally:
            os.close(file)


def finish_file(part: str, path: str, digest: str) -> bool:
    """Rename a file that was written in pieces if its digest is right; return whether it is."""
    if has_file(part, digest):
        os.replace(part, path)
    return has_file(path, digest)


def has_file(path: str, digest: str) -> bool:
    """Return whether a file is there and has this sha256; it is read once per process."""
    try:
        known = os.stat(path)
    except OSError:
        return False
    return cached_digest(path, known.st_mtime_ns, known.st_size) == digest


def remove_file(path: str) -> None:
    """Delete a file, if it exists."""
    Path(path).unlink(missing_ok=True)


def _has_input(file: FileRef, context: JobContext) -> bool:
    """Return whether a file is on this machine, fetched from the staging folder if needed."""
    path = file.path_in(context.folder)
    if has_file(path, file.sha256):
        return True
    if not context.staging:
        return False
    part = f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        with fsspec.open(file.path_in(context.staging), "rb") as source:
            write_piece(part, 0, b"")
            with open(part, "wb") as target:
                shutil.copyfileobj(source, target, 16 << 20)
        return finish_file(part, path, file.sha256)
    except FileNotFoundError:  # not sent there yet
        return False
    finally:
        remove_file(part)


@lru_cache(maxsize=256)
def cached_digest(path: str, changed: int, size: int) -> str:
    """Return the sha256 of a file that has not changed since then; it is read once."""
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _offer_file(path: Path, digest: str, staging: str) -> wire.OfferedFile:
    """Return how a file can be fetched, after uploading it to the staging folder if any."""
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
