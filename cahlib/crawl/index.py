"""The names of Common Crawl's crawls, newest first, from its own list."""

from __future__ import annotations

import json
import urllib.request

INDEX_URL = "https://index.commoncrawl.org/collinfo.json"

#: Seconds; without an answer, a name can still be typed.
_TIMEOUT = 10.0

#: The first crawl that has WAT files.
_FIRST = "CC-MAIN-2013-20"


def crawl_names(url: str = INDEX_URL) -> list[str]:
    """Return the names of the crawls, or an empty list if the server does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            found = [str(each["id"]) for each in json.loads(answer.read())]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in found if name.startswith("CC-MAIN-") and name >= _FIRST]
