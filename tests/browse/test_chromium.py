"""The page in a real browser, clicked through, on the demo's dataset and on a hostile one."""

import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cahlib.commands.cli import main
from tests.browse.conftest import EVIL
from tests.world.jobs import LIMIT


@pytest.fixture(scope="module")
def chromium():
    """A browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed; type: apt-get install chromium")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Window:
    """A window on a page, and what went wrong in it."""

    def __init__(self, chromium, address, scheme="light", width=1280):
        self.wrong = []
        context = chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        self.page = context.new_page()
        self.page.set_default_timeout(LIMIT * 1000)
        origin = address.partition("/?")[0]
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("request", lambda r: r.url.startswith(origin) or self.wrong.append(r.url))
        self.page.goto(address)
        self.cards.first.wait_for()

    @property
    def cards(self):
        return self.page.locator("#pairs > li")

    def status(self, text):
        """Wait until the status has this text."""
        self.page.locator("#status", has_text=text).wait_for()

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)


def test_a_user_clicks_through(chromium, serve, dataset, capsys):
    page = serve(dataset)
    window = Window(chromium, page.address)
    on = window.page
    assert "token" not in on.url and window.cards.count() == 48
    window.button("Next").click()
    on.locator("#at", has_text="Page 2 of 2").wait_for()
    window.cards.nth(12).wait_for(state="detached")
    on.go_back()
    on.locator("#at", has_text="Page 1 of 2").wait_for()

    on.fill("#where", "similarity > 0.5")
    window.button("Apply").click()
    window.status("of 60 match the filter")
    few = int(on.locator("#status").inner_text().split()[0])
    assert 0 < few < 48 and window.cards.count() == few
    on.fill("#where", "similarty > 0.5")
    window.button("Apply").click()
    on.get_by_role("alert").filter(has_text="did you mean similarity?").wait_for()
    assert [each for each in window.wrong if "400" not in each] == []
    window.wrong.clear()  # the console tells of each answer 400
    window.button("All pairs again").click()
    window.status("60 pairs")

    on.locator("#distribution summary").click()
    on.locator("#split", has_text="stay").wait_for()
    on.locator("#above > li").first.wait_for()
    on.locator("#cut").press("Home")
    on.locator("#split", has_text="60 stay, 0 fall").wait_for()
    on.locator("#cut").press("End")
    on.locator("#split", has_text="1 stay, 59 fall").wait_for()
    on.locator("#below > li").nth(5).wait_for()
    on.locator("#cut").press("PageDown")
    window.button("Filter by this cut").click()
    window.status("match the filter")
    assert "similarity >= 0.5" in on.input_value("#where")
    on.locator("#distribution summary").click()
    window.button("All pairs again").click()
    window.status("60 pairs")

    window.cards.nth(5).get_by_role("button", name="Look-alikes").click()
    window.status("most alike")
    assert window.cards.first.locator("b").first.inner_text() == "1.000"
    window.cards.first.get_by_role("button", name="Mark").click()
    on.locator("li.marked").wait_for()
    window.cards.nth(1).locator(".shot").focus()
    on.keyboard.press("m")
    on.locator("li.marked").nth(1).wait_for()
    on.locator("#marks summary").click()
    on.locator("#marked", has_text="2").wait_for()
    command = on.locator("#purge").inner_text()
    with on.expect_download() as download:
        on.locator("#purge-list").click()
    assert download.value.path().read_text().count("\n") == 3
    assert window.wrong == []

    capsys.readouterr()
    assert main(command.split()[1:]) == 0
    assert "Removed 2 pairs" in capsys.readouterr().out
    window.button("Reload the dataset").click()
    window.status("58 pairs")
    assert window.wrong == []


def test_hostile_pairs_are_text_and_unsafe_ones_are_blurred(chromium, page):
    window = Window(chromium, page.address)
    on = window.page
    evil = window.cards.nth(27)
    assert evil.locator("q").text_content() == EVIL
    assert evil.locator("a").count() == 0 and window.cards.nth(28).locator("a").count() == 0
    evil.locator(".shot").click()
    assert on.locator("#title").text_content() == EVIL
    on.locator("#columns tr").nth(20).wait_for()
    assert on.locator("#columns a").count() == 1  # the URL of the image; its page is no link
    on.keyboard.press("Escape")
    unsafe = window.cards.nth(29)
    assert "NSFW: show" in unsafe.inner_text() and unsafe.locator(".veiled").count() == 1
    assert "blur" in unsafe.locator("img").evaluate("each => getComputedStyle(each).filter")
    unsafe.locator(".shot").click()
    unsafe.locator(".veiled").wait_for(state="detached")
    assert not on.locator("dialog").is_visible()
    assert window.wrong == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_the_page_suits_each_window_and_everybody(chromium, page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe…")
    window = Window(chromium, f"{page.address}#where=position > 26", scheme, width)
    on = window.page
    on.locator("#distribution summary").click()
    on.locator("#marks summary").click()
    on.locator("#dropped summary").click()
    on.locator("#candidates tr").first.wait_for()
    on.locator("#below > li").first.wait_for()
    for each in (width, 800):
        on.set_viewport_size({"width": each, "height": 900})
        assert on.evaluate("document.documentElement.scrollWidth") <= each
    on.set_viewport_size({"width": width, "height": 900})
    found = axe.Axe().run(on).response["violations"]
    window.cards.first.locator(".shot").click()
    on.locator("dialog").wait_for()
    found += axe.Axe().run(on).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    assert window.wrong == []


def test_a_notebook_shows_the_page_in_a_frame(chromium, serve, dataset):
    """The notebook is another site, so that the page's cookie is not sent."""
    page = serve(dataset, framed=True)
    html = f'<!doctype html><title>n</title><iframe src="{page.address}" width=900 height=700>'

    class Notebook(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Notebook) as notebook:
        thread = threading.Thread(target=notebook.serve_forever)
        thread.start()
        try:
            tab = chromium.new_context().new_page()
            tab.set_default_timeout(LIMIT * 1000)
            wrong = []
            tab.on("console", lambda message: wrong.append(message.text))
            tab.goto(f"http://localhost:{notebook.server_port}/")
            frame = tab.frame_locator("iframe")
            frame.locator("#pairs > li").nth(47).wait_for()
            image = frame.locator("#pairs img").first
            image.evaluate("each => each.decode()")
            frame.locator("#pairs > li").nth(1).get_by_role("button", name="Mark").click()
            frame.locator("li.marked").wait_for()
            assert "token" in frame.locator("#purge-list").get_attribute("href") or wrong
            assert wrong == []
        finally:
            notebook.shutdown()
            thread.join()
