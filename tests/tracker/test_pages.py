"""The pages in a real browser, the numbers for Prometheus, and a database that goes away."""

from __future__ import annotations

import re
import shutil
from xml.etree import ElementTree

import pytest

from cahlib.tracker.app import create
from cahlib.tracker.limits import Limits
from cahlib.tracker.rules import Kind, Result, Rules
from cahlib.tracker.schema import history
from cahlib.tracker.service import Settings
from tests.world.jobs import LIMIT, until
from tests.world.trackers import ask, serving

ANY = Limits(address=0, worker=0, newcomers=0)
EVIL = "<img src=x onerror=a>"


@pytest.fixture
def tracker(database, url, crowd, fill, clock):
    fill(5)
    secret = crowd.register(EVIL, Kind.HYBRID)[1]
    for pairs in (700, 900):
        crowd.complete(secret, crowd.lease(secret).number, Result(pairs=pairs))
    crowd.beat(secret, [crowd.lease(secret).number], "<script>alert(1)</script>")
    for n in range(3):
        failing = crowd.register(f"f{n}", Kind.HYBRID)[1]
        while crowd.lease(failing).number != 3:
            pass
        crowd.fail(failing, 3, "<b>broken</b>")
        crowd.leave(failing)
    with database.write() as connection:
        same = {"scraped": 0, "workers": 1}
        rows = [
            {"time": int(clock.now) - 300 * n, "done": 20 - n, "pairs": 0} | same for n in range(20)
        ]
        connection.execute(history.insert(), rows)
    with serving(create(Settings(database=url, limits=ANY, fresh=0), clock=clock)) as address:
        yield address


def test_pages_escape_what_is_other_peoples_text(tracker, crowd):
    for path in ("/", "/leaderboard", "/workers", "/stuck"):
        answer = ask(tracker, path)
        assert (
            answer.status == 200
            and "default-src 'none'" in answer.headers["content-security-policy"]
        )
        assert not re.search(r"<(img src=x|script>|b>broken)", answer.text)
    assert "&lt;img src=x onerror=a&gt;" in ask(tracker, "/leaderboard").text
    assert "&lt;b&gt;broken" in ask(tracker, "/stuck").text
    assert ask(tracker, "/worker/hybrid/nobody-1").status == 404
    assert ask(tracker, "/site/..%2fapp.py").status == 404
    assert ask(tracker, "/site/nothing.css").status == 404


def test_a_community_shows_its_name_and_how_to_join(url, database):
    settings = Settings(database=url, limits=ANY, title="<Friends> of pictures")
    with serving(create(settings)) as tracker:
        text = ask(tracker, "/").text
        assert text.count("&lt;Friends&gt; of pictures") == 4 and "<Friends>" not in text
        assert f'--tracker <span data-here="./">{tracker}</span>' in text
        assert 'property="og:title" content="0.0 % done – &lt;Friends&gt;' in text
        badge = ask(tracker, "/badge.svg")
        assert badge.headers["content-type"] == "image/svg+xml"
        shown = ElementTree.fromstring(badge.text)
        assert shown.attrib["aria-label"] == "<Friends> of pictures: 0.0% · 0 pairs"


def test_prometheus_can_read_the_numbers(tracker):
    text = ask(tracker, "/metrics").text
    assert 'cah_shards{state="done"} 2\n' in text and "cah_pairs_total 1600\n" in text
    assert 'cah_shards{state="failed"} 1\n' in text


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # the pages are the same on both
def test_the_pages_in_a_browser(tracker, crowd):
    """Earns its seconds: console errors and requests to other hosts are seen only here."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed; type: apt-get install chromium")
    wrong: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme, width in (("light", 1280), ("dark", 390)):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 800}
            )
            page = context.new_page()
            page.set_default_timeout(LIMIT * 1000)
            page.clock.install()
            page.on("console", lambda message: wrong.append(message.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda r: r.url.startswith(tracker) or wrong.append(r.url))
            for path in ("/leaderboard", "/workers", "/stuck", "/"):
                page.goto(tracker + path, wait_until="load")
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (path, wide)
            assert page.locator("polyline.line").count() == 2
            before = page.locator(".tiles b").first.inner_text()
            worker = crowd.register("bob", Kind.HYBRID)[1]
            crowd.complete(worker, crowd.lease(worker).number, Result(pairs=11))
            page.clock.run_for(5000)
            page.locator(".tiles b", has_text=before).wait_for(state="detached")
            context.close()
        browser.close()
    assert wrong == []


def test_a_database_that_goes_away_is_503_and_comes_back(postgres, request):
    from cahlib.tracker.database import Database
    from cahlib.tracker.migrate import migrate

    url = postgres.create("away")
    database = Database(url)
    migrate(database)
    database.close()
    with serving(create(Settings(database=url, limits=ANY, rules=Rules(), fresh=0))) as tracker:
        body = {"nickname": "ann", "kind": "hybrid"}
        secret = ask(tracker, "/v1/workers", body).json["secret"]
        postgres.stop()
        try:
            for path in ("/healthz", "/", "/v1/state"):
                assert ask(tracker, path).status == 503
            answer = ask(tracker, "/v1/lease", {}, secret=secret)
            assert answer.status == 503 and answer.json["detail"].count(".") == 1
            assert answer.headers["retry-after"]
        finally:
            postgres.start()
        until(lambda: ask(tracker, "/healthz").status == 200)
        until(lambda: ask(tracker, "/v1/lease", {}, secret=secret).status == 200)
