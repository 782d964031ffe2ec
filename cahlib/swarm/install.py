"""Set up a server as a node: await its boot, install this cahlib and certificates, start services.

It polls until a step is done, within a deadline, and never just sleeps. It does not know where
servers come from, nor what happens to one that does not come up.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.retry import retry, wait_until
from cahlib.swarm import server_image, wheel
from cahlib.swarm.node import BOOT_MARKER, HOME, PARCEL_FOLDER, WATCHDOG_FILE
from cahlib.swarm.planner import scraper_count
from cahlib.swarm.ssh import CommandFailed, Login, SshSession, Unreachable, await_ssh, ssh_session

NODE_LOG = f"{HOME}/crawl.log"
_BOOT_LOG = "/var/log/cloud-init-output.log"

#: The digest of what is installed on a node.
_STAMP_FILE = f"{HOME}/stamp"

#: The scheduler's port on the head.
SCHEDULER_PORT = 8786

#: Seconds that a node's clock may be off: certificates are valid from a day before their creation.
_MAX_CLOCK_DRIFT = 6 * 3600


class NotReady(RunError):
    """A server did not become a node in time; the message ends with its logs."""

    @property
    def is_command_failure(self) -> bool:
        """Return whether a command on the server failed; else it did not answer."""
        return isinstance(self.__cause__, CommandFailed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The package that is installed on a node."""

    wheel: Path
    pins: str  #: pip constraints
    wheelhouse: tuple[Path, ...] = ()  #: all requirements; () = the node uses its package index
    image: str = "debian-12"  #: the cloud's image whose Python runs it
    watchdog: Callable[[str], bytes] | None = None  #: its instructions, by the head's name


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupTimeouts:
    """Seconds after which setting up a node fails."""

    ssh: float = 180
    boot: float = 420  #: cloud-init with its packages
    install: float = 420
    start: float = 60


def make_package(folder: Path, *, wheelhouse: Path | None = None) -> Package:
    """Build the wheel in ``folder``; a wheelhouse is a folder of wheels for the nodes' Python."""
    wheels: tuple[Path, ...] = ()
    if wheelhouse:
        wheels = tuple(sorted(wheelhouse.glob("*.whl")))
        wheels = tuple(each for each in wheels if not each.name.startswith("cahlib-"))
        if not wheels:
            raise ConfigError(
                f"wheelhouse: {wheelhouse} contains no wheels; fill it with "
                f"`pip download --dest {wheelhouse} cahlib`."
            )
    return Package(
        wheel=wheel.build_wheel(folder),
        pins=wheel.pip_constraints(),
        wheelhouse=wheels,
        image=server_image.choose_image(wheel.required_pythons(), wheels),
    )


#: Called with a node's name and the step that begins: ssh, boot, install, start, up.
StepListener: TypeAlias = Callable[[str, str], None]


#: Called with the address under which a node sees this machine; returns the networks that may
#: reach Dask's ports there.
NetworkSource: TypeAlias = Callable[[str], Sequence[str]]


def set_up_node(
    login: Login,
    package: Package,
    *,
    head: Login,
    networks_for: NetworkSource,
    timeouts: SetupTimeouts | None = None,
    step: StepListener = lambda name, step: None,
) -> dict[str, float]:
    """Make a server a node of the swarm with this head; a repetition changes nothing.

    Return the seconds that each step took. Raise NotReady with the ends of the node's logs.
    """
    limits, took = timeouts or SetupTimeouts(), dict[str, float]()

    def timed(name: str, act: Callable[[], None]) -> None:
        step(login.name, name)
        started = time.monotonic()
        act()
        took[name] = time.monotonic() - started

    try:
        timed("ssh", lambda: await_ssh(login, timeout=limits.ssh))
        timed("boot", lambda: _await_boot(login, limits.boot))
        with ssh_session(login) as node:
            _check_clock(node)
            open_ports(node, networks_for(driver_address(node)))
            stamp = _stamp(login, package, head)
            if node.tail(_STAMP_FILE, lines=1) != stamp:
                timed("install", lambda: _install(node, login, package, limits.install))
                timed("start", lambda: _start_services(node, login, head, limits.start))
                node.put([(stamp.encode(), _STAMP_FILE)])
            _set_watchdog(node, package.watchdog if login.name == head.name else None, login.name)
    except (CommandFailed, Unreachable) as error:
        raise NotReady(f"{login.name} did not come up: {error}{_log_tails(login)}") from error
    step(login.name, "up")
    return took


