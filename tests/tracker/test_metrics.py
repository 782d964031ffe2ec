"""The numbers for Prometheus, which an alert and the dashboard are made of."""

import json
import re
from importlib.resources import files

from cahlib.tracker import statistics
from cahlib.tracker.app import create_app
from cahlib.tracker.models import ShardResult, TrackerRules, WorkerKind
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.trackers import ask, serving


def read(url):
    lines = [line for line in ask(url, "/metrics").text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_silence_errors_and_queues_are_numbers_for_an_alert(url, database, fill, clock):
    fill(3)
    settings = TrackerSettings(
        database=url,
        rules=TrackerRules(lease_seconds=900),
        limits=RequestLimits(address=0),
        fresh=0,
    )
    app = create_app(settings, clock=clock)
    lease_store = app.state.service.leases
    statistics.record_history(database, clock.now - 7200)
    with serving(app) as tracker:
        idle = read(tracker)
        assert (idle["cah_oldest_lease_seconds"], idle["cah_error_share"]) == (0, 0)
        secrets = [lease_store.register(f"person{n}", WorkerKind.HYBRID)[1] for n in range(3)]
        first, second, third = (lease_store.lease(secret).number for secret in secrets)
        lease_store.complete(secrets[0], first, ShardResult(pairs=7))
        lease_store.fail(secrets[1], second, "broken")
        clock.now += 100
        lease_store.lease(secrets[0])
        busy = read(tracker)
        assert busy["cah_oldest_lease_seconds"] == 100  # of the third
        assert (busy["cah_failures_hour"], busy["cah_error_share"]) == (1, 0.5)
        assert (busy['cah_shards{state="todo"}'], busy['cah_shards{state="leased"}']) == (3, 2)
        lease_store.heartbeat(secrets[2], [third])
        clock.now += 3601
        later = read(tracker)
        assert later["cah_failures_hour"] == 0


def test_the_dashboard_shows_numbers_that_there_are(url, database):
    dashboard = json.loads((files("cahlib.tracker") / "ops/grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    with serving(create_app(TrackerSettings(database=url))) as tracker:
        there = {name.split("{")[0] for name in read(tracker)}
    assert {name for each in asked for name in re.findall(r"cah_\w+", each)} <= there
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
