"""A small web on one port: any number of hosts, each URL with the answer it was given.

It goes by the Host header, so a client that sends every connection here sees as many sites as it
likes; http and https URLs of one host are the same page, and nothing here speaks TLS. It serves
the demo, and the tests replay recorded pieces of the real web with it. It knows nothing of
images or crawls.
"""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from io import BufferedIOBase
from types import TracebackType
from typing import IO
from urllib.parse import unquote

from cahlib.core.errors import ConfigError

_LONGEST_LINE = 65_536
_CHUNK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response to a request, and its faults."""

    body: bytes = b""
    type: str = "application/octet-stream"
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    delay: float = 0.0  #: seconds before the first byte
    pace: float = 0.0  #: seconds after every 1,000 bytes of the body
    cut: int | None = None  #: the connection ends after so many bytes of the body
    ranges: bool = True  #: whether ``Range: bytes=…`` is understood
    raw: bool = False  #: the body is all that is sent, without a status line or a header


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The request of a client."""

    method: str
    url: str  #: absolute, as http
    headers: Mapping[str, str]  #: names in small letters


class Web:
    """Serves answers by absolute URL while it is entered; any other URL is a 404.

    A sequence of answers is given in turn, the last one for ever. A key that begins with "/" holds
    for every host. `address` is HOST:PORT (port 0: any free one), `requests` what was asked.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer | Sequence[Answer]],
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self._place = host, port
        self.requests: list[Request] = []
        self._answers = {
            _key(url): [answer] if isinstance(answer, Answer) else list(answer)
            for url, answer in answers.items()
        }
        self._lock = threading.Lock()

    def __enter__(self) -> Web:
        try:
            self._server = _Server(self, self._place)
        except OSError as error:
            raise ConfigError(
                f"port {self._place[1]} cannot be used ({error.strerror}); end what uses it."
            ) from error
        self.address = f"{self._place[0]}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def answer(self, request: Request) -> Answer:
        """The next answer to a request, which is noted."""
        with self._lock:
            self.requests.append(request)
            here = _key(request.url)
            answers = self._answers.get(here) or self._answers.get(here[here.find("/") :])
            if answers:
                return answers.pop(0) if len(answers) > 1 else answers[0]
        return Answer(status=404, type="text/plain", body=b"There is no such page.\n")


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 1024  # hundreds of clients may knock at once

    allow_reuse_address = True

    def __init__(self, web: Web, place: tuple[str, int]) -> None:
        self.web = web
        self.stopped = threading.Event()
        self.open: set[socket.socket] = set()
        super().__init__(place, _Connection)

    def hang_up(self) -> None:
        """Wake the threads that wait for a further request."""
        for connection in list(self.open):
            with suppress(OSError):  # the client was quicker
                connection.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.StreamRequestHandler):
    """One client's connection, request after request."""

    server: _Server
    timeout = 60  # seconds that an idle connection is kept
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.server.open.add(self.connection)
        with suppress(OSError):  # the client went away, or the web closes
            while not self.server.stopped.is_set():
                request = _read(self.rfile)
                if request is None or not self._send(self.server.web.answer(request), request):
                    break
        self.server.open.discard(self.connection)

    def _send(self, answer: Answer, request: Request) -> bool:
        """Answer, and tell whether the connection can be used again."""
        self.server.stopped.wait(answer.delay)
        head, body = (b"", answer.body) if answer.raw else _written(answer, request)
        if request.method == "HEAD":
            body = b""
        sent = body if answer.cut is None else body[: answer.cut]
        if answer.pace:
            self.connection.sendall(head)
            self._trickle(sent, answer.pace)
        else:
            self.connection.sendall(head + sent)
        return sent is body and not answer.raw and request.headers.get("connection") != "close"

    def _trickle(self, body: bytes, pace: float) -> None:
        for start in range(0, len(body), _CHUNK):
            self.connection.sendall(body[start : start + _CHUNK])
            if self.server.stopped.wait(pace):
                return


def _read(file: IO[bytes] | BufferedIOBase) -> Request | None:
    """The next request; None at the end, or for what is no request."""
    parts = file.readline(_LONGEST_LINE).decode("latin-1").split()
    if len(parts) != 3:
        return None
    headers = {}
    while line := file.readline(_LONGEST_LINE).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    method, target, _ = parts
    url = f"http://{headers.get('host', '')}{target}" if target.startswith("/") else target
    return Request(method=method, url=url, headers=headers)


def _written(answer: Answer, request: Request) -> tuple[bytes, bytes]:
    """The head and the body of an answer to a request, as HTTP/1.1 has them."""
    status, body, headers = answer.status, answer.body, list(answer.headers)
    if status == 200 and answer.ranges:
        headers.append(("Accept-Ranges", "bytes"))
        status, body, extent = _part(body, request.headers.get("range", ""))
        headers += extent
    given = {name.lower() for name, _ in headers}
    headers += [
        (name, value)
        for name, value in (("Content-Type", answer.type), ("Content-Length", str(len(body))))
        if name.lower() not in given
    ]
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), body


def _part(body: bytes, wanted: str) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Status, bytes and headers for a Range header (RFC 9110, 14.2); only one range is known."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted.replace(" ", ""))
    if not match or match.group() == "bytes=-":
        return 200, body, []
    first, last = match.groups()
    start = int(first) if first else max(0, len(body) - int(last))
    end = min(int(last) + 1, len(body)) if first and last else len(body)
    if start >= end:
        return 416, b"", [("Content-Range", f"bytes */{len(body)}")]
    return 206, body[start:end], [("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")]


def _key(url: str) -> str:
    """Return what two spellings of one address have in common: host, path, query, unescaped."""
    rest = url if url.startswith("/") else url.partition("://")[2]
    host, _, path = rest.partition("#")[0].partition("/")
    host = host.lower().removesuffix(":80").removesuffix(":443")
    return f"{host}/{unquote(path)}"
