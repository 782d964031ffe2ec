"""Dask's ports on a run's servers: open to these servers and to their driver, to nobody else.

The cloud's firewall closes them first, nftables on each server once more. SSH stays open, for its
key alone opens it, and it tells under which address servers see their driver: behind a router that
is none of its own, and a laptop takes others. Servers are reached by IPv4, so it is one of these.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from cahlib.swarm import install, ssh
from cahlib.swarm.provider import Server
from cahlib.swarm.provisioning import Provisioner

#: Where guests are whose addresses nobody knows.
_ANYWHERE = "0.0.0.0/0"

#: Seconds for a server to answer, and servers that are asked at a time.
_TIMEOUT, _THREADS = 10.0, 16


class Firewall:
    """Keeps the ports of a fleet; with ``guests`` they are open to all who have a certificate."""

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
        """Open them to all servers, and to this machine as one of them sees it; return to whom."""
        with self._lock:
            return self._update(self._drivers | {driver})

    def follow_driver(self) -> None:
        """Open them to this machine if it is at another address now; a head that is away is left.

        Raises Denied if the cloud does not answer.
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
        """Tell the cloud, and the head, whom all others join, if something has changed."""
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
        """Tell servers; one that does not answer is told once it is set up."""

        def put(server: Server) -> None:
            with suppress(ssh.CommandFailed, ssh.Unreachable):
                with ssh.ssh_session(self.login_of(server), timeout=_TIMEOUT) as node:
                    install.open_ports(node, self._networks)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(put, servers))
