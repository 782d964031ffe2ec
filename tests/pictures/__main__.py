"""Make README's picture of a report: parts of the demo's, in two columns."""

import io
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "report.png"
WIDTH, HEIGHT = 900, 1220  #: of a column, in pixels
#: The second column has these sections; the first has the page's beginning.
SECTIONS = "Similarity", "Some kept pairs"
ABOVE = 36  #: pixels above a heading


def main() -> None:
    """Run the demo and replace the picture."""
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


if __name__ == "__main__":
    main()