def driver_address(node: SshSession) -> str:
    """Return the address under which a node sees this machine."""
    return node.run('echo "${SSH_CONNECTION%% *}"').strip()


def open_ports(node: SshSession, networks: Sequence[str]) -> None:
    """Open Dask's ports on a node to these networks only."""
    node.run(["sudo", "/usr/local/sbin/crawl-peers", *networks])


def restart_service(login: Login, *, unit: str = "crawl", timeout: float = 60) -> None:
    """Restart a node's service; its unfinished jobs are done again elsewhere."""
    with ssh_session(login, timeout=timeout) as node:
        node.run(["sudo", "systemctl", "restart", unit], timeout=timeout)


def node_log(login: Login, *, lines: int = 20, boot: bool = False, timeout: float = 20) -> str:
    """Return the end of a node's log, or of cloud-init's log of its boot."""
    with ssh_session(login, timeout=timeout) as node:
        return node.tail(_BOOT_LOG if boot else NODE_LOG, lines=lines, timeout=timeout)


def fetch_log(login: Login, target: Path, *, timeout: float = 60) -> None:
    """Copy a node's whole log."""
    with ssh_session(login, timeout=timeout) as node:
        node.get(NODE_LOG, target, timeout=timeout)


def _await_boot(login: Login, timeout: float) -> None:
    """Wait for cloud-init, and verify the result; its own exit status is unreliable."""
    deadline = time.monotonic() + timeout

    def has_booted() -> bool:
        with ssh_session(login) as node:
            # it reports "error" and stops waiting once one mirror fails for a moment
            with suppress(CommandFailed):
                node.run("cloud-init status --wait", timeout=deadline - time.monotonic())
            if not node.run(f"ls {BOOT_MARKER} 2>/dev/null || true"):
                return False
            node.run("python3 -c 'import ensurepip, venv'")
            return True

    def reached() -> bool:  # sshd restarts during the first boot, after it has answered once
        left = max(deadline - time.monotonic(), 0)
        return retry(has_booted, errors=Unreachable, pauses=repeat(0.5), timeout=left)

    if not wait_until(reached, timeout=timeout, pause=0.5):
        raise CommandFailed(f"its first boot did not finish within {timeout:g} s.")


def _check_clock(node: SshSession) -> None:
    apart = abs(float(node.run(["date", "+%s"])) - time.time())
    if apart > _MAX_CLOCK_DRIFT:
        raise CommandFailed(
            f"its clock and this machine's are {apart / 3600:,.0f} hours apart, and certificates "
            "depend on the time; correct the wrong clock (`timedatectl`)."
        )


