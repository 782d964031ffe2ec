"""`cah guide`: the pages of the documentation, in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from cahlib.core.terminal import print_note
from cahlib.guide import GUIDES, page_title, read_page, without_comments

_WIDTH = 100  #: columns of a page; longer lines are tiring to read


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "guide",
        help="read the documentation",
        description="List the pages of the documentation, or show one.",
        example="cah guide first-dataset",
    )
    parser.add_argument(
        "topic", nargs="?", choices=GUIDES, metavar="TOPIC", help=f"one of {', '.join(GUIDES)}"
    )
    parser.set_defaults(act=_guide)


def _guide(chosen: argparse.Namespace) -> int:
    if not chosen.topic:
        for topic in GUIDES:
            print(f"{topic:<16} {page_title(topic)}")
        print_note("\n`cah guide TOPIC` shows a page.")
        return 0
    page = without_comments(read_page(chosen.topic))
    if sys.stdout.isatty():
        _show(page)
    else:
        print(page, end="")
    return 0


def _show(page: str) -> None:
    """Render a page, and show it by $PAGER, or less; at once where there is neither."""
    from rich.console import Console
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-R")  # else it would show the codes of colours
    console = Console()
    with console.pager(styles=True):
        console.print(Markdown(page, hyperlinks=False), width=min(console.width, _WIDTH))
