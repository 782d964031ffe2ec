"""A swarm of hosts with networks of their own, for the tests of its engine."""

import time
from contextlib import contextmanager

from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import remote_engine
from cahlib.run.scrapers import _Supplied
from cahlib.swarm import install
from cahlib.swarm.billing import Billing
from cahlib.swarm.provider import Server
from cahlib.swarm.ssh import Login
from tests.world import hosts, jobs


class Swarm:
    """Two nodes that are up; the first is the head."""

    def __init__(self, machines, keys, package):
        self.machines, self.keys, self.package = machines, keys, package
        self.logins = [
            Login(name=host.name, address=host.address, keys=keys) for host in machines.all.values()
        ]
        self.address = f"tls://{self.logins[0].address}:{install.SCHEDULER_PORT}"
        self.networks_for = hosts.admitted(self.logins)

    def reach(self, **settings):
        return ClusterAddress(
            address=self.address, keys=self.keys, parcel_folder="/home/crawl/parcels", **settings
        )

    def host(self, name):
        return self.machines.all[name]

    @contextmanager
    def scraping(self, job, *, stop, swarm_status):
        """For `cahlib.run.pipeline.run`: scrape on the nodes."""
        folder = job.output.folder / "run" / "parcels"
        with remote_engine(self.reach(), folder, timeout=jobs.LIMIT) as cluster:
            assert not cluster.await_nodes(["alpha", "beta"], timeout=jobs.LIMIT)
            yield _Supplied(cluster), cluster.folder


class ProvisionerOf:
    """As much of a provisioner as a view looks at."""

    def __init__(self, logins):
        self.listed = {
            each.name: Server(
                id=n, name=each.name, address=each.address, type="cx23", location="fsn1",
                status="running", labels={}, created=0,
            )
            for n, each in enumerate(logins)
        }  # fmt: skip
        self.billing, self.clock = Billing(), time.time
        for name in self.listed:
            self.billing.open(name, 0.25, time.time())

    def servers(self):
        return list(self.listed.values())

    def heartbeat(self):
        pass

    def spent(self):
        return self.billing.spent(self.clock())
