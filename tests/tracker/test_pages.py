"""The pages by HTTP and in a real browser, with what a large and hostile community fills them."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import shutil
from contextlib import ExitStack, closing, contextmanager
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import pytest
from sqlalchemy import URL

from cahlib.ledger.database import Database
from cahlib.tracker import rendering
from cahlib.tracker.app import create_app
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import ShardResult, TrackerRules, WorkerKind
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.schema import history
from cahlib.tracker.service import TrackerSettings
from tests.tracker.conftest import Clock
from tests.world import crowded
from tests.world.jobs import LIMIT, until
from tests.world.trackers import ask, serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)
EVIL = "<img src=x onerror=a>"
TITLE = "<Friends> of pictures"
ATOM = "{http://www.w3.org/2005/Atom}"
#: What each page is made of.
PAGES = (
    "/", "/leaderboard", "/leaderboard?last=day&by=scraped", "/leaderboard?last=hour&page=2",
    "/teams", "/team?name=Team%20%3Cb%3EBold%3C/b%3E", "/workers", "/workers?every=1", "/stuck",
    "/worker/hybrid/brave-otter-00001", "/worker/cpu/brave-otter-00004",
)  # fmt: skip


@pytest.fixture
def tracker(database, url, lease_store, fill, clock):
    fill(5)
    secret = lease_store.register(EVIL, WorkerKind.HYBRID)[1]
    for pairs in (700, 900):
        lease_store.complete(secret, lease_store.lease(secret).number, ShardResult(pairs=pairs))
    lease_store.heartbeat(secret, [lease_store.lease(secret).number], "<script>alert(1)</script>")
    for n in range(3):
        failing = lease_store.register(f"f{n}", WorkerKind.HYBRID)[1]
        while lease_store.lease(failing).number != 3:
            pass
        lease_store.fail(failing, 3, "<b>broken</b>")
        lease_store.leave(failing)
    with database.write() as connection:
        same = {"scraped": 0, "workers": 1}
        rows = [
            {"time": int(clock.now) - 300 * n, "done": 20 - n, "pairs": 0} | same for n in range(20)
        ]
        connection.execute(history.insert(), rows)
    with serving(
        create_app(TrackerSettings(database=url, limits=ANY, fresh=0), clock=clock)
    ) as address:
        yield address


@pytest.fixture(scope="module")
def community(tmp_path_factory):
    """A database of 1,000 machines, to be copied."""
    path = tmp_path_factory.mktemp("community") / "tracker.sqlite"
    database = Database(URL.create("sqlite", database=str(path)))
    migrate(database)
    crowded.fill(database, Clock().now)
    database.close()
    return path


@pytest.fixture
def large(community, url, clock):
    """The address of a tracker with that."""
    shutil.copy(community, url.removeprefix("sqlite:///"))
    settings = TrackerSettings(database=url, limits=ANY, fresh=0, live=0.1, title=TITLE)
    with serving(create_app(settings, clock=clock)) as address:
        yield address


def test_pages_escape_what_is_other_peoples_text(tracker, lease_store):
    for path in (
        "/",
        "/leaderboard",
        "/workers",
        "/stuck",
        "/person?name=%3Cimg%20src=x%20onerror=a%3E",
    ):
        answer = ask(tracker, path)
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(r"<(img src=x|script>|b>broken)", answer.text)
    assert "&lt;img src=x onerror=a&gt;" in ask(tracker, "/leaderboard").text
    assert "&lt;b&gt;broken" in ask(tracker, "/stuck").text
    for path in (
        "/worker/hybrid/nobody-1",
        "/person?name=nobody",
        "/team?name=nobody",
        "/badge.svg?name=nobody",
        "/site/..%2fapp.py",
        "/site/nothing.css",
    ):
        assert ask(tracker, path).status == 404, path
    browser = {"Accept": "text/html,*/*;q=0.8"}
    for path, status in (
        ("/person?name=<script>", 404),
        ("/nothing", 404),
        ("/workers?page=0", 400),
    ):
        answer = ask(tracker, path, headers=browser)
        assert answer.status == status and 'href="./site/style' in answer.text
        assert "<h1>Error</h1>" in answer.text and "<bdi><script>" not in answer.text
    for path in ("/leaderboard?page=0", "/workers?page=x", "/person", "/leaderboard?last=year"):
        assert ask(tracker, path).status == 400, path
    assert ask(tracker, "/workers?q=%00%25_\\").status == 200
    for path in ("/person?name=%00", "/workers?page=2", "/leaderboard?page=2"):
        assert ask(tracker, path).status == 404, path


def test_a_community_shows_its_name_and_how_to_join(url, database):
    with serving(create_app(TrackerSettings(database=url, limits=ANY, title=TITLE))) as tracker:
        text = ask(tracker, "/").text
        assert text.count("&lt;Friends&gt; of pictures") == 6 and "<Friends>" not in text
        assert f'--tracker <span data-here="./">{tracker}</span>' in text
        assert 'property="og:title" content="0.00 % done – &lt;Friends&gt;' in text
        badge = ask(tracker, "/badge.svg")
        assert badge.headers["content-type"] == "image/svg+xml"
        shown = ElementTree.fromstring(badge.text)
        assert shown.attrib["aria-label"] == "<Friends> of pictures: 0.0% · 0 pairs"
        feed = ElementTree.fromstring(ask(tracker, "/feed.atom").text)
        assert feed.findtext(f"{ATOM}title") == TITLE and not feed.findall(f"{ATOM}entry")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # the pages are the same on both
def test_a_large_community_is_found_whole(large):
    texts = {path: ask(large, path).text for path in PAGES}
    for path, text in texts.items():
        assert not re.search(r"<(img src=x|b>Bold)", text), path
        for tag, given in tags(text):
            assert not any(name.startswith("on") or name == "style" for name in given), (path, tag)
            assert tag != "script" or "src" in given
            for name in {"href", "src", "action"} & given.keys():
                assert urljoin(large + path, given[name]).startswith(large), (path, given)
    people = re.findall(r'href="(./person[?].*?)"', texts["/leaderboard"])
    assert len(people) == 50
    assert "CC-MAIN-2024-10" in texts["/"] and "Page 2 of" in texts["/leaderboard?last=hour&page=2"]
    for n, name in enumerate(crowded.NAMES):
        by = "scraped" if n % 5 == 4 else "pairs"
        listed = tags(ask(large, f"/leaderboard?by={by}&q={quoted(name)}").text)
        link = f"./person?{rendering.name_query(name)}"
        assert link in [given.get("href") for _, given in listed]
        text = unescape(ask(large, link[1:]).text)
        assert f"<bdi>{name}</bdi>" in text and "brave-otter-" in text
    assert ask(large, "/live", b"").status == 405
    found = ask(large, "/workers?every=1&q=OTTER-0099").text
    assert len(re.findall("otter-0099[0-9]<", found)) == 10 and "10 workers" in found
    assert "No active worker matches" in ask(large, "/workers?q=100%25").text
    assert len(re.findall("<tr><td", ask(large, "/workers?every=1&page=20").text)) == 50
    stuck = [unescape(each) for each in re.findall(r"</b> <bdi>(.*?)</bdi>", texts["/stuck"])]
    assert sorted(stuck) == [
        "… % of the links timed out.",
        "… answers 404.",
        "… is cut off at byte ….",
    ]
    badge = ElementTree.fromstring(ask(large, f"/badge.svg?name={quoted(crowded.NAMES[6])}").text)
    assert re.fullmatch(r"<img.*>: [\d,. M]+ pairs · #\d+", badge.attrib["aria-label"])
    cpu = ask(large, f"/badge.svg?name={quoted(crowded.NAMES[4])}").text
    assert re.search(r">[\d,]+ parcels · #\d+<", cpu)
    assert "by parcels" in ask(large, f"/person?name={quoted(crowded.NAMES[4])}").text
    feed = ElementTree.fromstring(ask(large, "/feed.atom").text)
    ids = [entry.findtext(f"{ATOM}id") for entry in feed.findall(f"{ATOM}entry")]
    assert len(ids) > 5 and len(set(ids)) == len(ids)
    again = ElementTree.fromstring(ask(large, "/feed.atom").text)
    assert [entry.findtext(f"{ATOM}id") for entry in again.findall(f"{ATOM}entry")] == ids


def tags(text):
    """Return the tags of a page, each with its attributes."""
    found = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, given: found.append((tag, dict(given)))
    reader.feed(text)
    return found


def quoted(name):
    return rendering.name_query(name).removeprefix("name=")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_page_is_sent_compressed_and_only_when_it_has_changed(tracker):
    style = re.search(r'href="./(site/style.css.*?)"', ask(tracker, "/").text)[1]
    for path in ("/", f"/{style}", "/feed.atom"):
        plain = ask(tracker, path)
        parts = urlsplit(tracker)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LIMIT)
        connection.request("GET", path, headers={"Accept-Encoding": "br, gzip;q=0.5"})
        packed = connection.getresponse()
        body = packed.read()
        connection.close()
        if len(plain.text) > 1000:
            assert (
                packed.getheader("content-encoding") == "gzip" and len(body) < len(plain.text) / 2
            )
            body = gzip.decompress(body)
        assert body.decode() == plain.text and packed.getheader("vary") == "Accept-Encoding"
        same = ask(tracker, path, headers={"If-None-Match": plain.headers["etag"]})
        assert same.status == 304 and same.text == ""
    assert "immutable" in ask(tracker, f"/{style}").headers["cache-control"]
    none = ask(tracker, "/", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in none.headers


@contextmanager
def watching(tracker):
    """Yield what a page that watches is sent, one event after another."""
    parts = urlsplit(tracker)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LIMIT)
    with closing(connection):
        connection.request("GET", "/live", headers={"Accept": "text/event-stream"})
        with connection.getresponse() as answer:
            assert (answer.status, answer.getheader("content-type")) == (200, "text/event-stream")
            lines = iter(answer.readline, b"")
            yield (json.loads(line[6:]) for line in lines if line.startswith(b"data: "))


def test_who_watches_is_told_of_each_finished_shard_once(url, lease_store, fill, clock):
    fill(5)
    secret = lease_store.register(EVIL, WorkerKind.HYBRID)[1]

    def finish(pairs):
        clock.now += 5
        lease_store.complete(secret, lease_store.lease(secret).number, ShardResult(pairs=pairs))

    finish(10)
    limits = RequestLimits(address=0, worker=0, newcomers=0, streams=2)
    settings = TrackerSettings(database=url, limits=limits, fresh=0, live=0.05)
    with ExitStack() as open_yet:
        with serving(create_app(settings, clock=clock)) as tracker:
            with watching(tracker) as first, watching(tracker) as second:
                assert [one["pairs"] for one in finished(first)["finished"]] == ["10"]
                finish(20)
                said = finished(first)
                assert [(one["who"], one["pairs"]) for one in said["finished"]] == [(EVIL, "20")]
                assert said["finished"][0]["pace"] == "10,800 pairs/h"
                assert said["values"]["texts"]["done"] == "2"
                told: set[str] = set()
                while told != {"10", "20"}:
                    told |= {one["pairs"] for one in next(second)["finished"]}
                refused = ask(tracker, "/live", headers={"Accept": "text/event-stream"})
                assert refused.status == 503 and refused.headers["retry-after"] == "60"
            until(lambda: opened(tracker))
            assert ask(tracker, "/live").status == 406
            third = open_yet.enter_context(watching(tracker))
            finished(third)
        assert list(third) == []  # the server has ended it, and has not waited for its end


def finished(events):
    """Return the next event that tells of a finished shard."""
    return next(event for event in events if event["finished"])


def opened(tracker):
    """Whether one more may watch."""
    try:
        with watching(tracker):
            return True
    except AssertionError:
        return False


def test_prometheus_can_read_the_numbers(tracker):
    text = ask(tracker, "/metrics").text
    assert 'cah_shards{state="done"} 2\n' in text and "cah_pairs_total 1600\n" in text
    assert 'cah_shards{state="failed"} 1\n' in text


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_pages_in_a_browser(large, lease_store, monkeypatch):
    """Earns its seconds: what a browser refuses, asks elsewhere or cannot be read is seen here."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe…")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed; type: apt-get install chromium")
    wrong: list[object] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        some = "/leaderboard", f"/person?name={'W' * 40}"
        each_way = ("light", 1280, some), ("dark", 400, (*some, "/workers", "/stuck"))
        for scheme, width, paths in each_way:
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}
            )
            page = context.new_page()
            page.set_default_timeout(LIMIT * 1000)
            page.on("console", lambda message: wrong.append(message.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda r: r.url.startswith(large) or wrong.append(r.url))
            for path in (*paths, "/"):
                page.goto(large + path, wait_until="load")
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (path, wide)
                if scheme == "light" and path != "/":
                    continue  # of light and dark, only the colours differ: 1 s a table
                for each in axe.Axe().run(page).response["violations"]:
                    wrong.append((path, each["id"], each["nodes"][0]["html"]))
            assert page.locator("polyline.line").count() == 12
            worker = lease_store.register(EVIL, WorkerKind.HYBRID)[1]
            lease_store.complete(
                worker, lease_store.lease(worker).number, ShardResult(pairs=11 + width)
            )
            line = page.locator("[data-feed] li").filter(has_text=f"{11 + width:,} pairs")
            line.wait_for()
            assert line.locator("bdi").inner_text() == EVIL
            context.close()
        browser.close()
    assert wrong == []


def test_a_database_that_goes_away_is_503_and_comes_back(postgres, request):
    from cahlib.ledger.database import Database
    from cahlib.tracker.migrate import migrate

    url = postgres.create("away")
    database = Database(url)
    migrate(database)
    database.close()
    with serving(
        create_app(TrackerSettings(database=url, limits=ANY, rules=TrackerRules(), fresh=0))
    ) as tracker:
        body = {"nickname": "ann", "kind": "hybrid"}
        secret = ask(tracker, "/v1/workers", body).json["secret"]
        postgres.stop()
        try:
            for path in ("/healthz", "/", "/v1/state"):
                assert ask(tracker, path).status == 503
            answer = ask(tracker, "/", headers={"Accept": "text/html"})
            assert answer.status == 503 and "cannot be reached" in answer.text
            assert answer.headers["retry-after"] == "10"
            answer = ask(tracker, "/v1/lease", {}, secret=secret)
            assert answer.status == 503 and answer.json["detail"].count(".") == 1
            assert answer.headers["retry-after"]
        finally:
            postgres.start()
        until(lambda: ask(tracker, "/healthz").status == 200)
        until(lambda: ask(tracker, "/v1/lease", {}, secret=secret).status == 200)
