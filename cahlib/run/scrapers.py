"""The scrapers of a run: local processes, a Dask cluster, or servers created for it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from cahlib.core import secret_store
from cahlib.core.config import Download, Job
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.path_map import expand_home
from cahlib.core.presets import PRESETS
from cahlib.core.progress import SwarmStatus
from cahlib.core.records import Shard
from cahlib.core.retry import wait_until
from cahlib.core.retry_shards import parse_retry
from cahlib.core.run_directory import RunDirectory
from cahlib.core.settings import Checked, settings_of
from cahlib.core.table_rows import parse_rows_url
from cahlib.engine.fork_server import ForkServer
from cahlib.engine.local import local_engine, start_server
from cahlib.engine.protocol import Engine as Engine

if TYPE_CHECKING:
    from cahlib.engine.cluster import ClusterAddress
    from cahlib.engine.remote import RemoteEngine
    from cahlib.swarm.lifecycle import SwarmConfig
    from cahlib.swarm.planner import ServerPlan
    from cahlib.swarm.provider import Account
    from cahlib.swarm.watchdog import WatchdogConfig


#: Seconds within which a cluster must have a worker.
_WORKERS = 20.0

#: Seconds within which a cluster's finished parcels must arrive when a run ends.
_DRAIN = 120.0


#: What jobs of this machine import: all of it before the first one.
_IMPORTED = ("cahlib.run.scrape",)

#: An engine, and the folder in which its jobs write their parcels.
OpenedEngine: TypeAlias = AbstractContextManager[tuple[Engine, Path]]


class EngineFactory(Protocol):
    """Opens the engine of a job; ``stop`` is set when its servers reach their cost limit."""

    def __call__(
        self, job: Job, *, stop: threading.Event, swarm_status: SwarmStatus
    ) -> OpenedEngine: ...


@contextmanager
def scraper_server(job: Job) -> Iterator[ForkServer | None]:
    """Start what the scrapers of this machine are forked from; None if a job has no such.

    It imports what they need, which takes a second: of the run's own imports, if it begins first.
    """
    if job.place.has_servers or job.place.engine:
        yield None
        return
    server = start_server(_IMPORTED)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def open_local_scrapers(
    job: Job,
    *,
    stop: threading.Event,
    swarm_status: SwarmStatus | None = None,
    server: ForkServer | None,
) -> Iterator[tuple[Engine, Path]]:
    """Provide what `open_scrapers` does for a job that scrapes on this machine, by a server."""
    assert server
    with local_engine(job.place.scrapers, server) as engine:
        yield engine, RunDirectory(job.output.folder).parcels


@contextmanager
def open_scrapers(
    job: Job,
    *,
    stop: threading.Event,
    swarm_status: SwarmStatus | None = None,
    tokens: str = "",
    watchdog: str = "",
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Engine, Path]]:
    """Provide the engine of a run, and the folder in which its jobs write their parcels.

    The cloud's ``tokens`` and the ``watchdog`` token are not part of a job; ``report`` receives
    messages about servers, which ``swarm_status`` describes; ``stop`` is set when they reach their
    cost limit, and cancels their creation. Raise ConfigError for what cannot run there.
    """
    place, home = job.place, RunDirectory(job.output.folder).parcels
    if not (place.has_servers or place.engine):
        with (
            scraper_server(job) as server,
            open_local_scrapers(job, stop=stop, server=server) as opened,
        ):
            yield opened
        return
    check_engine_settings(job)
    if place.engine:
        from cahlib.engine.remote import remote_engine

        with remote_engine(_engine_address(job), home) as cluster:
            _await_workers(cluster, place.engine, stop)
            yield _Supplied(cluster), cluster.folder
            cluster.drain(timeout=_DRAIN)
        return
    from cahlib.swarm.lifecycle import swarm_engine

    shown = swarm_status or SwarmStatus()
    wanted = swarm_config(job, watchdog_config(job, watchdog, tokens))
    with swarm_engine(
        cloud_accounts(tokens), wanted, home, report=report, stop=stop, swarm_status=shown
    ) as swarm:
        yield _Supplied(swarm), swarm.folder


def with_thumbs(job: Job) -> Download:
    """Return a job's download settings with the size of the thumbs that its scrapers make."""
    side, is_far = job.download.thumbs, job.place.has_servers or job.place.engine
    if side is None:
        own = job.judge.model or job.judge.no_judge
        side = PRESETS[job.judge.preset].side if is_far and not own else 0
    return replace(job.download, thumbs=side)


