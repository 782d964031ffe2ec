"""A swarm of two hosts with networks of their own: what it makes, and what it survives.

These tests earn their seconds: real sshd, real TLS and real Dask processes, killed and cut off.
"""

import logging
import os
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cahlib.core.config import Crawl, replace_settings
from cahlib.core.errors import RunError, ShardError
from cahlib.core.progress import SwarmStatus
from cahlib.core.records import Stats
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.shards import list_shards
from cahlib.crawl.tables.slices import Slices
from cahlib.crawl.wat import read_pages
from cahlib.engine import wire
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import remote_engine
from cahlib.parcel import parcel as parcels
from cahlib.run.pipeline import run
from cahlib.run.scrape import scrape
from cahlib.run.scrapers import _Supplied
from cahlib.swarm import install, status
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import user_data
from cahlib.swarm.ssh import Login, ssh_session
from tests.world import awake, hosts, jobs, small, tables, zygote
from tests.world.swarms import ProvisionerOf, Swarm

needs_hosts = pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swarm")
    keys = SwarmKeys(folder / "keys")
    package = install.make_package(folder / "wheel")
    with hosts.Hosts(folder) as machines:
        for name in ("alpha", "beta"):
            machines.boot(name, user_data(keys, name))
            settings = machines.all[name].base / "etc" / "dask.yaml"  # else a cut may last too long
            patient = settings.read_text().replace("tcp: 30s", "tcp: 240s")
            settings.write_text(patient.replace("worker-ttl: 60s", "worker-ttl: 240s"))
        swarm = Swarm(machines, keys, package)
        failed = hosts.set_up(swarm.logins, package)
        assert not failed
        yield swarm


@pytest.fixture
def scrapers(swarm, tmp_path):
    with remote_engine(swarm.reach(), tmp_path / "home", timeout=jobs.LIMIT) as scrapers:
        assert not scrapers.await_nodes(["alpha", "beta"], timeout=jobs.LIMIT)
        yield scrapers


def take(scrapers, count):
    taken = dict(filter(None, (scrapers.take(timeout=jobs.LIMIT) for _ in range(count))))
    assert len(taken) == count and not scrapers
    return taken


@needs_hosts
def test_a_scrape_over_the_swarm_equals_one_on_this_machine(swarm, scrapers, tmp_path):
    with awake.build().serve(host=swarm.machines.address) as web:
        job = awake.job(str(tmp_path / "out"), web)
        todo = list(list_shards(job.crawl, contact="demo@example.com"))
        settings = dict.fromkeys(todo, job.crawl)
        # a table of this machine, of which each node gets its rows alone
        table = tables.write(tmp_path / "t.csv", captioned(job, todo))
        slices = Slices(tmp_path / "slices")
        listed = list(list_shards(Crawl(links=(str(table),), shard_links=20)))
        settings |= {shard: slices.cut(shard, job.crawl, print) for shard in listed}
        todo += listed
        supplied = _Supplied(scrapers)
        for shard, crawl in settings.items():
            given = (shard.id, scrape, shard, crawl, job.download)
            supplied.submit(*given, scrapers.folder, limit=jobs.LIMIT)
        far = take(scrapers, len(todo))
        with jobs.local_engine(1) as here:
            for shard, crawl in settings.items():
                given = (shard.id, scrape, shard, crawl, job.download)
                here.submit(*given, tmp_path / "near", limit=jobs.LIMIT)
            near = take(here, len(todo))
    assert any(far[shard.id].images for shard in listed)
    for shard in todo:
        parcels.check_parcel(far[shard.id])
        assert parcels.find_parcel(tmp_path / "home", shard) == far[shard.id]
        assert _content(far[shard.id]) == _content(near[shard.id])
        assert far[shard.id].stats.as_dict() == near[shard.id].stats.as_dict()
        assert _outcomes(far[shard.id]) == _outcomes(near[shard.id]) != []
    kept = [host.home / "parcels" for host in swarm.machines.all.values()]
    # one that was taken back and given to the other node may end later
    jobs.until(lambda: not [path for folder in kept for path in folder.iterdir()])


@needs_hosts
def test_tables_of_the_field_give_the_same_dataset_over_the_swarm(swarm, tmp_path):
    with small.Pictures(host=swarm.machines.address) as web:
        settings = {
            "crawl": "", "shard_links": 20, "no_judge": True, "model": "", "threshold": None,
            "safety": "",
        }  # fmt: skip
        for path in tables.of_the_field(tmp_path, 30):
            found = []
            for name, scraping in (("near", small.scraping), ("far", swarm.scraping)):
                job = small.job("", tmp_path / path.stem / name, web)
                job = replace_settings(job, links=(str(path),), **settings)
                assert run(job, scraping=scraping).shards.done == 2
                found.append(pq.read_table(job.output.folder / "metadata").to_pylist())
            near, far = (sorted(rows, key=lambda row: row["URL"]) for rows in found)
            assert near == far and len(far) == 30


