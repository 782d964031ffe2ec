"""The engine: runs functions in worker processes through Dask, and says what came of them.

It does not know what the functions do. A job goes to its worker as bytes that only the worker
unpickles, and what comes back is read as `wire` declares. A job runs in a worker's only thread; if
it is silent for longer than its limit, though its own deadlines should have ended it, the worker is
killed from within by `faulthandler`, which works even when C code holds the interpreter's lock, and
Dask starts the job again in a fresh one.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
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
from distributed import Client, Future, LocalCluster, get_worker

from cahlib.core.errors import (
    ConfigError,
    MachineFault,
    RunError,
    ShardError,
    describe_machine_fault,
    disk_full_error,
    is_disk_full,
)
from cahlib.core.records import Parcel
from cahlib.engine import unpickling, wire
from cahlib.engine.wire import PROGRESS_TOPIC, InvalidMessage, JobResult, RemoteError

#: Seconds over its limit after which a job's process is ended.
_GRACE = 60

_SETTINGS = {
    # As measured for workers on other machines; on one machine neither ever matters.
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "30s",
    # Workers do not vanish here as servers do: who dies again and again dies of the job.
    "distributed.scheduler.allowed-failures": 2,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.daemon": True,
    # What Dask notes of itself for its pages and its developers grows for 1,000 jobs and an hour,
    # and looking at the stacks of every thread each 10 ms costs time.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.low-level-log-length": 50,
    "distributed.admin.system-monitor.log-length": 50,
    "distributed.admin.system-monitor.gil.enabled": False,
    # Dask's log tells of its inner life; what matters to us comes back as results.
    "logging": {"distributed": "critical"},
}

#: What Dask says of a worker whose machine or installation is damaged.
_MACHINE_ERRORS = {"ImportError", "ModuleNotFoundError", "SystemError", "MemoryError"}

Report = Callable[[Any], None]


class LocalEngine:
    """Jobs by key on the workers of a Dask cluster."""

    def __init__(self, client: Client, *, slots: int) -> None:
        self.slots = slots  #: jobs that can run at the same time
        self._client = client
        self._futures: dict[str, Future[Any]] = {}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._told: dict[str, Any] = {}
        self._lock = threading.Lock()  #: reports come by a thread of Dask's
        client.subscribe_topic(PROGRESS_TOPIC, self._hear)

    def __len__(self) -> int:
        """Jobs submitted and not taken back by `take`."""
        return len(self._futures)

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any, limit: float) -> None:
        """Start ``function(*arguments, limit=…, report=…)``, which may take ``limit`` seconds."""
        job = pickle.dumps((key, function, arguments, limit))
        future = self._client.submit(run_local_job, job, key=key, pure=False)
        with self._lock:
            self._futures[key] = future
        future.add_done_callback(lambda _: self._finished.put(key))

    def take(self, *, timeout: float) -> tuple[str, Any] | None:
        """A finished job's key with its result, or with the exception that ended it.

        None if none finishes within ``timeout`` seconds. A job that killed its workers again and
        again comes back as a ShardError.
        """
        try:
            key = self._finished.get(timeout=timeout)
        except queue.Empty:
            return None
        with self._lock:  # else a report that is late would stay, and be counted for ever
            future = self._futures.pop(key)
            self._told.pop(key, None)
        error = future.exception()
        result = job_error(error) if error else wire.decode_result(future.result()).result()
        release_future(self._client, future)
        return key, result

    def told(self) -> list[Any]:
        """What each running job reported last."""
        with self._lock:
            return list(self._told.values())

    def _hear(self, event: tuple[float, bytes]) -> None:
        with suppress(InvalidMessage):
            key, message = wire.decode_report(event[1])
            with self._lock:
                if key in self._futures:
                    self._told[key] = message


def release_future(client: Client, future: Future[Any]) -> None:
    """Let a job go, and wait until the client has: else its key, given again, finds the old end."""
    future.release()
    client.sync(asyncio.sleep, 0)


@contextmanager
def local_engine(workers: int) -> Iterator[LocalEngine]:
    """An engine of this many processes on this machine; they end with it, or with this process."""
    try:
        tempfile.gettempdir()  # where Dask has its files: a few bytes each
    except FileNotFoundError as error:
        raise RunError(
            "There is no temporary folder with room on this machine; make room in /tmp, or name "
            "another folder by TMPDIR, then run the same command again."
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
                    # Its pages are off, but their server stays: not on 8787, where another's may be
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
            except (RuntimeError, OSError) as error:  # as when the kernel kills one that starts
                if is_disk_full(error):
                    raise disk_full_error(tempfile.gettempdir()) from error
                raise RunError(
                    f"The processes that scrape could not be started ({error}); run the same "
                    "command again, with fewer --workers if memory is short."
                ) from error
        with cluster, Client(cluster, set_as_default=False) as client:
            yield LocalEngine(client, slots=workers)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Threads and processes that begin in here hear no Ctrl-C, nor do those that they begin.

    A terminal sends it to all processes, and it is for the run to say when a worker ends. Whatever
    a worker would do about it by itself comes too late: it is killed while it starts.
    """
    resource_tracker.ensure_running()  # else Python starts it in here, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def job_error(error: BaseException) -> BaseException:
    """What Dask says of a job that its workers could not end."""
    if isinstance(error, RemoteError) and error.kind == "KilledWorker":
        return ShardError("the scraper's process died on it again and again.")
    if isinstance(error, RemoteError) and error.kind in _MACHINE_ERRORS:
        return MachineFault(str(error))
    if type(error) is Exception and any(isinstance(each, bytes) for each in error.args):
        return ShardError("a machine answered with an error in a form that is not read.")
    return error


def run_local_job(job: bytes) -> bytes:
    """Do a job in a worker of this machine."""
    return wire.run_and_encode(lambda: job_result(run_guarded(*pickle.loads(job))))


def job_result(result: Any) -> JobResult:
    """The answer of a job that has ended well."""
    return JobResult(parcel=result) if isinstance(result, Parcel) else JobResult(value=result)


def run_guarded(
    key: str, function: Callable[..., Any], arguments: tuple[Any, ...], limit: float
) -> Any:
    """Run a job in a worker, under its limit.

    The limit is the job's to keep, for it may have times that do not count; its process is ended
    when the job has been as long as that without a report.
    """
    worker = get_worker()

    with open(os.devnull, "w") as nowhere:

        def arm() -> None:
            faulthandler.dump_traceback_later(limit + _GRACE, exit=True, file=nowhere)

        def report(message: Any) -> None:
            worker.log_event(PROGRESS_TOPIC, wire.encode_report(key, message))
            arm()

        arm()
        try:
            return function(*arguments, limit=limit, report=report)
        except (RunError, ConfigError, MachineFault):
            raise
        except Exception as error:  # its causes do not cross to another process
            if (fault := describe_machine_fault(error)) and not is_disk_full(error):
                raise MachineFault(f"{fault} ({error})") from error
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
