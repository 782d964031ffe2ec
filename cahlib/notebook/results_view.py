"""The results of a run: its report, where the dataset is, how to load and how to copy it.

They are shown when the run has ended, with a check that none of its servers is left.
"""

from __future__ import annotations

import glob
import json
import os
import threading
import zipfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, FileLink, display

from cahlib.core.atomic import new_file
from cahlib.core.errors import CahError, RunError
from cahlib.core.run_directory import RunDirectory
from cahlib.notebook.dataset_view import DatasetView
from cahlib.notebook.inputs import accept_messages
from cahlib.notebook.panel import Panel

#: A larger report is only linked: each saved notebook would carry it.
_MOST = 5_000_000

#: How a report is changed for the frame: links open beside the notebook, whose theme it follows. A
#: frame knows the system's theme and not that of its page, but its height, which view.css sets.
_REPORT = {
    "<head>": '<head><base target="_blank">',
    "color-scheme: light dark;": "color-scheme: light;",
    "(prefers-color-scheme: dark) {": "(min-height: 680px) { :root { color-scheme: dark; }",
}

#: Shards that are brought to a URL before the next word of it; one commit where commits count.
_TOGETHER = 20

_TABLE = """import pandas as pd
table = pd.read_parquet({metadata})"""

_PAIRS = """

import webdataset as wds  # pip install webdataset
import glob
pairs = wds.WebDataset(sorted(glob.glob({images})), shardshuffle=False)
pairs = pairs.decode(wds.imagehandler("pil", ["jpg", "png", "webp", "avif"]))
pairs = pairs.to_tuple("jpg;png;webp;avif", "txt")"""


