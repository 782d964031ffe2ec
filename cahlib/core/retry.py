"""Retries within a deadline, and the wait that an overloaded server requests."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

_T = TypeVar("_T")

#: Too many requests; not now. S3 says SlowDown by the second.
_BUSY = (429, 503)

#: The header RateLimit as Hugging Face sends it: "api";r=0;t=55
_RESET = re.compile(r";\s*t\s*=\s*(\d{1,9})")


def wait_until(
    done: Callable[[], object],
    *,
    timeout: float,
    pause: float,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Call ``done`` every ``pause`` seconds until it returns true; return False after a timeout."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        sleep(pause)
    return True


def retry(
    call: Callable[[], _T],
    *,
    errors: type[Exception],
    pauses: Iterable[float],
    timeout: float = float("inf"),
    passing: Callable[[Exception], bool] = lambda error: True,
    sleep: Callable[[float], object] = time.sleep,
) -> _T:
    """Return the result of a call, repeated after each of the pauses while it raises an error.

    The error is raised if it is not ``passing``, or if the pause would end after the timeout.
    """
    deadline = time.monotonic() + timeout
    for pause in pauses:
        try:
            return call()
        except errors as error:
            if not passing(error) or time.monotonic() + pause > deadline:
                raise
        sleep(pause)
    return call()


def backoff(first: float, *, most: float) -> Iterator[float]:
    """Yield pauses that double, up to the longest one."""
    while True:
        yield first
        first = min(2 * first, most)


def retry_after(header: str) -> float:
    """Return the seconds that a Retry-After header requests, 0 for none (RFC 9110, 10.2.3)."""
    if (seconds := header.strip()).isdecimal():
        return float(seconds[:12])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def requested_wait(error: BaseException | None) -> float | None:
    """Return the seconds that a busy server requested, 0 if unspecified, None if it is not busy.

    Read the errors of fsspec's drivers, and their causes: each keeps the response in its own way.
    """
    while error is not None:
        status, headers = _answer(error)
        if status in _BUSY:
            named = {name.lower(): str(value) for name, value in headers.items()}
            reset = _RESET.search(named.get("ratelimit", ""))
            asked = retry_after(named.get("retry-after", ""))
            return asked or (float(reset[1]) if reset else 0.0)
        error = error.__cause__ or error.__context__
    return None


def _answer(error: BaseException) -> tuple[int, Mapping[str, Any]]:
    """Return status and headers of an error's HTTP response; status 0 without one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore, below s3fs
        about = response.get("ResponseMetadata", {})
        return about.get("HTTPStatusCode", 0), about.get("HTTPHeaders", {})
    for holder in (response, error):  # httpx, requests, Azure; aiohttp, gcsfs, urllib
        for name in ("status_code", "status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int):
                return status, getattr(holder, "headers", None) or {}
    return 0, {}
