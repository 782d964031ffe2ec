"""Fetch files from the machine that wrote them: in pieces, verified, and then deleted there.

A piece is an ordinary task of the cluster that only the file's own machine may run. In the lab this
moved 90 to 200 MiB/s with flat memory, where SFTP moved 5 to 56. A staging folder that all machines
share may be used instead. It does not know what is in a file.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import distributed
import fsspec
from distributed import Client
from distributed.client import ClosedClientError

from cahlib.core.errors import ShardError
from cahlib.engine.wire import PIECE_SIZE, PIECES_AHEAD, InvalidMessage, JobResult
from cahlib.engine.worker import read_piece, remove_file

_T = TypeVar("_T")

#: Prefix of the keys of tasks that move pieces.
PIECE_KEY = "cahlib-piece-"

#: Exceptions of Dask's client for a broken connection. RuntimeError: "ConnectionPool is closed",
#: raised for a request in flight while the client closes.
CONNECTION_ERRORS = (
    OSError, asyncio.TimeoutError, futures.TimeoutError, futures.CancelledError, ClosedClientError,
    RuntimeError,
)  # fmt: skip


class DamagedFile(ShardError):
    """A file was damaged in transit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file on another machine or in the staging folder."""

    place: str  #: its path on its machine, or its URL in the staging folder
    host: str  #: the machine that has it, "" with staging
    size: int
    sha256: str  #: hex


def parcel_files(answer: JobResult, staging: str) -> list[RemoteFile]:
    """Return where a parcel's manifest and tar are; raise InvalidMessage for other files.

    With staging, only this machine decides where they are.
    """
    name = answer.parcel and answer.parcel.shard.id
    if [each.name for each in answer.files] != [f"{name}.json", f"{name}.tar"]:
        raise InvalidMessage("It sent files that do not belong to a parcel.")
    return [
        RemoteFile(
            place=f"{staging.rstrip('/') or each.folder}/{each.name}",
            host="" if staging else answer.host,
            size=each.size,
            sha256=each.sha256,
        )
        for each in answer.files
    ]


def fetch_parcel(
    client: Client, files: Sequence[RemoteFile], home: Path, *, timeout: float
) -> Path:
    """Fetch a parcel's files, its manifest last, and delete them at their source.

    Return the path of the tar. Raise as `fetch_file` does.
    """
    home.mkdir(parents=True, exist_ok=True)
    for sent in reversed(files):
        fetch_file(client, sent, home / Path(sent.place).name, timeout=timeout)
    delete_files(client, files)
    return home / Path(files[-1].place).name


def delete_files(client: Client, files: Iterable[RemoteFile], *, timeout: float = 60) -> None:
    """Delete files at their source; those of machines that do not answer in time stay there."""
    asked = []  # all machines at once: none waits for one that is gone
    for sent in files:
        with suppress(*CONNECTION_ERRORS):
            if sent.host:
                asked.append(run_on(client, sent.host, remove_file, sent.place))
            else:
                system, path = fsspec.url_to_fs(sent.place)
                system.rm(path)
    deadline = time.monotonic() + timeout
    for each in asked:
        with suppress(*CONNECTION_ERRORS):
            each.result(timeout=max(deadline - time.monotonic(), 0))


def fetch_file(client: Client, sent: RemoteFile, target: Path, *, timeout: float) -> None:
    """Fetch a file under a temporary name, verify it, and rename it.

    Raise DamagedFile, or whatever Dask or fsspec raise if a piece takes longer than ``timeout``
    seconds or the source does not answer.
    """
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
    digest, size = sha256(), 0
    try:
        with part.open("wb") as file:
            for piece in _pieces(client, sent, timeout):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        if (size, digest.hexdigest()) != (sent.size, sent.sha256):
            raise DamagedFile(
                f"{target.name} was damaged in transit from {sent.host or sent.place}."
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _pieces(client: Client, sent: RemoteFile, timeout: float) -> Iterator[bytes]:
    if not sent.host:
        with fsspec.open(sent.place, "rb") as file:
            while piece := file.read(PIECE_SIZE):
                yield piece
        return

    def bring(start: int) -> bytes:
        return checked_answer(
            run_on(client, sent.host, read_piece, sent.place, start, PIECE_SIZE), bytes, timeout
        )

    # A piece is sent only when its result is requested, so several threads request them. One more
    # piece is queued, so that no thread idles while a piece is written.
    coming: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(PIECES_AHEAD) as threads:
        for start in range(0, sent.size, PIECE_SIZE):
            coming.append(threads.submit(bring, start))
            if len(coming) > PIECES_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def run_on(client: Client, host: str, function: Any, *arguments: Any) -> distributed.Future[Any]:
    """Run a function on a machine, beside its jobs."""
    return client.submit(
        function,
        *arguments,
        key=f"{PIECE_KEY}{uuid.uuid4().hex}",
        workers=[host],
        pure=False,
        priority=10,  # before jobs that wait for a slot
    )


def checked_answer(future: distributed.Future[Any], kind: type[_T], timeout: float) -> _T:
    """Return a machine's answer within so many seconds; raise InvalidMessage for another type."""
    answer = future.result(timeout=timeout)
    if not isinstance(answer, kind):
        raise InvalidMessage(f"It sent a {type(answer).__name__} instead of a {kind.__name__}.")
    return answer
