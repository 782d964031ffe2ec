"""The lifecycle of a run's swarm: servers are created, become nodes, scrape, and are deleted.

Its state is one folder (the run's name, by which the clouds know its servers), and its keys are
stored elsewhere by that name, so a restarted command takes over the existing nodes. Neither
contains a token.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cahlib.core.background import BackgroundLoop
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.progress import NodeStatus, SwarmStatus
from cahlib.core.retry import wait_until
from cahlib.core.secret_store import run_name, run_name_file, secret_path
from cahlib.core.wording import verb
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import RemoteEngine
from cahlib.engine.ticket import issue_ticket
from cahlib.swarm import install, ssh, status
from cahlib.swarm.billing import Billing
from cahlib.swarm.connection import joined_engine
from cahlib.swarm.firewall import Firewall
from cahlib.swarm.health import HealthMonitor, HealthRules, monitored
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import HOME, user_data
from cahlib.swarm.planner import ServerLimits, ServerPlan, plan_servers
from cahlib.swarm.provider import (
    PROJECT_LABEL,
    Account,
    Server,
    list_servers,
    offers_by_type,
    send_heartbeat,
)
from cahlib.swarm.provisioning import Provisioner, delete_labelled, leftover_message, provisioned
from cahlib.swarm.startup import Startup, start_head, start_others
from cahlib.swarm.watchdog import WatchdogConfig

#: Seconds in which finished parcels are fetched at the end.
_DRAIN_TIMEOUT = 120

#: Seconds in which logs are copied here before their servers are deleted.
_LOGS_TIMEOUT = 20.0

#: Seconds between two checks of the cost, and before an unaffordable hour for the deletion.
_COST_INTERVAL, _DELETE_BEFORE = 5.0, 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmConfig:
    """The configuration of a swarm."""

    limits: ServerLimits
    state: Path  #: the folder with the run's name, its wheel and its logs
    wheelhouse: Path | None = None  #: wheels for the nodes; None: they use their package index
    late: float = 10  #: seconds in which an unanswered request may create a server
    rules: HealthRules = field(default_factory=HealthRules)  #: for monitoring the nodes
    watchdog: WatchdogConfig | None = None  #: deletes the servers if this machine dies


@contextmanager
def swarm_engine(
    accounts: Sequence[Account],
    config: SwarmConfig,
    folder: Path,
    *,
    report: Callable[[str], None],
    stop: threading.Event,
    swarm_status: SwarmStatus,
) -> Iterator[RemoteEngine]:
    """Open an engine on servers created for it; parcels end up in ``folder``.

    ``report`` gets a sentence on each event, and ``swarm_status`` is updated; ``stop`` is set when
    the cost limit is near, and ends the creation of servers. Raise ConfigError before anything is
    created, RunError if no node comes up, or if servers could not be deleted.
    """
    provisioner, package, keys = _prepare(accounts, config, report, stop)

    def login_of(server: Server) -> ssh.Login:
        return _login(server, keys)

    with (
        _cost_reported(provisioner, report),
        status.status_monitored(provisioner, keys, swarm_status, report) as monitor,
        provisioned(provisioner, public_key=_public_key(keys), late=config.late),
    ):
        firewall = Firewall(provisioner, login_of)
        startup = _make_startup(package, monitor.step, firewall)
        head = start_head(provisioner, startup, login_of, report=report)
        with (
            _cost_limited(provisioner, keys, config, report),
            joined_engine(
                _cluster_address(head, keys), folder, startup, provisioner, report=report
            ) as engine,
        ):
            monitor.attach(engine)
            health = HealthMonitor(
                provisioner, engine, firewall, startup, report=report, rules=config.rules
            )
            with _wound_down(provisioner, engine, keys, config), monitored(health):
                yield engine


@contextmanager
def _cost_reported(provisioner: Provisioner, report: Callable[[str], None]) -> Iterator[None]:
    """Report at the end what all servers of the run have cost."""
    try:
        yield
    finally:
        if provisioner.billing and not provisioner.billing.running():
            report(f"The servers are deleted. {provisioner.billing.summary(provisioner.clock())}")


def plan_swarm(accounts: Sequence[Account], config: SwarmConfig) -> ServerPlan:
    """Return what would be created, and its cost; raise as `swarm_engine` does.

    The cost of the run's deleted servers counts towards its limit.
    """
    spent = Billing.load(config.state).past_cost(time.time())
    return plan_servers(accounts, replace(config.limits, spent=spent))


def existing_servers(wanted: ServerPlan, state: Path) -> str:
    """Return how many servers of a run exist already, as a sentence; "" if none does."""
    there = len(run_servers(wanted.accounts, state)) if run_name_file(state).exists() else 0
    verb_there = verb(there, "exists", "exist")
    return f"{there} of them {verb_there} already." if there else ""


def create_swarm(
    accounts: Sequence[Account],
    config: SwarmConfig,
    *,
    report: Callable[[str], None],
    swarm_status: SwarmStatus | None = None,
    guests: bool = False,
) -> list[ssh.Login]:
    """Create servers and set them up as nodes, for a later `swarm_engine` with the same state.

    ``report`` and ``swarm_status`` are as for `swarm_engine`; with ``guests`` anyone with a ticket
    can reach them, from anywhere.
    """
    provisioner, package, keys = _prepare(accounts, config, report, threading.Event())
    provisioner.prepare(_public_key(keys))

    def login_of(server: Server) -> ssh.Login:
        return _login(server, keys)

    with status.status_monitored(provisioner, keys, swarm_status or SwarmStatus(), report) as seen:
        startup = _make_startup(package, seen.step, Firewall(provisioner, login_of, guests=guests))
        head = start_head(provisioner, startup, login_of, report=report)
        start_others(provisioner, startup, login_of, head, report=report)
    send_heartbeat(
        provisioner.accounts, provisioner.labels, 0
    )  # from now on nobody works with them
    address = _cluster_address(head, keys)
    with joined_engine(address, config.state, startup, provisioner, report=report):
        up = startup.up()
    found = [login_of(each) for each in provisioner.servers() if each.name in up]
    return sorted(found, key=lambda each: each != head)


def swarm_ticket(head: ssh.Login, *, hours: float) -> bytes:
    """Return a ticket with which another machine can drive this head's swarm for so many hours."""
    return issue_ticket(_cluster_address(head, head.keys), hours=hours)


