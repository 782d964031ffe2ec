"""From pages to candidates: links to images with a text that may describe them.

Cheap questions come before dear ones, and what repeats is answered once. It knows no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from urllib.parse import urljoin

from cahlib.config import Crawl
from cahlib.records import Candidate, Reason, Stage, Tally
from cahlib.scrape import links, texts
from cahlib.scrape.blocklists import Blocklists
from cahlib.scrape.wat import Page

_LICENCE = re.compile(r"https?://(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/", re.I)


class _Found(NamedTuple):
    """A link that may be a candidate."""

    url: str
    text: str
    source: str


def candidates(
    pages: Iterable[Page], options: Crawl, blocked: Blocklists, tally: Tally
) -> Iterator[Candidate]:
    """The candidates of a shard's pages, in their order; the rest is counted by reason."""
    choose = _Choice(options, blocked)
    position = 0
    for page in pages:
        base, licence = _base(page), "?"
        for n, found in enumerate(_found(page, options)):
            if n == 0:
                licence = _licence(page)
            tally.entered[Stage.CHOOSE] += 1
            chosen = choose(found, base)
            if isinstance(chosen, Reason):
                tally.lost[chosen] += 1
                continue
            tally.left[Stage.CHOOSE] += 1
            url, text, uid = chosen
            yield Candidate(
                uid=uid,
                position=position,
                url=url,
                text=text.text,
                raw_text=text.raw,
                page=page.url,
                licence=licence,
                language=text.language,
                reliable=text.reliable,
                source=found.source,
            )
            position += 1


class _Choice:
    """Decides on links, and remembers which pairs the shard has had."""

    def __init__(self, options: Crawl, blocked: Blocklists) -> None:
        self._options, self._blocked = options, blocked
        self._judge: Callable[[str], texts.Text | Reason] = texts.judge(options)
        self._seen: set[bytes] = set()

    def __call__(self, found: _Found, base: str) -> tuple[str, texts.Text, str] | Reason:
        """Address, text and uid of a candidate, or why a link is none."""
        if not found.text:
            return Reason.NO_TEXT
        if len(found.text) > 10 * self._options.max_text:
            return Reason.LONG_TEXT  # before a megabyte is repaired
        if reason := links.refuse(found.url):
            return reason
        text = self._judge(found.text)
        if isinstance(text, Reason):
            return text
        url = links.absolute(found.url, base, self._options.max_url)
        if isinstance(url, Reason):
            return url
        if self._blocked.domain(url):
            return Reason.BLOCKED_DOMAIN
        digest = hashlib.md5((url + text.text).encode("utf-8", "replace"))
        if digest.digest() in self._seen:
            return Reason.DUPLICATE
        self._seen.add(digest.digest())
        uid = digest.hexdigest()
        return Reason.BLOCKED_PAIR if self._blocked.pair(uid) else (url, text, uid)


def _found(page: Page, options: Crawl) -> Iterator[_Found]:
    """The links of a page that show an image."""
    for link in page.links:
        if link.path == "IMG@/src":
            yield _Found(link.url, link.alt, "alt")
    if options.og_images:
        said = {(meta.property or meta.name).lower(): meta.content for meta in page.metas}
        if image := said.get("og:image"):
            yield _Found(image, said.get("og:description", ""), "og")


def _base(page: Page) -> str:
    """What a page's relative addresses are relative to."""
    try:
        return urljoin(page.url, page.base.strip()) if page.base else page.url
    except ValueError:
        return page.url


def _licence(page: Page) -> str:
    """The page's first link to a Creative Commons licence, else "?"."""
    licences = (link.url for link in page.links if "reativecommons.org" in link.url)
    return next(filter(_LICENCE.match, map(_schemed, licences)), "?")


def _schemed(url: str) -> str:
    return f"https:{url}" if url.startswith("//") else url
