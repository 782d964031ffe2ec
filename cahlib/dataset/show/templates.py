"""The templates of the pages on a dataset: one frame and style, and pairs with their pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cahlib.core.wording import plural
from cahlib.dataset.manifest import host_name
from cahlib.dataset.show.summary import percentage

#: What marks a page that may be replaced.
GENERATOR = '<meta name="generator" content="cahlib">'

#: Characters of a caption that are shown.
_CAPTION = 300


@cache  # to compile one takes 20 ms, more than to render a small dataset
def page_template(name: str) -> Template:
    """Return the template in a file beside this one."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {
        "plural": plural, "host": host_name, "share": percentage, "caption": _caption,
    }  # fmt: skip
    return pages.get_template(name)


def _caption(text: str) -> str:
    return text if len(text) <= _CAPTION else text[:_CAPTION] + "…"
