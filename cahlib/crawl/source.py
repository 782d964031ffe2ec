"""Bytes of a file of the crawl, on disk or behind HTTP; it does not know what they mean.

Common Crawl asks for no more than one try a second, bans with 403, and asks to slow down with 503:
a fetch that breaks off goes on where it was, each time after a longer pause, and a 403 ends the
run. While there is no network, it is tried for as long as the settings say.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cahlib import __version__
from cahlib.errors import RunError, ShardError
from cahlib.fetch.connectivity import UNREACHABLE_ERRNOS, Outages
from cahlib.places import here

#: Seconds before each new try; after a try that brought bytes they begin anew.
RETRY_PAUSES = (1, 2, 4, 8, 16, 32, 60)

_TIMEOUT = 60
_PIECE = 1 << 18
_BEGINNING = 8192  # enough for the heads of a file's first two records
_LIVELY = 30.0  # seconds after which the answer of another host says nothing of now

SleepFunction = Callable[[float], None]
T = TypeVar("T")
log = logging.getLogger(__name__)


class MissingFileError(ShardError):
    """There is no such file."""


class CrawlFile:
    """A file by path or http(s) URL, read from any place in it.

    Reading raises Missing if there is no such file, ShardError if it cannot be read, and RunError
    if the server bans us.
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
        """``outages``: the shard's; without it a missing network is an error like others."""
        self.url, self._outages = url, outages
        self._answered = time.monotonic()
        self._remote = url.startswith(("http://", "https://"))
        told = contact and contact.isascii() and contact.isprintable()
        self._agent = f"cahlib/{__version__}" + (f" (+{contact})" if told else "")
        self._pauses, self._sleep = pauses, sleep

    def head(self) -> tuple[bytes, int]:
        """Its first 8 KiB, and its length in bytes."""
        if self._remote:
            return self._patiently(self._ask_beginning)
        first = b"".join(self._read(0, _BEGINNING))
        return first, Path(here(self.url)).stat().st_size

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``end``, in pieces of at most 256 KiB."""
        return (self._fetched if self._remote else self._read)(start, end)

    def _read(self, start: int, end: int) -> Iterator[bytes]:
        try:
            with open(here(self.url), "rb") as file:
                file.seek(start)
                while piece := file.read(min(_PIECE, end - file.tell())):
                    yield piece
        except OSError as error:
            kind = MissingFileError if isinstance(error, FileNotFoundError) else ShardError
            raise kind(f"{self.url} cannot be read: {error.strerror}.") from error

    def _fetched(self, start: int, end: int) -> Iterator[bytes]:
        pauses = iter(self._pauses)
        while start < end:
            try:
                with self._ask(start, end) as answer:
                    while piece := answer.read(min(_PIECE, end - start)):
                        start += len(piece)
                        self._answered = time.monotonic()
                        pauses = iter(self._pauses)
                        yield piece
                    if start < end:
                        raise ConnectionError("the connection broke off")
            except (OSError, HTTPException) as error:
                self._pause(pauses, error)

    def _ask_beginning(self) -> tuple[bytes, int]:
        with self._ask(0, _BEGINNING) as answer:
            length = answer.headers.get("Content-Length", "")
            if answer.status == 206:
                length = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if not length.isdecimal():
                raise ShardError(
                    f"{self.url} does not tell its length; download it and name the file."
                )
            return answer.read(_BEGINNING), int(length)

    def _patiently(self, act: Callable[[], T]) -> T:
        pauses = iter(self._pauses)
        while True:
            try:
                return act()
            except (OSError, HTTPException) as error:
                self._pause(pauses, error)

    def _pause(self, pauses: Iterator[float], error: Exception) -> None:
        """Wait before the next try; raises ShardError if there shall be none."""
        pause = next(pauses, None)
        if self._outages and self._cut_off(error):
            self._outages.begin(self.url, self._answered)
            self._outages.check_overdue()
            pause = pause or self._pauses[-1]
        if pause is None:
            raise ShardError(f"{self.url} cannot be fetched: {_cause(error)}.") from error
        log.warning("%s: %s; trying again in %g s", self.url, _cause(error), pause)
        self._sleep(pause)

    def _ask(self, start: int, end: int) -> HTTPResponse:
        """One request. What may pass raises OSError or HTTPException, what will not a CahError."""
        headers = {"User-Agent": self._agent, "Range": f"bytes={start}-{end - 1}"}
        try:
            answer: HTTPResponse = urlopen(Request(self.url, headers=headers), timeout=_TIMEOUT)
        except HTTPError as error:
            error.close()
            self._heard()
            if lasting := self._lasting(error.code):
                raise lasting from error
            raise
        self._heard()
        if start and answer.status != 206:
            answer.close()
            raise ShardError(f"{self.url} cannot be read in parts; download it and name the file.")
        return answer

    def _heard(self) -> None:
        """Note that the server answers."""
        self._answered = time.monotonic()
        if self._outages:
            self._outages.end(self.url)
            place = urlsplit(self.url)
            port = place.port or (443 if place.scheme == "https" else 80)
            self._outages.crawl = place.hostname or "", port

    def _cut_off(self, error: Exception) -> bool:
        """Whether it is this machine that has no network, and not that server."""
        assert self._outages
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(error, HTTPError) or time.monotonic() - self._outages.last_answer < _LIVELY:
            return False
        return isinstance(reason, TimeoutError) or (
            isinstance(reason, OSError) and reason.errno in (*UNREACHABLE_ERRNOS, socket.EAI_AGAIN)
        )

    def _lasting(self, status: int) -> ShardError | RunError | None:
        """What a status means that another try would not change."""
        if status == 403:
            return RunError(
                f"{self.url} answers 403: the server has banned this address, or the file is "
                "private; stop for a day, then go on with fewer scrapers."
            )
        if status in (404, 410):
            return MissingFileError(f"{self.url} does not exist.")
        if status == 416:
            return ShardError(f"{self.url} is empty.")
        return None if status == 429 or status >= 500 else ShardError(f"{self.url}: {status}.")


def _cause(error: Exception) -> str:
    """What went wrong, for people."""
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(error, HTTPError):
        return f"the server answers {error.code}"
    return (isinstance(reason, OSError) and reason.strerror) or str(reason) or type(reason).__name__
