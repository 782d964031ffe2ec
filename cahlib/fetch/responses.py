"""What the head of an answer says: whether its body counts, and where it points to."""

from __future__ import annotations

import re

import aiohttp

from cahlib.fetch import opt_outs
from cahlib.fetch.links import join_url, split_url
from cahlib.records import Reason

_REDIRECTS = (301, 302, 303, 307, 308)

#: A range that is everything.
_ALL = re.compile(r"\s*bytes\s+0-(\d{1,18})/(\d{1,18})\s*", re.IGNORECASE)


def response_drop_reason(answer: aiohttp.ClientResponse) -> Reason | None:
    """Return why an answer holds neither a whole body nor another address."""
    status = answer.status
    if status in _REDIRECTS or is_complete(answer):
        return None
    if status == 429:
        return Reason.TOO_OFTEN
    return {4: Reason.HTTP_4XX, 5: Reason.HTTP_5XX}.get(status // 100, Reason.HTTP_OTHER)


def is_complete(answer: aiohttp.ClientResponse) -> bool:
    """Return whether an answer has all of what was asked for.

    203 comes through proxies that changed something; 206 was not asked for, but may be all.
    """
    if answer.status == 206:
        whole = _ALL.fullmatch(answer.headers.get("Content-Range", ""))
        return whole is not None and int(whole[1]) + 1 == int(whole[2])
    return answer.status in (200, 203)


def redirect_target(answer: aiohttp.ClientResponse, place: str) -> str | Reason | None:
    """Return where a redirect leads from a place, None if the answer is not one.

    A redirect to nowhere or to itself would say the same again, and is not followed.
    """
    if answer.status not in _REDIRECTS:
        return None
    try:
        target = join_url(place, answer.headers.get("Location", ""))
    except ValueError:
        return Reason.BAD_REDIRECT
    same = split_url(target) == split_url(place)
    return Reason.BAD_REDIRECT if same else target


def format_opt_out_headers(said: list[tuple[str, str]]) -> str:
    """Return what an owner said by headers, a line each."""
    return "\n".join(
        opt_outs.quote_evidence(
            value if name == opt_outs.OPT_OUT_HEADERS[0] else f"{name.lower()}: {value}"
        )
        for name, value in said
    )


def opt_out_headers(answer: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    """Return the headers by which an owner speaks."""
    return [
        (name, decode_header(value))
        for name in opt_outs.OPT_OUT_HEADERS
        for value in answer.headers.getall(name, ())
    ]


def decode_header(header: str) -> str:
    """A header's text, which aiohttp gives with surrogates for what is not UTF-8."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
