"""Files of this machine that jobs elsewhere name: brought once to each machine that lacks them.

They lie there under names made of their content, so one that was changed is another file. It does
not know what is in them.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import sha256
from typing import Any

import fsspec
from distributed import Client, Future

from cahlib.core.errors import RunError
from cahlib.engine import transfer
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.transfer import DamagedFile, RemoteFile, checked_answer, run_on
from cahlib.engine.worker import FileRef, finish_file, has_file, remove_file, write_piece

#: Bytes of a piece, which passes through the scheduler with its task, and how many at once.
_PIECE, _IN_FLIGHT = 4 << 20, 4


class FileSync:
    """What was brought to the machines of one cluster, and is deleted there at the end."""

    def __init__(self, reach: ClusterAddress, ended: Callable[[], bool]) -> None:
        self._reach, self._ended = reach, ended
        self._lock = threading.Lock()
        self._brought = set[RemoteFile]()

    def bring(self, client: Client, files: Iterable[FileRef], host: str) -> None:
        """Bring what a job lacks to where it was to run. Raises as `transfer.fetch_file` does."""
        with self._lock:  # others that lack the same wait, and then find it there
            for file in files:
                if self._reach.staging:
                    sent = _stage(file, self._reach.staging)
                else:
                    sent = _push(client, file, host, self._reach, self._ended)
                self._brought.add(sent)

    def forget(self, client: Client) -> None:
        """Delete what was brought; raises as `transfer.delete_file` does."""
        for sent in self._brought:
            transfer.delete_file(client, sent, patience=5)


def file_ref(path: str) -> FileRef:
    """A file of this machine as others are told of it; raises RunError if it cannot be read."""
    try:
        known = os.stat(path)
        return _file_ref(path, known.st_mtime_ns, known.st_size)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=256)
def _file_ref(path: str, changed: int, size: int) -> FileRef:
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return FileRef(path=path, size=size, sha256=digest.hexdigest())


def _push(
    client: Client, file: FileRef, host: str, reach: ClusterAddress, ended: Callable[[], bool]
) -> RemoteFile:
    """Bring a file of this machine to another one; one that is whole there is left alone.

    Gives its place there. Raises as `fetch_file` does, and TimeoutError once it is ``ended``.
    """
    patience, target = reach.patience, file.place(reach.files)
    sent = RemoteFile(place=target, host=host, size=file.size, sha256=file.sha256)
    if checked_answer(run_on(client, host, has_file, target, file.sha256), bool, patience):
        return sent
    part, going = f"{target}.{uuid.uuid4().hex[:8]}.part", deque[Future[Any]]()
    with open(file.path, "rb") as source:
        for start in range(0, max(file.size, 1), _PIECE):
            if ended():
                raise TimeoutError(f"{file.path} is not wanted any more")
            if len(going) == _IN_FLIGHT:
                going.popleft().result(timeout=patience)
            going.append(run_on(client, host, write_piece, part, start, source.read(_PIECE)))
    for each in going:
        each.result(timeout=patience)
    if not checked_answer(
        run_on(client, host, finish_file, part, target, file.sha256), bool, patience
    ):
        checked_answer(run_on(client, host, remove_file, part), type(None), patience)
        raise DamagedFile(f"{file.path} was damaged on its way to {host}, or changed meanwhile.")
    return sent


def _stage(file: FileRef, staging: str) -> RemoteFile:
    """Bring a file of this machine to the shared place."""
    place = file.place(staging)
    with open(file.path, "rb") as source, fsspec.open(place, "wb") as target:
        shutil.copyfileobj(source, target, 16 << 20)
    return RemoteFile(place=place, host="", size=file.size, sha256=file.sha256)
