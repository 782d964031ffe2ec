"""A Dask cluster by address: how to connect to it, and the state of its workers.

It does not know what is run there.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from distributed import Client, Future, Security
from distributed.comm.addressing import get_address_host
from distributed.versions import VersionMismatchWarning

from cahlib.core.errors import ConfigError, RunError
from cahlib.engine import unpickling
from cahlib.engine.certificates import Certificates
from cahlib.engine.message_limits import limit_messages
from cahlib.engine.peers import is_worker_of as is_worker_of
from cahlib.engine.quarantine import FAULT_METRIC
from cahlib.engine.transfer import CONNECTION_ERRORS
from cahlib.engine.wire import printable
from cahlib.engine.worker import SlotPlugin

#: The fault of a machine that is broken, or was broken into.
UNREADABLE = "it sent an invalid message"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAddress:
    """The address of a cluster, and the settings with which it is used."""

    address: str  #: tls://HOST:PORT or tcp://HOST:PORT
    keys: Certificates | None = None  #: of the swarm; None: as in Dask's own configuration
    parcel_folder: str = "/tmp/cahlib-parcels"  #: on its machines, for parcels of jobs
    file_folder: str = "/tmp/cahlib-files"  #: on its machines, for files of this one
    staging: str = ""  #: a URL that all machines share; "" = from machine to machine
    piece_timeout: float = 60  #: seconds for a piece of a parcel
    idle_timeout: float = 120  #: seconds without an answer after which a connection is broken
    max_outage: float = 900  #: seconds for which the cluster may not answer
    key_prefix: str = ""  #: of the keys of this run's jobs

    def for_run(self, run: str) -> ClusterAddress:
        """Return the same for one of several runs, whose files and jobs stay apart."""
        return replace(
            self,
            key_prefix=f"{run}-",
            parcel_folder=f"{self.parcel_folder}/{run}",
            file_folder=f"{self.file_folder}/{run}",
            staging=self.staging and f"{self.staging.rstrip('/')}/{run}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker process as the scheduler knows it."""

    name: str  #: the node's, with -0, -1 … where it runs several workers
    host: str
    slots: int
    silence: float  #: seconds since its last heartbeat
    memory: int  #: bytes of its process
    jobs: tuple[str, ...]  #: keys of the jobs that it runs or that wait for it
    stalled: float  #: seconds since its jobs last made progress; 0 without jobs
    version: str  #: of cahlib, "" if unknown
    fault: str = ""  #: why it takes no jobs, "" if it does; see `cahlib.engine.quarantine`


class _Metrics(msgspec.Struct, frozen=True):
    memory: int = 0
    cahlib: str = ""
    fault: str = msgspec.field(default="", name=FAULT_METRIC)


class WorkerInfo(msgspec.Struct, frozen=True):
    """The scheduler's record of a worker, with the metrics of its last heartbeat."""

    name: str | int
    host: str
    nthreads: int
    resources: dict[str, float]
    last_seen: float
    metrics: _Metrics


# Two threads that convert to a type for the first time at once would crash.
msgspec.convert([], list[WorkerInfo])


def connect(address: ClusterAddress, timeout: float) -> Client:
    """Connect a client; raise RunError if nobody answers, or not as a member of the same swarm."""
    unpickling.restrict()
    limit_messages()
    # another Python there, of which a client also warns when it reconnects, is harmless: only
    # records and names of functions are exchanged
    warnings.simplefilter("ignore", VersionMismatchWarning)
    try:
        client = Client(
            address.address,
            security=_security(address.keys) if address.keys else None,
            timeout=timeout,
            direct_to_workers=True,
            set_as_default=False,
        )
    except (OSError, TimeoutError, ValueError, RuntimeError, TypeError) as error:
        raise RunError(
            f"no Dask cluster answers at {address.address} ({error}); is it running, and do the "
            "certificates belong to it?"
        ) from error
    for topic in ("print", "warn"):  # workers could write into the user's terminal
        client.unsubscribe_topic(topic)
    return client


