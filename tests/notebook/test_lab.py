"""gpucah.ipynb in JupyterLab in a real browser, as a user clicks through it.

It earns its seconds: only here a chart is seen to move, a page is reloaded, and a console speaks.
With PICTURES=1 in the environment the README's pictures of the notebook are made anew.
"""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from cahlib import demo
from cahlib.core.config import replace_settings, settings
from cahlib.dataset.maintain.verify import verify
from cahlib.demo import world
from cahlib.notebook.fields import format_value
from cahlib.notebook.process import RunProcess
from tests.world import lab as labs
from tests.world import notebooks
from tests.world.jobs import LIMIT, until

PICTURES = Path(__file__).parent.parent / "pictures"
TOKEN = "hetzner-secret-token"
#: What the README shows.
WANTED = ("form", "run")
TYPED = ("nickname", "contact")
BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>'
#: Keeps the kernel busy while a run goes on, until the file "idle" is there.
BUSY = (
    "import time, pathlib\n"
    "while panel.process.running() and not pathlib.Path('idle').exists(): time.sleep(0.1)"
)


class Page:
    """A notebook's page in the browser."""

    def __init__(self, page, lab):
        self.page, self.lab, self.wrong = page, lab, []
        page.set_default_timeout(LIMIT * 1000)
        page.on("console", lambda m: m.type == "error" and self.wrong.append(m.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.route(re.compile(r"^https://"), self._badge)

    def _badge(self, route):
        route.fulfill(body=BADGE, content_type="image/svg+xml")

    def open(self):
        self.page.goto(f"{self.lab.url}/lab/tree/{notebooks.NOTEBOOK.name}")
        self.page.wait_for_selector(".jp-Notebook")
        self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        self.hide_files()

    def hide_files(self):
        """Leave the width to the notebook."""
        self.page.get_by_role("tab", name="File Browser").click()
        self.page.locator("#filebrowser").wait_for(state="hidden")

    def run_all(self):
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_text("Run All Cells", exact=True).click()

    def restart_and_run_all(self):
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
        self.page.locator(".jp-Dialog-button.jp-mod-accept").click()

    def save(self):
        path = self.lab.folder / notebooks.NOTEBOOK.name
        before = path.stat().st_mtime_ns

        def saved():
            with suppress(ValueError):  # half of it is written
                return path.stat().st_mtime_ns != before and json.loads(path.read_text())

        self.page.keyboard.press("Control+s")
        until(saved)

    def field(self, label):
        words = re.compile(f"^{label}( \\*)?$")
        box = self.page.locator(".widget-hbox", has=self.page.locator("label", has_text=words))
        return box.last

    def type(self, label, text):
        given = self.field(label).locator("input")
        given.fill(text)
        given.press("Tab")

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def sees(self, text):
        self.page.get_by_text(text).first.wait_for()

    def moves(self):
        """Wait until a chart is another than now."""
        line = ".cah path.line >> nth=0"
        before = self.page.locator(line).get_attribute("d")
        self.page.wait_for_function(
            "before => document.querySelector('.cah path.line')?.getAttribute('d') !== before",
            arg=before,
        )

    def fits(self, name, at):
        """See that the notebook fits, narrow and wide, with something at its top.

        Pictures are taken only where they are asked for.
        """
        for width in (400, 800, 1280):
            self.page.set_viewport_size({"width": width, "height": 1000})
            self._scroll(at)
            wide = self.page.evaluate(
                "[...document.querySelectorAll('.jp-OutputArea-output')].flatMap(output =>"
                "[output.scrollWidth, ...[...output.querySelectorAll('.cah')]"
                ".map(each => each.offsetWidth)].map(width => width - output.clientWidth))"
            )
            assert max(wide) <= 1, (name, width, wide)
            if os.environ.get("PICTURES"):
                self.page.screenshot(path=self.lab.folder / f"notebook-{name}-{width}.png")
        if os.environ.get("PICTURES"):
            to = PICTURES if name in WANTED else self.lab.folder
            outer = self.page.locator(".jp-WindowedPanel-outer")
            outer.screenshot(path=to / f"notebook-{name}.png")

    def _scroll(self, at):
        at.evaluate(
            "element => { const page = element.closest('.jp-WindowedPanel-outer');"
            "const top = each => each.getBoundingClientRect().top;"
            "page.scrollTop += top(element) - top(page) - 8 }"
        )


@pytest.fixture
def page(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed; type: apt-get install chromium")
    with world.build().serve() as web, playwright.sync_playwright() as play:
        with labs.serve(tmp_path, **variables(tmp_path, web)) as lab:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            yield Page(browser.new_page(viewport={"width": 1280, "height": 1000}), lab)
            browser.contexts[0].pages[0].screenshot(path=tmp_path / "last.png")
            browser.close()
    process = RunProcess(tmp_path / "dataset" / "run")
    if process.running():
        process.tear_down("", lambda sentence: None)


def variables(folder, web):
    """The environment that fills the form for the demo's web.

    The crawl is the demo's again and again: the run goes on until Stop, however slow this machine,
    and politely, so that meanwhile there is a view and other tests have the processors.
    """
    crawl, wat = folder / "crawl", world.build().wat
    crawl.mkdir()
    for number in range(200):
        (crawl / f"{number:03}.warc.wat.gz").write_bytes(wat)
    job = replace_settings(
        demo.job("dataset", web), crawl="crawl/*.wat.gz", per_second=8, workers=1
    )
    return {
        f"CAH_{each.name.upper()}": format_value(each, job.values())
        for each in settings()
        if each.of(job) != each.default and each.name not in TYPED
    }


def test_a_user_clicks_through_a_run(page):
    book = page.lab.folder / notebooks.NOTEBOOK.name
    notebooks.copy(page.lab.folder, {}, last=BUSY)
    page.open()
    page.run_all()
    page.field("Nickname").wait_for()
    assert page.page.locator(".cah .bad").count() == 0  # nothing was typed yet
    page.button("Plan").click()
    page.sees("nickname: choose one")
    page.type("Nickname", "ada")
    page.type("Contact", "https://example.org/crawl")
    page.type("Servers", "ten")
    page.sees("'ten' is not a whole number")
    assert page.button("Order servers (Plan first)").is_disabled()
    page.type("Servers", "0")
    page.type("Hetzner token", TOKEN)
    page.sees("found in this field; stored nowhere")
    assert page.field("Hetzner token").locator("input").input_value() == ""
    page.button("Plan").click()
    page.sees("pairs in about")
    page.fits("form", page.field("Nickname"))
    page.button("Start").click()
    page.page.locator(".cah path.line").first.wait_for()
    page.moves()

    page.restart_and_run_all()  # the run goes on without its kernel, and a new one finds it
    page.sees("of 400 shards")
    assert page.button("Start").is_disabled()
    page.sees("Python 3 (ipykernel) | Busy")
    page.moves()
    assert page.page.get_by_text("Python 3 (ipykernel) | Busy").count() == 1
    (page.lab.folder / "idle").touch()
    page.sees(re.compile(r"[1-9]\d* of 400 shards"))
    page.page.locator(".cah figure img").first.wait_for()
    page.fits("run", page.button("Start"))
    page.save()
    page.lab.prefer("apputils-extension/themes", theme="JupyterLab Dark")
    page.page.reload()
    page.sees("of 400 shards")
    page.moves()
    page.fits("dark", page.button("Start"))
    page.button("Stop").click()
    page.sees("was stopped")
    page.sees("To load it")
    report = page.page.frame_locator("iframe[title=report]")
    report.locator("h1").wait_for()
    assert report.locator("body").evaluate("body => getComputedStyle(body).colorScheme") == "dark"
    page.button("Make a zip").click()
    link = page.page.get_by_role("link", name="dataset.zip")
    link.wait_for()
    assert "/files/dataset.zip" in link.get_attribute("href")
    page.fits("results", page.page.get_by_text("To load it").first)
    page.save()
    saved = book.read_text()
    assert TOKEN not in saved and "Traceback" not in saved and "not found" not in saved
    outputs = [o for c in json.loads(saved)["cells"] for o in c.get("outputs", ())]
    assert len(outputs) == 2 and all(o["output_type"] == "display_data" for o in outputs)
    assert list(verify(page.lab.folder / "dataset")) == []
    assert page.wrong == []
