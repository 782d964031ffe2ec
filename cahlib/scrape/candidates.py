"""From pages to candidates: links to images with a text that may describe them.

Cheap questions come before dear ones, and what repeats is answered once. It knows no network.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cahlib.config import Crawl
from cahlib.records import Candidate, OptOut, Reason, Stage, Tally
from cahlib.scrape import links, optout, texts
from cahlib.scrape.blocklists import Blocklists
from cahlib.scrape.wat import Link, Page

#: The path by which an og:image with its og:description goes among the links.
_OPEN_GRAPH = "og:image"

_LICENCE = re.compile(r"https?://(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/", re.I)


def candidates(
    pages: Iterable[Page],
    options: Crawl,
    blocked: Blocklists,
    tally: Tally,
    *,
    consent: str = "strict",
    optouts: list[OptOut] | None = None,
) -> Iterator[Candidate]:
    """The candidates of a shard's pages, in their order; the rest is counted by reason.

    ``optouts`` takes the evidence of pages whose owners refuse, by the profile ``consent``.
    """
    choose = _Choice(options, blocked)
    position = 0
    for page in pages:
        shown = _shown(page, options)
        base = links.Base.of(page.url, page.base)
        answers = [choose(link, base) if link.alt else Reason.NO_TEXT for link in shown]
        if refused := optout.in_page(page.metas, consent) if page.metas else None:
            answers = list(_refused(answers, page, refused, [] if optouts is None else optouts))
        _count(answers, tally)
        licence = ""
        for link, answer in zip(shown, answers, strict=True):
            if isinstance(answer, Reason):
                continue
            licence = licence or _licence(page)
            yield Candidate(
                uid=answer.uid,
                position=position,
                url=answer.url,
                text=answer.text.text,
                raw_text=answer.text.raw,
                page=page.url,
                licence=licence,
                language=answer.text.language,
                reliable=answer.text.reliable,
                source="og" if link.path == _OPEN_GRAPH else "alt",
            )
            position += 1


class _Chosen(NamedTuple):
    """What there is to say of a link that is a candidate."""

    url: str
    text: texts.Text
    uid: str


class _Choice:
    """Decides on links, and remembers which pairs the shard has had."""

    def __init__(self, options: Crawl, blocked: Blocklists) -> None:
        self._most, self._blocked = options.max_url, blocked
        self._judge = texts.judge(options)
        self._seen: set[str] = set()

    def __call__(self, link: Link, base: links.Base) -> _Chosen | Reason:
        """A candidate, or why a link is none; cheap questions come before dear ones."""
        if reason := links.refuse(link.url):
            return reason
        text = self._judge(link.alt)
        if isinstance(text, Reason):
            return text
        url = links.absolute(link.url, base, self._most)
        if isinstance(url, Reason):
            return url
        if reason := self._blocked.address(url):
            return reason
        digest = hashlib.md5((url + text.text).encode("utf-8", "replace"), usedforsecurity=False)
        uid = digest.hexdigest()
        if uid in self._seen:
            return Reason.DUPLICATE
        self._seen.add(uid)
        return Reason.BLOCKED_PAIR if self._blocked.pair(uid) else _Chosen(url, text, uid)


def _shown(page: Page, options: Crawl) -> list[Link]:
    """The links of a page that show an image."""
    shown = [link for link in page.links if link.path == "IMG@/src"]
    if options.og_images:
        said = {(meta.property or meta.name).lower(): meta.content for meta in page.metas[::-1]}
        if image := said.get("og:image"):
            shown.append(Link(_OPEN_GRAPH, image, said.get("og:description", "")))
    return shown


def _count(answers: Sequence[_Chosen | Reason], tally: Tally) -> None:
    lost = [answer for answer in answers if isinstance(answer, Reason)]
    tally.entered[Stage.CHOOSE] += len(answers)
    tally.left[Stage.CHOOSE] += len(answers) - len(lost)
    tally.lost.update(lost)


def _refused(
    answers: Iterable[_Chosen | Reason], page: Page, said: optout.Said, optouts: list[OptOut]
) -> Iterator[Reason]:
    """The answers for a page whose owner refuses, with the evidence for each candidate."""
    for answer in answers:
        if isinstance(answer, Reason):
            yield answer
            continue
        now = time.time()
        optouts.append(OptOut(url=answer.url, where=page.url, time=now, **said._asdict()))
        yield Reason.PAGE_OPTED_OUT


def _licence(page: Page) -> str:
    """The page's first link to a Creative Commons licence, else "?"."""
    licences = (link.url for link in page.links if "reativecommons.org" in link.url)
    return next(filter(_LICENCE.match, map(_schemed, licences)), "?")


def _schemed(url: str) -> str:
    return f"https:{url}" if url.startswith("//") else url
