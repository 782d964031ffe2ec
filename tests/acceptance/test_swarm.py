"""`cah run --swarm` against a stand-in for the cloud; its servers are hosts with an sshd."""

import subprocess
import sys

import pytest

from cahlib import demo
from cahlib.config import replace
from cahlib.curate.verify import verify
from cahlib.demo import world
from tests.acceptance.test_demo import rows
from tests.world import cloud as clouds
from tests.world import command, hosts

TOKENS = "token-one", "token-two"

pytestmark = pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())


def cah(cloud, job):
    return subprocess.run(
        [sys.executable, "-m", "cahlib.cli", "run", *command.options(job)],
        env={
            **command.environment(),
            "HCLOUD_TOKEN": ",".join(TOKENS),
            "HCLOUD_ENDPOINT": cloud.url,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.timeout(240)
def test_a_swarm_makes_the_dataset_of_one_machine_and_leaves_nothing(tmp_path):
    with hosts.Hosts(tmp_path / "hosts") as machines:
        accounts = {token: clouds.Account(limit=2) for token in TOKENS}
        with clouds.serve(clouds.Cloud(accounts, hosts=machines)) as cloud:
            cloud.stranger(TOKENS[0])
            with world.build().serve(host=machines.address) as web:
                job = demo.job(str(tmp_path / "swarm"), web)
                ran = cah(cloud, replace(job, swarm=2, max_cost=1))
                assert ran.returncode == 0, ran.stderr
                alone = command.cah(
                    "run", *command.options(replace(job, output=str(tmp_path / "alone")))
                )
                assert alone.returncode == 0, alone.stderr
            assert [server["name"] for server in cloud.servers()] == ["stranger"]
    assert rows(tmp_path / "swarm") == rows(tmp_path / "alone")
    assert list(verify(tmp_path / "swarm")) == []
    assert len(list((tmp_path / "swarm/run/swarm/logs").glob("*.log"))) == 2
    for path in (tmp_path / "swarm").rglob("*"):
        if path.is_file():
            assert not any(token.encode() in path.read_bytes() for token in TOKENS), path
    assert not any(token in ran.stdout + ran.stderr for token in TOKENS)
