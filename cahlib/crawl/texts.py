"""Filter alt texts: a caption is long enough, has words, and is in a wanted language."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import ftfy
import pycld2
import regex
from ftfy import fixes

from cahlib.core.config import Crawl
from cahlib.core.records import DropReason
from cahlib.crawl import languages
from cahlib.crawl.personal import mask_personal_data

#: Results cached, and the longest text cached: 8 MiB, or 30 if all are emoji.
_CACHE_SIZE, _MAX_CACHED = 20_000, 200

#: Texts in which ftfy would change quotes at most (checked by test), so that it can be skipped: it
#: takes 15 to 40 µs. It looks for adjacent characters that are typical of mojibake and for
#: entities like "&amp;"; these texts have ASCII without ";", letters of other scripts, and signs
#: and Latin letters (not Â and Ã) between ASCII.
_ASCII = " -:<-~"
_SCRIPTS = "ЁёА-я\u3001\u3002\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
_SIGNS = "ÀÁÄ-ÖØ-öø-ÿ–—‘’“”…•·©®™°£€"
_PLAIN = re.compile(
    f"[{_ASCII}{_SCRIPTS}]*(?:(?<![{_SCRIPTS}])[{_SIGNS}](?=[{_ASCII}]|\\Z)[{_ASCII}{_SCRIPTS}]*)*"
)
_CURLY_QUOTES = re.compile("[\u02bc\u2018-\u201f]")  # quotes that ftfy straightens
_WHITE_SPACE = re.compile(r"[\t\n\v\f\r]+")
#: Unicode's noncharacters: these, and the last two code points of each plane.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    f"{chr(last - 1)}{chr(last)}" for last in range(0xFFFF, 0x110000, 0x10000)
)
#: Removed: controls, surrogates, noncharacters (CLD2 rejects them), and private use, which only a
#: page's own font can show. Listed by code point, as `str.isprintable` differs between versions of
#: Python.
_FORBIDDEN = re.compile(
    rf"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff{_NONCHARACTERS}\U000f0000-\U0010ffff]"
)
#: Invisible, removed as well: they change the text direction, split words, hide text (tags, except
#: those behind a black flag, which make up another flag) or fill space. Joiners stay between
#: letters of scripts that need them, and between emoji.
_INVISIBLE = regex.compile(
    "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb]"
    "|(?<!\U0001f3f4[\U000e0020-\U000e007e]{0,8})[\U000e0000-\U000e0fff]"
    r"|(?<![^\p{Latin}\p{Z}\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\p{Latin}\p{Z}\x00-\x7f])"
)
#: HTML elements: inline tags are removed, others become a space.
_ELEMENTS = (
    ("", "a|abbr|b|big|cite|code|del|em|font|i|ins|mark|nobr|q|s|small|span|strike|strong|sub|sup"
         "|tt|u|wbr"),
    (" ", "address|article|aside|audio|blockquote|br|button|caption|center|dd|div|dl|dt|embed"
          "|figcaption|figure|footer|form|h[1-6]|header|hr|iframe|img|input|label|li|link|main|meta"
          "|nav|noscript|object|ol|option|p|picture|pre|script|section|select|source|style|svg"
          "|table|tbody|td|textarea|tfoot|th|thead|tr|ul|video|!--[^<>]*--"),
)  # fmt: skip
_TAGS = tuple(
    (re.compile(rf"</?(?:{names})(?:[ /\t\n\r\f][^<>]*)?>", re.IGNORECASE), blank)
    for blank, names in _ELEMENTS
)
#: Most letters (checked by test), and texts that begin with two of them: half the time of `regex`.
_LETTERS = (
    "A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\u02af\u0391-\u03a1\u03a3-\u03f5\u0400-\u0481\u048a-\u052f"
    "\u05d0-\u05ea\u0620-\u064a\u0e01-\u0e30\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fd5\uac00-\ud7a3"
)
_COMMON_LETTER, _STARTS_WITH_WORD = re.compile(f"[{_LETTERS}]"), re.compile(f"[{_LETTERS}]{{2}}")
#: A letter by the tables of `regex`, which do not depend on the version of Python.
_LETTER = regex.compile(r"\p{L}")
#: Two letters, or one with a vowel sign; variation selectors do not count.
_WORD = regex.compile(r"\p{L}(?:\p{L}|(?![\ufe00-\ufe0f])\p{M})")
#: Letters that stand for a syllable or a word, and consonants with an inherent vowel: as a word of
#: five Latin letters has two syllables, the former count as three letters, the latter as two.
_SYLLABLE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}]")
_CONSONANT = regex.compile(
    r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Devanagari}\p{Bengali}\p{Gurmukhi}"
    r"\p{Gujarati}\p{Oriya}\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Ethiopic}"
    r"--\p{M}]",
    regex.VERSION1,
)
_FILE_NAME = regex.compile(
    r".*\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|svg|ico|avif|heic|psd|pdf|eps|raw)"
    r"|(?:img|dsc[nf]?|dscf|pict?|image|photo|screenshot|scan|p\d|gopr|mvi|wp|untitled)[^\p{L}\p{M}]+"
    r"|[0-9a-f]{16,}",
    regex.IGNORECASE,
)
_ENGLISH = {"en": None}
#: What CLD2 raises for text that it rejects.
_CLD2_ERRORS = (pycld2.error, UnicodeEncodeError)
#: A text without any of these is not English, even once repaired (entities, full-width letters).
#: This saves the repair of other scripts: 40 µs per Chinese or Japanese text.
_LATIN = re.compile("[A-Za-z&\uff21-\uff5a]")
_URL = re.compile(r"(?:https?://|www\.).+", re.IGNORECASE)
#: Placeholder texts that fit any image; compared in lower case.
_PLACEHOLDERS = frozenset(
    "image images img photo photos picture pictures pic icon logo banner avatar placeholder "
    "thumbnail thumb loading untitled spacer blank undefined null none empty default".split()
)


class Caption(NamedTuple):
    """A text that may describe its image."""

    text: str  #: repaired, with normalised white space
    raw: str | None  #: as it was on the page, if that differs
    language: str
    reliable: bool
    evidence: str = "caption"  #: of the language: "caption" or "page"


def caption_filter(options: Crawl) -> Callable[[str], Caption | DropReason]:
    """Return a filter of alt texts for these options, with a cache of 20,000 short ones.

    If the page is evidence too, texts of all languages pass, and `page_language` decides.
    """
    wanted, by_page = languages.wanted_languages(options), options.language_evidence == "page"
    english = wanted == _ENGLISH and not by_page
    includes = None if wanted is None or by_page else wanted.includes
    unrestricted = wanted.unrestricted() if wanted is not None else frozenset()

    def evaluate(raw: str) -> Caption | DropReason:
        if english and not _LATIN.search(raw):
            return text_drop_reason(_normalise_space(raw), options) or DropReason.LANGUAGE
        text = repair_text(raw)
        reason = text_drop_reason(text, options)
        if reason is not None:
            return reason
        if (clean := mask_personal_data(text)) != text:
            if options.personal == "drop":
                return DropReason.PERSONAL_TEXT
            text = raw = clean
        language, reliable = detect_language(text)
        if includes and language not in unrestricted and not includes(language, text):
            return DropReason.LANGUAGE
        return Caption(text, raw if raw != text else None, language, reliable)

    cached = lru_cache(_CACHE_SIZE)(evaluate)

    def answer(raw: str) -> Caption | DropReason:
        if len(raw) <= _MAX_CACHED:
            return cached(raw)
        # rather than repair a megabyte
        return evaluate(raw) if len(raw) <= 10 * options.max_text else DropReason.LONG_TEXT

    return answer


def repair_text(raw: str) -> str:
    """Return a text with mojibake fixed by ftfy, without tags, with normalised white space."""
    if "<" in raw:
        raw = _without_tags(raw)
    # " " is the only printable white space in ASCII
    if raw.isascii() and raw.isprintable() and ";" not in raw:
        return " ".join(raw.split()) if "  " in raw else raw.strip()
    if not _PLAIN.fullmatch(raw):
        raw = _WHITE_SPACE.sub(" ", raw)
        if "<" not in raw:
            raw = _without_tags(fixes.unescape_html(raw))
        if not _PLAIN.fullmatch(raw):
            raw = _FORBIDDEN.sub(" ", _INVISIBLE.sub("", _without_tags(ftfy.fix_text(raw))))
    if _CURLY_QUOTES.search(raw):
        raw = fixes.uncurl_quotes(raw)
    return _normalise_space(raw)


def _without_tags(text: str) -> str:
    """Return a text without HTML tags."""
    for tag, blank in _TAGS if "<" in text else ():
        text = tag.sub(blank, text)
    return text


def _normalise_space(text: str) -> str:
    """Return a text with normalised white space."""
    return " ".join(text.split())


def text_drop_reason(text: str, options: Crawl) -> DropReason | None:
    """Return the reason to drop a repaired text, whatever its language, or None."""
    if not text:
        return DropReason.NO_TEXT
    if len(text) < options.min_text and _latin_length(text) < options.min_text:
        return DropReason.SHORT_TEXT
    if len(text) > options.max_text:
        return DropReason.LONG_TEXT
    return None if options.trust_text else _junk_reason(text)


def _junk_reason(text: str) -> DropReason | None:
    """Return the reason to drop a text that describes nothing, or None."""
    alone = " " not in text
    # a file name with a space ends in a letter only after the dot of its extension
    if alone or not ("a" <= text[-1] <= "z" or _is_letter(text[-1])) or "." in text[-5:]:
        if _FILE_NAME.fullmatch(text):
            return DropReason.FILENAME_TEXT
    if alone and (text.lower() in _PLACEHOLDERS or _URL.fullmatch(text)):
        return DropReason.JUNK_TEXT
    start = text[:2]
    worded = (
        start.isascii() and start.isalpha() and len(start) == 2 or _STARTS_WITH_WORD.match(text)
    )
    return None if worded or _WORD.search(text) else DropReason.JUNK_TEXT


def _latin_length(text: str) -> int:
    """Return the number of Latin letters that would say as much."""
    return len(text) + 2 * len(_SYLLABLE.findall(text)) + len(_CONSONANT.findall(text))


def _is_letter(character: str) -> bool:
    return bool(_COMMON_LETTER.match(character) or character > "\x7f" and _LETTER.match(character))


def detect_language(text: str) -> tuple[str, bool]:
    """Return CLD2's code of a text's language, "un" if unknown, and whether it is reliable."""
    try:
        # positional: keyword arguments cost 3 µs
        reliable, _, details = pycld2.detect(text, True)
    except _CLD2_ERRORS:
        return "un", False
    return details[0][1], reliable


def majority_language(text: str, percent: int) -> str:
    """Return the language of at least ``percent`` of a text, "" if CLD2 is not sure of one."""
    try:
        reliable, _, details = pycld2.detect(text, True)
    except _CLD2_ERRORS:
        return ""
    return str(details[0][1]) if reliable and details[0][2] >= percent else ""


def guess_language(text: str, hint: str | None = None) -> str:
    """Return CLD2's best guess for any text; ``hint``: the language of its page."""
    try:
        _, _, details = pycld2.detect(text, True, hintLanguage=hint, bestEffort=True)
    except _CLD2_ERRORS:
        return "un"
    return str(details[0][1])
