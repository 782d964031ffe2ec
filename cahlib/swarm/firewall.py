"""Firewall: Dask's ports on a run's servers are open to these servers and their driver only.

The cloud's firewall and nftables on each server both enforce it. SSH stays open, since only its key
grants access, and shows under which address the servers see their driver: behind a router it is not
the machine's own, and a laptop changes it. Servers are reached by IPv4, so the address is IPv4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from cahlib.swarm import install, ssh
from cahlib.swarm.provider import Server
from cahlib.swarm.provisioning import Provisioner

#: The network of guests, whose addresses are unknown.
_ANYWHERE = "0.0.0.0/0"

#: Seconds for a server to answer, and servers contacted at a time.
_TIMEOUT, _THREADS = 10.0, 16


class Firewall:
    """Controls the ports of a run's servers; with ``guests`` they are open to any address."""

    def __init__(
        self,
        provisioner: Provisioner,
        reached: Callable[[Server], ssh.Login],
        *,
        guests: bool = False,
    ) -> None:
        self.login_of = reached
        self._provisioner, self._guests = provisioner, guests
        self._drivers: set[str] = set()
        self._networks: Sequence[str] = ()
        self._lock = threading.Lock()

    def allow_driver(self, driver: str) -> Sequence[str]:
        """Open the ports to all servers and this driver's address; return all allowed networks."""
        with self._lock:
            return self._update(self._drivers | {driver})

    def follow_driver(self) -> None:
        """Open the ports to this machine if its address has changed and the head answers.

        Raise Denied if the cloud does not answer.
        """
        with self._lock:
            heads = (s for s in self._provisioner.listed.values() if s.labels.get("role") == "head")
            with suppress(ssh.CommandFailed, ssh.Unreachable, StopIteration):
                with ssh.ssh_session(self.login_of(next(heads)), timeout=_TIMEOUT) as node:
                    here = install.driver_address(node)
                if here not in self._drivers:
                    self._update({here})
                    self._apply(self._provisioner.listed.values())

    def _update(self, drivers: Iterable[str]) -> Sequence[str]:
        """Update the firewalls of the cloud and the head, which all others join, on a change."""
        self._drivers = set(drivers)
        servers = list(self._provisioner.listed.values())
        addresses = {each.address for each in servers if each.address} | self._drivers
        every = [_ANYWHERE] if self._guests else sorted(f"{each}/32" for each in addresses)
        if every != self._networks:
            self._provisioner.allow_networks(every)
            self._networks = every
            self._apply(each for each in servers if each.labels.get("role") == "head")
        return every

    def _apply(self, servers: Iterable[Server]) -> None:
        """Update servers; one that does not answer is updated when it is set up."""

        def put(server: Server) -> None:
            with suppress(ssh.CommandFailed, ssh.Unreachable):
                with ssh.ssh_session(self.login_of(server), timeout=_TIMEOUT) as node:
                    install.open_ports(node, self._networks)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(put, servers))