def captioned(job, shards):
    """Rows with the links and captions of a crawl."""
    stats, found = Stats(), []
    for shard in shards:
        pages = read_pages(shard, stats)
        blocked = Blocklists.load(job.crawl)
        found += find_candidates(pages, job.crawl, blocked, stats)
    return [{"url": each.url, "text": each.text} for each in found]


def _content(parcel):
    return [(image.candidate, image.sha256, image.data) for image in parcels.read_images(parcel)]


def _outcomes(parcel):  # the web fails some links once: the second time it is asked, it does not
    return [each._replace(ms=None, attempt=0) for each in parcels.unpack_outcomes(parcel)]


@needs_hosts
def test_the_wheel_that_was_brought_is_the_one_that_runs(swarm, scrapers):
    version = swarm.package.wheel.name.split("-")[1]
    # a worker that another test killed may just be coming back
    jobs.until(
        lambda: (
            {each.name: each.version for each in scrapers.nodes()}
            == {"alpha": version, "beta": version}
        )
    )
    scrapers.submit("where", jobs.code, limit=jobs.LIMIT)
    assert take(scrapers, 1)["where"].startswith("/home/crawl/venv/")


@needs_hosts
def test_bringing_up_again_changes_nothing(swarm, scrapers, tmp_path):
    scrapers.submit("running", jobs.note_and_wait, tmp_path, limit=jobs.LIMIT)
    jobs.wait_for(tmp_path / "1")
    assert not hosts.set_up(swarm.logins, swarm.package)
    (tmp_path / "go").touch()
    assert take(scrapers, 1) == {"running": "done"}
    assert not (tmp_path / "2").exists()


@needs_hosts
def test_a_job_of_a_killed_worker_is_done_by_another(swarm, scrapers, tmp_path):
    scrapers.submit("killed", jobs.note_and_wait, tmp_path, limit=jobs.LIMIT)
    pid = jobs.wait_for(tmp_path / "1")
    next(host for host in swarm.machines.all.values() if pid in host.processes())
    subprocess.run(["kill", "-9", str(pid)], check=True)
    jobs.wait_for(tmp_path / "2")
    (tmp_path / "go").touch()
    assert take(scrapers, 1) == {"killed": "done"}


@needs_hosts
def test_a_node_that_loses_its_power_costs_no_job(swarm, scrapers, tmp_path):
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        scrapers.submit(f"job{n}", jobs.note_and_wait, tmp_path / str(n), limit=jobs.LIMIT)
        jobs.wait_for(tmp_path / str(n) / "1")
    beta = swarm.host("beta")
    beta.off()
    for n in range(2):
        (tmp_path / str(n) / "go").touch()
    assert set(take(scrapers, 2).values()) == {"done"}
    swarm.machines.power(beta)
    assert not scrapers.await_nodes(["beta"], timeout=jobs.LIMIT)


@needs_hosts
def test_a_node_that_stands_still_is_seen_and_restarted_over_ssh(swarm, scrapers, tmp_path):
    scrapers.submit("still", jobs.hang, tmp_path, limit=600)
    jobs.until((tmp_path / "hung").exists)
    jobs.until(lambda: any(node.jobs for node in scrapers.nodes()))
    jobs.until(lambda: any(node.stalled > 1 for node in scrapers.nodes()))
    [name] = [node.name for node in scrapers.nodes() if node.jobs]
    install.restart_service(next(login for login in swarm.logins if login.name == name))
    if name == "alpha":
        assert not scrapers.await_nodes(["alpha"], timeout=jobs.LIMIT)
    assert take(scrapers, 1) == {"still": "done"}


@needs_hosts
def test_a_cut_of_the_network_is_survived_by_the_running_job(swarm, tmp_path):
    with remote_engine(swarm.reach(idle_timeout=11), tmp_path) as scrapers:
        assert not scrapers.await_nodes(["alpha", "beta"], timeout=jobs.LIMIT)
        scrapers.submit("cut", jobs.note_and_wait, tmp_path, limit=jobs.LIMIT)
        jobs.wait_for(tmp_path / "1")
        job = scrapers._jobs["cut"]
        jobs.until(lambda: job.published and job.future)  # a busy machine may have cut it already
        first = job.future
        for host in swarm.machines.all.values():
            host.cable(plugged=False)
        try:
            jobs.until(lambda: first.status == "cancelled")
        finally:
            for host in swarm.machines.all.values():
                host.cable(plugged=True)
        jobs.until(lambda: job.future is not first)
        (tmp_path / "go").touch()
        assert take(scrapers, 1) == {"cut": "done"}
        assert not (tmp_path / "2").exists()