def delete_swarm(
    accounts: Sequence[Account],
    labels: Mapping[str, str],
    *,
    timeout: float = 120,
    pause: float = 1,
) -> None:
    """Delete everything with the labels, until the clouds list nothing more; raise RunError."""
    found: tuple[list[Server], list[str]] = [], []

    def are_gone() -> bool:
        nonlocal found
        found = delete_labelled(accounts, labels)
        return not any(found)

    if not wait_until(are_gone, timeout=timeout, pause=pause):
        raise RunError(leftover_message(*found, labels.get("run", "")))


def run_labels(state: Path, *, run: str = "", all_runs: bool = False) -> dict[str, str]:
    """Return the labels of a run's servers, or of those of all runs; no others are ever touched.

    Raise ConfigError if the run has no name yet.
    """
    if not (run or all_runs or run_name_file(state).exists()):
        raise ConfigError(
            f"output: no servers were created for {state.parent.parent}; give the --output of "
            "their run, or its name: `cah swarm down --run NAME` (or --all-runs)."
        )
    ours = {PROJECT_LABEL[0]: PROJECT_LABEL[1]}
    return ours if all_runs else {**ours, "run": run or run_name(state)}


def run_servers(accounts: Sequence[Account], state: Path) -> list[Server]:
    """Return the servers of a run, the head first."""
    found = list_servers(accounts, run_labels(state))
    return sorted(found, key=lambda each: (each.labels.get("role") != "head", each.name))


def server_logins(servers: Sequence[Server], state: Path) -> list[ssh.Login]:
    """Return how to log in to servers of a run."""
    keys = SwarmKeys(secret_path(state, "keys"))
    return [_login(each, keys) for each in servers]


def node_statuses(accounts: Sequence[Account], state: Path) -> list[NodeStatus]:
    """Return the status and the cost of each server of a run, the head first."""
    found = run_servers(accounts, state)
    if not found:
        return []
    login_of = server_logins(found, state)
    work, ends = (
        status.observe_cluster(_cluster_address(login_of[0], login_of[0].keys)),
        status.last_log_lines(login_of),
    )
    account, now = run_billing(accounts, state), time.time()
    return [
        status.describe_server(
            each, work, cost=account.cost(each.name, now), step="absent", line=ends[each.name]
        )
        for each in found
    ]


def run_billing(accounts: Sequence[Account], state: Path) -> Billing:
    """Return the costs of a run, updated by the servers that it has now."""
    found, known, billing = (
        run_servers(accounts, state),
        offers_by_type(accounts),
        Billing.load(state),
    )
    for each in found:
        offer = known.get((each.type, each.location))
        billing.open(each.name, offer.hourly if offer else 0, each.created)
    billing.currency = next((each.currency for each in known.values()), billing.currency)
    billing.close(billing.running().keys() - {each.name for each in found}, time.time())
    return billing


