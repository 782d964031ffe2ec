"""The language of a short caption by the page that shows it, where the caption alone does not tell.

CLD2 knows no language in "red car", "Barack Obama" or the name of a product. What tells more is the
language that the page declares, and that of its other captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from cahlib.crawl import languages, texts
from cahlib.crawl.wat import Page
from cahlib.records import Reason

#: A longer text of which CLD2 knows no language is in none.
_SHORT = 80
#: Characters of a page's captions that are looked at together, and the percentage of one language.
_MOST, _MAJORITY = 1000, 67
#: The languages of the web's pages but for English, those of 0.1 % and more that are written in
#: Latin letters (https://w3techs.com/technologies/overview/content_language).
_COMMON = frozenset(
    "bs ca cs da de es et fi fr hr hu id it lt lv nl no pl pt ro sk sl sv tr vi".split()
)
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
#: Chinese and Japanese write names of dishes and places alike.
_HAN, _FEW = regex.compile(r"[\p{Han}\P{L}]+"), 8
_LATIN = r"\p{Script=Latn}"
_LETTER = regex.compile(r"\p{L}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLanguage:
    """What a page tells of the language of its captions."""

    language: str  #: as CLD2 names it, "" if its signs differ

    @classmethod
    def of(cls, page: Page, captions: Iterable[texts.Caption | Reason]) -> PageLanguage:
        """Return what a page tells by its elements, its headers and its captions."""
        found = dict.fromkeys(each for each in captions if isinstance(each, texts.Caption))
        votes = Counter(each.language for each in found if each.reliable and _tells(each.text))
        language = _agreed(_declared(page), votes)
        return cls(language=language or _of_all(each.text for each in found))

    def resolve(
        self, text: texts.Caption, wanted: languages.WantedLanguages | None
    ) -> texts.Caption | Reason:
        """Return a caption with its language, or the reason to drop it."""
        if self.language not in ("", text.language) and len(text.text) <= _SHORT:
            if _may_be(self.language, text):
                text = text._replace(language=self.language, reliable=False, evidence="page")
        if wanted is None or wanted.includes(text.language, text.text):
            return text
        return Reason.LANGUAGE


def _agreed(declared: str, votes: Counter[str]) -> str:
    """Return the language in which a page's declaration and its sure captions agree, or ""."""
    total = votes.total()
    if total < _ENOUGH:
        return declared if total == votes[declared] else ""
    first, count = votes.most_common(1)[0]
    if 3 * count >= 2 * total:
        return first
    return declared if 2 * votes[declared] >= total else ""


def _tells(text: str) -> bool:
    """Return whether a text is no few Han characters, of which CLD2 is sure without reason."""
    return len(text) >= _FEW or not _HAN.fullmatch(text)


def _of_all(captions: Iterable[str]) -> str:
    """Return the language of most of a page's captions taken together, "" if CLD2 is not sure."""
    return texts.majority_language(" . ".join(captions)[:_MOST], _MAJORITY)


def _may_be(language: str, text: texts.Caption) -> bool:
    """Return whether nothing in a text speaks against a language: its script, or CLD2.

    Of a few words CLD2 is wrong also where it is sure: then, told the page's language, it says so.
    English is mixed into many pages' own language and takes what CLD2 is not sure of only where
    its guess is none that many pages have: such guesses at names ("Salvador Dali") are noise.
    """
    script = regex.compile(rf"[{_WRITTEN.get(language, _LATIN)}]")
    if 2 * len(script.findall(text.text)) <= len(_LETTER.findall(text.text)):
        return False
    if language != "en":
        return not text.reliable or texts.guess_language(text.text, language) == language
    return (text.language if text.reliable else texts.guess_language(text.text)) not in _COMMON


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
        (code for name in _DECLARES if (code := languages.cld2_code(said.get(name, "").strip()))),
        "",
    )