@contextmanager
def closed_on_error(client: Client, address: ClusterAddress) -> Iterator[None]:
    """Close a new client on an error; raise RunError if the cluster has stopped answering."""
    try:
        yield
    except BaseException as error:
        client.close(timeout=5)
        if isinstance(error, CONNECTION_ERRORS):
            raise RunError(
                f"{address.address} has stopped answering ({error}); check that it is running, "
                "then run the same command again."
            ) from error
        raise


def list_workers(client: Client) -> dict[str, WorkerInfo]:
    """Return the workers of a cluster by address, without those whose records are invalid.

    Raise OSError if the scheduler does not answer.
    """
    found = {}
    if client.scheduler is None:
        raise OSError("the connection to the scheduler is closed")
    # not `scheduler_info`, which the client's own periodic update empties now and then
    known = client.sync(client.scheduler.identity, n_workers=-1)
    for address, record in known["workers"].items():
        with suppress(msgspec.ValidationError):
            found[address] = msgspec.convert(record, WorkerInfo)
    return found


def release_future(client: Client, future: Future[Any]) -> None:
    """Release a future and wait until that is done; else a reused key finds the old result."""
    future.release()
    client.sync(asyncio.sleep, 0)


def result_hosts(client: Client, future: Future[Any] | None) -> set[str]:
    """Return the hosts that have a result."""
    found = client.who_has([future]) if future else {}
    return {get_address_host(each) for addresses in found.values() for each in addresses}


def worker_slots(client: Client, address: ClusterAddress) -> dict[str, int]:
    """Return how many jobs each worker can run; raise ConfigError for unsuitable workers."""
    there = list_workers(client)
    if not address.staging and any(worker.nthreads < 2 for worker in there.values()):
        raise ConfigError(
            f"{address.address} has workers with one thread only; start them with "
            "`--nthreads 2` (the second one serves files), or give --staging."
        )
    if any("slot" not in worker.resources for worker in there.values()):
        try:
            client.register_plugin(
                SlotPlugin()
            )  # asks every worker, so not where one may stand still
        except Exception as error:  # raised by the workers
            if "No module named 'cahlib" not in str(error):
                raise
            raise ConfigError(
                f"{address.address} has workers that cannot import cahlib; install it there, in "
                "this version, then run the same command again."
            ) from error
    return {address: int(each.resources.get("slot", 0)) for address, each in there.items()}


def common_fault(client: Client) -> str:
    """Return why the machines of all workers fail; "" if one works or there is none."""
    there = list_workers(client).values()
    faults = {each.host: each.metrics.fault for each in there if each.metrics.fault}
    # one worker reports for its whole machine
    every = faults.keys() == {each.host for each in there}
    return printable(next(iter(faults.values()), ""), 500) if every else ""


def missing_nodes(nodes: Iterable[str], workers: Sequence[WorkerState]) -> set[str]:
    """Return those of the nodes that have no worker."""
    return {n for n in nodes if not any(is_worker_of(each.name, n) for each in workers)}


def worker_state(
    worker: WorkerInfo,
    jobs: Sequence[str],
    *,
    stalled: Mapping[str, float],
    unread: Collection[str] = (),
) -> WorkerState:
    """Return the state of a worker; ``stalled`` has the seconds without progress by job.

    Hosts in ``unread`` have sent invalid messages.
    """
    return WorkerState(
        name=printable(str(worker.name), 100),
        host=worker.host,
        slots=int(worker.resources.get("slot", 0)),
        silence=max(time.time() - worker.last_seen, 0),
        memory=worker.metrics.memory,
        jobs=tuple(jobs),
        stalled=min((stalled.get(key, 0) for key in jobs), default=0),
        version=printable(worker.metrics.cahlib, 40),
        fault=UNREADABLE if worker.host in unread else printable(worker.metrics.fault, 500),
    )


class _HostChecked(Security):
    """TLS settings that require each node's certificate to name its address."""

    def get_connection_args(self, role: str) -> dict[str, Any]:
        found: dict[str, Any] = super().get_connection_args(role)
        found["ssl_context"].check_hostname = True
        return found


def _security(keys: Certificates) -> Security:
    own = keys.driver()
    return _HostChecked(
        require_encryption=True,
        tls_min_version=ssl.TLSVersion.TLSv1_3,
        tls_ca_file=str(keys.authority().public),
        tls_client_cert=str(own.public),
        tls_client_key=str(own.private),
    )
