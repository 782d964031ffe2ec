"""Parse the opt-outs of an image or a page from HTTP headers and tdmrep.json.

Sources: Google's "Robots meta tag … specifications" (directives separated by commas, in practice by
anything, after an optional user agent and a colon, which limit the rest of that header), the W3C's
TDM Reservation Protocol, the IETF's AIPREF drafts (Content-Usage), and Cloudflare's Content Signals
of 2025 (https://contentsignals.org). `cahlib.fetch.robots` parses robots.txt.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

#: Our name in the user agent, and in rules that address us.
USER_AGENT_TOKEN = "cahlib"

#: Each of these refuses our use of an image; "none" means noindex and nofollow.
REFUSING_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})

#: Signals in the response for an image, or in the page that shows it.
_RESPONSE_SIGNALS = frozenset(
    {"x-robots-tag", "tdm-reservation", "content-usage", "content-signal"}
)
_PAGE_SIGNALS = frozenset({"meta robots", "meta tdm-reservation"})
#: Signals that each profile of consent honours; others are only recorded with the sample.
HONOURED: Mapping[str, frozenset[str]] = {
    "strict": _RESPONSE_SIGNALS
    | _PAGE_SIGNALS
    | {"robots.txt", "robots.txt content-usage", "tdmrep.json"},
    "headers": _RESPONSE_SIGNALS | _PAGE_SIGNALS,
    "research": frozenset({"robots.txt"}),
}

#: HTTP headers that carry opt-outs.
OPT_OUT_HEADERS = ("X-Robots-Tag", "TDM-Reservation", "Content-Usage", "Content-Signal")

#: Directives with a value behind a colon, which is not a user agent.
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)

#: User agents whose directives apply to us: our own, and the spellings of "everybody".
_APPLICABLE_AGENTS = frozenset({"", "*", USER_AGENT_TOKEN, "all", "robots", "x-robots-tag"})

#: Words, whatever separates them; what follows one shows whether it is a user agent (``bot:``,
#: ``bot/2.1:``) or has a value (``noindex=false``). Dates and times are not user agents.
_WORD = re.compile(r"(\*|[\w-]+)(?:(?:/[\d.]+)?\s*(:)|\s*=\s*[\"']?([\w-]+))?")
_AGENT = re.compile(r"\*|\d*[a-z_][a-z_-]*|[a-z_][\w-]*")
_FALSE = frozenset({"0", "false", "no", "off"})

#: Separators that could be part of a word, and words spelled as two.
_SEPARATORS = re.compile(r"-{2,}|-?>")
_SPLIT_WORDS = re.compile(r"\bno[\s_-]+(image)?[\s_-]*(ai|index|ml)\b")

#: How Content-Usage and Content-Signal refuse the training of models. The drafts of the former have
#: had several names, and wider categories, which a permission for training overrides.
_USAGE = r"(?<![\w-])(?:%s)\s*=\s*[\"']?%s(?![\w-])"
_NO_TRAINING = re.compile(_USAGE % ("train-ai|ai-train|train-genai|genai", "no?"), re.IGNORECASE)
_NO_USAGE = re.compile(_USAGE % ("all|bots|tdm|ai", "no?"), re.IGNORECASE)
_TRAINING = re.compile(_USAGE % ("train-ai|ai-train", "y(?:es)?"), re.IGNORECASE)

#: How a header or a meta element reserves rights.
RIGHTS_RESERVED = re.compile(r"\W*(?:1|true)\b", re.IGNORECASE)

_MAX_RULES = 1000  # of a tdmrep.json

#: Characters of a signal that are stored as evidence, with each image.
_MAX_EVIDENCE = 1000


class OptOutSignal(NamedTuple):
    """An opt-out: its signal and its text."""

    signal: str
    value: str


def opt_out_signal(signal: str, words: str) -> OptOutSignal:
    """Return an opt-out with its text made safe to store."""
    return OptOutSignal(signal, quote_evidence(words))


def quote_evidence(words: str) -> str:
    """Return the beginning of a text, without lone surrogates, which cannot be encoded."""
    return words[:_MAX_EVIDENCE].encode("utf-8", "replace").decode()


def parse_headers(headers: Iterable[tuple[str, str]], consent: str) -> OptOutSignal | None:
    """Return the first opt-out in a response's headers that the profile honours, or None."""
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
    """Return the X-Robots-Tag header that refuses our use, as served, or None."""
    for header in headers:
        if any(
            agent in _APPLICABLE_AGENTS and word in REFUSING_DIRECTIVES
            for agent, word in parse_directives(header)
        ):
            return header
    return None


def parse_directives(header: str) -> Iterator[tuple[str, str]]:
    """Yield (user agent, directive) pairs of a header in lower case; "" means every agent."""
    agent, valued = "", False
    for match in _WORD.finditer(
        _SPLIT_WORDS.sub(r"no\1\2", _SEPARATORS.sub(" ", _to_ascii(header)))
    ):
        word, colon, value = match[1], match[2], match[3]
        if valued:
            valued = False
        elif colon and word in _WITH_VALUE:
            valued = True
        elif colon and word not in REFUSING_DIRECTIVES and _AGENT.fullmatch(word):
            agent = word
        elif value not in _FALSE:
            yield agent, word
            if value:
                yield agent, value


def _to_ascii(words: str) -> str:
    """Return a text in lower case, with look-alikes of ASCII characters replaced."""
    if words.isascii():
        return words.lower()
    words = unicodedata.normalize("NFKC", words).replace("\u200b", " ")
    seen = (each for each in words if unicodedata.category(each) != "Cf")
    return "".join("-" if unicodedata.category(each) == "Pd" else each for each in seen).lower()


def refuses_training(value: str) -> bool:
    """Return whether a header refuses the training of models.

    It is a Content-Usage (``train-ai=n``) or a Content-Signal (``ai-train=no``).
    """
    if _NO_USAGE.search(value) and not _TRAINING.search(value):
        return True
    return _NO_TRAINING.search(value) is not None


def parse_tdmrep(text: bytes) -> list[tuple[str, bool]]:
    """Return the locations in a tdmrep.json, in order, and whether their rights are reserved.

    An invalid file has none.
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
