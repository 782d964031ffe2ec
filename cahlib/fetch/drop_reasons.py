"""What stands behind an exception of a request: a reason, and whether somebody answered."""

from __future__ import annotations

import asyncio
import errno
import ssl

import aiohttp

from cahlib.errors import MachineFault, machine_fault
from cahlib.fetch.addresses import NoAddressError, NotPublicError
from cahlib.fetch.connectivity import UNREACHABLE_ERRNOS
from cahlib.records import Reason

#: What aiohttp raises and what it means; the first that fits counts.
_CAUSES: tuple[tuple[type[Exception], Reason], ...] = (
    (asyncio.TimeoutError, Reason.TIMEOUT),
    (aiohttp.ClientConnectorDNSError, Reason.DNS),
    (aiohttp.ClientSSLError, Reason.TLS),
    (ssl.SSLError, Reason.TLS),
    (aiohttp.ClientConnectorError, Reason.REFUSED),
    (aiohttp.ClientResponseError, Reason.BAD_HTTP),
    (aiohttp.InvalidURL, Reason.UNFETCHABLE),
    (aiohttp.ClientError, Reason.DISCONNECTED),
    (OSError, Reason.DISCONNECTED),
    (ValueError, Reason.UNFETCHABLE),
)


def exception_drop_reason(error: Exception) -> Reason:
    """Return the reason that stands behind an exception; raise MachineFault if it is our own."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, NotPublicError):
        return Reason.PRIVATE_ADDRESS
    if fault := machine_fault(error):
        raise MachineFault(fault) from error
    return next(reason for kind, reason in _CAUSES if isinstance(error, kind))


def was_answered(error: Exception) -> bool | None:
    """Whether somebody answered, be it by a refusal; None: no host was asked."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, NoAddressError | NotPublicError | ValueError):
        return None
    if isinstance(error, asyncio.TimeoutError):
        return False
    if isinstance(error, aiohttp.ClientSSLError):
        return True
    if isinstance(error, aiohttp.ClientConnectorError):  # of several addresses: no number at all
        return getattr(inner, "errno", None) in (errno.ECONNREFUSED, errno.ECONNRESET)
    return not (isinstance(inner, OSError) and inner.errno in UNREACHABLE_ERRNOS)
