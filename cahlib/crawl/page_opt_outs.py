"""Opt-outs in a page: its robots and TDM meta elements, and the headers of its answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from cahlib.crawl.wat import Page
from cahlib.fetch import opt_outs

#: Names of meta elements that address us; one may name several robots.
_ADDRESSED = frozenset({"robots", opt_outs.USER_AGENT_TOKEN})
_NAMES = re.compile(r"[\s,;|/]+")
_MAX_NAME = 1000  # characters of an element's name that are examined
_HEADER_NAMES = frozenset(map(str.lower, opt_outs.OPT_OUT_HEADERS))


def page_opt_out(page: Page) -> opt_outs.OptOutSignal | None:
    """Return a page's opt-out, in its elements or HTTP headers, whether honoured or not."""
    for meta in page.metas:
        signal = _signal(meta.name[:_MAX_NAME]) or _signal(meta.property[:_MAX_NAME])
        if meta.equiv and not signal:
            signal = _signal(meta.equiv[:_MAX_NAME])
        if signal and (said := _in_element(signal, meta.content)):
            return said
    speaking = [name for name in page.headers if name.lower() in _HEADER_NAMES]
    return opt_outs.parse_headers(_header_values(page.headers, speaking), "strict")


@lru_cache(maxsize=1000)  # most pages have the same names, none of them relevant
def _signal(name: str) -> str:
    """Return the signal that a meta element of this name carries, "" for none."""
    name = name.strip().lower()
    if not _ADDRESSED.isdisjoint(_NAMES.split(name)):
        return "meta robots"
    if name == "tdm-reservation":
        return "meta tdm-reservation"
    return name if name in _HEADER_NAMES else ""


def _in_element(signal: str, content: str) -> opt_outs.OptOutSignal | None:
    """Return the opt-out in a meta element, which may stand for a header (``http-equiv``)."""
    if signal == "meta robots":
        refuses = any(
            word in opt_outs.REFUSING_DIRECTIVES for _, word in opt_outs.parse_directives(content)
        )
    elif signal == "meta tdm-reservation":
        refuses = opt_outs.RIGHTS_RESERVED.match(content) is not None
    else:
        return opt_outs.parse_headers([(signal, content)], "strict")
    return opt_outs.opt_out_signal(signal, content) if refuses else None


def _header_values(headers: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield these headers of a page, one value at a time."""
    for name in names:
        values = headers[name]
        words = values if isinstance(values, list) else [values]
        yield from ((name, word) for word in words if isinstance(word, str))
