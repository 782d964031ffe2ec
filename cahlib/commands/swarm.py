"""`cah swarm`: servers for a run, brought up before it, looked at, and taken down."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahlib.commands.console import print_result
from cahlib.commands.parser import Parser
from cahlib.core.config import Job
from cahlib.core.errors import ConfigError, MissingSetting, RunError, Stopped
from cahlib.core.progress import SwarmStatus
from cahlib.core.secret_store import WATCHDOG_VARIABLE, run_name, run_name_file
from cahlib.core.terminal import confirm, print_note
from cahlib.core.wording import plural, verb

if TYPE_CHECKING:
    from cahlib.swarm.provider import Account, Server
    from cahlib.swarm.runs import SwarmRun
    from cahlib.swarm.ssh import Login

#: Makes a Job of what was typed, and the environment with what .env adds: the CLI's.
Given = Callable[[argparse.Namespace], tuple[Job, Mapping[str, str]]]

#: A node's name, for examples.
_NODE = "cah-1a2b3c4d-1-9f0e"

#: The port of the scheduler's pages, on the head's loopback.
_DASHBOARD = 8787

#: What the plan of servers says that no run works with.
_UNATTENDED = (
    "They are not deleted by themselves: --max-cost and --hours apply only while `cah run` uses "
    "them."
)

#: The same with a watchdog, that says after how many minutes.
_GUARDED = (
    "Once the head is up, it deletes them when no `cah run` works with them for {:g} minutes, when "
    "--hours are over, or before they cost more than --max-cost."
)


def add(commands: Any, given: Given) -> None:
    """Add the command and its own commands; each takes the settings of a run, for its output."""
    swarm = commands.add_parser(
        "swarm",
        help="create, show and delete servers that scrape",
        example="cah swarm list",
    )
    own = swarm.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help: str, act: Callable[..., int], example: str = "") -> Parser:
        parser: Parser = own.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.",
            example=f"cah swarm {name} {example}".strip(),
        )  # fmt: skip
        parser.add_settings("up" if name == "up" else "swarm")
        parser.set_defaults(
            act=lambda chosen: act(chosen, *given(chosen)), looks_after=True, works=True
        )
        return parser

    up = command("up", "create servers, which the next run uses", _up, "2 --max-cost 5")
    up.add_argument("nodes", metavar="N", type=int, nargs="?", help="how many; or give --cores")
    up.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    up.add_json()
    down = command("down", "delete the servers of a run, and check that they are gone", _down)
    down.add_argument("--run", default="", metavar="NAME", help="of another run, by its name")
    down.add_argument("--all-runs", action="store_true", help="of all runs")
    down.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    down.add_json()
    every = command("list", "show every run that has servers in any of the accounts", _list)
    every.add_json()
    every.set_defaults(all_runs=True)  # those that nobody works with are in its list
    status = command(
        "status", "show the servers of a run, what they do and what they cost", _status
    )
    status.add_json()
    logs = command("logs", "print the last lines of the nodes' logs", _logs, "--lines 50")
    logs.add_argument("node", metavar="NODE", nargs="?", help="only this node")
    logs.add_argument("--boot", action="store_true", help="print cloud-init's log instead")
    logs.add_argument("--lines", type=int, default=20, metavar="N", help="how many lines [20]")
    ssh = command(
        "ssh", "log in to a node, or print the command that does", _ssh, "cah-1a2b3c4d-1-9f0e"
    )
    ssh.add_argument("node", metavar="NODE")
    ssh.add_argument(
        "--dashboard",
        action="store_true",
        help="of the head: forward the scheduler's dashboard to a port of this machine",
    )
    restart = command("restart", "restart a node's service", _restart, _NODE)
    restart.add_argument("node", metavar="NODE")


def _up(chosen: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> int:
    from cahlib.commands.console import startup_bar
    from cahlib.core.config import replace_settings
    from cahlib.core.lock import lock_dataset
    from cahlib.run.scrapers import cloud_accounts, swarm_config, watchdog_config
    from cahlib.swarm import lifecycle

    if chosen.nodes is not None:
        job = replace_settings(job, swarm=chosen.nodes, cores=0)
    if not job.place.has_servers:
        raise MissingSetting("swarm: give a number of servers, `cah swarm up N`, or of --cores.")
    tokens = environment.get("HCLOUD_TOKEN", "")
    wanted = swarm_config(job, watchdog_config(job, environment.get(WATCHDOG_VARIABLE, ""), tokens))
    accounts = cloud_accounts(tokens)
    plan = lifecycle.plan_swarm(accounts, wanted)
    end = _GUARDED.format(job.place.watchdog_minutes) if wanted.watchdog else _UNATTENDED
    print_note(plan.table(), end, lifecycle.existing_servers(plan, wanted.state))
    if not confirm(f"Make {plural(len(plan.first), 'server')}?", yes=chosen.yes):
        return 2
    with lock_dataset(job.output.folder):  # else two commands make twice as many
        left = (
            f"What was made costs money until `cah swarm down --run {run_name(wanted.state)}`; "
            "`cah run --swarm` uses it."
        )
        try:
            with startup_bar(swarm_status := SwarmStatus()) as report:
                nodes = lifecycle.create_swarm(
                    accounts, wanted, report=report, swarm_status=swarm_status
                )
        except BaseException as error:
            if not isinstance(error, Stopped):  # then somebody has taken them down
                print(left, file=sys.stderr)
            raise
    result = {
        "run": run_name(wanted.state),
        "nodes": [{"name": login.name, "address": login.address} for login in nodes],
    }
    print_result(chosen, result, (f"{each.name} at {each.address} is up" for each in nodes))
    print(left, file=sys.stderr)
    return 0


def _down(chosen: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> int:
    from cahlib.swarm import lifecycle
    from cahlib.swarm.provider import is_in_use, list_servers
    from cahlib.swarm.runs import list_runs

    clouds = _accounts(environment)
    labels = lifecycle.run_labels(_state(job), run=chosen.run, all_runs=chosen.all_runs)
    servers = list_servers(clouds, labels)
    if chosen.run and not servers and not any(each.is_prepared(labels) for each in clouds):
        runs = sorted({each.run for each in list_runs(clouds)})
        raise ConfigError(
            f"run: {chosen.run} has no servers; runs with servers: {', '.join(runs) or 'none'}."
        )
    for each in servers:
        print_note(f"{each.name}  {each.type}  {each.location}  {each.address}")
    busy = sorted({each.labels.get("run", "") for each in servers if is_in_use(each, time.time())})
    if busy and not (chosen.yes or sys.stdin.isatty()):
        raise ConfigError(f"yes: {_works(busy)}; give --yes to delete the servers anyway.")
    question = f"{_works(busy)}, and will end. " if busy else ""
    if servers and not confirm(
        f"{question}Delete {plural(len(servers), 'server')}?", yes=chosen.yes
    ):
        return 2
    if servers:
        print_note(f"Deleting {plural(len(servers), 'server')} …")
    try:
        lifecycle.delete_swarm(clouds, labels)
    except KeyboardInterrupt:
        print(
            "Some of them may still exist; run the same command to delete the rest.",
            file=sys.stderr,
        )
        raise
    done = f"{plural(len(servers), 'server')} {verb(len(servers), 'was', 'were')} deleted"
    lines = [f"{done if servers else 'There were none'}; the cloud confirms that nothing is left."]
    if account := lifecycle.close_billing(_state(job), labels):
        lines.append(account)
    result = {"deleted": [each.name for each in servers], "costs": account or None}
    print_result(chosen, result, lines)
    return 0


def _works(runs: Sequence[str]) -> str:
    return f"somebody works with the servers of run {' and '.join(runs)}"


def _list(chosen: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> int:
    from cahlib.swarm.runs import list_runs

    found = list_runs(_accounts(environment))
    lines = ["cahlib has no servers in these accounts."]
    if found:
        lines = [f"{'run':<10} {'servers':>7} {'age':>8} {'an hour':>12}  state"]
    for each in found:
        state = "somebody works with it" if each.in_use else "nobody works with it"
        price, age = f"{each.currency} {each.hourly:.4f}", each.age / 3600
        lines.append(f"{each.run:<10} {each.servers:>7} {age:>6.1f} h {price:>12}  {state}")
    print_result(chosen, {"runs": [_run_json(each) for each in found]}, lines)
    return 0


def _run_json(run: SwarmRun) -> dict[str, Any]:
    return {
        "run": run.run, "servers": run.servers, "age_seconds": round(run.age),
        "per_hour": run.hourly, "currency": run.currency, "in_use": run.in_use,
    }  # fmt: skip


def _status(chosen: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> int:
    from cahlib.commands.console import node_lines
    from cahlib.swarm import lifecycle

    clouds = _accounts(environment)
    nodes, account = (
        lifecycle.node_statuses(clouds, _state(job)),
        lifecycle.run_billing(clouds, _state(job)),
    )
    now, state = time.time(), _state(job)
    result = {
        "run": run_name(state) if run_name_file(state).exists() else None,
        "nodes": [asdict(each) for each in nodes],
        "spent": account.spent(now),
        "per_hour": account.hourly(),
        "currency": account.currency,
    }
    lines = node_lines(nodes, account.currency) if nodes else ["There are no servers of this run."]
    for each in nodes:
        lines.append(
            f"{each.name}  cahlib {each.version or 'does not answer'}: {each.line or 'no log'}"
        )
    if account:
        lines.append(account.summary(now))
    print_result(chosen, result, lines)
    return 0


def _logs(chosen: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> int:
    from cahlib.swarm import install

    code = 0
    for login in _logins(job, environment, chosen.node):
        print(f"--- {login.name}")
        try:
            print(install.node_log(login, lines=chosen.lines, boot=chosen.boot))
        except RunError as error:  # the others may answer
            print(f"cah: {error}", file=sys.stderr)
            code = 1
    return code


def _ssh(chosen: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> int:
    import shlex

    (login,) = _logins(job, environment, chosen.node)
    line = login.command(_state(job) / f"known-{login.name}")
    if chosen.dashboard:
        port = _free(_DASHBOARD)
        line[1:1] = ["-N", "-L", f"{port}:127.0.0.1:{_DASHBOARD}"]
        print(f"http://127.0.0.1:{port}/info shows it until Ctrl-C", file=sys.stderr)
    if sys.stdin.isatty() and sys.stdout.isatty():
        os.execvp(line[0], line)
    print(shlex.join(line))
    return 0


def _free(port: int) -> int:
    """Return this port of loopback, or a free one if it is taken."""
    for wanted in (port, 0):
        with socket.socket() as own, suppress(OSError):
            own.bind(("127.0.0.1", wanted))
            return int(own.getsockname()[1])
    return port


def _restart(chosen: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> int:
    from cahlib.swarm import install

    (login,) = _logins(job, environment, chosen.node)
    install.restart_service(login)
    print(f"{login.name}: its service was restarted.")
    return 0


def _logins(job: Job, environment: Mapping[str, str], node: str | None) -> Sequence[Login]:
    """Return the logins of a run's servers: all, or the one that is named."""
    from cahlib.swarm import lifecycle

    servers: list[Server] = lifecycle.run_servers(_accounts(environment), _state(job))
    chosen = [each for each in servers if node in (None, each.name)]
    if not chosen:
        names = ", ".join(each.name for each in servers) or "none"
        raise ConfigError(
            f"node: {node or 'it'} is not a server of this run; choose from: {names}."
        )
    return lifecycle.server_logins(chosen, _state(job))


def _accounts(environment: Mapping[str, str]) -> Sequence[Account]:
    """Return the accounts with valid tokens, and print which are not."""
    from cahlib.run.scrapers import cloud_accounts
    from cahlib.swarm.provider import usable_accounts

    good, left_out = usable_accounts(cloud_accounts(environment.get("HCLOUD_TOKEN", "")))
    for sentence in left_out:
        print(f"cah: {sentence}", file=sys.stderr)
    return good


def _state(job: Job) -> Path:
    from cahlib.run.scrapers import swarm_directory

    return swarm_directory(job)
