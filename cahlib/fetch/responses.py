"""Interpret the outcome of a request: exceptions, the status, redirects and opt-out headers."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl

import aiohttp

from cahlib.core.errors import MachineFault, describe_machine_fault
from cahlib.core.records import DropReason
from cahlib.fetch import opt_outs
from cahlib.fetch.addresses import NotPublicError
from cahlib.fetch.connectivity import UNREACHABLE_ERRNOS
from cahlib.fetch.links import join_url, split_url
from cahlib.fetch.resolver import NoAddressError

_REDIRECTS = (301, 302, 303, 307, 308)

#: A range that covers everything.
_ALL = re.compile(r"\s*bytes\s+0-(\d{1,18})/(\d{1,18})\s*", re.IGNORECASE)

#: aiohttp's exceptions and their reasons; the first match counts.
_CAUSES: tuple[tuple[type[Exception], DropReason], ...] = (
    (asyncio.TimeoutError, DropReason.TIMEOUT),
    (aiohttp.ClientConnectorDNSError, DropReason.DNS),
    (aiohttp.ClientSSLError, DropReason.TLS),
    (ssl.SSLError, DropReason.TLS),
    (aiohttp.ClientConnectorError, DropReason.REFUSED),
    (aiohttp.ClientResponseError, DropReason.BAD_HTTP),
    (aiohttp.InvalidURL, DropReason.UNFETCHABLE),
    (aiohttp.ClientError, DropReason.DISCONNECTED),
    (OSError, DropReason.DISCONNECTED),
    (ValueError, DropReason.UNFETCHABLE),
)


def exception_drop_reason(error: Exception) -> DropReason:
    """Return the drop reason for an exception; raise MachineFault if this machine is at fault."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, NotPublicError):
        return DropReason.PRIVATE_ADDRESS
    if fault := describe_machine_fault(error):
        raise MachineFault(fault) from error
    return next(reason for kind, reason in _CAUSES if isinstance(error, kind))


def was_answered(error: Exception) -> bool | None:
    """Return whether a host answered, even by refusing; None if none was contacted."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, NoAddressError | NotPublicError | ValueError):
        return None
    if isinstance(error, asyncio.TimeoutError):
        return False
    if isinstance(error, aiohttp.ClientSSLError):
        return True
    if isinstance(error, aiohttp.ClientConnectorError):  # for several addresses there is no errno
        return getattr(inner, "errno", None) in (errno.ECONNREFUSED, errno.ECONNRESET)
    return not (isinstance(inner, OSError) and inner.errno in UNREACHABLE_ERRNOS)


def response_drop_reason(answer: aiohttp.ClientResponse) -> DropReason | None:
    """Return the reason to drop a response that is neither complete nor a redirect, or None."""
    status = answer.status
    if status in _REDIRECTS or is_complete(answer):
        return None
    if status == 429:
        return DropReason.TOO_OFTEN
    return {4: DropReason.HTTP_4XX, 5: DropReason.HTTP_5XX}.get(
        status // 100, DropReason.HTTP_OTHER
    )


def is_complete(answer: aiohttp.ClientResponse) -> bool:
    """Return whether a response has the complete body.

    203 comes from proxies that modified it; 206 was not requested, but may cover everything.
    """
    if answer.status == 206:
        whole = _ALL.fullmatch(answer.headers.get("Content-Range", ""))
        return whole is not None and int(whole[1]) + 1 == int(whole[2])
    return answer.status in (200, 203)


def redirect_target(answer: aiohttp.ClientResponse, place: str) -> str | DropReason | None:
    """Return the target of a redirect from ``place``, None if the response is not one.

    A redirect without a valid target, or to itself, is a BAD_REDIRECT.
    """
    if answer.status not in _REDIRECTS:
        return None
    try:
        target = join_url(place, answer.headers.get("Location", ""))
    except ValueError:
        return DropReason.BAD_REDIRECT
    same = split_url(target) == split_url(place)
    return DropReason.BAD_REDIRECT if same else target


def format_opt_out_headers(said: list[tuple[str, str]]) -> str:
    """Return opt-out headers as text, one per line."""
    return "\n".join(
        opt_outs.quote_evidence(
            value if name == opt_outs.OPT_OUT_HEADERS[0] else f"{name.lower()}: {value}"
        )
        for name, value in said
    )


def opt_out_headers(answer: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    """Return the opt-out headers of a response."""
    return [
        (name, decode_header(value))
        for name in opt_outs.OPT_OUT_HEADERS
        for value in answer.headers.getall(name, ())
    ]


def decode_header(header: str) -> str:
    """Return a header as text; aiohttp has surrogates for bytes that are not UTF-8."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