class Results:
    """The content of the last cell: a word that it waits, then the results."""

    def __init__(self, panel: Panel) -> None:
        self._panel, self._was_running = panel, True
        self._taken = threading.Lock()  #: while the dataset is packed or copied
        self.about, self.report, self.servers = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.message = widgets.HTML()
        # for a link, which JupyterLab follows in outputs alone; the classic notebook of ipywidgets
        # 7 has no such widget, and cannot save a notebook that holds one
        new = int(widgets.__version__.partition(".")[0]) >= 8
        self._link: Any = widgets.Output() if new else None
        self.url = widgets.Text(
            placeholder="s3://…, gdrive://…, file:///content/drive/MyDrive/…",
            layout=widgets.Layout(width="26em"),
        )
        self.dataset = DatasetView(lambda: self.folder, panel.runtime.name)
        self.look = widgets.Button(description="Look through it")
        self.look.on_click(lambda _: self._beside(self._alone(self.dataset.open)))
        self.pack = widgets.Button(description="Make a zip")
        self.copy = widgets.Button(description="Copy to this URL")
        self.pack.on_click(lambda _: self._beside(self._alone(self._zip)))
        self.copy.on_click(lambda _: self._beside(self._alone(self._upload)))
        self._taking = widgets.HBox(
            [self.look, self.pack, self.url, self.copy], layout=widgets.Layout(flex_flow="row wrap")
        )
        link: list[Any] = [self._link] if self._link else []
        self.box = widgets.VBox(
            [
                self.servers,
                self.about,
                self._taking,
                self.message,
                *link,
                self.dataset.box,
                self.report,
            ]
        )
        if panel.runtime.widgets:
            accept_messages(self.box)
            panel.beside.append(self.box)
            panel.on_drawing(self._drawn)
            display(self.box)  # type: ignore[no-untyped-call]
        else:
            self._print()

    @property
    def folder(self) -> Path:
        return self._panel.process.home.parent

    def _drawn(self, running: bool) -> None:
        """Show the results once, when the run has come to its end."""
        if running == self._was_running and self.about.value:
            return
        self._was_running = running
        there = not running and (self.folder / "report.html").exists()
        self._taking.layout.display = None if there else "none"
        if not there:
            self.about.value = "The results are shown here as soon as the run has ended."
            self.report.value = self.servers.value = ""
            return
        self.about.value = self._about()
        self.report.value = _framed(self.folder / "report.html")
        if self._panel.process.has_servers:
            self._beside(self._ask)

    def _about(self) -> str:
        return (
            f'<div class="cah"><h4>The dataset</h4>{escape(self._where())} To load it:'
            f"<pre>{escape(self._loading())}</pre></div>"
        )

    def _where(self) -> str:
        output = self._panel.form.fields["output"].text
        return f"It is in {self.folder}" + (f", and at {output}." if "://" in output else ".")

    def _loading(self) -> str:
        """Return the code that loads the dataset from where its files are."""
        place = (self._away() or str(self.folder)).removeprefix("file://")
        code = _TABLE if "://" in place else _TABLE + _PAIRS  # glob knows no URLs
        paths = {"metadata": f"{place}/metadata", "images": f"{glob.escape(place)}/images/*.tar"}
        return code.format_map({name: json.dumps(path) for name, path in paths.items()})

    def _away(self) -> str | None:
        """Return the URL of dataset files that are not in the folder, or None."""
        from cahlib.dataset.manifest import read_manifests

        return next((each.place for each in read_manifests(self.folder) if each.place), None)

    def _here(self) -> None:
        """Raise RunError if the folder does not hold the whole dataset."""
        if away := self._away():
            raise RunError(f"Some shards are at {away} and not here; copy the dataset from there.")

    def _print(self) -> None:
        """Print the results where there are no widgets."""
        if not (self.folder / "report.html").exists():
            print("There are no results.")
            return
        print(f"{self._where()} To load it:\n\n{self._loading()}")
        if self._panel.process.has_servers:
            print(self._remaining())
        display(HTML(_framed(self.folder / "report.html")))  # type: ignore[no-untyped-call]

    def _ask(self) -> None:
        self.servers.value = f'<div class="cah">{escape(self._remaining())}</div>'

    def _remaining(self) -> str:
        """Return a sentence on whether the cloud still lists servers of the run."""
        from cahlib.run.scrapers import cloud_accounts
        from cahlib.swarm import lifecycle

        try:
            left = lifecycle.run_servers(
                cloud_accounts(self._panel.form.token), self._panel.process.home / "swarm"
            )
        except CahError as error:
            return f"Whether every server is gone could not be asked: {error}"
        if not left:
            return "Every server of this run is gone: the cloud lists none."
        names = ", ".join(each.name for each in left)
        return f"These servers are still there and cost money: {names}. Press “Tear down now”."

    def _zip(self) -> str:
        """Pack the dataset beside it; one that was packed before is replaced."""
        self._here()
        path = self.folder.with_name(f"{self.folder.name}.zip")
        self._say(f"Writing {path} …")
        with new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for each in sorted(self.folder.rglob("*")):
                within = each.relative_to(self.folder)
                if each.is_file() and not RunDirectory().holds(within):
                    archive.write(each, Path(self.folder.name) / within)
        if self._link:
            link: Any = FileLink(os.path.relpath(path))  # type: ignore[no-untyped-call]
            self._link.outputs = ()
            self._link.append_display_data(link)
        return f"{path}: {path.stat().st_size / 1e6:,.1f} MB."

    def _upload(self) -> str:
        from cahlib.dataset.manifest import read_manifests
        from cahlib.dataset.storage.upload import check_destination, upload_pages, upload_shards

        url = self.url.value.strip()
        if "://" not in url:
            raise RunError("Give a URL, such as s3://bucket/name or file:///folder.")
        self._here()
        check_destination(url, self.folder)
        shards = list(read_manifests(self.folder))
        for start in range(0, len(shards), _TOGETHER):
            self._say(f"Shard {start + 1} …")
            upload_shards(shards[start : start + _TOGETHER], self.folder, url)
        upload_pages(self.folder, url)
        return f"The dataset is at {url}, and was checked there."

    def _alone(self, action: Callable[[], str]) -> Callable[[], None]:
        """Return the action for one click at a time: two would write the same files.

        What it returns is said when the next click is welcome.
        """

        def alone() -> None:
            if not self._taken.acquire(blocking=False):
                raise RunError("The dataset is being packed or copied; wait until that is done.")
            try:
                sentence = action()
            finally:
                self._taken.release()
            self._say(sentence)

        return alone

    def _beside(self, action: Callable[[], None]) -> None:
        """Do something in a thread, and show what is wrong."""

        def work() -> None:
            try:
                action()
            except (CahError, OSError) as error:
                self._say(str(error), bad=True)

        threading.Thread(target=work, daemon=True).start()

    def _say(self, sentence: str, *, bad: bool = False) -> None:
        look = " bad" if bad else ""
        self.message.value = f'<div class="cah"><div class="{look}">{escape(sentence)}</div></div>'


def _framed(path: Path) -> Any:
    """Return a report in a frame of its own, which runs nothing and opens links beside itself."""
    if path.stat().st_size > _MOST:
        return f"<p>The report is in {escape(str(path))}.</p>"
    page = path.read_text(encoding="utf-8")
    for before, after in _REPORT.items():
        page = page.replace(before, after)
    page = escape(page)
    return (
        '<div class="cah"><iframe title="report" srcdoc="' + page + '" sandbox="allow-popups '
        'allow-popups-to-escape-sandbox"></iframe></div>'
    )
