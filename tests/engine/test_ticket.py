"""A ticket opens one swarm for a while; it needs a real Dask cluster with TLS."""

import json
import logging

import pytest
from distributed import LocalCluster, Security

from cahlib.core.errors import ConfigError, RunError
from cahlib.engine import ticket
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import remote_engine
from cahlib.swarm.keys import SwarmKeys
from tests.world import jobs


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    keys = SwarmKeys(tmp_path_factory.mktemp("swarm") / "keys")
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        host="tls://127.0.0.1",
        security=_all(keys),
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield ClusterAddress(address=cluster.scheduler_address, keys=keys, parcel_folder="/nowhere")


def _all(keys):
    """One certificate for every role of the cluster."""
    own = keys.node("node", "127.0.0.1")
    files = {}
    for role in ("scheduler", "worker", "client"):
        files |= {f"tls_{role}_cert": str(own.public), f"tls_{role}_key": str(own.private)}
    ca = str(keys.authority().public)
    return Security(require_encryption=True, tls_ca_file=ca, **files)


def test_a_ticket_drives_the_swarm_from_another_machine(swarm, tmp_path):
    path = tmp_path / "ticket.json"
    path.write_bytes(ticket.issue_ticket(swarm, hours=1))
    reach = ticket.read_ticket(path, tmp_path / "theirs")
    assert (reach.address, reach.parcel_folder) == (swarm.address, "/nowhere")
    with remote_engine(reach, tmp_path / "home") as scrapers:
        scrapers.submit("five", jobs.double, 5, limit=jobs.LIMIT)
        assert scrapers.take(timeout=jobs.LIMIT) == ("five", 10)


def test_a_ticket_that_is_over_opens_nothing(swarm, tmp_path):
    path = tmp_path / "ticket.json"
    path.write_bytes(ticket.issue_ticket(swarm, hours=-1))
    reach = ticket.read_ticket(path, tmp_path / "theirs")
    with pytest.raises(RunError, match="no Dask cluster answers"):
        with remote_engine(reach, tmp_path / "home", timeout=2):
            pass


def test_a_ticket_holds_no_other_key(swarm, tmp_path):
    told = json.loads(ticket.issue_ticket(swarm, hours=1))
    assert set(told) == {"address", "away", "authority.crt", "driver.key", "driver.crt"}
    authority = swarm.keys.authority().private.read_text()
    assert authority not in told.values() and "PRIVATE" not in told["authority.crt"]
    path = tmp_path / "ticket.json"
    path.write_text(json.dumps(told))
    ticket.read_ticket(path, tmp_path / "keys")
    ticket.read_ticket(path, tmp_path / "keys")
    assert {oct(each.stat().st_mode)[-3:] for each in (tmp_path / "keys").iterdir()} == {"600"}


@pytest.mark.parametrize("text", [None, "", "[]", '{"address": "tls://x"}', "PK\x03"])
def test_what_is_no_ticket_is_named(tmp_path, text):
    path = tmp_path / "ticket.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="engine: .*ticket.json is neither an address"):
        ticket.read_ticket(path, tmp_path / "keys")
