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
from cahlib.engine.cluster import Reach
from cahlib.engine.transfer import Damaged, Sent, on, said
from cahlib.engine.worker import Needed, remove, settle, whole, write

#: Bytes of a piece, which passes through the scheduler with its task, and how many at once.
_PIECE, _AHEAD = 4 << 20, 4


class Supplies:
    """What was brought to the machines of one cluster, and is deleted there at the end."""

    def __init__(self, reach: Reach, ended: Callable[[], bool]) -> None:
        self._reach, self._ended = reach, ended
        self._lock = threading.Lock()
        self._brought = set[Sent]()

    def bring(self, client: Client, files: Iterable[Needed], host: str) -> None:
        """Bring what a job lacks to where it was to run. Raises as `transfer.fetch` does."""
        with self._lock:  # others that lack the same wait, and then find it there
            for file in files:
                if self._reach.staging:
                    sent = _stage(file, self._reach.staging)
                else:
                    sent = _push(client, file, host, self._reach, self._ended)
                self._brought.add(sent)

    def forget(self, client: Client) -> None:
        """Delete what was brought; raises as `transfer.forget` does."""
        for sent in self._brought:
            transfer.forget(client, sent, patience=5)


def needed(path: str) -> Needed:
    """A file of this machine as others are told of it; raises RunError if it cannot be read."""
    try:
        known = os.stat(path)
        return _needed(path, known.st_mtime_ns, known.st_size)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=256)
def _needed(path: str, changed: int, size: int) -> Needed:
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return Needed(path=path, size=size, sha256=digest.hexdigest())


def _push(client: Client, file: Needed, host: str, reach: Reach, ended: Callable[[], bool]) -> Sent:
    """Bring a file of this machine to another one; one that is whole there is left alone.

    Gives its place there. Raises as `fetch` does, and TimeoutError once it is ``ended``.
    """
    patience, target = reach.patience, file.place(reach.files)
    sent = Sent(place=target, host=host, size=file.size, sha256=file.sha256)
    if said(on(client, host, whole, target, file.sha256), bool, patience):
        return sent
    part, going = f"{target}.{uuid.uuid4().hex[:8]}.part", deque[Future[Any]]()
    with open(file.path, "rb") as source:
        for start in range(0, max(file.size, 1), _PIECE):
            if ended():
                raise TimeoutError(f"{file.path} is not wanted any more")
            if len(going) == _AHEAD:
                going.popleft().result(timeout=patience)
            going.append(on(client, host, write, part, start, source.read(_PIECE)))
    for each in going:
        each.result(timeout=patience)
    if not said(on(client, host, settle, part, target, file.sha256), bool, patience):
        said(on(client, host, remove, part), type(None), patience)
        raise Damaged(f"{file.path} was damaged on its way to {host}, or changed meanwhile.")
    return sent


def _stage(file: Needed, staging: str) -> Sent:
    """Bring a file of this machine to the shared place."""
    place = file.place(staging)
    with open(file.path, "rb") as source, fsspec.open(place, "wb") as target:
        shutil.copyfileobj(source, target, 16 << 20)
    return Sent(place=place, host="", size=file.size, sha256=file.sha256)
