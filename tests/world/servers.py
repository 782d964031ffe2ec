"""Servers of a small swarm at the stand-in cloud."""

from contextlib import contextmanager

from cahlib.swarm.hetzner import accounts
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner, provisioned
from tests.world.cloud import Account, Cloud, serve
from tests.world.jobs import LIMIT

ONE, TWO = "token-one", "token-two"


@contextmanager
def two_accounts():
    """A cloud of two accounts, one of which has a server of somebody else."""
    with serve(Cloud({ONE: Account(limit=3), TWO: Account(limit=3)})) as cloud:
        cloud.stranger(ONE)
        yield cloud


def made(cloud, nodes=3, tokens=f"{ONE},{TWO}", timeout=LIMIT, **limits):
    told = []
    theirs = accounts(tokens, endpoint=cloud.url, timeout=timeout, poll=0.01)
    planned = plan_servers(theirs, ServerLimits(nodes=nodes, **limits))
    return Provisioner("r1", planned, lambda name: "#cloud-config\n", told.append), told


def hold(swarm):
    return provisioned(swarm, public_key="ssh-ed25519 AAAA", pause=0.01, late=0.3)


def nothing_is_left(cloud):
    things = [t for account in cloud.accounts.values() for t in account.things.values()]
    return [each["name"] for kind in things for each in kind.values()] == ["stranger"]


def ruled(cloud):
    """The networks that a firewall is open to, by way, protocol and port."""
    [wall] = cloud.accounts[ONE].things["firewalls"].values()
    found = {}
    for rule in wall["rules"]:
        networks = {*rule["source_ips"], *rule["destination_ips"]}
        found.setdefault((rule["direction"], rule["protocol"], rule["port"]), set()).update(
            networks
        )
    return found
