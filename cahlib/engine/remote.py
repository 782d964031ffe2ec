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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
from distributed import Client

from cahlib.core.errors import MachineFault, RunError, ShardError
from cahlib.core.records import Shard
from cahlib.engine import cluster, wire
from cahlib.engine.cluster import ClusterAddress, WorkerState, is_worker_of
from cahlib.engine.dispatch import RemoteJob, jobs_to_send, stuck_jobs, track_workers
from cahlib.engine.file_sync import FileSync, file_ref
from cahlib.engine.local import job_error, release_future
from cahlib.engine.transfer import CONNECTION_ERRORS as CONNECTION_ERRORS
from cahlib.engine.transfer import DamagedFile, delete_files, fetch_parcel, parcel_files
from cahlib.engine.wire import MAX_PULLS, PROGRESS_TOPIC, InvalidMessage, JobResult
from cahlib.engine.worker import JobContext, run_remote_job

#: How often a parcel's coming is tried before its shard is scraped again.
_MAX_ATTEMPTS = 5

_CLOSE_TIMEOUT = 5  #: seconds for each step of leaving a cluster

#: Seconds in which whoever looks after machines that all fail must have treated one.
_REPAIR_TIMEOUT, _FIX = 180.0, "See to that, then run the same command; what is finished is kept."

#: What the names begin with under which jobs are published.
_PUBLISHED = "cahlib-"

_log = logging.getLogger(__name__)


