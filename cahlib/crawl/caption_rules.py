"""Rules for captions, applied before anything is fetched: words wanted, words unwanted, a pattern.

Whole words are compared, without regard to case and to forms of the same letter (NFKC), whatever
punctuation is between them. Scripts that do not put a space between all words, Korean's among
them, are compared letter by letter. The time for a caption does not depend on the number of entries
(Aho-Corasick), and no pattern takes more than linear time (RE2). On 100 MB of WAT a pattern adds
0.3 CPU s to 2.1, a list of 100,000 entries 0.5: what they read is no longer in the CPU's caches.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import regex

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError
from cahlib.core.lists import PHRASE, read_entries
from cahlib.core.path_map import local_path
from cahlib.core.records import DropReason

#: What is compared: words of letters, their signs and digits; letters of scripts without spaces,
#: with their signs; and symbols, emoji among them. Punctuation only separates.
_ALONE = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}"
)
_TOKEN = regex.compile(
    rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_ALONE}]]+|[{_ALONE}]\p{{M}}*|\p{{S}}", regex.V1
)
#: The same for ASCII: punctuation becomes a blank, and symbols stand alone.
_ASCII = {
    code: f" {chr(code)} " if unicodedata.category(chr(code))[0] == "S" else " "
    for code in range(128)
    if not chr(code).isalnum()
}


class CaptionRules:
    """The rules of a crawl for captions; loaded once per process."""

    def __init__(self, wanted: Any, unwanted: Any, pattern: Any) -> None:
        """Take two automata and a compiled pattern, each None if there is no such rule."""
        self._wanted, self._unwanted, self._pattern = wanted, unwanted, pattern

    @classmethod
    def load(cls, options: Crawl) -> CaptionRules:
        """Return the rules of a crawl; raise ConfigError for what is no list or no pattern."""
        lists = options.caption_words, options.caption_not
        return _load_rules(*(tuple(map(local_path, each)) for each in lists), options.caption_regex)

    def drop_reason(self, text: str) -> DropReason | None:
        """Return the reason to drop a caption, or None."""
        if self._wanted or self._unwanted:
            words = _words_of(text)
            if self._unwanted and self._unwanted.find_matches_as_indexes(words):
                return DropReason.UNWANTED_WORD
            if self._wanted and not self._wanted.find_matches_as_indexes(words):
                return DropReason.NO_WANTED_WORD
        if self._pattern and not self._pattern.search(text):
            return DropReason.OTHER_PATTERN
        return None


def _words_of(text: str) -> str:
    """Return the words of a text, each between blanks."""
    if text.isascii():
        found = text.lower().translate(_ASCII).split()
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        found = _TOKEN.findall(unicodedata.normalize("NFKC", folded))
    return f" {' '.join(found)} "


@lru_cache(maxsize=1)
def _load_rules(wanted: tuple[str, ...], unwanted: tuple[str, ...], pattern: str) -> CaptionRules:
    return CaptionRules(
        _automaton(wanted, "caption_words", least=1),
        _automaton(unwanted, "caption_not", least=0),
        _compile(pattern) if pattern else None,
    )


def _automaton(paths: tuple[str, ...], setting: str, *, least: int) -> Any:
    """Return what finds the entries of some lists in words; None without lists or entries."""
    entries = (each for path in paths for each in _entries(path, setting))
    first = next(entries, None)
    if first is None:
        if paths and least:
            raise ConfigError(
                f"{setting}: {', '.join(paths)} lists no words, so no caption would be kept."
            )
        return None
    from ahocorasick_rs import AhoCorasick

    return AhoCorasick(chain([first], entries), store_patterns=False)


def _entries(path: str, setting: str) -> Iterator[str]:
    for entry in read_entries(path, setting, PHRASE):
        words = _words_of(entry)
        if not words.strip():
            raise ConfigError(
                f"{setting}: {path} has an entry without a letter, digit or symbol: {entry:.60}"
            )
        yield words


def _compile(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        cause = error.args[0]
        said = cause.decode("utf-8", "replace") if isinstance(cause, bytes) else str(error)
        raise ConfigError(
            f"caption_regex: {pattern:.100} is not a valid pattern ({said}); RE2's syntax "
            "has no look-around or backreferences."
        ) from error
