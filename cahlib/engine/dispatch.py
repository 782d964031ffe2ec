"""Choose which jobs a cluster is given now, and which are taken back.

Dask never moves a job that waits for a busy worker to one that comes later, so a cluster is given
no more jobs than its workers run at the same time. It does not know how a job is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Future

from cahlib.engine.transfer import PIECE_KEY
from cahlib.engine.worker import FileRef


@dataclass(slots=True, eq=False)
class RemoteJob:
    """A job from its submission to its end."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    limit: float
    files: tuple[FileRef, ...] = ()
    future: Future[Any] | None = None  #: None: held back
    published: bool = False
    fetching: bool = False  #: its result is being fetched
    ended: bool = False
    attempts: int = 0
    last_report: Any = None
    last_change: float = field(default_factory=time.monotonic)
    worker: str = ""  #: address of the worker that has it
    assigned_at: float = 0  #: when it was first seen with that worker

    @property
    def status(self) -> str:
        """Return its status in Dask; "" if it has ended or is held back."""
        return "" if self.ended or self.future is None else str(self.future.status)

    @property
    def takes_slot(self) -> bool:
        """Return whether it runs or waits for a worker."""
        return self.status == "pending"


def jobs_to_send(
    jobs: Mapping[str, RemoteJob], slots: int, known: set[str]
) -> Iterator[tuple[str, RemoteJob]]:
    """Yield the jobs to send now, in the order of their submission.

    Jobs that are ``known`` there already run: sending them finds them again.
    """
    free = slots - sum(job.takes_slot for job in jobs.values())
    for key, job in jobs.items():
        if job.ended or job.fetching or job.future is not None:
            continue
        if key in known:
            yield key, job
        elif free > 0:
            free -= 1
            yield key, job


def track_workers(jobs: Mapping[str, RemoteJob], assigned: Mapping[str, Sequence[str]]) -> None:
    """Note which worker has each job; the time without progress restarts when that changes.

    ``assigned`` has the keys of the jobs that each worker runs or that wait for it.
    """
    workers, now = {key: each for each, keys in assigned.items() for key in keys}, time.monotonic()
    for key, job in jobs.items():
        if job.takes_slot and job.worker != (worker := workers.get(key, "")):
            job.worker, job.assigned_at, job.last_change = worker, now, now


def stuck_jobs(
    jobs: Mapping[str, RemoteJob], assigned: Mapping[str, Sequence[str]], slots: Mapping[str, int]
) -> list[str]:
    """Return the keys of jobs that wait for a busy worker while another one is free.

    Dask gives the job of a dead worker to another one, behind what that one runs. A worker without
    slots is drained, and may finish what it has.
    """
    behind, free = list[str](), 0
    for address, slot in slots.items():
        keys = [key for key in assigned.get(address, ()) if not key.startswith(PIECE_KEY)]
        free += max(slot - len(keys), 0)
        own = {key: job for key in keys if (job := jobs.get(key)) and job.takes_slot}
        if slot and (surplus := len(keys) - slot) > 0:
            behind += sorted(own, key=lambda key: _waiting_order(own[key]))[-surplus:]
    return behind[:free]


def _waiting_order(job: RemoteJob) -> tuple[bool, float]:
    """Return a sort key for the jobs of a worker: those that have reported run, then the oldest.

    Of two jobs that a driver found there before their first report, neither is known to run. Taking
    back the one that runs costs only time: it ends there unnoticed, and is done again elsewhere.
    """
    return job.last_change <= job.assigned_at, job.assigned_at
