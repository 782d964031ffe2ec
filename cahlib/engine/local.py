"""An engine of worker processes on this machine, through Dask.

It does not know what the functions do. A job is sent to its worker as bytes that only the worker
unpickles, and results are decoded by `cahlib.engine.wire`.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, Future, LocalCluster

from cahlib.core.errors import RunError, disk_full_error, is_disk_full
from cahlib.engine import unpickling, wire
from cahlib.engine.job import job_error, run_local_job
from cahlib.engine.wire import PROGRESS_TOPIC, InvalidMessage

_SETTINGS = {
    # Measured for workers on other machines; irrelevant on one machine.
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "30s",
    # Workers do not vanish here as servers do: the job is why they die repeatedly.
    "distributed.scheduler.allowed-failures": 2,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.daemon": True,
    # Dask's records for its dashboard and its developers grow for 1,000 jobs and an hour, and
    # sampling the stack of every thread each 10 ms costs time.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.low-level-log-length": 50,
    "distributed.admin.system-monitor.log-length": 50,
    "distributed.admin.system-monitor.gil.enabled": False,
    # Each server looks every 20 ms whether its loop is late, and every 500 at the disks: with two
    # workers, waiting took 118 to 205 ms of CPU a second instead of 53 to 61.
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.client.scheduler-info-interval": "60s",
    # Dask logs its internals; what matters here comes back as results.
    "logging": {"distributed": "critical"},
}

Report = Callable[[Any], None]


class LocalEngine:
    """Jobs by key on the workers of a Dask cluster."""

    def __init__(self, client: Client, *, slots: int) -> None:
        self.slots = slots  #: jobs that can run at the same time
        self._client = client
        self._futures: dict[str, Future[Any]] = {}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reports: dict[str, Any] = {}
        self._lock = threading.Lock()  #: reports come by a thread of Dask's
        client.subscribe_topic(PROGRESS_TOPIC, self._on_report)

    def __len__(self) -> int:
        """Return the number of jobs submitted and not yet returned by `take`."""
        return len(self._futures)

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any, limit: float) -> None:
        """Start ``function(*arguments, limit=…, report=…)``, which may take ``limit`` seconds."""
        job = pickle.dumps((key, function, arguments, limit))
        with self._lock:  # a report of it may come before this thread goes on
            future = self._client.submit(run_local_job, job, key=key, pure=False)
            self._futures[key] = future
        future.add_done_callback(lambda _: self._finished.put(key))

    def take(self, *, timeout: float) -> tuple[str, Any] | None:
        """Return a finished job's key with its result, or with the exception that ended it.

        Return None if no job finishes within ``timeout`` seconds. A job that killed its workers
        repeatedly comes back as a ShardError.
        """
        try:
            key = self._finished.get(timeout=timeout)
        except queue.Empty:
            return None
        with self._lock:  # else a late report would be counted forever
            future = self._futures.pop(key)
            self._reports.pop(key, None)
        error = future.exception()
        result = job_error(error) if error else wire.decode_result(future.result()).result()
        release_future(self._client, future)
        return key, result

    def reports(self) -> list[Any]:
        """Return the last report of each running job."""
        with self._lock:
            return list(self._reports.values())

    def _on_report(self, event: tuple[float, bytes]) -> None:
        with suppress(InvalidMessage):
            key, message = wire.decode_report(event[1])
            with self._lock:
                if key in self._futures:
                    self._reports[key] = message


def release_future(client: Client, future: Future[Any]) -> None:
    """Release a future and wait until that is done; else a reused key finds the old result."""
    future.release()
    client.sync(asyncio.sleep, 0)


@contextmanager
def local_engine(workers: int) -> Iterator[LocalEngine]:
    """Open an engine of so many processes on this machine; they end with it or this process."""
    try:
        tempfile.gettempdir()  # for Dask's files, a few bytes each
    except FileNotFoundError as error:
        raise RunError(
            "No temporary folder on this machine has free space; make room in /tmp, or name "
            "another folder in TMPDIR, then run the same command again."
        ) from error
    unpickling.restrict()
    with dask.config.set(_SETTINGS):
        with _interrupts_blocked():
            try:
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    # The dashboard is off, but its server stays: not on 8787, which may be taken
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
            except (RuntimeError, OSError) as error:  # e.g. the kernel kills one that starts
                if is_disk_full(error):
                    raise disk_full_error(tempfile.gettempdir()) from error
                raise RunError(
                    f"The scraper processes could not be started ({error}); run the same command "
                    "again, with fewer --workers if memory is short."
                ) from error
        with cluster, Client(cluster, set_as_default=False) as client:
            yield LocalEngine(client, slots=workers)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in threads and processes that start in here, and in those that they start.

    A terminal sends it to all processes, but the run decides when a worker ends. A worker could not
    ignore it by itself early enough: it would be killed while it starts.
    """
    resource_tracker.ensure_running()  # else Python starts it in here, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
