"""Who connects within a swarm knows who is at the other end."""

import ssl
from contextlib import suppress
from types import SimpleNamespace

import pytest
from distributed import Security

from cahlib.engine import cluster, peers
from cahlib.swarm.keys import SwarmKeys


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return SwarmKeys(tmp_path_factory.mktemp("keys"))


def files(keys, own):
    names = {f"tls_{role}_{kind}": str(path) for role in ("scheduler", "worker")
             for kind, path in (("cert", own.public), ("key", own.private))}  # fmt: skip
    return Security(require_encryption=True, tls_ca_file=str(keys.authority().public), **names)


def of_a_node(keys):
    """A context as the processes of nodes have it."""
    security = files(keys, keys.node("alpha", "192.0.2.1"))
    server = SimpleNamespace(connection_args=security.get_connection_args("worker"))
    peers.dask_setup(server)
    return server.connection_args["ssl_context"]


def of_the_driver(keys):
    return cluster._security(keys).get_connection_args("client")["ssl_context"]


def connect(client, server, address):
    """Shake hands, as over a network."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(back, there, server_hostname=address)
    theirs = server.wrap_bio(there, back, server_side=True)
    for _ in range(3):
        for each in (ours, theirs):
            with suppress(ssl.SSLWantReadError):
                each.do_handshake()
    return ours.version()


@pytest.mark.parametrize("client", [of_a_node, of_the_driver])
def test_only_the_node_of_an_address_is_believed_to_be_there(keys, client):
    server = files(keys, keys.node("beta", "192.0.2.2")).get_listen_args("worker")["ssl_context"]
    assert connect(client(keys), server, "192.0.2.2") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        connect(client(keys), server, "192.0.2.3")


def test_what_a_scheduler_would_keep_for_ever_is_not_heard_of_a_heartbeat():
    said = {
        "op": "heartbeat_worker", "host_info": {"x": 1}, "extensions": {"spans": {}},
        "metrics": {"memory": 5, "digests_total_since_heartbeat": {"x": 1},
                    "bandwidth": {"total": 1, "workers": {"x": (1, 1)}, "types": {"x": (1, 1)}}},
    }  # fmt: skip
    peers.drop_unbounded_names(said)
    kept = {"total": 100e6, "workers": {}, "types": {}}
    assert said == {
        "op": "heartbeat_worker",
        "metrics": {"memory": 5, "digests_total_since_heartbeat": {}, "bandwidth": kept},
    }


def test_nobody_is_served_with_the_certificate_of_a_driver(keys):
    server = files(keys, keys.driver()).get_listen_args("worker")["ssl_context"]
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(of_a_node(keys), server, "192.0.2.1")
