"""A dataset of two shards, with captions and links as hostile people write them, and its page."""

import http.client
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from cahlib.browse.server import BrowseSettings, open_browser, serving_page
from tests.world import judged as world
from tests.world.jobs import LIMIT

EVIL = "<img src=x onerror=alert(1)>‮ \"' & <script>alert(2)</script>"


def pairs(first=0):
    """Thirty pairs, three of which are hostile and one of which is unsafe."""
    hostile = [
        world.judged(first + 500, text=EVIL, page="javascript:alert(3)"),
        world.judged(
            first + 501, url="javascript:alert(4)", page="data:text/html,<script>alert(5)"
        ),
        world.judged(first + 502, text="", nsfw="NSFW"),
    ]
    return [world.judged(number) for number in range(first, first + 27)] + hostile


@pytest.fixture(scope="session")
def _made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browsed") / "pictures"
    for number in range(2):
        world.write_these(folder, pairs(1000 * number), shard=f"s-{number}")
    return folder


@pytest.fixture
def dataset(_made, tmp_path):
    """A copy of it."""
    return shutil.copytree(_made, tmp_path / "pictures")


@dataclass
class Page:
    """A page that is served, as a client sees it."""

    address: str
    browser: object
    headers: dict = field(default_factory=dict)

    def ask(self, path, body=None, *, headers=None, token=True, **query):
        """Return status, headers and body of a request."""
        parts = urlsplit(self.address)
        known = parse_qs(parts.query) if token else {}
        named = urlencode({**query, **{name: each[0] for name, each in known.items()}})
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LIMIT)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, f"{path}?{named}", body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path, body=None, *, status=200, **query):
        """Return the JSON of an answer with this status."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        found, _, answer = self.ask(path, data, **query)
        assert found == status, answer
        return json.loads(answer)

    def rows(self, **query):
        return [each["row"] for each in self.json("/api/pairs", **query)["items"]]


@pytest.fixture
def serve():
    """Serve the page of a dataset; it ends with the test."""
    with ExitStack() as served:

        def start(place, **settings):
            chosen = BrowseSettings(**settings)
            browser = open_browser(str(place), chosen)
            return Page(served.enter_context(serving_page(browser, chosen)), browser)

        yield start


@pytest.fixture
def page(serve, dataset):
    return serve(dataset)
