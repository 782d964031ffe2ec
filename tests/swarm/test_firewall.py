"""Dask's ports are open to the servers of a run and to its driver, wherever that is."""

import subprocess

import pytest

from cahlib.swarm import hetzner, install, ssh
from cahlib.swarm.firewall import Firewall
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import user_data
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner
from tests.world import cloud as clouds
from tests.world import hosts, jobs
from tests.world.servers import ONE, ruled

TOKEN = ONE


@pytest.fixture
def swarm(tmp_path, monkeypatch):
    """Two servers at a cloud, which answer to SSH."""
    monkeypatch.setattr("cahlib.swarm.firewall._TIMEOUT", jobs.LIMIT)
    keys = SwarmKeys(tmp_path / "keys")
    with (
        hosts.Hosts(tmp_path) as machines,
        clouds.serve(clouds.Cloud({TOKEN: clouds.Account()}, hosts=machines)) as cloud,
    ):
        accounts = hetzner.accounts(TOKEN, endpoint=cloud.url, poll=0.01)
        wanted = plan_servers(accounts, ServerLimits(nodes=2))
        made = Provisioner("r1", wanted, lambda name: user_data(keys, name), lambda said: None)
        made.prepare("ssh-ed25519 AAAA")
        made.fill()
        yield Swarm(cloud, machines, made, keys)


class Swarm:
    def __init__(self, cloud, machines, made, keys):
        self.cloud, self.machines, self.made, self.keys = cloud, machines, made, keys

    def reached(self, server):
        return ssh.Login(name=server.name, address=server.address, keys=self.keys)

    def servers(self, role):
        return [each for each in self.made.servers() if each.labels["role"] == role]

    def at_the_cloud(self):
        return ruled(self.cloud).get(("in", "tcp", "8786"), set())

    def on(self, server):
        """The networks that a machine was told of."""
        told = self.machines.all[server.name].base / "etc" / "peers.nft"
        return {line.split()[-2] for line in told.read_text().splitlines()[1:]}

    def set_up(self, doors, server):
        login = self.reached(server)
        ssh.await_ssh(login, timeout=jobs.LIMIT)
        with ssh.ssh_session(login) as node:
            install.open_ports(node, doors.allow_driver(install.driver_address(node)))


@pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())
def test_the_ports_are_open_to_who_is_there_now(swarm):
    [head], [node], here = swarm.servers("head"), swarm.servers("node"), swarm.machines.address
    doors = Firewall(swarm.made, swarm.reached)
    assert swarm.at_the_cloud() == set()
    for each in (head, node):
        swarm.set_up(doors, each)
    every = {f"{each}/32" for each in (head.address, node.address, here)}
    assert swarm.at_the_cloud() == swarm.on(head) == swarm.on(node) == every

    swarm.made.remove(node)
    swarm.made.fill()
    [other] = swarm.servers("node")
    swarm.set_up(doors, other)
    every = {f"{each}/32" for each in (head.address, other.address, here)}
    assert swarm.at_the_cloud() == swarm.on(head) == swarm.on(other) == every

    moved = here.removesuffix(".1") + ".200"
    for line in (
        f"addr add {moved}/32 dev {swarm.machines.bridge}",
        f"route replace {head.address}/32 dev {swarm.machines.bridge} src {moved}",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    doors.follow_driver()
    every = every - {f"{here}/32"} | {f"{moved}/32"}
    assert swarm.at_the_cloud() == swarm.on(head) == swarm.on(other) == every
    calls = len(swarm.cloud.calls)
    doors.follow_driver()
    assert len(swarm.cloud.calls) == calls  # it is where it was

    guests = Firewall(swarm.made, swarm.reached, guests=True)
    swarm.set_up(guests, head)
    assert swarm.at_the_cloud() == swarm.on(head) == {"0.0.0.0/0"}
