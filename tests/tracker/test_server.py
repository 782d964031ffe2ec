"""A fresh Debian becomes a tracker by `server.sh`: PostgreSQL, systemd, Caddy, backups.

It earns its minutes: nothing else tells whether the service starts as it is written.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

import cahlib
from cahlib.core.records import Stats
from cahlib.ledger.client import TrackerClient
from tests.world import extras, machines, small
from tests.world.jobs import until
from tests.world.trackers import ask

pytestmark = pytest.mark.skipif(
    not os.environ.get("NODES"), reason="`make test-nodes` runs this, in some minutes."
)
SCRIPT = Path(cahlib.__file__).parent / "tracker/ops/server.sh"


@pytest.fixture(params=machines.SERVERS, ids=lambda image: image.name)
def machine(request, tmp_path):
    if reason := request.param.lacking():
        pytest.skip(reason)
    with machines.Machines(tmp_path / "machines", request.param) as every:
        machine = every.boot("tracker", "#cloud-config\n{}\n")
        until(lambda: booted(machine))
        yield every, machine


def booted(machine):
    return machine.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")


def set_up(machine, source):
    ran = machine.run("bash", "/srv/server.sh", ":80", "/srv/crawl/*.wat.gz", source)
    assert ran.returncode == 0, ran.stdout
    assert "The tracker is at :80" in ran.stdout


def is_ready(url):
    try:
        return ask(url, "/readyz").status == 200
    except OSError:
        return False


def test_a_fresh_debian_becomes_a_tracker_that_comes_back(machine, tmp_path):
    every, machine = machine
    root, url = machine.root, f"http://{machine.address}"
    (root / "srv/crawl").mkdir(parents=True)
    (root / "srv/crawl/a.warc.wat.gz").write_bytes(small.file("a", links=1))
    shutil.copy(SCRIPT, root / "srv")
    source = shutil.copy(extras.wheel(tmp_path), root / "srv")
    shutil.copytree(every.image.wheels, root / "srv/wheels")
    (root / "etc/pip.conf").write_text("[global]\nno-index = yes\nfind-links = /srv/wheels\n")
    set_up(machine, f"/srv/{Path(source).name}")

    assert ask(url, "/").status == 200
    tracker = TrackerClient(url)
    tracker.join("ann", "hybrid", retry_seconds=20)
    [leased], _ = tracker.lease()
    tracker.complete(leased.number, similarities={"ab" * 16: 0.3}, stats=one_pair())
    rated = machine.run("systemd-analyze", "security", "--no-pager", "cah-tracker").stdout
    assert float(re.findall(r"[0-9]+[.][0-9]+", rated.splitlines()[-1])[0]) <= 3.0, rated
    assert machine.run("systemctl", "start", "cah-tracker-backup.service").returncode == 0
    assert len(list((root / "var/backups/cah-tracker").iterdir())) == 1
    assert "cah-tracker-backup.timer" in machine.run("systemctl", "list-timers").stdout

    machine.run("systemctl", "kill", "--signal=KILL", "cah-tracker")
    until(lambda: is_ready(url))
    machine.off()
    every.power(machine)
    until(lambda: is_ready(url))
    assert ask(url, "/v1/state").json["pairs"] == 1

    secret = (root / "etc/cah-tracker.env").read_text()
    set_up(machine, f"/srv/{Path(source).name}")  # an upgrade
    assert ask(url, "/v1/state").json["pairs"] == 1
    assert (root / "etc/cah-tracker.env").read_text() == secret


def one_pair():
    count = {"in": 1, "out": 1, "lost": {}}
    return Stats.from_dict({"choose": count, "fetch": count, "judge": count})
