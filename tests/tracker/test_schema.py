"""The service against its own OpenAPI: schemathesis sends what nobody thought of, and no 5xx."""

import os
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cahlib.ledger.database import Database
from cahlib.tracker import admin
from cahlib.tracker.app import create_app
from cahlib.tracker.legacy import bloom
from cahlib.tracker.models import TrackerRules, WorkerKind
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.tracker.conftest import wats
from tests.world import postgres as servers
from tests.world.trackers import ask, serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)


class Together:
    """An application that hands each request to several, and answers as the one that fares worst.

    To invent a request takes schemathesis longer than to answer it takes a tracker.
    """

    def __init__(self, apps):
        self.apps = apps
        leases = [app.state.service.leases for app in apps]
        self.secrets = [each.register("ann", WorkerKind.HYBRID)[1].encode() for each in leases]
        self.statuses = set()

    async def __call__(self, scope, receive, send):
        first, *others = self.apps
        if scope["type"] == "lifespan":
            async with AsyncExitStack() as stack:
                for app in others:
                    await stack.enter_async_context(app.router.lifespan_context(app))
                await first(scope, receive, send)
            return
        asked = [await receive()]
        while asked[-1].get("more_body"):
            asked.append(await receive())
        answers = [await self._answer(number, scope, asked) for number in range(len(self.apps))]
        self.statuses.add(tuple(answer[0]["status"] for answer in answers))
        for message in max(answers, key=lambda answer: answer[0]["status"]):
            await send(message)

    async def _answer(self, number, scope, asked):
        """All that one of them sends, to the worker that is its own."""
        ours, its = self.secrets[0], self.secrets[number]
        headers = [(name, value.replace(ours, its)) for name, value in scope["headers"]]
        told, left = [], iter(asked)

        async def receive():
            return next(left, {"type": "http.disconnect"})

        async def send(message):
            told.append(message)

        await self.apps[number]({**scope, "headers": headers}, receive, send)
        return told


@pytest.fixture
def urls(request, sqlite_url):
    """Addresses of a database of each kind that is here."""
    if servers.missing():
        return [sqlite_url]
    template = request.getfixturevalue("postgres_template")
    created = request.getfixturevalue("postgres").create("together", template=template)
    return [sqlite_url, created]


def app_of(url, folder):
    with_shards = Database(url)
    admin.add_wats(with_shards, wats(50))
    with_shards.close()
    rules = TrackerRules(legacy_upload="rsync://host/parcels")
    options = {"limits": ANY, "filters": str(folder), "admin": "s", "fresh": 0}
    return create_app(TrackerSettings(database=url, rules=rules, **options))


def test_nothing_that_can_be_sent_breaks_the_service(urls, tmp_path):
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = shutil.which("schemathesis", path=places)
    if command is None:
        pytest.skip("schemathesis is not installed; type: pip install schemathesis")
    bloom.create_filter(tmp_path / "main.bloom", items=1000, error=0.01)
    trackers = Together([app_of(url, tmp_path) for url in urls])
    with serving(trackers) as tracker:
        secret = trackers.secrets[0].decode()
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
    apart = [each for each in trackers.statuses if len(set(each)) > 1]
    assert not [each for each in apart if 401 in each], "each knows its worker"
