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
from cahlib.crawl import languages
from cahlib.crawl.personal import mask_personal_data
from cahlib.records import Reason

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
#: Nor these, which nobody sees. They turn the direction of what follows, part words, hide text
#: (tags, but for those of a flag, which stand behind a black one) or fill a place. Joiners stay
#: between letters of scripts that need them, and between emoji.
_UNSEEN = regex.compile(
    "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb]"
    "|(?<!\U0001f3f4[\U000e0020-\U000e007e]{0,8})[\U000e0000-\U000e0fff]"
    r"|(?<![^\p{Latin}\p{Z}\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\p{Latin}\p{Z}\x00-\x7f])"
)
#: Elements of HTML: those within a line go without a trace, others leave a blank.
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
#: Most letters (checked by test), and texts that begin with two, which are found in half the time.
_LETTERS = (
    "A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\u02af\u0391-\u03a1\u03a3-\u03f5\u0400-\u0481\u048a-\u052f"
    "\u05d0-\u05ea\u0620-\u064a\u0e01-\u0e30\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fd5\uac00-\ud7a3"
)
_COMMON, _WORDED = re.compile(f"[{_LETTERS}]"), re.compile(f"[{_LETTERS}]{{2}}")
#: A letter, by the tables of `regex`, which are the same in each version of Python.
_LETTER = regex.compile(r"\p{L}")
#: Two letters, or one with a vowel's sign; what only chooses how a character looks is no sign.
_WORD = regex.compile(r"\p{L}(?:\p{L}|(?![\ufe00-\ufe0f])\p{M})")
#: Letters that stand for a syllable or a word, and consonants that bring a vowel along: as a word
#: of five Latin letters has two syllables, the former count as three letters, the latter as two.
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
#: What CLD2 raises about what it does not look at.
_REFUSED = (pycld2.error, UnicodeEncodeError)
#: No text without one of these is English, be it repaired (entities, letters of full width) or
#: not. Other scripts need much repair: Chinese and Japanese their punctuation, 40 µs a text.
_LATIN = re.compile("[A-Za-z&\uff21-\uff5a]")
_URL = re.compile(r"(?:https?://|www\.).+", re.IGNORECASE)
#: Texts that stand for any image; compared in small letters.
_EMPTY_WORDS = frozenset(
    "image images img photo photos picture pictures pic icon logo banner avatar placeholder "
    "thumbnail thumb loading untitled spacer blank undefined null none empty default".split()
)


class Caption(NamedTuple):
    """A text that may be a caption."""

    text: str  #: repaired, white space normalised
    raw: str | None  #: as it stood there, if that differs
    language: str
    reliable: bool
    evidence: str = "caption"  #: for the language: "caption" or "page"


def caption_filter(options: Crawl) -> Callable[[str], Caption | Reason]:
    """A judge of alt texts by these options, who remembers the last 20,000 short ones.

    Where the page is asked as well, texts of all languages pass: `page_language` decides.
    """
    wanted, by_page = languages.wanted_languages(options), options.language_evidence == "page"
    english = wanted == _ENGLISH and not by_page
    takes = None if wanted is None or by_page else wanted.includes
    whole = wanted.unrestricted() if wanted is not None else frozenset()

    def judged(raw: str) -> Caption | Reason:
        if english and not _LATIN.search(raw):
            return text_drop_reason(_spaced(raw), options) or Reason.LANGUAGE
        text = repair_text(raw)
        reason = text_drop_reason(text, options)
        if reason is not None:
            return reason
        if (clean := mask_personal_data(text)) != text:
            if options.personal == "drop":
                return Reason.PERSONAL_TEXT
            text = raw = clean
        language, reliable = detect_language(text)
        if takes and language not in whole and not takes(language, text):
            return Reason.LANGUAGE
        return Caption(text, raw if raw != text else None, language, reliable)

    remembered = lru_cache(_REMEMBERED)(judged)

    def answer(raw: str) -> Caption | Reason:
        if len(raw) <= _LENGTH:
            return remembered(raw)
        # before a megabyte is repaired
        return judged(raw) if len(raw) <= 10 * options.max_text else Reason.LONG_TEXT

    return answer


def repair_text(raw: str) -> str:
    """A text as people see it: mojibake mended by ftfy, no tags, white space normalised."""
    if "<" in raw:
        raw = _untagged(raw)
    # of all white space in ASCII only " " is printable
    if raw.isascii() and raw.isprintable() and ";" not in raw:
        return " ".join(raw.split()) if "  " in raw else raw.strip()
    if not _PLAIN.fullmatch(raw):
        raw = _BLANKS.sub(" ", raw)
        if "<" not in raw:
            raw = _untagged(fixes.unescape_html(raw))
        if not _PLAIN.fullmatch(raw):
            raw = _FORBIDDEN.sub(" ", _UNSEEN.sub("", _untagged(ftfy.fix_text(raw))))
    if _CURLED.search(raw):
        raw = fixes.uncurl_quotes(raw)
    return _spaced(raw)


def _untagged(text: str) -> str:
    """A text without the tags of HTML's elements."""
    for tag, blank in _TAGS if "<" in text else ():
        text = tag.sub(blank, text)
    return text


def _spaced(text: str) -> str:
    """A text with its white space normalised."""
    return " ".join(text.split())


def text_drop_reason(text: str, options: Crawl) -> Reason | None:
    """Why a repaired text cannot be a caption, whatever its language."""
    if not text:
        return Reason.NO_TEXT
    if len(text) < options.min_text and _length(text) < options.min_text:
        return Reason.SHORT_TEXT
    if len(text) > options.max_text:
        return Reason.LONG_TEXT
    alone = " " not in text
    # behind a blank, no file name ends in a letter, unless its ending's dot is near
    if alone or not ("a" <= text[-1] <= "z" or _is_letter(text[-1])) or "." in text[-5:]:
        if _FILE_NAME.fullmatch(text):
            return Reason.FILENAME_TEXT
    if alone and (text.lower() in _EMPTY_WORDS or _URL.fullmatch(text)):
        return Reason.JUNK_TEXT
    start = text[:2]
    worded = start.isascii() and start.isalpha() and len(start) == 2 or _WORDED.match(text)
    return None if worded or _WORD.search(text) else Reason.JUNK_TEXT


def _length(text: str) -> int:
    """How many Latin letters would say as much."""
    return len(text) + 2 * len(_SYLLABLE.findall(text)) + len(_CONSONANT.findall(text))


def _is_letter(character: str) -> bool:
    return bool(_COMMON.match(character) or character > "\x7f" and _LETTER.match(character))


def detect_language(text: str) -> tuple[str, bool]:
    """The language of a text by CLD2, "un" if it knows none, and whether it is sure."""
    try:
        # without names of parameters, which take 3 µs to be read
        reliable, _, details = pycld2.detect(text, True)
    except _REFUSED:
        return "un", False
    return details[0][1], reliable


def majority_language(text: str, percent: int) -> str:
    """Return the language of so much of a text at least, "" if CLD2 is not sure of one."""
    try:
        reliable, _, details = pycld2.detect(text, True)
    except _REFUSED:
        return ""
    return str(details[0][1]) if reliable and details[0][2] >= percent else ""


def guess_language(text: str, hint: str | None = None) -> str:
    """Return the language that CLD2 finds the likeliest in any text, given that of its page."""
    try:
        _, _, details = pycld2.detect(text, True, hintLanguage=hint, bestEffort=True)
    except _REFUSED:
        return "un"
    return str(details[0][1])
