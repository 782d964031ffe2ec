"""Whether an alt text can be a caption: long enough, of words, in a language that is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import ftfy
import pycld2
import regex
from ftfy import fixes

from cahlib.config import Crawl
from cahlib.errors import ConfigError
from cahlib.records import Reason
from cahlib.scrape.personal import masked

#: So many judgements are remembered, of texts up to this length: 8 MiB, or 30 if all are emoji.
_REMEMBERED, _LENGTH = 20_000, 200

#: Texts in which ftfy changes quotes at most (checked by test), so that it need not look: that
#: takes 15 to 40 µs. It looks for characters that it knows from mojibake beside each other and for
#: entities like "&amp;": these have ASCII without ";", letters of other scripts, and signs and
#: Latin letters (not Â and Ã) that stand between ASCII.
_ASCII = " -:<-~"
_SCRIPTS = "ЁёА-я\u3001\u3002\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
_SIGNS = "ÀÁÄ-ÖØ-öø-ÿ–—‘’“”…•·©®™°£€"
_PLAIN = re.compile(
    f"[{_ASCII}{_SCRIPTS}]*(?:(?<![{_SCRIPTS}])[{_SIGNS}](?=[{_ASCII}]|\\Z)[{_ASCII}{_SCRIPTS}]*)*"
)
_CURLED = re.compile("[\u02bc\u2018-\u201f]")  # what ftfy straightens
_BLANKS = re.compile(r"[\t\n\v\f\r]+")
#: The code points that Unicode keeps from ever being characters: these, and the last two of each
#: of its planes.
_NONE = "\ufdd0-\ufdef" + "".join(
    f"{chr(last - 1)}{chr(last)}" for last in range(0xFFFF, 0x110000, 0x10000)
)
#: No caption holds these: controls, surrogates, what is not a character (CLD2 refuses to look at
#: them), and private use, which only a page's own font can read. Named by code point, as
#: `str.isprintable` has another answer in each version of Python, for each knows other letters.
_FORBIDDEN = re.compile(
    rf"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff{_NONE}\U000f0000-\U0010ffff]"
)
#: Nor these, which have no width: they turn the direction of what follows, in a page or a table.
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: A letter, by the tables of `regex`, which are the same in each version of Python.
_LETTER = regex.compile(r"\p{L}")
_WORD = regex.compile(r"\p{L}{2}")
_FILE_NAME = regex.compile(
    r".*\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|svg|ico|avif|heic|psd|pdf|eps|raw)"
    r"|(?:img|dsc[nf]?|dscf|pict?|image|photo|screenshot|scan|p\d|gopr|mvi|wp|untitled)\P{L}+"
    r"|[0-9a-f]{16,}",
    regex.IGNORECASE,
)
_ENGLISH = frozenset({"en"})
#: The codes of CLD2, by their small letters; "un" is what it says where it knows none.
_CODES = {code.lower(): code for _, code in pycld2.LANGUAGES} | {"un": "un"}
#: What ISO 639 calls otherwise: Hebrew, Javanese, Norwegian Bokmål, Filipino.
_OTHERS = {"he": "iw", "jv": "jw", "nb": "no", "fil": "tl"}
#: No text without one of these is English, be it repaired (entities, letters of full width) or
#: not. Other scripts need much repair: Chinese and Japanese their punctuation, 40 µs a text.
_LATIN = re.compile("[A-Za-z&\uff21-\uff5a]")
_URL = re.compile(r"(?:https?://|www\.).+", re.IGNORECASE)
#: Texts that stand for any image; compared in small letters.
_EMPTY_WORDS = frozenset(
    "image images img photo photos picture pictures pic icon logo banner avatar placeholder "
    "thumbnail thumb loading untitled spacer blank undefined null none empty default".split()
)


class Text(NamedTuple):
    """A text that may be a caption."""

    text: str  #: repaired, white space normalised
    raw: str | None  #: as it stood there, if that differs
    language: str
    reliable: bool


def languages(options: Crawl) -> frozenset[str] | None:
    """The languages to keep, as CLD2 names them; None: any. Raises ConfigError for others."""
    named = [each.lower() for each in options.languages]
    if "all" in named:
        return None
    if not named:
        raise ConfigError("languages: name those to keep, as en,de, or all.")
    found = [_CODES.get(_OTHERS.get(each, each)) for each in named]
    if None in found:
        unknown = options.languages[found.index(None)]
        raise ConfigError(f"languages: {unknown} is no code that CLD2 knows; give en, zh … or all.")
    return frozenset(filter(None, found))


def judge(options: Crawl) -> Callable[[str], Text | Reason]:
    """A judge of alt texts by these options, who remembers the last 20,000 short ones."""
    wanted = languages(options)

    def judged(raw: str) -> Text | Reason:
        if wanted == _ENGLISH and not _LATIN.search(raw):
            return refuse(_spaced(raw), options) or Reason.LANGUAGE
        text = repaired(raw)
        reason = refuse(text, options)
        if reason is not None:
            return reason
        if (clean := masked(text)) != text:
            if options.personal == "drop":
                return Reason.PERSONAL_TEXT
            text = raw = clean
        language, reliable = detect(text)
        if wanted is not None and language not in wanted:
            return Reason.LANGUAGE
        return Text(text, raw if raw != text else None, language, reliable)

    remembered = lru_cache(_REMEMBERED)(judged)

    def answer(raw: str) -> Text | Reason:
        if len(raw) <= _LENGTH:
            return remembered(raw)
        # before a megabyte is repaired
        return judged(raw) if len(raw) <= 10 * options.max_text else Reason.LONG_TEXT

    return answer


def repaired(raw: str) -> str:
    """A text with its mojibake mended by ftfy and its white space normalised."""
    if raw.isascii() and raw.isprintable() and ";" not in raw:
        return _spaced(raw)
    if not _PLAIN.fullmatch(raw):
        raw = _BLANKS.sub(" ", raw)
        if "<" not in raw:
            raw = fixes.unescape_html(raw)
        if not _PLAIN.fullmatch(raw):
            raw = _FORBIDDEN.sub(" ", _TURNING.sub("", ftfy.fix_text(raw)))
    if _CURLED.search(raw):
        raw = fixes.uncurl_quotes(raw)
    return _spaced(raw)


def _spaced(text: str) -> str:
    """A text with its white space normalised; most need that at their ends at most."""
    # of all white space in ASCII only " " is printable
    if "  " in text or not (text.isascii() and text.isprintable()):
        return " ".join(text.split())
    return text.strip()


def refuse(text: str, options: Crawl) -> Reason | None:
    """Why a repaired text cannot be a caption, whatever its language."""
    if not text:
        return Reason.NO_TEXT
    if len(text) < options.min_text:
        return Reason.SHORT_TEXT
    if len(text) > options.max_text:
        return Reason.LONG_TEXT
    alone = " " not in text
    # behind a blank, no file name ends in a letter, unless its ending's dot is near
    if alone or not _is_letter(text[-1]) or "." in text[-5:]:
        if _FILE_NAME.fullmatch(text):
            return Reason.FILENAME_TEXT
    if alone and (text.lower() in _EMPTY_WORDS or _URL.fullmatch(text)):
        return Reason.JUNK_TEXT
    start = text[:2]
    worded = len(start) == 2 and start.isascii() and start.isalpha()
    return None if worded or _WORD.search(text) else Reason.JUNK_TEXT


def _is_letter(character: str) -> bool:
    known = character.isascii() and character.isalpha()
    return known or _LETTER.match(character) is not None


def detect(text: str) -> tuple[str, bool]:
    """The language of a text by CLD2, "un" if it knows none, and whether it is sure."""
    try:
        reliable, _, details = pycld2.detect(text, isPlainText=True)
    except (pycld2.error, UnicodeEncodeError):  # whatever else it refuses to look at
        return "un", False
    return details[0][1], reliable
