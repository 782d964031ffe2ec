"""Make README's pictures of the demo's dataset: its report, in two columns, and its page."""

import io
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

from cahlib.browse.server import BrowseSettings, open_browser, serving_page

PICTURE = Path(__file__).parent / "report.png"
PAGE = Path(__file__).parent / "browse.png"
WIDTH, HEIGHT = 900, 1220  #: of a column, in pixels
#: The second column has these sections; the first has the page's beginning.
SECTIONS = "Similarity", "Some kept pairs"
ABOVE = 36  #: pixels above a heading


def main() -> None:
    """Run the demo and replace the pictures."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "demo-dataset"
        line = [
            sys.executable,
            "-m",
            "cahlib.commands.cli",
            "demo",
            "--output",
            str(place),
            "--quiet",
        ]
        subprocess.run(line, check=True)
        page, tops = _seen((place / "report.html").as_uri())
        _browsed(place).quantize(256).save(PAGE, optimize=True)
    picture = Image.new("RGB", (2 * WIDTH, HEIGHT), page.getpixel((0, 0)))
    picture.paste(page.crop((0, 0, WIDTH, HEIGHT)))
    names, y = [*tops], 0
    for name in SECTIONS:
        end = tops[names[names.index(name) + 1]]
        part = page.crop((0, tops[name], WIDTH, end))
        picture.paste(part, (WIDTH, y))
        y += part.height
    picture.quantize(256).save(PICTURE, optimize=True)


def _seen(url: str) -> tuple[Image.Image, dict[str, int]]:
    """Return a page as a browser shows it, and where each of its sections begins."""
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(url)
        page.evaluate(
            "Promise.all([...document.images].map(each => {each.loading = 'eager';"
            "return each.decode()}))"
        )
        tops = {
            each.inner_text(): int(each.evaluate("each => each.getBoundingClientRect().top"))
            - ABOVE
            for each in page.locator("h2").all()
        }
        return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"), tops


def _browsed(place: Path) -> Image.Image:
    """Return what `cah browse` shows of a search by words."""
    settings = BrowseSettings()
    with (
        serving_page(open_browser(str(place), settings), settings) as url,
        sync_playwright() as play,
    ):
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(f"{url}#words=a+dog")
        page.locator("#status", has_text="nearest").wait_for()
        page.locator("#distribution summary").click()
        page.locator("#above img").first.wait_for()
        page.locator("#distribution .sides").evaluate("each => each.remove()")
        page.evaluate("Promise.all([...document.images].slice(0, 15).map(each => each.decode()))")
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


if __name__ == "__main__":
    main()
