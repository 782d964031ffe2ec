"""`cah browse`: a page on this machine to look through a dataset."""

from __future__ import annotations

import argparse
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cahlib.core.signals import handle_termination
from cahlib.core.terminal import print_note


def add(commands: Any) -> None:
    """Add the command."""
    browse = commands.add_parser(
        "browse",
        help="look through a dataset in the browser: filter, search, mark",
        description="Serve a page on this machine that shows a dataset: filter, sort and search "
        "its pairs, see\nwhat a threshold would drop, and mark pairs for `cah purge`. The dataset "
        "is only read, be a\nrun working on it or not. Ctrl-C ends it.",
        example="cah browse demo-dataset",
    )
    browse.add_dataset()
    option = browse.add_argument
    option("--port", type=int, default=0, metavar="N", help="port to listen on; 0 = any [0]")
    option(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="address to listen on; others than loopback let other machines in [127.0.0.1]",
    )  # fmt: skip
    option(
        "--index", action="store_true",
        help="first make an index for searches in more than some million pairs (run/search)",
    )  # fmt: skip
    option("--open", action="store_true", help="open the page in a browser")
    option(
        "--marks", default="", metavar="FILE",
        help="file of the marked pairs [run/marks.txt in the dataset's folder]",
    )  # fmt: skip
    option(
        "--model", default="", metavar="MODEL",
        help="the model to search by, if the dataset has vectors by several, or where its own is: "
        "a preset, MODEL/WEIGHTS or a folder",
    )  # fmt: skip
    option("--pretrained", default="", metavar="WEIGHTS", help="that model's weights")
    browse.set_defaults(act=_browse, extra="query")


def _browse(chosen: argparse.Namespace) -> int:
    from cahlib.browse.server import BrowseSettings, open_browser, serving_page

    settings = BrowseSettings(
        host=chosen.host, port=chosen.port, marks=chosen.marks, model=chosen.model,
        pretrained=chosen.pretrained,
    )  # fmt: skip
    browser = open_browser(chosen.dataset, settings)
    if chosen.index:
        browser.dataset.make_index(print_note)
    with _until_ended() as ended, serving_page(browser, settings) as address:
        print(address, flush=True)
        print_note("Open this address in a browser; Ctrl-C ends it.")
        if chosen.open:
            webbrowser.open(address)
        ended.wait()
    return 0


@contextmanager
def _until_ended() -> Iterator[threading.Event]:
    """Provide an event that Ctrl-C or another signal to end sets; a second one interrupts."""
    ended = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    with handle_termination(on_signal):
        yield ended
