"""An engine of worker processes on this machine, each the fork of one that has all imported.

It does not know what the functions do. A job is sent to its worker as bytes that only the worker
unpickles, and results are decoded by `cahlib.engine.wire`. Dask has no part in it: to import it
here and there, and to start and close its cluster, took a quarter of the seconds of `cah demo`.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from cahlib.core.errors import RunError
from cahlib.core.secret_store import SECRET_VARIABLES
from cahlib.engine import wire
from cahlib.engine.fork_server import REPORT, RESULT, ForkServer
from cahlib.engine.job import repeated_death_error
from cahlib.engine.wire import InvalidMessage

#: Deaths of workers after which a job, or the start of a worker, is given up.
_MAX_DEATHS = 3


def start_server(modules: Sequence[str]) -> ForkServer:
    """Start what workers are forked from; it imports these modules, which jobs need."""
    return ForkServer("cahlib.engine.job:run_local_job", modules, hidden=SECRET_VARIABLES)


class LocalEngine:
    """Jobs by key on worker processes of this machine."""

    def __init__(self, server: ForkServer, *, slots: int) -> None:
        self.slots = slots  #: jobs that can run at the same time
        self._server = server
        self._waiting: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._keys = set[str]()  #: submitted and not yet taken
        self._reports: dict[str, Any] = {}
        self._lock = threading.Lock()  #: each worker has a thread, which gets its reports
        self._closed = False
        self._workers = [_Worker() for _ in range(slots)]
        self._threads = [
            threading.Thread(target=self._serve, args=(each,), daemon=True)
            for each in self._workers
        ]
        for each in self._threads:
            each.start()

    def __len__(self) -> int:
        """Return the number of jobs submitted and not yet returned by `take`."""
        return len(self._keys)

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any, limit: float) -> None:
        """Start ``function(*arguments, limit=…, report=…)``, which may take ``limit`` seconds."""
        job = pickle.dumps((key, function, arguments, limit))
        self._keys.add(key)
        self._waiting.put((key, job))

    def take(self, *, timeout: float) -> tuple[str, Any] | None:
        """Return a finished job's key with its result, or with the exception that ended it.

        Return None if no job finishes within ``timeout`` seconds. A job that killed its workers
        repeatedly comes back as a ShardError.
        """
        try:
            key, result = self._finished.get(timeout=timeout)
        except queue.Empty:
            return None
        self._keys.discard(key)
        return key, result

    def reports(self) -> list[Any]:
        """Return the last report of each running job."""
        with self._lock:
            return list(self._reports.values())

    def close(self) -> None:
        """End the workers, whatever they do."""
        self._closed = True
        for each in self._workers:
            self._waiting.put(None)
            each.hang_up()
        self._server.close()
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: _Worker) -> None:
        """Have jobs done by one worker, and by the next one if it dies."""
        while (given := self._waiting.get()) is not None:
            key, job = given
            deaths: Counter[bool] = Counter()
            while max(deaths.values(), default=0) < _MAX_DEATHS:
                try:
                    worker.connection = worker.connection or self._server.fork()
                    worker.connection.send_bytes(job)
                    result = self._await_result(key, worker)
                    break
                except (EOFError, OSError) as error:
                    if self._closed:
                        return
                    deaths[worker.is_started] += 1
                    result = _death(error, is_started=worker.is_started)
                    worker.connection, worker.is_started = None, False
            with self._lock:
                self._reports.pop(key, None)
            self._finished.put((key, result))

    def _await_result(self, key: str, worker: _Worker) -> Any:
        """Return the result of a worker's job; raise EOFError or OSError if it dies."""
        assert worker.connection
        while True:
            message = worker.connection.recv_bytes()
            kind, data = message[:1], message[1:]
            worker.is_started = True
            if kind == RESULT:
                try:
                    return wire.decode_result(data).result()
                except InvalidMessage as error:
                    return error
            if kind == REPORT:
                with suppress(InvalidMessage), self._lock:
                    self._reports[key] = wire.decode_report(data)[1]


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    """A worker process, which is started when there is a job."""

    connection: Connection | None = None
    is_started: bool = False  #: it has sent something

    def hang_up(self) -> None:
        """Shut the connection, by which the worker ends, while another thread may read from it."""
        with suppress(OSError):  # it is closed
            if self.connection:
                with socket.socket(fileno=os.dup(self.connection.fileno())) as both:
                    both.shutdown(socket.SHUT_RDWR)


def _death(error: Exception, *, is_started: bool) -> Exception:
    """Return the error of a job whose workers died repeatedly."""
    if is_started:
        return repeated_death_error()
    return RunError(
        f"The scraper processes could not be started ({str(error) or 'they ended'}); run the same "
        "command again, with fewer --workers if memory is short."
    )


@contextmanager
def local_engine(workers: int, server: ForkServer) -> Iterator[LocalEngine]:
    """Open an engine of so many processes on this machine; they end with it or this process."""
    try:
        tempfile.gettempdir()  # for files of jobs that have no other place
    except FileNotFoundError as error:
        raise RunError(
            "No temporary folder on this machine has free space; make room in /tmp, or name "
            "another folder in TMPDIR, then run the same command again."
        ) from error
    engine = LocalEngine(server, slots=workers)
    try:
        yield engine
    finally:
        engine.close()
