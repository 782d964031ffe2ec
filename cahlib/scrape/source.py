"""Bytes of a file of the crawl, on disk or behind HTTP; it does not know what they mean.

Common Crawl asks for no more than one retry a second, bans with 403, and asks to slow down with
503: a fetch that breaks off goes on where it was, each time after a longer pause, and a 403 ends
the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cahlib import __version__
from cahlib.errors import RunError, ShardError

#: Seconds before each new try; a try that brings bytes starts them anew.
PAUSES = (1, 2, 4, 8, 16, 32, 60)

_TIMEOUT = 60
_PIECE = 1 << 18

Sleep = Callable[[float], None]
T = TypeVar("T")


class Missing(ShardError):
    """There is no such file."""


class Source:
    """A file by path or http(s) URL, read from any place in it.

    Reading raises Missing if there is no such file, ShardError if it cannot be read, and RunError
    if the server bans us.
    """

    def __init__(self, url: str, *, contact: str = "", sleep: Sleep = time.sleep) -> None:
        self.url = url
        self._remote = url.startswith(("http://", "https://"))
        self._agent = f"cahlib/{__version__}" + (f" (+{contact})" if contact else "")
        self._sleep = sleep

    def size(self) -> int:
        """Its length in bytes."""
        if not self._remote:
            try:
                return Path(self.url).stat().st_size
            except OSError as error:
                raise _unreadable(self.url, error) from error
        with self._patiently(lambda: self._ask("HEAD")) as answer:
            length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise ShardError(f"{self.url} does not tell its length; download it and name the file.")
        return int(length)

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``end``, in pieces of at most 256 KiB."""
        return (self._fetched if self._remote else self._read)(start, end)

    def _read(self, start: int, end: int) -> Iterator[bytes]:
        try:
            with open(self.url, "rb") as file:
                file.seek(start)
                while piece := file.read(min(_PIECE, end - file.tell())):
                    yield piece
        except OSError as error:
            raise _unreadable(self.url, error) from error

    def _fetched(self, start: int, end: int) -> Iterator[bytes]:
        pauses = iter(PAUSES)
        while start < end:
            try:
                with self._ask("GET", start, end) as answer:
                    while piece := answer.read(min(_PIECE, end - start)):
                        start += len(piece)
                        pauses = iter(PAUSES)
                        yield piece
                    if start < end:
                        raise ConnectionError("the connection broke off")
            except (OSError, HTTPException) as error:
                self._pause(pauses, error)

    def _patiently(self, act: Callable[[], T]) -> T:
        pauses = iter(PAUSES)
        while True:
            try:
                return act()
            except (OSError, HTTPException) as error:
                self._pause(pauses, error)

    def _pause(self, pauses: Iterator[float], error: Exception) -> None:
        """Wait before the next try; raises ShardError if there shall be none."""
        pause = next(pauses, None)
        if pause is None:
            raise ShardError(f"{self.url} cannot be fetched ({error}); try again later.") from error
        self._sleep(pause)

    def _ask(self, method: str, start: int = 0, end: int = 0) -> HTTPResponse:
        """One request. What may pass raises OSError or HTTPException, what will not a CahError."""
        request = Request(self.url, method=method, headers={"User-Agent": self._agent})
        if method == "GET":
            request.add_header("Range", f"bytes={start}-{end - 1}")
        try:
            answer: HTTPResponse = urlopen(request, timeout=_TIMEOUT)
        except HTTPError as error:
            error.close()
            if error.code == 403:
                raise RunError(
                    f"{self.url} answers 403: this address is banned or the file is private; "
                    "stop for a day, then go on with fewer scrapers."
                ) from error
            if error.code in (404, 410):
                raise Missing(f"{self.url} does not exist.") from error
            if error.code != 429 and error.code < 500:
                raise ShardError(f"{self.url} answers {error.code}.") from error
            raise
        if method == "GET" and start and answer.status != 206:
            answer.close()
            raise ShardError(f"{self.url} cannot be read in parts; download it and name the file.")
        return answer


def _unreadable(path: str, error: OSError) -> ShardError:
    kind = Missing if isinstance(error, FileNotFoundError) else ShardError
    return kind(f"{path} cannot be read: {error.strerror}.")
