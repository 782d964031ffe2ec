"""The language of a short caption by the page that shows it, where the caption alone does not tell.

CLD2 knows no language in "red car", "Barack Obama" or the name of a product. What tells more is the
language that the page declares, and that of its other captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from cahlib.records import Reason
from cahlib.scrape import languages, texts
from cahlib.scrape.wat import Page

#: A longer text of which CLD2 knows no language is in none.
_SHORT = 80
#: So many other captions outweigh what a page declares, which is often its template's language.
_ENOUGH = 3
#: The scripts of what is not written in Latin letters; others are.
_SCRIPTS = {
    "Cyrl": "ab ba be bg kk ky mk mn os ru sr tg tt uk", "Arab": "ar ckb fa ks ps sd ug ur",
    "Hebr": "iw yi", "Grek": "el", "Deva": "bh hi mr ne sa", "Beng": "as bn", "Gujr": "gu",
    "Guru": "pa", "Orya": "or", "Taml": "ta", "Telu": "te", "Knda": "kn", "Mlym": "ml",
    "Sinh": "si", "Thai": "th", "Laoo": "lo", "Khmr": "km", "Mymr": "my", "Tibt": "bo dz",
    "Geor": "ka", "Armn": "hy", "Ethi": "am ti", "Thaa": "dv", "Hani": "zh zh-Hant ja ko",
    "Hira": "ja", "Kana": "ja", "Hang": "ko",
}  # fmt: skip
_WRITTEN: dict[str, str] = {}
for _script, _codes in _SCRIPTS.items():
    for _code in _codes.split():
        _WRITTEN[_code] = _WRITTEN.get(_code, "") + rf"\p{{Script={_script}}}"
#: Where pages declare their language, the surest first. Common Crawl's files have the attributes of
#: the html element since December 2024 (https://github.com/commoncrawl/ia-web-commons/pull/41).
_DECLARES = (
    "html@/lang", "html@/xml:lang", "content-language", "og:locale", "language", "dc.language",
    "dcterms.language",
)  # fmt: skip
_LATIN = r"\p{Script=Latn}"
_LETTER = regex.compile(r"\p{L}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageEvidence:
    """What a page tells of the language of its captions."""

    declared: str  #: as CLD2 names it, "" if none is
    votes: Counter[str]  #: captions by their language, where CLD2 is sure

    @classmethod
    def of(cls, page: Page, captions: Iterable[texts.Text | Reason]) -> PageEvidence:
        """Return what a page tells by its elements, its headers and its captions."""
        sure = {each for each in captions if isinstance(each, texts.Text) and each.reliable}
        return cls(declared=_declared(page), votes=Counter(each.language for each in sure))

    def settle(self, text: texts.Text, wanted: languages.Wanted | None) -> texts.Text | Reason:
        """Return a caption with its language, or the reason to drop it."""
        if not text.reliable and len(text.text) <= _SHORT:
            if (language := self.language()) and _may_be(language, text.text):
                text = text._replace(language=language, evidence="page")
        if wanted is None or wanted.takes(text.language, text.text):
            return text
        return Reason.LANGUAGE

    def language(self) -> str:
        """Return the language of the page, "" if its signs differ."""
        total = self.votes.total()
        if total < _ENOUGH:
            agree = not self.declared or total == self.votes[self.declared]
            return self.declared if agree else ""
        first, count = self.votes.most_common(1)[0]
        if 3 * count >= 2 * total:
            return first
        return self.declared if 2 * self.votes[self.declared] >= total else ""


def _may_be(language: str, text: str) -> bool:
    """Return whether nothing in a text speaks against a language: its script, or a guess.

    The guess is asked for English alone, which many pages mix with their own language: of captions
    in others, 2.3 % were taken for English without it, and 0.0 % with it (bench_captions).
    """
    script = regex.compile(rf"[{_WRITTEN.get(language, _LATIN)}]")
    if 2 * len(script.findall(text)) <= len(_LETTER.findall(text)):
        return False
    return language != "en" or texts.guess(text) in ("en", "un")


def _declared(page: Page) -> str:
    """Return the language that a page declares: of its html element, meta elements or headers."""
    said: dict[str, str] = {}
    for meta in page.metas:
        name = (meta.name or meta.property or meta.equiv).strip().lower()
        if meta.content:
            said.setdefault(name, meta.content)
    for name, value in page.headers.items():
        if isinstance(value, str):
            said.setdefault(name.lower(), value)
    return next(
        (code for name in _DECLARES if (code := languages.code(said.get(name, "").strip()))), ""
    )
