"""Opt-outs in a page: its robots and TDM meta elements, and the headers of its answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from cahlib.crawl.wat import Page
from cahlib.fetch import opt_outs

#: Meta elements that speak to us; one may name several robots.
_TO_US = frozenset({"robots", opt_outs.USER_AGENT_TOKEN})
_NAMES = re.compile(r"[\s,;|/]+")
_MOST_NAME = 1000  # characters of an element's name that are looked at
_LOWER = frozenset(map(str.lower, opt_outs.OPT_OUT_HEADERS))


def page_opt_out(page: Page) -> opt_outs.OptOutSignal | None:
    """What refuses us in a page or in the headers of its answer, be it honoured or not."""
    for meta in page.metas:
        signal = _signal(meta.name[:_MOST_NAME]) or _signal(meta.property[:_MOST_NAME])
        if meta.equiv and not signal:
            signal = _signal(meta.equiv[:_MOST_NAME])
        if signal and (said := _in_element(signal, meta.content)):
            return said
    if _LOWER.isdisjoint(map(str.lower, page.headers)):
        return None
    speaking = [name for name in page.headers if name.lower() in _LOWER]
    return opt_outs.parse_headers(_words(page.headers, speaking), "strict")


@lru_cache(maxsize=1000)  # most pages have the same names, none of which speaks
def _signal(name: str) -> str:
    """Return by which signal a meta element of this name speaks to us, "" if it does not."""
    name = name.strip().lower()
    if not _TO_US.isdisjoint(_NAMES.split(name)):
        return "meta robots"
    if name == "tdm-reservation":
        return "meta tdm-reservation"
    return name if name in _LOWER else ""


def _in_element(signal: str, content: str) -> opt_outs.OptOutSignal | None:
    """Return what refuses us in a meta element, which may stand for a header (``http-equiv``)."""
    if signal == "meta robots":
        refuses = any(
            word in opt_outs.REFUSING_DIRECTIVES for _, word in opt_outs.parse_directives(content)
        )
    elif signal == "meta tdm-reservation":
        refuses = opt_outs.RIGHTS_RESERVED.match(content) is not None
    else:
        return opt_outs.parse_headers([(signal, content)], "strict")
    return opt_outs.opt_out_signal(signal, content) if refuses else None


def _words(headers: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The headers by which the owner of a page speaks, each by itself."""
    for name in names:
        values = headers[name]
        words = values if isinstance(values, list) else [values]
        yield from ((name, word) for word in words if isinstance(word, str))
