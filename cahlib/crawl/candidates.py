"""From pages to candidates: links to images with a text that may describe them.

Cheap checks come first, and repeated ones are cached. Nothing here uses the network.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator

from cahlib.core.config import Crawl
from cahlib.core.records import Candidate, DropReason, OptOut, Stage, Stats
from cahlib.crawl import languages, page_opt_outs, texts
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.caption_rules import CaptionRules
from cahlib.crawl.page_language import PageLanguage
from cahlib.crawl.wat import BARE_LINK, TABLE_LINK, Link, Page
from cahlib.fetch import links, opt_outs

#: The path that an og:image with its og:description gets among the links.
_OPEN_GRAPH = "og:image"

#: What a candidate's source is called, by the path of its link.
_SOURCES = {"IMG@/src": "alt", _OPEN_GRAPH: "og", TABLE_LINK: "table", BARE_LINK: "table"}

#: The paths of links that show an image.
_SHOWN = frozenset({"IMG@/src", TABLE_LINK, BARE_LINK})

#: The text of a link without one.
_NO_CAPTION = texts.Caption("", None, "un", False)

#: Longest URL that is stored with each sample of a page: the page's own, its licence's.
_MAX_STORED_URL = 2000

_LICENCE = re.compile(r"https?://(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/", re.I)


def check_link_rules(options: Crawl) -> None:
    """Raise ConfigError for settings, or files that they name, which cannot be used."""
    languages.wanted_languages(options)
    Blocklists.load(options)
    CaptionRules.load(options)


def find_candidates(
    pages: Iterable[Page],
    options: Crawl,
    blocked: Blocklists,
    stats: Stats,
    *,
    consent: str = "strict",
    optouts: list[OptOut] | None = None,
) -> Iterator[Candidate]:
    """Yield the candidates of a shard's pages, in order; count the rest by reason.

    ``optouts`` receives the evidence of pages that opt out, whether or not the profile ``consent``
    honours it.
    """
    link_filter = _LinkFilter(options, blocked)
    dropped, left = stats.dropped, stats.left
    position = 0
    for page in pages:
        shown = _image_links(page, options)
        base = links.BaseUrl.of(page.url, page.base)
        refused = page_opt_outs.page_opt_out(page)
        obeyed = refused is not None and refused.signal in opt_outs.HONOURED[consent]
        licence = ""
        stats.entered[Stage.CHOOSE] += len(shown)
        if len(page.url) > _MAX_STORED_URL:
            dropped[DropReason.LONG_URL] += len(shown)
            continue
        with_text = [link for link in shown if link.alt or link.path == BARE_LINK]
        dropped[DropReason.NO_TEXT] += len(shown) - len(with_text)
        link_filter.set_page(page, with_text)
        for link in with_text:
            answer = link_filter(link, base)
            if not isinstance(answer, tuple):
                dropped[answer] += 1
                continue
            url, text, uid = answer
            if refused and optouts is not None:
                said = {**refused._asdict(), "obeyed": obeyed}
                optouts.append(OptOut(url=url, where=page.url, time=time.time(), **said))
            if obeyed:
                dropped[DropReason.PAGE_OPTED_OUT] += 1
                continue
            licence = licence or _licence(page)
            left[Stage.CHOOSE] += 1
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
                language_evidence=text.evidence,
                source=_SOURCES[link.path],
                extra=page.extra,
            )
            position += 1


class _LinkFilter:
    """Decides on links, and remembers which pairs the shard has had already."""

    def __init__(self, options: Crawl, blocked: Blocklists) -> None:
        self._max_url, self._blocked = options.max_url, blocked
        self._caption_filter = texts.caption_filter(options)
        self._rules = CaptionRules.load(options)
        self._wanted = languages.wanted_languages(options)
        self._uses_page = options.language_evidence == "page"
        self._page_language: PageLanguage | None = None
        self._seen: set[str] = set()

    def set_page(self, page: Page, links: list[Link]) -> None:
        """Determine the language of a page's captions, if the options ask for that."""
        if self._uses_page:
            self._page_language = PageLanguage.of(
                page, (self._caption_filter(link.alt) for link in links)
            )

    def __call__(
        self, link: Link, base: links.BaseUrl
    ) -> tuple[str, texts.Caption, str] | DropReason:
        """Return a candidate's URL, text and uid, or the reason to drop the link."""
        if reason := links.link_drop_reason(link.url):
            return reason
        text = self._caption(link)
        if not isinstance(text, texts.Caption):
            return text
        if reason := self._rules.drop_reason(text.text):
            return reason
        url = links.absolute_url(link.url, base, self._max_url)
        if not isinstance(url, str):
            return url
        if reason := self._blocked.url_drop_reason(url):
            return reason
        digest = hashlib.md5((url + text.text).encode("utf-8", "replace"), usedforsecurity=False)
        uid = digest.hexdigest()
        if uid in self._seen:
            return DropReason.DUPLICATE
        self._seen.add(uid)
        return DropReason.BLOCKED_PAIR if self._blocked.has_pair(uid) else (url, text, uid)

    def _caption(self, link: Link) -> texts.Caption | DropReason:
        """Return the text of a link, or the reason to drop it."""
        if link.path == BARE_LINK:
            return _NO_CAPTION
        text = self._caption_filter(link.alt)
        if self._page_language and isinstance(text, texts.Caption):
            return self._page_language.resolve(text, self._wanted)
        return text


def _image_links(page: Page, options: Crawl) -> list[Link]:
    """Return the links of a page that show an image."""
    shown = [link for link in page.links if link.path in _SHOWN]
    if options.og_images:
        said = {(meta.property or meta.name).lower(): meta.content for meta in page.metas[::-1]}
        # three names for the same picture; a page that has several counts once
        names = ("og:image", "og:image:secure_url", "og:image:url")
        if image := next((said[name] for name in names if said.get(name)), ""):
            shown.append(Link(_OPEN_GRAPH, image, said.get("og:description", "")))
    return shown


def _licence(page: Page) -> str:
    """Return the page's first link to a Creative Commons licence, or "?"."""
    linked = (link.url for link in page.links if "reativecommons.org" in link.url)
    linked = (f"https:{url}" if url.startswith("//") else url for url in linked)
    return next((url for url in linked if len(url) <= _MAX_STORED_URL and _LICENCE.match(url)), "?")
