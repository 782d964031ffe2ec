"""The guides: pages of the documentation in Markdown, which are installed with the package."""

from __future__ import annotations

import re
from importlib.resources import files

#: The pages, in the order in which they are listed and best read.
GUIDES = (
    "first-dataset", "links", "notebook", "swarm", "kaggle", "tracker", "dask", "models",
    "choosing", "browse", "reading", "maintenance", "consent", "troubleshooting", "options",
    "formats", "tracker-api", "performance", "architecture", "contributing", "changelog",
)  # fmt: skip


def read_page(topic: str) -> str:
    """Return a page as it is stored, in Markdown."""
    return files(__name__).joinpath(f"{topic}.md").read_text(encoding="utf-8")


def page_title(topic: str) -> str:
    """Return the title of a page: its first line."""
    return read_page(topic).partition("\n")[0].removeprefix("# ")


def without_comments(page: str) -> str:
    """Return a page without its HTML comments, which mark what is generated."""
    return re.sub(r"<!--.*?-->\n?", "", page, flags=re.DOTALL)