_DRIVER = """
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from cahlib.engine.cluster import ClusterAddress
from cahlib.swarm.keys import SwarmKeys
from cahlib.engine.remote import remote_engine
from tests.world import jobs
address, keys, home = sys.argv[1:]
address = ClusterAddress(address=address, keys=SwarmKeys(Path(keys)))
with remote_engine(address, Path(home)) as scrapers:
    scrapers.submit("orphan", jobs.note_and_wait, Path(home), limit=jobs.LIMIT)
    jobs.until(lambda: scrapers._jobs["orphan"].published)
    Path(home, "sent").write_text(str(os.getpid()))
    scrapers.take(timeout=jobs.LIMIT)
"""


@needs_hosts
def test_a_driver_that_was_killed_finds_its_jobs_again(swarm, tmp_path):
    line = [zygote.interpreter(), "-c", _DRIVER, swarm.address, swarm.keys.folder, tmp_path]
    driver = subprocess.Popen(line, cwd=hosts.ROOT)
    itself = jobs.wait_for(tmp_path / "sent")
    jobs.wait_for(tmp_path / "1")
    os.kill(itself, signal.SIGKILL)  # it may be a fork, whose end its starter is told of
    driver.wait()
    (tmp_path / "go").touch()
    with remote_engine(swarm.reach(), tmp_path) as scrapers:
        scrapers.submit("orphan", jobs.note_and_wait, tmp_path, limit=jobs.LIMIT)
        assert take(scrapers, 1) == {"orphan": "done"}
    assert not (tmp_path / "2").exists()


@needs_hosts
@pytest.mark.parametrize("size", [0, 1, 40 << 20])
def test_a_parcel_of_any_size_is_brought_here_and_deleted_there(swarm, scrapers, tmp_path, size):
    scrapers.submit("parcel", jobs.write_parcel, size, "", scrapers.folder, limit=jobs.LIMIT)
    parcel = take(scrapers, 1)["parcel"]
    assert parcel.path == tmp_path / "home" / f"parcel{size}.tar"
    assert parcel.path.stat().st_size == size
    for host in swarm.machines.all.values():
        assert not list((host.home / "parcels").glob("parcel*"))
    assert not list((tmp_path / "home").glob("*.part"))