def _await_workers(cluster: RemoteEngine, address: str, stop: threading.Event) -> None:
    """Raise RunError if a cluster has no workers, after giving them time to start."""
    there = wait_until(lambda: cluster.slots or stop.is_set(), timeout=_WORKERS, pause=0.1)
    if not there:
        raise RunError(
            f"{address} has no workers; start some that can import cahlib, with two threads each, "
            "then run the same command again."
        )


def plan_job_servers(job: Job, tokens: str) -> ServerPlan:
    """Return which servers will be made for a job; makes nothing. Raises as `plan_swarm` does."""
    from cahlib.swarm import lifecycle

    check_engine_settings(job)
    return lifecycle.plan_swarm(cloud_accounts(tokens), swarm_config(job))


def watchdog_config(job: Job, token: str, tokens: str) -> WatchdogConfig | None:
    """Return the watchdog that a job asks for, by its token and the cloud's; raises ConfigError."""
    if not (job.place.watchdog and job.place.has_servers):
        return None
    from cahlib.swarm.watchdog import WatchdogConfig, require_watchdog_token

    return WatchdogConfig(
        token=require_watchdog_token(token, tokens),
        endpoint=_endpoint(),
        silence=job.place.watchdog_minutes * 60,
    )


def swarm_config(job: Job, watchdog: WatchdogConfig | None = None) -> SwarmConfig:
    """Return the configuration of a job's swarm."""
    from cahlib.swarm.lifecycle import SwarmConfig
    from cahlib.swarm.planner import ServerLimits

    place = job.place
    wheelhouse = expand_home(place.wheelhouse) if place.wheelhouse else None
    limits = ServerLimits(
        nodes=place.swarm,
        cores=place.cores,
        location=place.location,
        server_type=place.server_type,
        max_cost=place.max_cost,
        hours=place.hours,
        watchdog=place.watchdog_minutes if place.watchdog else 0,
        arm=bool(wheelhouse and any(wheelhouse.glob("pycld2-*aarch64.whl"))),
    )
    return SwarmConfig(
        limits=limits, state=swarm_directory(job), wheelhouse=wheelhouse, watchdog=watchdog
    )


def swarm_directory(job: Job) -> Path:
    """Return the folder of a job's swarm: its name, wheel and logs."""
    return RunDirectory(job.output.folder).swarm


def cloud_accounts(tokens: str) -> Sequence[Account]:
    """Return the accounts of tokens, at Hetzner or at HCLOUD_ENDPOINT (as for its own command)."""
    from cahlib.swarm import hetzner

    return hetzner.accounts(tokens, endpoint=_endpoint())


def _endpoint() -> str:
    from cahlib.swarm import hetzner

    return os.environ.get("HCLOUD_ENDPOINT", "") or hetzner.ENDPOINT


def _engine_address(job: Job) -> ClusterAddress:
    """Return the cluster that a job names, by address or ticket; it may serve other runs too."""
    from cahlib.engine import ticket
    from cahlib.engine.cluster import ClusterAddress

    place, own = job.place, RunDirectory(job.output.folder).path
    if "://" in place.engine:
        address = ClusterAddress(address=place.engine, staging=place.staging)
    else:
        keys = secret_store.secret_path(own / "engine", "ticket")
        shutil.rmtree(own / "ticket", ignore_errors=True)  # where an earlier version had them
        address = ticket.read_ticket(expand_home(place.engine), keys)
    # they may have other rules for the same shards
    return address.for_run(secret_store.run_name(own / "engine"))


def check_engine_settings(job: Job) -> None:
    """Raise ConfigError if a job has both an engine and a swarm."""
    if job.place.engine and job.place.has_servers:
        raise ConfigError("engine: give either an engine or a swarm, not both.")


class _Supplied:
    """A remote engine that also sends the local files that a job names."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self.take, self.reports = engine.take, engine.reports

    @property
    def slots(self) -> int:
        """Return how many jobs can run at the same time now."""
        return self._engine.slots

    def __len__(self) -> int:
        return len(self._engine)

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any, limit: float) -> None:
        """Start a job, sending its files."""
        files = list(_files(arguments))
        self._engine.submit(key, function, *arguments, limit=limit, files=files)


def _files(arguments: Sequence[Any]) -> Iterator[str]:
    """Yield the local files that a job names: lists, a WAT file, the rows of a table."""
    for each in arguments:
        if isinstance(each, Checked):
            for setting in settings_of(type(each), ""):
                named = setting.option.file or setting.option.table
                if named and (value := getattr(each, setting.name)):
                    yield from (value,) if isinstance(value, str) else value
        elif isinstance(each, Shard) and "://" not in each.url:
            if not (parse_rows_url(each.url) or parse_retry(each)):
                yield each.url
