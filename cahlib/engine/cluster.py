"""A Dask cluster by address: who may join it, and what its workers are and do.

It does not know what is run there.
"""

from __future__ import annotations

import ssl
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from distributed import Client, Future, Security
from distributed.comm.addressing import get_address_host
from distributed.versions import VersionMismatchWarning

from cahlib.core.errors import ConfigError, RunError
from cahlib.engine import unpickling
from cahlib.engine.certificates import SwarmKeys
from cahlib.engine.message_limits import limit_messages
from cahlib.engine.peers import is_worker_of as is_worker_of
from cahlib.engine.quarantine import FAULT_METRIC
from cahlib.engine.wire import printable
from cahlib.engine.worker import SlotPlugin

#: What is wrong with a machine that is broken, or was broken into.
UNREADABLE = "it sent what is not read"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAddress:
    """Where a cluster is, and how it is used."""

    address: str  #: tls://HOST:PORT or tcp://HOST:PORT
    keys: SwarmKeys | None = None  #: of the swarm; None: what Dask's own configuration says
    away: str = "/tmp/cahlib-parcels"  #: where jobs write parcels on the machines of the cluster
    files: str = "/tmp/cahlib-files"  #: where files of this machine lie on those of the cluster
    staging: str = ""  #: a URL that its machines and this one share; "" = from machine to machine
    patience: float = 60  #: seconds for a piece of a parcel
    silence: float = 120  #: seconds after which the connection counts as broken
    limit: float = 900  #: seconds that the cluster may be away
    run: str = ""  #: what the keys of this run's jobs begin with

    def of_run(self, run: str) -> ClusterAddress:
        """The same for one run of several, which find nothing of each other's there."""
        return replace(
            self,
            run=f"{run}-",
            away=f"{self.away}/{run}",
            files=f"{self.files}/{run}",
            staging=self.staging and f"{self.staging.rstrip('/')}/{run}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker process as the scheduler knows it."""

    name: str  #: the node's, with -0, -1 … where it runs several
    host: str
    slots: int
    seen: float  #: seconds since its last sign of life
    memory: int  #: bytes of its process
    jobs: tuple[str, ...]  #: keys of what it runs, and of what waits for it
    still: float  #: seconds since its jobs last reported something new; 0 without jobs
    version: str  #: of cahlib, "" if it does not say
    ill: str = ""  #: why it takes no jobs, "" if it does; see `cahlib.engine.quarantine`


class _Metrics(msgspec.Struct, frozen=True):
    memory: int = 0
    cahlib: str = ""
    ill: str = msgspec.field(default="", name=FAULT_METRIC)


class WorkerInfo(msgspec.Struct, frozen=True):
    """What a scheduler says of a worker, and a worker of itself."""

    name: str | int
    host: str
    nthreads: int
    resources: dict[str, float]
    last_seen: float
    metrics: _Metrics


def connect(reach: ClusterAddress, timeout: float) -> Client:
    """A client; raises RunError if nobody answers, or not as a member of the same swarm."""
    unpickling.restrict()
    limit_messages()
    # that Python is another there, as a client also says when it connects anew: what crosses is
    # records and names of functions
    warnings.simplefilter("ignore", VersionMismatchWarning)
    try:
        client = Client(
            reach.address,
            security=_security(reach.keys) if reach.keys else None,
            timeout=timeout,
            direct_to_workers=True,
            set_as_default=False,
        )
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise RunError(
            f"no Dask cluster answers at {reach.address} ({error}); is it running, and do the "
            "certificates belong to it?"
        ) from error
    for topic in ("print", "warn"):  # workers could write into the user's terminal
        client.unsubscribe_topic(topic)
    return client


def list_workers(client: Client) -> dict[str, WorkerInfo]:
    """Return the workers of a cluster by their addresses, without those that report nonsense.

    Raises OSError if the scheduler does not answer.
    """
    found = {}
    if client.scheduler is None:
        raise OSError("the connection to the scheduler is closed")
    # not `scheduler_info`, whose answer a look of the client's own now and then empties meanwhile
    known = client.sync(client.scheduler.identity, n_workers=-1)
    for address, said in known["workers"].items():
        with suppress(msgspec.ValidationError):
            found[address] = msgspec.convert(said, WorkerInfo)
    return found


def result_hosts(client: Client, future: Future[Any] | None) -> set[str]:
    """The machines that have a result."""
    found = client.who_has([future]) if future else {}
    return {get_address_host(each) for addresses in found.values() for each in addresses}


def worker_slots(client: Client, reach: ClusterAddress) -> dict[str, int]:
    """Return how many jobs each worker can run; raises ConfigError if workers are not fit."""
    there = list_workers(client)
    if not reach.staging and any(worker.nthreads < 2 for worker in there.values()):
        raise ConfigError(
            f"{reach.address} has workers with one thread only; start them with "
            "`--nthreads 2` (the second one serves files), or give --staging."
        )
    if any("slot" not in worker.resources for worker in there.values()):
        try:
            client.register_plugin(
                SlotPlugin()
            )  # asks every worker, so not where one may stand still
        except Exception as error:  # what it raised there is raised here, in other words
            if "No module named 'cahlib" not in str(error):
                raise
            raise ConfigError(
                f"{reach.address} has workers that cannot import cahlib; install it there, in this "
                "version, then run the same command again."
            ) from error
    return {address: int(each.resources.get("slot", 0)) for address, each in there.items()}


def common_fault(client: Client) -> str:
    """Return why the machines of all workers fail; "" if one does not, or there is none."""
    there = list_workers(client).values()
    told = {each.host: each.metrics.ill for each in there if each.metrics.ill}
    # one worker speaks for all of its machine
    every = told.keys() == {each.host for each in there}
    return printable(next(iter(told.values()), ""), 500) if every else ""


def worker_state(
    worker: WorkerInfo,
    jobs: Sequence[str],
    *,
    still: Mapping[str, float],
    unread: Collection[str] = (),
) -> WorkerState:
    """A worker as the scheduler describes it; ``still``: seconds by job without a new report.

    What machines in ``unread`` sent is not read.
    """
    return WorkerState(
        name=printable(str(worker.name), 100),
        host=worker.host,
        slots=int(worker.resources.get("slot", 0)),
        seen=max(time.time() - worker.last_seen, 0),
        memory=worker.metrics.memory,
        jobs=tuple(jobs),
        still=min((still.get(key, 0) for key in jobs), default=0),
        version=printable(worker.metrics.cahlib, 40),
        ill=UNREADABLE if worker.host in unread else printable(worker.metrics.ill, 500),
    )


class _HostChecked(Security):
    """Of the swarm's own, only the node that an address belongs to is believed to be there."""

    def get_connection_args(self, role: str) -> dict[str, Any]:
        found: dict[str, Any] = super().get_connection_args(role)
        found["ssl_context"].check_hostname = True
        return found


def _security(keys: SwarmKeys) -> Security:
    own = keys.driver()
    return _HostChecked(
        require_encryption=True,
        tls_min_version=ssl.TLSVersion.TLSv1_3,
        tls_ca_file=str(keys.authority().public),
        tls_client_cert=str(own.public),
        tls_client_key=str(own.private),
    )
