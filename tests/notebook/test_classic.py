"""gpucah.ipynb where Colab stands: ipywidgets 7.7.1 and Python 3.11, in a notebook of that time.

The stack is installed apart, which takes a minute: ``make test-classic``.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

from cahlib.demo import world
from tests.notebook.test_lab import TOKEN, variables
from tests.world import lab as labs
from tests.world import notebooks
from tests.world.jobs import LIMIT

PINNED = (
    "notebook==6.5.7", "ipywidgets==7.7.1", "ipykernel==6.17.1", "ipython==7.34.0",
    "tornado==6.5.1", "traitlets==5.7.1",
)  # fmt: skip
STACK = notebooks.ROOT / ".bench" / "classic"

pytestmark = [
    pytest.mark.skipif(not os.environ.get("CLASSIC"), reason="make test-classic runs this."),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def python():
    """A Python with the pinned stack; all else comes from this one."""
    own = STACK / "bin" / "python"
    if not (STACK / "whole").exists():
        shutil.rmtree(STACK, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", STACK], check=True)
        subprocess.run([own, "-m", "pip", "install", "-q", *PINNED, "setuptools<81"], check=True)
        (site,) = STACK.glob("lib/python3*/site-packages")
        (site / "more.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
        (STACK / "whole").touch()
    return own


def test_the_classic_stack(python, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    book = notebooks.copy(tmp_path, {})
    wrong = []
    with world.build().serve() as web, playwright.sync_playwright() as play:
        with labs.serve(tmp_path, classic=python, **variables(tmp_path, web)) as lab:
            browser = play.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(LIMIT * 1000)
            page.route(re.compile("^https://"), lambda route: route.abort())
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(f"{lab.url}/notebooks/{book.name}")
            page.wait_for_function("window.Jupyter?.notebook?.kernel?.is_connected()")
            page.evaluate("Jupyter.notebook.execute_all_cells()")
            nickname = page.locator(".widget-text", has_text="Nickname").locator("input")
            nickname.fill("ada")
            nickname.press("Tab")
            token = page.locator(".widget-password input, input[type=password]").first
            token.fill(TOKEN)
            token.press("Tab")
            page.get_by_text("found in this field").wait_for()
            page.get_by_role("button", name="Start", exact=True).click()
            page.locator(".cah path.line").first.wait_for()
            page.screenshot(path=tmp_path / "classic.png")
            page.get_by_role("button", name="Stop", exact=True).click()
            page.get_by_text("was stopped").wait_for()
            # with the state of all widgets, as Colab saves notebooks
            page.evaluate("Jupyter.menubar.actions.get('widgets:save-with-widgets').handler({})")
            page.get_by_text("Checkpoint created").wait_for()
            browser.close()
    saved = book.read_text()
    assert "widget-state" in saved and "ada" in saved
    assert TOKEN not in saved and "Traceback" not in saved
    assert wrong == []
