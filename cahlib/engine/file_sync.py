"""Files of this machine that remote jobs name: sent once to each machine that lacks them.

They are stored there under names made from their content, so a changed file is another file. It
does not know what is in them.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import fsspec
from distributed import Client, Future

from cahlib.core.errors import RunError
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.transfer import (
    DamagedFile,
    RemoteFile,
    checked_answer,
    delete_files,
    run_on,
)
from cahlib.engine.worker import (
    FileRef,
    cached_digest,
    finish_file,
    has_file,
    remove_file,
    write_piece,
)

#: Bytes of a piece, which passes through the scheduler with its task, and pieces in flight.
_PIECE, _IN_FLIGHT = 4 << 20, 4


class FileSync:
    """The files sent to the machines of one cluster, which are deleted there at the end."""

    def __init__(self, address: ClusterAddress, ended: Callable[[], bool]) -> None:
        self._address, self._ended = address, ended
        self._lock = threading.Lock()
        self._sent = set[RemoteFile]()

    def send(self, client: Client, files: Iterable[FileRef], host: str) -> None:
        """Send the files that a job lacks to its host; raise as `transfer.fetch_file` does."""
        with self._lock:  # jobs that lack the same file wait, and then find it there
            for file in files:
                if self._address.staging:
                    sent = _stage(file, self._address.staging)
                else:
                    sent = _push(client, file, host, self._address, self._ended)
                self._sent.add(sent)

    def clean_up(self, client: Client, *, timeout: float) -> None:
        """Delete the files that were sent, as `transfer.delete_files` does."""
        delete_files(client, self._sent, timeout=timeout)


def file_ref(path: str) -> FileRef:
    """Return the reference to a file of this machine; raise RunError if it cannot be read."""
    try:
        known = os.stat(path)
        digest = cached_digest(path, known.st_mtime_ns, known.st_size)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    return FileRef(path=path, size=known.st_size, sha256=digest)


def _push(
    client: Client, file: FileRef, host: str, address: ClusterAddress, ended: Callable[[], bool]
) -> RemoteFile:
    """Send a file of this machine to a host, unless it is there already.

    Return where it is. Raise as `fetch_file` does, and TimeoutError once the engine has ``ended``.
    """
    timeout, target = address.piece_timeout, file.path_in(address.file_folder)
    sent = RemoteFile(place=target, host=host, size=file.size, sha256=file.sha256)
    if checked_answer(run_on(client, host, has_file, target, file.sha256), bool, timeout):
        return sent
    part, in_flight = f"{target}.{uuid.uuid4().hex[:8]}.part", deque[Future[Any]]()
    with open(file.path, "rb") as source:
        for start in range(0, max(file.size, 1), _PIECE):
            if ended():
                raise TimeoutError(f"{file.path} is no longer needed")
            if len(in_flight) == _IN_FLIGHT:
                in_flight.popleft().result(timeout=timeout)
            in_flight.append(run_on(client, host, write_piece, part, start, source.read(_PIECE)))
    for each in in_flight:
        each.result(timeout=timeout)
    if not checked_answer(
        run_on(client, host, finish_file, part, target, file.sha256), bool, timeout
    ):
        checked_answer(run_on(client, host, remove_file, part), type(None), timeout)
        raise DamagedFile(f"{file.path} was damaged in transit to {host}, or changed meanwhile.")
    return sent


def _stage(file: FileRef, staging: str) -> RemoteFile:
    """Upload a file of this machine to the staging folder."""
    place = file.path_in(staging)
    with open(file.path, "rb") as source, fsspec.open(place, "wb") as target:
        shutil.copyfileobj(source, target, 16 << 20)
    return RemoteFile(place=place, host="", size=file.size, sha256=file.sha256)
