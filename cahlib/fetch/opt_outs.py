"""What an owner says about the use of an image or a page, read by tables.

Sources: Google's "Robots meta tag … specifications" (directives separated by commas, in practice by
anything, behind an optional user agent and a colon that scope what follows in that header), the
W3C's TDM Reservation Protocol, the IETF's AIPREF drafts (Content-Usage), and Cloudflare's Content
Signals of 2025 (https://contentsignals.org). It does not fetch; robots.txt itself is read by
`cahlib.fetch.robots`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

#: What we call ourselves, in the user agent and where an owner speaks to us.
USER_AGENT_TOKEN = "cahlib"

#: Each of these refuses the use that we make of an image; "none" is noindex with nofollow.
REFUSING_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})

#: The signals that each profile honours; every other signal is only recorded with the sample.
HONOURED: Mapping[str, frozenset[str]] = {
    "strict": frozenset(
        {
            "robots.txt",
            "robots.txt content-usage",
            "tdmrep.json",
            "x-robots-tag",
            "tdm-reservation",
            "content-usage",
            "content-signal",
            "meta robots",
            "meta tdm-reservation",
        }
    ),
    "headers": frozenset(
        {
            "x-robots-tag",
            "tdm-reservation",
            "content-usage",
            "content-signal",
            "meta robots",
            "meta tdm-reservation",
        }
    ),
    "research": frozenset({"robots.txt"}),
}

#: Headers by which owners speak.
OPT_OUT_HEADERS = ("X-Robots-Tag", "TDM-Reservation", "Content-Usage", "Content-Signal")

#: Directives that have a value of their own behind a colon, which is no scope.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})

#: Whose directives bind us: what we call ourselves, and everybody, however that is said.
_OURS = frozenset({"", "*", USER_AGENT_TOKEN, "all", "robots", "x-robots-tag"})

#: Words, whatever stands between them; what is behind one says whether it is a scope (``bot:``,
#: ``bot/2.1:``) or has a value (``noindex=false``). Dates and times begin no scope.
_WORD = re.compile(r"(\*|[\w-]+)(?:(?:/[\d.]+)?\s*(:)|\s*=\s*[\"']?([\w-]+))?")
_SCOPE = re.compile(r"\*|\d*[a-z_][a-z_-]*|[a-z_][\w-]*")
_NOT = frozenset({"0", "false", "no", "off"})

#: What separates words although it may stand in one, and spellings of one word as two.
_BETWEEN = re.compile(r"-{2,}|-?>")
_APART = re.compile(r"\bno[\s_-]+(image)?[\s_-]*(ai|index|ml)\b")

#: How the training of models is refused by a Content-Usage, whose drafts have had several names and
#: wider categories, which a permission for training excepts; and by a Content-Signal.
_USE = r"(?<![\w-])(?:%s)\s*=\s*[\"']?%s(?![\w-])"
_NO_TRAINING = re.compile(_USE % ("train-ai|ai-train|train-genai|genai", "no?"), re.IGNORECASE)
_NO_USE = re.compile(_USE % ("all|bots|tdm|ai", "no?"), re.IGNORECASE)
_TRAINING = re.compile(_USE % ("train-ai|ai-train", "y(?:es)?"), re.IGNORECASE)

#: How rights are reserved by a header or a meta element.
RIGHTS_RESERVED = re.compile(r"\W*(?:1|true)\b", re.IGNORECASE)

_MAX_RULES = 1000  # of a tdmrep.json

#: Characters of an owner's words that are kept as evidence, for each image again.
_MAX_WORDS = 1000


class OptOutSignal(NamedTuple):
    """A refusal: by which signal, and in which words."""

    signal: str
    value: str


def opt_out_signal(signal: str, words: str) -> OptOutSignal:
    """A refusal with its evidence, whatever a stranger served."""
    return OptOutSignal(signal, quote_evidence(words))


def quote_evidence(words: str) -> str:
    """The beginning of what a stranger served, without lone surrogates, which cannot be written."""
    return words[:_MAX_WORDS].encode("utf-8", "replace").decode()


def parse_headers(headers: Iterable[tuple[str, str]], consent: str) -> OptOutSignal | None:
    """The first of an answer's headers that refuses us, in a profile that honours it."""
    for name, value in headers:
        signal = name.lower()
        refuses = {
            "x-robots-tag": lambda value: refusing_header([value]) is not None,
            "tdm-reservation": lambda value: RIGHTS_RESERVED.match(value) is not None,
            "content-usage": refuses_training,
            "content-signal": refuses_training,
        }[signal]
        if signal in HONOURED[consent] and refuses(value):
            return opt_out_signal(signal, value)
    return None


def refusing_header(headers: Iterable[str]) -> str | None:
    """The X-Robots-Tag header that refuses us, as it was served, or None."""
    for header in headers:
        if any(
            agent in _OURS and word in REFUSING_DIRECTIVES
            for agent, word in parse_directives(header)
        ):
            return header
    return None


def parse_directives(header: str) -> Iterator[tuple[str, str]]:
    """The directives of one header with the user agent each is meant for ("": all), lower case."""
    agent, valued = "", False
    for match in _WORD.finditer(_APART.sub(r"no\1\2", _BETWEEN.sub(" ", _plain(header)))):
        word, colon, value = match[1], match[2], match[3]
        if valued:
            valued = False
        elif colon and word in _VALUED:
            valued = True
        elif colon and word not in REFUSING_DIRECTIVES and _SCOPE.fullmatch(word):
            agent = word
        elif value not in _NOT:
            yield agent, word
            if value:
                yield agent, value


def _plain(words: str) -> str:
    """Return words in small letters of ASCII as far as they look like those."""
    if words.isascii():
        return words.lower()
    words = unicodedata.normalize("NFKC", words).replace("\u200b", " ")
    seen = (each for each in words if unicodedata.category(each) != "Cf")
    return "".join("-" if unicodedata.category(each) == "Pd" else each for each in seen).lower()


def refuses_training(value: str) -> bool:
    """Whether a Content-Usage (``train-ai=n``) or a Content-Signal (``ai-train=no``) refuses the
    training of models.
    """
    if _NO_USE.search(value) and not _TRAINING.search(value):
        return True
    return _NO_TRAINING.search(value) is not None


def parse_tdmrep(text: bytes) -> list[tuple[str, bool]]:
    """The places of a tdmrep.json, in its order, with whether their rights are reserved.

    What is no such file says nothing.
    """
    try:
        rules = json.loads(text)
    except (ValueError, RecursionError):
        return []
    rules = rules if isinstance(rules, list) else []
    return [
        (rule["location"], RIGHTS_RESERVED.match(str(rule.get("tdm-reservation"))) is not None)
        for rule in rules[:_MAX_RULES]
        if isinstance(rule, dict) and isinstance(rule.get("location"), str)
    ]