class RemoteEngine:
    """Jobs by key on the workers of a cluster by address."""

    def __init__(
        self, reach: ClusterAddress, home: Path, connect: Callable[[ClusterAddress], Client]
    ) -> None:
        self.slots = 0  #: jobs that can run at the same time, as of now
        self.folder = Path(reach.away)  #: where jobs write their parcels
        self._reach, self._home, self._connect = reach, home, connect
        self._jobs: dict[str, RemoteJob] = {}
        self._known = set[str]()  #: keys of the jobs that are published there
        self._finished: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._lost: Exception | None = None
        self._ill = 0.0  #: since when no machine takes jobs; 0: one does
        self._refused = set[str]()  #: machines that sent what is not read
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self._supplies = FileSync(reach, self._ending.is_set)
        self._pulls = ThreadPoolExecutor(MAX_PULLS, thread_name_prefix="pull")
        self._client = connect(reach)
        try:
            self._begin()
        except BaseException:
            self._client.close(timeout=5)
            raise
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def __len__(self) -> int:
        """Jobs submitted and not taken back by `take`."""
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

        If it runs there already, for a driver that died, it is found again. It finds ``files`` of
        this machine with `cahlib.core.path_map.local_path`; they are sent once to each that lacks
        them.
        """
        job = RemoteJob(function, arguments, limit, tuple(map(file_ref, files)))
        with self._lock:
            self._jobs[self._reach.run + key] = job

    def take(self, *, timeout: float) -> tuple[str, Any] | None:
        """A finished job's key with its result, or with the exception that ended it.

        None if none finishes within ``timeout`` seconds. A parcel lies in this machine's folder,
        and is deleted where it was made. Raises RunError if the cluster is away for too long
        or was given up, ConfigError if it has workers that are not fit.
        """
        try:
            key, result = self._finished.get(timeout=timeout)
        except queue.Empty:
            if self._lost:
                raise self._lost from None
            return None
        with self._lock:
            del self._jobs[key]
        return key.removeprefix(self._reach.run), result

    def told(self) -> list[Any]:
        """What each running job reported last."""
        return list(self.reports().values())

    def reports(self) -> dict[str, Any]:
        """The same, by the keys under which the cluster knows the jobs."""
        told = {key: job.told for key, job in self._jobs.copy().items() if not job.ended}
        return {key: each for key, each in told.items() if each is not None}

    def nodes(self) -> list[WorkerState]:
        """The workers that the scheduler knows; raises RunError if it does not answer."""
        client = self._client  # the keeper may put another in its place
        if client.status != "running":
            raise RunError(f"{self._reach.address} does not answer.")
        try:
            known_there = cluster.list_workers(client)
            # not by what they report: one that stands still says nothing
            assigned = client.processing()
        except CONNECTION_ERRORS as error:
            raise RunError(f"{self._reach.address} does not answer ({error}).") from error
        now, known = time.monotonic(), self._jobs.copy()
        jobs = {each: tuple(key for key in keys if key in known) for each, keys in assigned.items()}
        still = {key: now - job.changed for key, job in known.items()}
        return [
            cluster.worker_state(worker, jobs.get(address, ()), still=still, unread=self._refused)
            for address, worker in known_there.items()
        ]

    def gather(self, nodes: Sequence[str], *, timeout: float) -> set[str]:
        """Wait until workers of these nodes are there; gives the nodes that are missing."""
        deadline, missing = time.monotonic() + timeout, set(nodes)
        while True:
            with suppress(RunError):
                names = [each.name for each in self.nodes()]
                missing = {n for n in nodes if not any(is_worker_of(name, n) for name in names)}
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.2)

    def move(self, address: str) -> None:
        """Go on with the scheduler at another address; what is not finished is done again there."""
        self._reach = replace(self._reach, address=address)
        self._client.close(timeout=5)  # so that it is connected anew

    def give_up(self, why: RunError) -> None:
        """Let `take` raise this once nothing is finished any more: no machine will come back."""
        self._lost = why

    def drain(self, *, timeout: float) -> None:
        """Bring here what is finished now; running jobs are not waited for."""
        deadline = time.monotonic() + timeout
        while any(job.status == "finished" for job in self._jobs.copy().values()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)

    def close(self) -> None:
        """End running jobs and leave the cluster, in seconds even if it does not answer."""
        self._ending.set()
        self._keeper.join(_CLOSE_TIMEOUT)
        self._pulls.shutdown(wait=False, cancel_futures=True)
        if self._client.status == "running":
            with suppress(*CONNECTION_ERRORS):
                self._client.sync(self._part, callback_timeout=_CLOSE_TIMEOUT)
                self._supplies.forget(self._client)
        self._client.close(timeout=_CLOSE_TIMEOUT)  # ends what pulls wait for
        self._pulls.shutdown(wait=True)

    async def _part(self) -> None:
        if running := [job.future for job in self._jobs.values() if job.future]:
            names: list[Any] = [
                _PUBLISHED + key for key, job in self._jobs.items() if job.published
            ]
            await self._client.unpublish_dataset(names)
            await self._client.cancel(running, force=True)

    # the connection

    def _begin(self) -> None:
        """What a fresh client needs."""
        self._client.subscribe_topic(PROGRESS_TOPIC, self._hear)
        self._find()
        self._count()

    def _keep(self) -> None:
        """Watch the jobs and the connection until the end."""
        last, counted = time.monotonic(), 0.0
        while not self._ending.wait(0.1):
            try:
                if self._client.status in ("closed", "closing"):
                    reach = self._reach
                    self._client = self._connect(reach)
                    if reach is not self._reach:  # moved meanwhile
                        self._client.close(timeout=5)
                        continue
                    self._begin()
                if self._client.status == "running":
                    if time.monotonic() > counted + 1:
                        self._count()
                        counted = time.monotonic()
                    self._look()
                    self._hand_out()
                    last = time.monotonic()
            except (*CONNECTION_ERRORS, RunError) as error:
                _log.warning("%s: %s", self._reach.address, error)
            except Exception as error:  # noqa: BLE001 - workers that are not fit, or a bug
                self._lost = error
                return
            if time.monotonic() > last + self._reach.limit and not self._lost:
                self._lost = RunError(
                    f"{self._reach.address} has not answered for {self._reach.limit / 60:.0f} "
                    "minutes; what is finished is kept, so the same command goes on from here."
                )

    def _count(self) -> None:
        found = cluster.worker_slots(self._client, self._reach)
        self.slots = sum(found.values())
        why = cluster.common_fault(self._client) if not self.slots else ""
        self._ill = (self._ill or time.monotonic()) if why else 0
        if self._ill and time.monotonic() > self._ill + _REPAIR_TIMEOUT:
            self._lost = RunError(f"all machines of {self._reach.address} fail: {why}. {_FIX}")
        if jobs := self._jobs.copy():
            track_workers(jobs, assigned := self._client.processing())
            for key in stuck_jobs(jobs, assigned, found):
                self._again(key, jobs[key])

    def _find(self) -> None:
        """Learn which jobs the cluster has of before the connection broke, or of another driver."""
        self._known = {str(name).removeprefix(_PUBLISHED) for name in self._client.list_datasets()}

    def _look(self) -> None:
        """One look at every job that was sent."""
        jobs = self._jobs.copy()
        if lost := [job for job in jobs.values() if job.status == "cancelled"]:
            self._find()  # the connection was lost; what was published runs on
        with self._lock:
            for job in lost:
                job.future = None
            for key, job in jobs.items():
                if job.future and job.status == "error":
                    error = job.future.exception(timeout=10)
                    self._end(key, job, job_error(error) if error else error)
                elif job.status == "finished" and job.published and not job.coming:
                    job.coming = True  # not before: what is released must not be published then
                    self._pulls.submit(self._bring, key, job)

    def _hand_out(self) -> None:
        """Send what is due, and publish what was sent."""
        with self._lock:
            for key, job in jobs_to_send(self._jobs, self.slots, self._known):
                self._send(key, job)
            unnamed = {k: job for k, job in self._jobs.items() if job.status and not job.published}
            fresh = [(key, job, job.future) for key, job in unnamed.items()]
        # What is published still, since before the connection broke, is left alone: to publish it
        # anew is to release it first, and its job would be ended that runs on.
        new: Any = {_PUBLISHED + key: future for key, _, future in fresh if key not in self._known}
        if new:
            self._client.publish_dataset(new)  # together: each asks every worker, 0.1 to 1 s
        with self._lock:
            for _, job, future in fresh:
                job.published = job.published or job.future is future

    def _send(self, key: str, job: RemoteJob) -> None:
        job.published, job.changed = False, time.monotonic()
        means = JobContext(files=job.files, folder=self._reach.files, staging=self._reach.staging)
        packed = pickle.dumps(((key, job.function, job.arguments, job.limit), means))
        job.future = self._client.submit(
            run_remote_job, packed, key=key, pure=False, resources={"slot": 1}
        )

    def _hear(self, event: tuple[float, bytes]) -> None:
        with suppress(InvalidMessage):
            key, message = wire.decode_report(event[1])
            if (job := self._jobs.get(key)) and not job.ended and message != job.told:
                job.told, job.changed = message, time.monotonic()

    def _bring(self, key: str, job: RemoteJob) -> None:
        """Bring a finished job's result here, or leave it for another try."""
        future = job.future  # the keeper may end the job meanwhile
        try:
            if future is None:  # it has ended, or is to be sent again
                job.coming = False
                return
            said = wire.decode_result(future.result(timeout=self._reach.patience))
            if (said.lacks or said.parcel) and said.host not in cluster.result_hosts(
                self._client, future
            ):
                raise InvalidMessage("It speaks for another machine.")
            if said.lacks:
                lacks = [job.files[n] for n in said.lacks if n < len(job.files)]
                self._supplies.bring(self._client, lacks, said.host)
                self._again(key, job)
                return
            result = self._pulled(job, said)
        except InvalidMessage as error:
            with suppress(*CONNECTION_ERRORS):  # the machine is gone
                self._refused |= cluster.result_hosts(self._client, future)
            _log.error("%s at %s: %s", key, self._refused, error)
            job.tries += 1
            if job.tries < _MAX_ATTEMPTS:
                self._again(key, job)
                return
            result = MachineFault(f"{cluster.UNREADABLE} ({error})")
        except (*CONNECTION_ERRORS, DamagedFile) as error:
            job.tries += 1
            if job.tries < _MAX_ATTEMPTS:
                _log.warning("%s, try %d: %s", key, job.tries, error)
                self._ending.wait(0.5)
                job.coming = False
                return
            # else it would be found again, as damaged as it is
            if isinstance(error, DamagedFile):
                delete_files(self._client, parcel_files(said, self._reach.staging))
            result = ShardError(f"the parcel of {key} could not be brought here: {error}")
        except Exception as error:  # noqa: BLE001 - the job's own, or a bug: the run's to judge
            result = error
        with self._lock:
            self._end(key, job, result)

    def _again(self, key: str, job: RemoteJob) -> None:
        """Have a job begin anew."""
        with self._lock:
            self._release(key, job)
            job.coming = False

    def _pulled(self, job: RemoteJob, said: JobResult) -> Any:
        """A job's result with its files in this machine's folder."""
        if not (parcel := said.parcel):
            return said.result()
        asked = [each for each in job.arguments if isinstance(each, Shard)]
        if asked not in ([], [parcel.shard]):
            raise InvalidMessage(f"It sent a parcel of another shard than {asked[0].id}.")
        files = parcel_files(said, self._reach.staging)
        tar = fetch_parcel(self._client, files, self._home, patience=self._reach.patience)
        return replace(parcel, path=tar)

    def _end(self, key: str, job: RemoteJob, result: Any) -> None:
        if job.ended:  # the keeper and a pull may both find that it has failed
            return
        job.ended, job.told = True, None
        self._release(key, job)
        self._finished.put((key, result))

    def _release(self, key: str, job: RemoteJob) -> None:
        """Let the scheduler forget a job."""
        self._known.discard(key)
        with suppress(*CONNECTION_ERRORS):
            if job.published:
                self._client.unpublish_dataset([_PUBLISHED + key])
        if job.future:
            with suppress(*CONNECTION_ERRORS):
                release_future(self._client, job.future)
            job.future = None


@contextmanager
def remote_engine(
    reach: ClusterAddress, home: Path, *, timeout: float = 30
) -> Iterator[RemoteEngine]:
    """An engine on the cluster at an address; parcels end up in ``home``.

    Raises RunError if nobody answers there, or not as a member of the same swarm.
    """
    settings = {
        "distributed.comm.compression": False,  # what is compressed is not read
        "distributed.comm.timeouts.connect": "10s",
        "distributed.comm.timeouts.tcp": f"{reach.silence}s",  # for the nodes' side see dask.yaml
    }
    with dask.config.set(settings):
        engine = RemoteEngine(reach, home, lambda reach: cluster.connect(reach, timeout))
        try:
            yield engine
        finally:
            engine.close()
