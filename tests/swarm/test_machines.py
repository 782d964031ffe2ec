"""Two real machines with systemd and cloud-init become a swarm; one of them loses its power.

These tests earn their minutes: nothing else tells whether a server would understand us.
"""

import dataclasses
import os
import re

import pytest

from cahlib import demo
from cahlib.core.config import replace_settings
from cahlib.core.records import DropReason
from cahlib.crawl.shards import list_shards
from cahlib.demo import world
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import remote_engine
from cahlib.parcel import parcel as parcels
from cahlib.run.scrape import scrape
from cahlib.swarm import install
from cahlib.swarm.hetzner import accounts
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import user_data
from cahlib.swarm.planner import ServerLimits, plan_servers
from cahlib.swarm.provisioning import Provisioner
from cahlib.swarm.ssh import CommandFailed, Login, ssh_session
from cahlib.swarm.watchdog import WatchdogConfig
from tests.world import hosts, jobs, machines
from tests.world.cloud import Account, Cloud, serve

pytestmark = pytest.mark.skipif(
    not os.environ.get("NODES"), reason="`make test-nodes` runs this, in some minutes."
)


@pytest.fixture(scope="module", params=machines.IMAGES, ids=lambda image: image.name)
def running(request, tmp_path_factory):
    if reason := request.param.lacking():
        pytest.skip(reason)
    with machines.Machines(tmp_path_factory.mktemp("machines"), request.param) as running:
        yield running


@pytest.fixture(scope="module")
def package(running, tmp_path_factory):
    made = install.make_package(tmp_path_factory.mktemp("wheel"), wheelhouse=running.image.wheels)
    assert made.image == running.image.name
    return made


