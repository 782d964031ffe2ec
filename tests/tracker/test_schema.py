"""The service against its own OpenAPI: schemathesis sends what nobody thought of, and no 5xx."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cahlib.tracker.app import create_app
from cahlib.tracker.legacy import bloom
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.trackers import ask, serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)


def test_nothing_that_can_be_sent_breaks_the_service(url, database, fill, tmp_path):
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = shutil.which("schemathesis", path=places)
    if command is None:
        pytest.skip("schemathesis is not installed; type: pip install schemathesis")
    fill(50)
    bloom.create_filter(tmp_path / "main.bloom", items=1000, error=0.01)
    rules = TrackerRules(legacy_upload="rsync://host/parcels")
    options = {"limits": ANY, "filters": str(tmp_path), "admin": "s", "fresh": 0}
    settings = TrackerSettings(database=url, rules=rules, **options)
    with serving(create_app(settings)) as tracker:
        secret = ask(tracker, "/v1/workers", {"nickname": "ann", "kind": "hybrid"}).json["secret"]
        ask(tracker, "/v1/lease", {}, secret=secret)
        ran = subprocess.run(
            [
                command, "run", f"{tracker}/v1/openapi.json", "--checks", "not_a_server_error",
                "--max-examples", "5", "--phases", "examples,coverage,fuzzing", "--no-color",
                "--generation-deterministic",
                "--exclude-path", "/v1/leave",  # it would be the last thing this worker says
                "-H", f"Authorization: Bearer {secret}",
            ],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-1000:]
        assert ask(tracker, "/healthz").text == "ok"
