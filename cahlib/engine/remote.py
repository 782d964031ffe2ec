"""An engine on a Dask cluster elsewhere: the swarm's, or any other.

It has the interface of `cahlib.engine.local.LocalEngine`, with these differences: jobs are held
back until a worker is free for them; they write their parcels on the machine where they run, and
the parcels are fetched before a job counts as finished; the connection may be gone for minutes,
after which jobs are submitted again under their keys and found again, since the scheduler keeps
what is published. It does not know how the machines were created.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dask
from distributed import Client

from cahlib.core.background import BackgroundLoop, capture
from cahlib.core.errors import MachineFault, RunError, ShardError
from cahlib.core.records import Shard
from cahlib.core.retry import wait_until
from cahlib.engine import cluster, wire
from cahlib.engine.cluster import ClusterAddress, WorkerState, release_future
from cahlib.engine.dispatch import RemoteJob, jobs_to_send, stuck_jobs, track_workers
from cahlib.engine.file_sync import FileSync, file_ref
from cahlib.engine.job import job_error
from cahlib.engine.transfer import CONNECTION_ERRORS as CONNECTION_ERRORS
from cahlib.engine.transfer import DamagedFile, delete_files, fetch_parcel, parcel_files
from cahlib.engine.wire import MAX_PULLS, PROGRESS_TOPIC, InvalidMessage, JobResult
from cahlib.engine.worker import JobContext, run_remote_job

#: Attempts to fetch a parcel before its shard is scraped again.
_MAX_ATTEMPTS = 5

_CLOSE_TIMEOUT = 5  #: seconds for each step of leaving a cluster
#: Seconds in which at least one of the machines must be repaired if all fail.
_REPAIR_TIMEOUT, _FIX = 180.0, "Fix that, then run the same command again; finished work is kept."

#: Prefix of the names under which jobs are published.
_PREFIX = "cahlib-"

_log = logging.getLogger(__name__)


class RemoteEngine:
    """Jobs by key on the workers of a cluster by address."""

    def __init__(
        self, address: ClusterAddress, folder: Path, connect: Callable[[ClusterAddress], Client]
    ) -> None:
        self.slots = 0  #: jobs that can run at the same time, as of now
        self.folder = Path(address.parcel_folder)  #: where jobs write their parcels
        self._address, self._folder, self._connect = address, folder, connect
        self._jobs: dict[str, RemoteJob] = {}
        self._published = set[str]()  #: keys of the jobs that are published there
        self._finished: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._lost: BaseException | None = None
        self._failing_since = 0.0  #: since when no machine takes jobs; 0: one does
        self._rejected = set[str]()  #: hosts that sent invalid messages
        self._lock = threading.RLock()
        self._watcher = BackgroundLoop(0.1, self._watch, name="keeper")
        self._closing = self._watcher.stopping
        self._file_sync = FileSync(address, self._closing.is_set)
        self._pulls = ThreadPoolExecutor(MAX_PULLS, thread_name_prefix="pull")
        self._client = connect(address)
        with cluster.closed_on_error(self._client, address):
            self._prepare_client()
        self._answered, self._counted = time.monotonic(), 0.0  #: at its last answer; of its slots
        self._watcher.start()

    def __len__(self) -> int:
        """Return the number of jobs submitted and not yet returned by `take`."""
        return len(self._jobs)

    def submit(
        self,
        key: str,
        function: Callable[..., Any],
        *arguments: Any,
        limit: float,
        files: Sequence[str] = (),
    ) -> None:
        """Start ``function(*arguments, limit=…, report=…)`` as soon as a worker is free for it.

        If it already runs there, for a driver that died, it is found again. It finds ``files`` of
        this machine with `cahlib.core.path_map.local_path`; each is sent once to each machine.
        """
        job = RemoteJob(function, arguments, limit, tuple(map(file_ref, files)))
        with self._lock:
            self._jobs[self._address.key_prefix + key] = job

    def take(self, *, timeout: float) -> tuple[str, Any] | None:
        """Return a finished job's key with its result, or with the exception that ended it.

        Return None if no job finishes within ``timeout`` seconds. A parcel lies in this machine's
        folder, and is deleted where it was made. Raise RunError if the cluster does not answer for
        too long or has failed, ConfigError if its workers are unsuitable.
        """
        try:
            key, result = self._finished.get(timeout=timeout)
        except queue.Empty:
            if self._lost:
                raise self._lost from None
            return None
        with self._lock:
            del self._jobs[key]
        return key.removeprefix(self._address.key_prefix), result

    def reports(self) -> list[Any]:
        """Return the last report of each running job."""
        return list(self.reports_by_job().values())

    def reports_by_job(self) -> dict[str, Any]:
        """Return the same by the keys under which the cluster knows the jobs."""
        running = {key: job for key, job in self._jobs.copy().items() if not job.ended}
        return {key: job.last_report for key, job in running.items() if job.last_report is not None}

    def nodes(self) -> list[WorkerState]:
        """Return the workers that the scheduler knows; raise RunError if it does not answer."""
        client = self._client  # the watcher may replace it
        if client.status != "running":
            raise RunError(f"{self._address.address} does not answer.")
        try:
            found = cluster.list_workers(client)
            # not by their reports: a worker that hangs reports nothing
            assigned = client.processing()
        except (*CONNECTION_ERRORS, AttributeError) as error:  # of a client that was just closed
            raise RunError(f"{self._address.address} does not answer ({error}).") from error
        now, known = time.monotonic(), self._jobs.copy()
        jobs = {each: tuple(key for key in keys if key in known) for each, keys in assigned.items()}
        stalled = {key: now - job.last_change for key, job in known.items()}
        state = partial(cluster.worker_state, stalled=stalled, unread=self._rejected)
        return [state(worker, jobs.get(address, ())) for address, worker in found.items()]

    def await_nodes(self, nodes: Sequence[str], *, timeout: float) -> set[str]:
        """Wait until these nodes have workers; return the nodes that are still missing."""
        missing = set(nodes)

        def have_joined() -> bool:
            nonlocal missing
            with suppress(RunError):
                missing = cluster.missing_nodes(nodes, self.nodes())
            return not missing

        wait_until(have_joined, timeout=timeout, pause=0.2)
        return missing

    def move(self, address: str) -> None:
        """Continue with the scheduler at another address; unfinished jobs are done again there."""
        self._address = replace(self._address, address=address)
        self._client.close(timeout=5)  # so that the watcher reconnects

    def fail(self, why: RunError) -> None:
        """Let `take` raise this once no finished job is left: no machine will come back."""
        self._lost = why

    def drain(self, *, timeout: float) -> None:
        """Fetch the results of jobs that are finished now, without waiting for running ones."""

        def is_drained() -> bool:
            return all(job.status != "finished" for job in self._jobs.copy().values())

        wait_until(is_drained, timeout=timeout, pause=0.1)

    def close(self) -> None:
        """End running jobs and leave the cluster, in seconds even if it does not answer."""
        self._watcher.stop(timeout=_CLOSE_TIMEOUT)
        self._pulls.shutdown(wait=False, cancel_futures=True)
        if self._client.status == "running":
            with suppress(*CONNECTION_ERRORS):
                self._client.sync(self._cancel_jobs, callback_timeout=_CLOSE_TIMEOUT)
            self._file_sync.clean_up(self._client, timeout=_CLOSE_TIMEOUT)
        self._client.close(timeout=_CLOSE_TIMEOUT)  # ends what pulls wait for
        self._pulls.shutdown(wait=True)

    async def _cancel_jobs(self) -> None:
        if running := [job.future for job in self._jobs.values() if job.future]:
            names: list[Any] = [_PREFIX + key for key, job in self._jobs.items() if job.published]
            await self._client.unpublish_dataset(names)
            await self._client.cancel(running, force=True)

    def _prepare_client(self) -> None:
        """Subscribe a new client and learn what the cluster has."""
        self._client.subscribe_topic(PROGRESS_TOPIC, self._on_report)
        self._find_published()
        self._count_slots()

    def _watch(self) -> bool:
        """Check the jobs and the connection; return whether an error has ended that."""
        error = capture(self._look).exception()
        # another thread closed the client, whose scheduler is None then
        closed = isinstance(error, AttributeError) and self._client.status != "running"
        if error and not closed and not isinstance(error, (*CONNECTION_ERRORS, RunError)):
            self._lost = error  # unsuitable workers, or a bug
            return True
        if error:
            _log.warning("%s: %s", self._address.address, error)
        if time.monotonic() > self._answered + self._address.max_outage and not self._lost:
            self._lost = RunError(
                f"{self._address.address} has not answered for "
                f"{self._address.max_outage / 60:.0f} minutes; finished work is kept, so run "
                "the same command again to continue."
            )
        return False

    def _look(self) -> None:
        if self._client.status in ("closed", "closing"):
            address = self._address
            self._client = self._connect(address)
            if address is not self._address or self._closing.is_set():  # meanwhile
                self._client.close(timeout=5)
                return
            self._prepare_client()
        if self._client.status == "running":
            if time.monotonic() > self._counted + 1:
                self._count_slots()
                self._counted = time.monotonic()
            self._check_jobs()
            self._send_jobs()
            self._answered = time.monotonic()

    def _count_slots(self) -> None:
        found = cluster.worker_slots(self._client, self._address)
        self.slots = sum(found.values())
        why = cluster.common_fault(self._client) if not self.slots else ""
        self._failing_since = (self._failing_since or time.monotonic()) if why else 0
        if self._failing_since and time.monotonic() > self._failing_since + _REPAIR_TIMEOUT:
            self._lost = RunError(f"all machines of {self._address.address} fail: {why}. {_FIX}")
        if jobs := self._jobs.copy():
            track_workers(jobs, assigned := self._client.processing())
            for key in stuck_jobs(jobs, assigned, found):
                self._restart(key, jobs[key])

    def _find_published(self) -> None:
        """Learn which jobs the cluster has from before a disconnection, or of another driver."""
        self._published = {str(name).removeprefix(_PREFIX) for name in self._client.list_datasets()}

    def _check_jobs(self) -> None:
        """Check every job that was sent once."""
        jobs = self._jobs.copy()
        if lost := [job for job in jobs.values() if job.status == "cancelled"]:
            self._find_published()  # the connection was lost; published jobs still run
        with self._lock:
            for job in lost:
                job.future = None
            for key, job in jobs.items():
                if job.future and job.status == "error":
                    error = job.future.exception(timeout=10)
                    self._end(key, job, job_error(error) if error else error)
                elif job.status == "finished" and job.published and not job.fetching:
                    job.fetching = True  # not before: what is released must not be published then
                    fetch = self._pulls.submit(self._fetch_result, key, job)
                    fetch.add_done_callback(partial(self._on_fetched, key, job))

    def _send_jobs(self) -> None:
        """Send the jobs that are due, and publish those that were sent."""
        with self._lock:
            for key, job in jobs_to_send(self._jobs, self.slots, self._published):
                self._send(key, job)
            unnamed = {k: job for k, job in self._jobs.items() if job.status and not job.published}
            fresh = [(key, job, job.future) for key, job in unnamed.items()]
        # Jobs published before the connection broke are left alone: publishing them again would
        # first release them, which ends a running job.
        new: Any = {_PREFIX + key: future for key, _, future in fresh if key not in self._published}
        if new:
            self._client.publish_dataset(new)  # together: each asks every worker, 0.1 to 1 s
        with self._lock:
            for _, job, future in fresh:
                job.published = job.published or job.future is future

    def _send(self, key: str, job: RemoteJob) -> None:
        job.published, job.last_change = False, time.monotonic()
        at = self._address
        context = JobContext(files=job.files, folder=at.file_folder, staging=at.staging)
        packed = pickle.dumps(((key, job.function, job.arguments, job.limit), context))
        job.future = self._client.submit(
            run_remote_job, packed, key=key, pure=False, resources={"slot": 1}
        )

    def _on_report(self, event: tuple[float, bytes]) -> None:
        with suppress(InvalidMessage):
            key, message = wire.decode_report(event[1])
            if (job := self._jobs.get(key)) and not job.ended and message != job.last_report:
                job.last_report, job.last_change = message, time.monotonic()

    def _fetch_result(self, key: str, job: RemoteJob) -> None:
        """Fetch a finished job's result, or leave it for another attempt."""
        future = job.future  # the watcher may end the job meanwhile
        try:
            if future is None:  # it has ended, or is to be sent again
                job.fetching = False
                return
            answer = wire.decode_result(future.result(timeout=self._address.piece_timeout))
            hosts = cluster.result_hosts(self._client, future)
            if (answer.missing or answer.parcel) and answer.host not in hosts:
                raise InvalidMessage("It sent a message about another machine.")
            if answer.missing:
                missing = [job.files[n] for n in answer.missing if n < len(job.files)]
                self._file_sync.send(self._client, missing, answer.host)
                self._restart(key, job)
                return
            result = self._with_parcel(job, answer)
        except InvalidMessage as error:
            with suppress(*CONNECTION_ERRORS):  # the machine is gone
                self._rejected |= cluster.result_hosts(self._client, future)
            _log.error("%s at %s: %s", key, self._rejected, error)
            job.attempts += 1
            if job.attempts < _MAX_ATTEMPTS:
                self._restart(key, job)
                return
            result = MachineFault(f"{cluster.UNREADABLE} ({error})")
        except (*CONNECTION_ERRORS, DamagedFile) as error:
            job.attempts += 1
            if job.attempts < _MAX_ATTEMPTS:
                _log.warning("%s, attempt %d: %s", key, job.attempts, error)
                self._closing.wait(0.5)
                job.fetching = False
                return
            # else the damaged file would be found again
            if isinstance(error, DamagedFile):
                delete_files(self._client, parcel_files(answer, self._address.staging))
            result = ShardError(f"the parcel of {key} could not be fetched: {error}")
        with self._lock:
            self._end(key, job, result)

    def _on_fetched(self, key: str, job: RemoteJob, fetch: futures.Future[None]) -> None:
        """End a job whose result could not be fetched: by its own error or a bug."""
        if not fetch.cancelled() and (error := fetch.exception()):
            with self._lock:
                self._end(key, job, error)

    def _restart(self, key: str, job: RemoteJob) -> None:
        """Start a job again."""
        with self._lock:
            self._release(key, job)
            job.fetching = False

    def _with_parcel(self, job: RemoteJob, answer: JobResult) -> Any:
        """Return a job's result with its files in this machine's folder."""
        if not (parcel := answer.parcel):
            return answer.result()
        asked = [each for each in job.arguments if isinstance(each, Shard)]
        if asked not in ([], [parcel.shard]):
            raise InvalidMessage(f"It sent a parcel of another shard than {asked[0].id}.")
        files = parcel_files(answer, self._address.staging)
        tar = fetch_parcel(self._client, files, self._folder, timeout=self._address.piece_timeout)
        return replace(parcel, path=tar)

    def _end(self, key: str, job: RemoteJob, result: Any) -> None:
        if job.ended:  # the watcher and a pull may both see its failure
            return
        job.ended, job.last_report = True, None
        try:
            self._release(key, job)
        finally:
            self._finished.put((key, result))

    def _release(self, key: str, job: RemoteJob) -> None:
        """Let the scheduler forget a job."""
        self._published.discard(key)
        with suppress(*CONNECTION_ERRORS):
            if job.published:
                self._client.unpublish_dataset([_PREFIX + key])
        if job.future:
            with suppress(*CONNECTION_ERRORS):
                release_future(self._client, job.future)
            job.future = None


@contextmanager
def remote_engine(
    address: ClusterAddress, folder: Path, *, timeout: float = 30
) -> Iterator[RemoteEngine]:
    """Open an engine on the cluster at an address; parcels end up in ``folder``.

    Raise RunError if nobody answers there, or not as a member of the same swarm.
    """
    settings = {
        "distributed.comm.compression": False,  # compressed messages are not read
        "distributed.comm.timeouts.connect": "10s",
        "distributed.comm.timeouts.tcp": f"{address.idle_timeout}s",  # of the nodes: dask.yaml
    }
    with dask.config.set(settings):
        engine = RemoteEngine(address, folder, lambda each: cluster.connect(each, timeout))
        try:
            yield engine
        finally:
            engine.close()