@pytest.fixture(scope="module")
def logins(running, package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    keys = SwarmKeys(folder / "keys")
    for name in ("alpha", "beta"):
        running.boot(name, user_data(keys, name, own=machines.NETWORK))
    logins = [Login(name=m.name, address=m.address, keys=keys) for m in running.all.values()]
    failed = hosts.set_up(logins, package)
    assert not failed, failed
    return logins


@pytest.fixture
def scrapers(logins, tmp_path):
    reach = ClusterAddress(
        address=f"tls://{logins[0].address}:{install.SCHEDULER_PORT}",
        keys=logins[0].keys,
        parcel_folder="/home/crawl/parcels",
        piece_timeout=10,
    )
    with remote_engine(reach, tmp_path / "home") as scrapers:
        assert not scrapers.await_nodes([login.name for login in logins], timeout=jobs.LIMIT)
        yield scrapers


def test_a_machine_is_as_its_user_data_says(logins):
    with ssh_session(logins[0]) as node:
        assert node.run("id -un") == "crawl\n"
        assert node.run("systemctl is-active crawl crawl-head unbound").split() == ["active"] * 3
        assert "127.0.0.1" in node.run("cat /etc/resolv.conf")
        limits = node.run("cat /proc/$(systemctl show -P MainPID crawl)/limits").splitlines()
        [files] = [line.split() for line in limits if line.startswith("Max open files")]
        assert int(files[3]) > 1024  # what this machine itself may have, at most
        with pytest.raises(CommandFailed):
            node.run("sudo -n cat /etc/shadow")
        with pytest.raises(CommandFailed):
            node.run("touch /usr/local/bin/mine")
        for unit in ("crawl", "crawl-head"):
            rated = node.run(f"systemd-analyze security --no-pager {unit} | tail -n 1")
            assert float(re.findall(r"[0-9]+[.][0-9]+", rated)[0]) <= 3.0, rated
    jobs.until(lambda: "distributed" in install.node_log(logins[0]))
    assert "cloud-init" in install.node_log(logins[0], boot=True, lines=200).lower()


class Ran:
    """A job that runs a command, as whoever has taken a scraper over would."""

    def __init__(self, line):
        self.line = line

    def __reduce__(self):
        run = f"__import__('subprocess').run({self.line!r}, shell=True, capture_output=True)"
        return eval, (f"lambda **_: repr({run})",)


@pytest.mark.parametrize(
    "line",
    [
        "cat /etc/cahlib/scheduler.pem",
        "touch /home/crawl/.profile",
        "touch /home/crawl/venv/bin/python",
        "echo PATH=/tmp >> /home/crawl/crawl.env",
        "touch /home/crawl/.ssh/authorized_keys",
        "sudo -n systemctl stop crawl-head",
        "XDG_RUNTIME_DIR=/run/user/$(id -u) systemd-run --user --wait true",
        "busctl --system list",
        "kill -9 $(pgrep -f dask_scheduler)",
        "cat /root/.bashrc",
        "cat /proc/1/environ",
        "nft list ruleset",
        "unshare --user --map-root-user true",
    ],
)
def test_who_takes_a_scraper_over_stays_in_it(logins, scrapers, line):
    with ssh_session(logins[0]):  # as a login has the user's own systemd started
        scrapers.submit(line, Ran(line), limit=jobs.LIMIT)
        [*_, said] = scrapers.take(timeout=jobs.LIMIT)
    assert "returncode=0" not in str(said) and "returncode=" in str(said), said


def test_a_restarted_service_is_back(logins, scrapers):
    def process(node):
        return node.run("systemctl show -P MainPID crawl").strip()

    with ssh_session(logins[1]) as node:
        before = process(node)
        install.restart_service(logins[1])
        assert process(node) != before
        # until it is the user's own, it is systemd's
        jobs.until(lambda: node.run(f"kill -9 {process(node)} 2>&1 || true") == "")
        jobs.until(lambda: process(node) not in ("0", before))
    assert not scrapers.await_nodes(["beta"], timeout=jobs.LIMIT)


def test_a_machine_that_does_not_come_up_shows_what_cloud_init_said(logins, package):
    broken = dataclasses.replace(package, pins=f"{package.pins}aiohttp==0\n")
    steps, networks_for = [], hosts.admitted(logins)
    with pytest.raises(install.NotReady) as caught:
        install.set_up_node(
            logins[1],
            broken,
            head=logins[0],
            networks_for=networks_for,
            step=lambda *s: steps.append(s),
        )
    said = str(caught.value).partition("cloud-init-output.log on beta:")[2]
    assert "Cloud-init" in said and len(said.splitlines()) < 20
    assert steps == [("beta", step) for step in ("ssh", "boot", "install")]
    install.set_up_node(logins[1], package, head=logins[0], networks_for=networks_for)


def test_a_machine_that_loses_its_power_costs_no_shard(running, logins, scrapers, tmp_path):
    crawl, domains = tmp_path / "demo.warc.wat.gz", tmp_path / "domains"
    crawl.write_bytes((shown := world.build()).wat)
    domains.write_text("atlas.example.net\n")
    files = {"crawl": str(crawl), "blocked_domains": str(domains)}  # no machine has them
    with shown.serve(host=running.address) as web:
        job = replace_settings(demo.job(str(tmp_path / "out"), web), **files)
        todo = list(list_shards(job.crawl, contact="demo@example.com"))
        settings = (job.crawl, job.download)
        with ssh_session(logins[0]) as node:
            node.run("sudo systemctl stop crawl")  # so that beta has all the work
        jobs.until(lambda: {n.host for n in scrapers.nodes()} == {logins[1].address})
        for shard in todo:
            given = (shard.id, scrape, shard, *settings, scrapers.folder)
            scrapers.submit(*given, limit=60, files=files.values())
        jobs.until(scrapers.reports)
        install.restart_service(logins[0])
        running.all["beta"].off()
        far = dict(scrapers.take(timeout=jobs.LIMIT) for _ in todo)
        with jobs.local_engine(1) as here:
            for shard in todo:
                here.submit(shard.id, scrape, shard, *settings, tmp_path / "near", limit=60)
            near = dict(here.take(timeout=jobs.LIMIT) for _ in todo)
    assert any(parcel.stats.dropped[DropReason.BLOCKED_DOMAIN] for parcel in far.values())
    for shard in todo:
        parcels.check_parcel(far[shard.id])
        assert far[shard.id].stats.as_dict() == near[shard.id].stats.as_dict()
        assert [i.sha256 for i in parcels.read_images(far[shard.id])] == [
            i.sha256 for i in parcels.read_images(near[shard.id])
        ]
    running.power(running.all["beta"])
    assert not scrapers.await_nodes(["beta"], timeout=jobs.LIMIT)


def test_a_watchdog_is_alone_with_its_token(logins, running, package):
    one, token = Account(limit=4), "token-of-the-watchdog"
    with serve(Cloud({"token-of-ada": one, token: one}), host=running.address) as cloud:
        limits, said = ServerLimits(nodes=2), []
        theirs = accounts("token-of-ada", endpoint=cloud.url)
        made = Provisioner("r1", plan_servers(theirs, limits), lambda name: "", said.append)
        made.prepare("ssh-ed25519 AAAA")
        made.fill()
        head = next(s.name for s in made.servers() if s.labels["role"] == "head")
        dog = WatchdogConfig(token=token, endpoint=cloud.url, silence=600, look=1)
        for silence in (600, 1):
            dog = dataclasses.replace(dog, silence=silence)
            told = dataclasses.replace(
                package, watchdog=lambda name, dog=dog: dog.instructions(head, made)
            )
            install.set_up_node(
                logins[0], told, head=logins[0], networks_for=hosts.admitted(logins)
            )
            with ssh_session(logins[0]) as node:
                for secret in (
                    "cat /etc/cahlib/watchdog.json",
                    "sudo -n cat /etc/cahlib/watchdog.json",
                    "ls /run/credentials/crawl-watchdog.service",
                    "sudo -n tee /etc/shadow < /dev/null",
                ):
                    with pytest.raises(CommandFailed):
                        node.run(secret)
        jobs.until(lambda: not cloud.servers("token-of-ada"))
        assert token not in install.node_log(logins[0], lines=1000)
    install.set_up_node(logins[0], package, head=logins[0], networks_for=hosts.admitted(logins))
    with ssh_session(logins[0]) as node:
        assert node.run("systemctl is-active crawl-watchdog || true").strip() == "inactive"