def _install(node: SshSession, login: Login, package: Package, timeout: float) -> None:
    node.run(
        # the scheduler's user needs access to the code and to the authority's certificate
        f"chmod 711 {HOME} && mkdir -p -m 711 {HOME}/tls && "
        f"mkdir -p -m 700 {HOME}/wheels {HOME}/dask {HOME}/files && "
        # in memory, where the machine has plenty; hosts of tests lack that mount
        f"{{ test -e {HOME}/parcels || {{ test -d {PARCEL_FOLDER} && "
        f"ln -s {PARCEL_FOLDER} {HOME}/parcels; }} || mkdir -m 700 {HOME}/parcels; }} && "
        f"touch {NODE_LOG} && "  # else root owns it, and we cannot read it
        f"rm -f {HOME}/wheels/cahlib-*.whl {_STAMP_FILE}"
    )
    authority, own = login.keys.authority(), login.keys.node(login.name, login.address)
    there = set(node.run(["ls", f"{HOME}/wheels"]).split())
    wheels = [each for each in package.wheelhouse if each.name not in there]
    node.put(
        [
            (authority.public, f"{HOME}/tls/authority.crt"),
            (own.public, f"{HOME}/tls/node.crt"),
            (own.private, f"{HOME}/tls/node.key"),
            (package.pins.encode(), f"{HOME}/pins.txt"),
            *((each, f"{HOME}/wheels/{each.name}") for each in (*wheels, package.wheel)),
        ],
        timeout=timeout,
    )
    source = f"--no-index --find-links {HOME}/wheels" if package.wheelhouse else ""
    node.run(
        f"chmod 644 {HOME}/tls/authority.crt && umask 022 && "
        f"test -x {HOME}/venv/bin/python || python3 -m venv {HOME}/venv && "
        f"{HOME}/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input "
        f"{source} --constraint {HOME}/pins.txt {HOME}/wheels/{shlex.quote(package.wheel.name)}",
        timeout=timeout,
    )


def _start_services(node: SshSession, login: Login, head: Login, timeout: float) -> None:
    variables = {
        "HEAD": f"tls://{head.address}:{SCHEDULER_PORT}",
        "PROTOCOL": "tls",
        "ADDRESS": login.address,
        "NODE": login.name,
        "WORKERS": str(max(1, scraper_count(int(node.run(["nproc"])), _memory_gb(node)))),
    }
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    node.put([(lines.encode(), f"{HOME}/crawl.env")])
    if leads := login.name == head.name:
        own = login.keys.scheduler(login.address)
        node.run(
            ["sudo", "/usr/local/sbin/crawl-scheduler"],
            stdin=own.public.read_bytes() + own.private.read_bytes(),
        )
    for unit in ("crawl-head", "crawl") if leads else ("crawl",):
        node.run(["sudo", "systemctl", "enable", unit], timeout=timeout)
        node.run(["sudo", "systemctl", "restart", unit], timeout=timeout)


def _set_watchdog(node: SshSession, instructions: Callable[[str], bytes] | None, name: str) -> None:
    """Start the watchdog of a head, or stop one that an earlier launch started.

    Its token is sent over the connection into a file of root's, and is stored nowhere else.
    """
    if instructions or node.run(f"test -s {WATCHDOG_FILE} && echo watched || true"):
        node.run(
            f"sudo tee {WATCHDOG_FILE} > /dev/null",
            stdin=instructions(name) if instructions else b"",
        )
        for verb in ("enable", "restart"):
            node.run(["sudo", "systemctl", verb, "crawl-watchdog"])


def _memory_gb(node: SshSession) -> float:
    """Return a machine's memory in GB."""
    return int(node.run("awk '/^MemTotal:/ {print $2}' /proc/meminfo")) / 1e6


def _stamp(login: Login, package: Package, head: Login) -> str:
    """Return the digest of a node's setup; its services are only restarted if it changed."""
    certificate = login.keys.node(login.name, login.address).public.read_text()
    parts = (package.wheel.name, package.pins, certificate, login.address, head.address)
    return sha256("\n".join(parts).encode()).hexdigest()


def _log_tails(login: Login) -> str:
    """Return the ends of a node's logs for an error, if the node answers."""
    shown = []
    with suppress(CommandFailed, Unreachable), ssh_session(login, timeout=10) as node:
        for path in (_BOOT_LOG, NODE_LOG):
            if text := node.tail(path, lines=8).strip():
                shown.append(f"\n--- the end of {path} on {login.name}:\n{text}")
    return "".join(shown)
