"""The language of captions too short to show it, from the page around them.

CLD2 detects no language in "red car", "Barack Obama" or the name of a product. Better evidence is
the language that the page declares, and that of its other captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from cahlib.core.records import DropReason
from cahlib.crawl import languages, texts
from cahlib.crawl.wat import Page

#: Characters; a longer text in which CLD2 detects no language has none.
_MAX_SHORT_CAPTION = 80
#: Characters of a page's captions examined together, and the percentage that is a majority.
_MAX_CHARACTERS, _MAJORITY = 1000, 67
#: The languages other than English of at least 0.1 % of the web's pages, written in Latin letters (https://w3techs.com/technologies/overview/content_language).
_COMMON_LANGUAGES = frozenset(
    "bs ca cs da de es et fi fr hr hu id it lt lv nl no pl pt ro sk sl sv tr vi".split()
)
#: This many other captions outweigh what a page declares, which is often its template's language.
_MIN_VOTES = 3
#: Scripts of the languages that are not written in Latin letters.
_SCRIPTS = {
    "Cyrl": "ab ba be bg kk ky mk mn os ru sr tg tt uk", "Arab": "ar ckb fa ks ps sd ug ur",
    "Hebr": "iw yi", "Grek": "el", "Deva": "bh hi mr ne sa", "Beng": "as bn", "Gujr": "gu",
    "Guru": "pa", "Orya": "or", "Taml": "ta", "Telu": "te", "Knda": "kn", "Mlym": "ml",
    "Sinh": "si", "Thai": "th", "Laoo": "lo", "Khmr": "km", "Mymr": "my", "Tibt": "bo dz",
    "Geor": "ka", "Armn": "hy", "Ethi": "am ti", "Thaa": "dv", "Hani": "zh zh-Hant ja ko",
    "Hira": "ja", "Kana": "ja", "Hang": "ko",
}  # fmt: skip
_SCRIPT_PATTERNS: dict[str, str] = {}
for _script, _codes in _SCRIPTS.items():
    for _code in _codes.split():
        _SCRIPT_PATTERNS[_code] = _SCRIPT_PATTERNS.get(_code, "") + rf"\p{{Script={_script}}}"
#: Where pages declare their language, the most reliable first. Common Crawl's files have the
#: attributes of the html element since December 2024 (https://github.com/commoncrawl/ia-web-commons/pull/41).
_DECLARATIONS = (
    "html@/lang", "html@/xml:lang", "content-language", "og:locale", "language", "dc.language",
    "dcterms.language",
)  # fmt: skip
#: Chinese and Japanese write names of dishes and places the same way.
_HAN, _MIN_HAN = regex.compile(r"[\p{Han}\P{L}]+"), 8
_LATIN = r"\p{Script=Latn}"
_LETTER = regex.compile(r"\p{L}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLanguage:
    """The language of a page's captions."""

    language: str  #: CLD2's code, "" if the evidence conflicts

    @classmethod
    def of(cls, page: Page, captions: Iterable[texts.Caption | DropReason]) -> PageLanguage:
        """Return the language that a page's elements, headers and captions show."""
        found = dict.fromkeys(each for each in captions if isinstance(each, texts.Caption))
        votes = Counter(each.language for each in found if each.reliable and _is_telling(each.text))
        language = _agreed(_declared(page), votes)
        return cls(language=language or _majority(each.text for each in found))

    def resolve(
        self, text: texts.Caption, wanted: languages.WantedLanguages | None
    ) -> texts.Caption | DropReason:
        """Return a caption with its final language, or the reason to drop it."""
        if self.language not in ("", text.language) and len(text.text) <= _MAX_SHORT_CAPTION:
            if _is_plausible(self.language, text):
                text = text._replace(language=self.language, reliable=False, evidence="page")
        if wanted is None or wanted.includes(text.language, text.text):
            return text
        return DropReason.LANGUAGE


def _agreed(declared: str, votes: Counter[str]) -> str:
    """Return the language on which a page's declaration and reliable captions agree, or ""."""
    total = votes.total()
    if total < _MIN_VOTES:
        return declared if total == votes[declared] else ""
    first, count = votes.most_common(1)[0]
    if 3 * count >= 2 * total:
        return first
    return declared if 2 * votes[declared] >= total else ""


def _is_telling(text: str) -> bool:
    """Return whether CLD2 can be trusted: it is overconfident about a few Han characters."""
    return len(text) >= _MIN_HAN or not _HAN.fullmatch(text)


def _majority(captions: Iterable[str]) -> str:
    """Return the majority language of a page's captions together, "" if CLD2 is not sure."""
    return texts.majority_language(" . ".join(captions)[:_MAX_CHARACTERS], _MAJORITY)


def _is_plausible(language: str, text: texts.Caption) -> bool:
    """Return whether neither the script of a text nor CLD2 contradicts a language.

    CLD2 can be confidently wrong about a few words; given the page's language as a hint, it
    corrects itself. English is mixed into many pages in other languages, so it is assumed only if
    CLD2 is unsure and its guess is not a common language: rare guesses at names ("Salvador Dali")
    are noise.
    """
    script = regex.compile(rf"[{_SCRIPT_PATTERNS.get(language, _LATIN)}]")
    if 2 * len(script.findall(text.text)) <= len(_LETTER.findall(text.text)):
        return False
    if language != "en":
        return not text.reliable or texts.guess_language(text.text, language) == language
    likely = text.language if text.reliable else texts.guess_language(text.text)
    return likely not in _COMMON_LANGUAGES


def _declared(page: Page) -> str:
    """Return the language that a page declares in its html element, meta elements or headers."""
    said: dict[str, str] = {}
    for meta in page.metas:
        name = (meta.name or meta.property or meta.equiv).strip().lower()
        if meta.content:
            said.setdefault(name, meta.content)
    for name, value in page.headers.items():
        if isinstance(value, str):
            said.setdefault(name.lower(), value)
    codes = (languages.cld2_code(said.get(name, "").strip()) for name in _DECLARATIONS)
    return next(filter(None, codes), "")