@needs_hosts
def test_a_parcel_that_was_damaged_on_its_way_is_brought_again(
    swarm, scrapers, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(
        "cahlib.engine.remote._MAX_ATTEMPTS", 1000
    )  # until it is whole, as it is below
    caplog.set_level(logging.WARNING, "cahlib.engine.remote")
    scrapers.submit("bad", jobs.write_parcel, 1000, "disk", scrapers.folder, limit=jobs.LIMIT)
    jobs.until(lambda: "attempt 1" in caplog.text)
    [path] = [
        path
        for host in swarm.machines.all.values()
        for path in (host.home / "parcels").glob("parcel1000.tar")
    ]
    said = wire.decode_result(scrapers._jobs["bad"].future.result())
    first = bytes.fromhex(said.parcel.versions["first"])
    path.write_bytes(first + path.read_bytes()[1:])
    assert take(scrapers, 1)["bad"].path.stat().st_size == 1000


@needs_hosts
def test_a_parcel_that_stays_damaged_is_given_up_and_deleted(swarm, scrapers):
    scrapers.submit("rotten", jobs.write_parcel, 2000, "disk", scrapers.folder, limit=jobs.LIMIT)
    error = take(scrapers, 1)["rotten"]
    assert isinstance(error, ShardError) and "damaged" in str(error)
    for host in swarm.machines.all.values():
        assert not list((host.home / "parcels").glob("parcel2000*"))


@needs_hosts
def test_a_view_tells_what_the_nodes_do_and_so_it_does_from_elsewhere(swarm, scrapers, tmp_path):
    provisioner = ProvisionerOf(swarm.logins)
    scrapers.submit("counting", jobs.count_and_wait, tmp_path, limit=jobs.LIMIT)
    with status.status_monitored(
        provisioner, swarm.keys, swarm_status := SwarmStatus(), lambda _: None
    ) as seen:
        for login in swarm.logins:
            seen.step(login.name, "up")
        seen.attach(scrapers)
        told = {}

        def right():  # one look's numbers count: the next one's are others
            told.clear()
            told.update({each.state: each for each in swarm_status.nodes})
            if set(told) != {"works", "idle"} or not all(each.line for each in told.values()):
                return False
            return 50 < told["works"].rate < 150 and told["works"].seen < 10

        jobs.until(right)
    assert told["works"].job == "counting"
    assert told["idle"].version == swarm.package.wheel.name.split("-")[1]
    assert (swarm_status.nodes, swarm_status.spent) == ((), 0.5)  # nothing is left

    def overheard():
        workers, speeds = status.observe_cluster(swarm.reach())
        working = [each.jobs for each in workers if each.jobs]
        return working == [("counting",)] and 50 < speeds.get("counting", 0) < 150

    jobs.until(overheard)
    (tmp_path / "go").touch()
    assert take(scrapers, 1) == {"counting": "done"}


@needs_hosts
def test_strangers_are_refused(swarm, tmp_path):
    for reach in (
        ClusterAddress(address=swarm.address, keys=SwarmKeys(tmp_path / "foreign")),
        ClusterAddress(address=swarm.address.replace("tls", "tcp")),
    ):
        with (
            pytest.raises(RunError, match="no Dask cluster answers"),
            remote_engine(reach, tmp_path, timeout=3),
        ):
            pass


@needs_hosts
def test_a_node_that_does_not_come_up_shows_its_log(swarm, tmp_path, monkeypatch):
    monkeypatch.setattr(
        install, "ssh_session", lambda login, timeout=0: ssh_session(login, timeout=jobs.LIMIT)
    )
    beta = swarm.host("beta")
    jobs.until(lambda: beta.log.strip())  # it may have been started just now
    nobody = Login(name="alpha", address=swarm.machines.address, keys=swarm.keys)
    with pytest.raises(install.NotReady, match="no SSH within 0.5 s"):
        install.set_up_node(
            nobody,
            swarm.package,
            head=nobody,
            networks_for=swarm.networks_for,
            timeouts=install.SetupTimeouts(ssh=0.5),
        )
    with pytest.raises(install.NotReady, match="a file could not be copied") as refused:
        install.set_up_node(
            swarm.logins[1],
            install.Package(wheel=tmp_path / "cahlib-0-py3-none-any.whl", pins=""),
            head=swarm.logins[0],
            networks_for=swarm.networks_for,
            timeouts=install.SetupTimeouts(install=jobs.LIMIT),
        )
    _, logs = str(refused.value).split("crawl.log on beta:\n")
    assert (shown := logs.partition("\n---")[0]) and shown in beta.log
    install.set_up_node(
        swarm.logins[1], swarm.package, head=swarm.logins[0], networks_for=swarm.networks_for
    )


@needs_hosts
def test_a_node_whose_clock_is_wrong_is_told_of(swarm):
    beta, clock = swarm.logins[1], swarm.host("beta").base / "bin" / "date"
    clock.write_text("#!/bin/sh\necho 1000000000\n")
    clock.chmod(0o755)
    try:
        with pytest.raises(install.NotReady, match="clock and this machine's are .* hours apart"):
            install.set_up_node(
                beta, swarm.package, head=swarm.logins[0], networks_for=swarm.networks_for
            )
    finally:
        clock.unlink()


@needs_hosts
def test_a_full_disk_costs_a_shard_one_try_on_that_node(swarm, scrapers):
    """Another try, elsewhere or later, is the run's to make; what is brought home is deleted."""
    folder = Path("/home/crawl/parcels")
    for login in swarm.logins:
        with ssh_session(login) as node:
            node.run(f"mkdir -p {folder} && mount -t tmpfs -o size=1m none {folder}")
    try:
        scrapers.submit("full", jobs.fill_disk, folder, limit=jobs.LIMIT)
        [error] = take(scrapers, 1).values()
        assert isinstance(error, ShardError)
        assert "No space is left" in str(error) and str(error).startswith("198.18.")
        scrapers.submit("small", jobs.write_parcel, 1000, "", folder, limit=jobs.LIMIT)
        [parcel] = take(scrapers, 1).values()
        assert getattr(parcel, "size", parcel) == 1000
    finally:
        for login in swarm.logins:
            with ssh_session(login) as node:
                node.run(["umount", str(folder)])
            install.restart_service(login)  # it is drained
        jobs.until(lambda: [each.fault for each in scrapers.nodes()] == ["", ""])