def close_billing(state: Path, labels: Mapping[str, str]) -> str:
    """Note that the servers with these labels are deleted; return the costs of the run, if any."""
    if not run_name_file(state).exists() or labels.get("run", run_name(state)) != run_name(state):
        return ""
    billing = Billing.load(state)
    billing.close(billing.running(), time.time())
    return billing.summary(time.time()) if billing else ""


def _prepare(
    accounts: Sequence[Account],
    config: SwarmConfig,
    report: Callable[[str], None],
    stop: threading.Event,
) -> tuple[Provisioner, install.Package, SwarmKeys]:
    wanted = plan_swarm(accounts, config)
    package = install.make_package(config.state / "wheel", wheelhouse=config.wheelhouse)
    run, keys = run_name(config.state), SwarmKeys(secret_path(config.state, "keys"))
    keys.renew()  # before servers are created with them, but after the plan is accepted
    provisioner = Provisioner(
        run,
        wanted,
        lambda name: user_data(keys, name),
        report,
        billing=Billing.load(config.state),
        stop=stop,
        image=package.image,
    )
    if watchdog := config.watchdog:
        watchdog.check_token(provisioner, _public_key(keys))
        package = replace(package, watchdog=lambda node: watchdog.instructions(node, provisioner))
    return provisioner, package, keys


def _public_key(keys: SwarmKeys) -> str:
    return keys.ssh().public.read_text().strip()


def _cluster_address(head: ssh.Login, keys: SwarmKeys) -> ClusterAddress:
    return ClusterAddress(
        address=f"tls://{head.address}:{install.SCHEDULER_PORT}",
        keys=keys,
        parcel_folder=f"{HOME}/parcels",
        file_folder=f"{HOME}/files",
    )


def _make_startup(
    package: install.Package, step: install.StepListener, firewall: Firewall
) -> Startup:
    return Startup(
        lambda login, head: install.set_up_node(
            login, package, head=head, networks_for=firewall.allow_driver, step=step
        )
    )


def _login(server: Server, keys: SwarmKeys) -> ssh.Login:
    return ssh.Login(name=server.name, address=server.address, keys=keys)


@contextmanager
def _cost_limited(
    provisioner: Provisioner, keys: SwarmKeys, config: SwarmConfig, report: Callable[[str], None]
) -> Iterator[None]:
    """Stop the run before the next started hour would cost more than allowed.

    Servers that still exist when that hour begins are deleted: the run may still have a shard to
    judge and to upload, for which it needs no servers.
    """
    ceiling = config.limits.max_cost or math.inf

    def look() -> bool:
        """Return whether the servers are deleted."""
        spent = provisioner.spent
        if spent(ahead=_DRAIN_TIMEOUT) > ceiling and not provisioner.stop.is_set():
            provisioner.stop.set()  # before the report, for which there may be no terminal
            currency = provisioner.plan.currency
            with suppress(OSError, ValueError):
                report(f"the cost limit of {currency} {ceiling:.2f} is near; finishing.")
        if spent(ahead=_DELETE_BEFORE) > max(ceiling, spent()):
            with suppress(OSError):  # this machine's disk is full
                _keep_logs(provisioner, keys, config)
            with suppress(RunError):  # deleted again at the end, where the error is reported
                provisioner.down(late=config.late)
                return True
        return False

    with BackgroundLoop(_COST_INTERVAL, look):
        yield


@contextmanager
def _wound_down(
    provisioner: Provisioner, engine: RemoteEngine, keys: SwarmKeys, config: SwarmConfig
) -> Iterator[None]:
    """Fetch finished parcels and all logs at the end, but not after a second Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        _wind_down(provisioner, engine, keys, config)
        raise
    _wind_down(provisioner, engine, keys, config)


def _wind_down(
    provisioner: Provisioner, engine: RemoteEngine, keys: SwarmKeys, config: SwarmConfig
) -> None:
    if provisioner.listed:  # else they were deleted for their cost
        engine.drain(timeout=_DRAIN_TIMEOUT)
        _keep_logs(provisioner, keys, config)


def _keep_logs(provisioner: Provisioner, keys: SwarmKeys, config: SwarmConfig) -> None:
    """Copy the logs of all servers here, many at a time, if they answer soon."""
    folder = config.state / "logs"
    folder.mkdir(parents=True, exist_ok=True)

    def keep(login: ssh.Login) -> None:
        with suppress(ssh.CommandFailed, ssh.Unreachable):
            install.fetch_log(login, folder / f"{login.name}.log", timeout=_LOGS_TIMEOUT)

    pool = ThreadPoolExecutor(16)
    try:
        wait(
            [pool.submit(keep, _login(each, keys)) for each in provisioner.listed.values()],
            _LOGS_TIMEOUT,
        )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
