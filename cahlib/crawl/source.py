"""Read the bytes of a crawl's file, from disk or over HTTP.

Common Crawl asks for at most one attempt per second, bans with 403, and asks to slow down with 503:
an interrupted download resumes where it stopped, after a longer pause each time, and a 403 ends the
run. Without a network, it is retried for as long as the settings allow.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cahlib import __version__
from cahlib.core.errors import RunError, ShardError
from cahlib.core.path_map import local_path
from cahlib.fetch.connectivity import UNREACHABLE_ERRNOS, Outages

#: Seconds before each retry; they start over after an attempt that read some bytes.
RETRY_PAUSES = (1, 2, 4, 8, 16, 32, 60)

_TIMEOUT = 60
_CHUNK = 1 << 18
_HEAD = 8192  # enough for the headers of a file's first two records
_ALIVE_SECONDS = 30.0  # seconds for which another host's answer proves that the network works

SleepFunction = Callable[[float], None]
_log = logging.getLogger(__name__)


class MissingFileError(ShardError):
    """The file does not exist."""


class CrawlFile:
    """A file by path or http(s) URL, readable from any offset.

    Reading raises MissingFileError if there is no such file, ShardError if it cannot be read, and
    RunError if the server bans this address.
    """

    def __init__(
        self,
        url: str,
        *,
        contact: str = "",
        pauses: Sequence[float] = RETRY_PAUSES,
        sleep: SleepFunction = time.sleep,
        outages: Outages | None = None,
    ) -> None:
        """``outages``: the shard's; without it, a network failure is an error like any other."""
        self.url, self._outages = url, outages
        self._answered = time.monotonic()
        self._remote = url.startswith(("http://", "https://"))
        is_sendable = contact and contact.isascii() and contact.isprintable()
        self._agent = f"cahlib/{__version__}" + (f" (+{contact})" if is_sendable else "")
        self._pauses, self._sleep = pauses, sleep

    def head(self) -> tuple[bytes, int]:
        """Return its first 8 KiB, and its length in bytes."""
        if not self._remote:
            first = b"".join(self._read(0, _HEAD))
            return first, Path(local_path(self.url)).stat().st_size
        pauses = iter(self._pauses)
        while True:
            try:
                return self._request_head()
            except (OSError, HTTPException) as error:
                self._pause(pauses, error)

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """Return the bytes from ``start`` up to ``end``, in chunks of at most 256 KiB."""
        return (self._download if self._remote else self._read)(start, end)

    def _read(self, start: int, end: int) -> Iterator[bytes]:
        try:
            with open(local_path(self.url), "rb") as file:
                file.seek(start)
                while piece := file.read(min(_CHUNK, end - file.tell())):
                    yield piece
        except OSError as error:
            kind = MissingFileError if isinstance(error, FileNotFoundError) else ShardError
            raise kind(f"{self.url} cannot be read: {error.strerror}.") from error

    def _download(self, start: int, end: int) -> Iterator[bytes]:
        pauses = iter(self._pauses)
        while start < end:
            try:
                with self._request(start, end) as answer:
                    while piece := answer.read(min(_CHUNK, end - start)):
                        start += len(piece)
                        self._answered = time.monotonic()
                        pauses = iter(self._pauses)
                        yield piece
                    if start < end:
                        raise ConnectionError("the connection was lost")
            except (OSError, HTTPException) as error:
                self._pause(pauses, error)

    def _request_head(self) -> tuple[bytes, int]:
        with self._request(0, _HEAD) as answer:
            length = answer.headers.get("Content-Length", "")
            if answer.status == 206:
                length = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if not length.isdecimal():
                raise ShardError(
                    f"{self.url}: the server sends no length; download the file and give its path."
                )
            return answer.read(_HEAD), int(length)

    def _pause(self, pauses: Iterator[float], error: Exception) -> None:
        """Wait before the next attempt; raise ShardError if there is none left."""
        pause = next(pauses, None)
        if self._outages and self._is_offline(error):
            self._outages.begin(self.url, self._answered)
            self._outages.check_overdue()
            pause = pause or self._pauses[-1]
        if pause is None:
            raise ShardError(f"{self.url} cannot be fetched: {_describe(error)}.") from error
        _log.warning("%s: %s; trying again in %g s", self.url, _describe(error), pause)
        self._sleep(pause)

    def _request(self, start: int, end: int) -> HTTPResponse:
        """Send a request; raise OSError or HTTPException if a retry may help, else CahError."""
        headers = {"User-Agent": self._agent, "Range": f"bytes={start}-{end - 1}"}
        try:
            answer: HTTPResponse = urlopen(Request(self.url, headers=headers), timeout=_TIMEOUT)
        except HTTPError as error:
            error.close()
            self._record_answer()
            if lasting := self._permanent_error(error.code):
                raise lasting from error
            raise
        self._record_answer()
        if start and answer.status != 206:
            answer.close()
            raise ShardError(
                f"{self.url}: the server does not support range requests; download the file "
                "and give its path."
            )
        return answer

    def _record_answer(self) -> None:
        """Record that the server answered."""
        self._answered = time.monotonic()
        if self._outages:
            self._outages.end(self.url)
            place = urlsplit(self.url)
            port = place.port or (443 if place.scheme == "https" else 80)
            self._outages.crawl = place.hostname or "", port

    def _is_offline(self, error: Exception) -> bool:
        """Return whether this machine has no network, rather than that server being down."""
        assert self._outages
        reason = error.reason if isinstance(error, URLError) else error
        if (
            isinstance(error, HTTPError)
            or time.monotonic() - self._outages.last_answer < _ALIVE_SECONDS
        ):
            return False
        return isinstance(reason, TimeoutError) or (
            isinstance(reason, OSError) and reason.errno in (*UNREACHABLE_ERRNOS, socket.EAI_AGAIN)
        )

    def _permanent_error(self, status: int) -> ShardError | RunError | None:
        """Return the error for a status that a retry would not change, None for others."""
        if status == 403:
            return RunError(
                f"{self.url} answers 403: the server has banned this address, or the file is "
                "private; wait a day, then continue with fewer scrapers."
            )
        if status in (404, 410):
            return MissingFileError(f"{self.url} does not exist.")
        if status == 416:
            return ShardError(f"{self.url} is empty.")
        return None if status == 429 or status >= 500 else ShardError(f"{self.url}: {status}.")


def _describe(error: Exception) -> str:
    """Return what went wrong, for people."""
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(error, HTTPError):
        return f"the server answers {error.code}"
    return (isinstance(reason, OSError) and reason.strerror) or str(reason) or type(reason).__name__
