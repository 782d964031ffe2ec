"""A driver that connects to a swarm whose servers go meanwhile: it ends with a sentence."""

import pytest

from cahlib.core.errors import RunError, Stopped
from cahlib.engine.cluster import ClusterAddress
from cahlib.swarm import connection
from cahlib.swarm.hetzner import accounts
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner
from cahlib.swarm.startup import Startup
from tests.world.cloud import Account, Cloud, serve
from tests.world.ports import free_port


@pytest.mark.parametrize("wanted", [True, False])
def test_a_ceiling_that_is_reached_while_the_driver_connects_stops_the_run(
    wanted, tmp_path, monkeypatch
):
    monkeypatch.setattr(connection, "_JOIN_TIMEOUT", 0.1)
    with serve(Cloud({"token": Account()})) as cloud:
        planned = plan_servers(accounts("token", endpoint=cloud.url), ServerLimits(nodes=1))
        servers = Provisioner("r1", planned, lambda name: "#cloud-config\n", print)
    servers.listed = {"head": None}
    if not wanted:
        servers.stop.set()  # as the ceiling does
    nobody = ClusterAddress(address=f"tcp://127.0.0.1:{free_port()}")
    startup = Startup(lambda login, head: None)
    with pytest.raises(RunError) as ended:
        with connection.joined_engine(nobody, tmp_path, startup, servers, report=print):
            pass
    assert isinstance(ended.value, Stopped) is not wanted
    assert ended.value.exit_code == (1 if wanted else 3)
