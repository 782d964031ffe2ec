"""`cah guide`: the pages of the documentation, in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cahlib.core.terminal import print_note
from cahlib.guide import GUIDES, page_title, read_page, without_comments


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
        import pydoc

        pydoc.pager(page)  # $PAGER, or less; plain text where there is neither
    else:
        print(page, end="")
    return 0
