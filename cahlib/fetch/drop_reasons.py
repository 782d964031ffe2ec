"""Map exceptions of a request to drop reasons, and tell whether the host answered."""

from __future__ import annotations

import asyncio
import errno
import ssl

import aiohttp

from cahlib.errors import MachineFault, machine_fault
from cahlib.fetch.addresses import NotPublicError
from cahlib.fetch.connectivity import UNREACHABLE_ERRNOS
from cahlib.fetch.resolver import NoAddressError
from cahlib.records import Reason

#: aiohttp's exceptions and their reasons; the first match counts.
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
    """Return the drop reason for an exception; raise MachineFault if this machine is at fault."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, NotPublicError):
        return Reason.PRIVATE_ADDRESS
    if fault := machine_fault(error):
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
