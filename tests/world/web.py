"""A small hostile web on loopback: each path has a behaviour, a function that talks to the client.

A path may have its host before it, and then holds for that host alone.

    with Web({"/a.jpg": body(JPEG), "/b.jpg": drip(b"HTTP/1.1 200 OK\r\n", b"x")}) as web: ...

All hosts are the same place. With an SSL context it speaks TLS.
"""

import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass
class Talk:
    """One request, and the connection that it came on."""

    connection: socket.socket
    closing: threading.Event
    path: str
    headers: Mapping[str, str]  #: names in small letters
    sent: Counter[str]  #: bytes by host
    keep: bool = field(default=True)  #: whether another request may follow

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.sent[self.headers.get("host", "")] += len(data)

    def wait(self, seconds: float = 60) -> bool:
        """Let time pass; true if the web closes meanwhile."""
        return self.closing.wait(seconds)

    def hang_up(self, *, reset: bool = False) -> None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.keep = False


Behaviour = Callable[[Talk], None]


class Web:
    """Serves while it is entered. `address` is "127.0.0.1:PORT", `asked` what was asked for."""

    def __init__(
        self,
        paths: Mapping[str, Behaviour],
        *,
        tls: ssl.SSLContext | None = None,
        place: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.paths, self._tls, self._place = dict(paths), tls, place
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.busy: Counter[str] = Counter()  #: requests in work by host
        self.busiest: Counter[str] = Counter()  #: the most of them at one time
        self.open = 0  #: connections
        self.reached: Counter[str] = Counter()  #: connections by the address that was asked
        self.sent: Counter[str] = Counter()  #: bytes by host
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> "Web":
        family = socket.AF_INET6 if ":" in self._place[0] else socket.AF_INET
        self._listener = socket.create_server(self._place, family=family, backlog=1024)
        self.port = self._listener.getsockname()[1]
        self.address = f"{self._place[0]}:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with self._lock:
            self.open += 1
            self.reached[connection.getsockname()[0]] += 1
        try:
            with suppress(OSError), connection:  # clients leave as they like
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                self._answer(connection)
        finally:
            with self._lock:
                self.open -= 1

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            keep = True
            while keep and (line := file.readline()):
                headers = {}
                while header := file.readline().decode("latin-1").strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                path = line.decode("latin-1").split()[1]
                talk = Talk(connection, self._closing, path, headers, self.sent)
                self._talk(talk)
                keep = talk.keep and not self._closing.is_set()

    def _talk(self, talk: Talk) -> None:
        host = talk.headers.get("host", "")
        with self._lock:
            self.asked.append((talk.path, talk.headers))
            self.busy[host] += 1
            self.busiest[host] = max(self.busiest[host], self.busy[host])
        try:
            path = talk.path if talk.path in self.paths else talk.path.partition("?")[0]
            everywhere = self.paths.get(path, body(b"", status=404))
            self.paths.get(host + path, everywhere)(talk)
        finally:
            with self._lock:
                self.busy[host] -= 1


def head(status: int, *headers: tuple[str, object]) -> bytes:
    """A status line and headers, as they go over the wire."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


def body(data: bytes, *headers: tuple[str, str], status: int = 200) -> Behaviour:
    """An honest answer."""
    answer = head(status, *headers, ("Content-Length", len(data))) + data
    return lambda talk: talk.send(answer)


def redirect(to: str, status: int = 302) -> Behaviour:
    return body(b"elsewhere", ("Location", to), status=status)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One behaviour after the other, the last one for ever."""
    left = list(behaviours)
    return lambda talk: (left.pop(0) if len(left) > 1 else left[0])(talk)


def slow(behaviour: Behaviour, until: threading.Event) -> Behaviour:
    """Answers once it may."""

    def act(talk: Talk) -> None:
        while not until.is_set() and not talk.wait(0.01):
            pass
        behaviour(talk)

    return act


def silent(talk: Talk) -> None:
    """Takes the request and says nothing."""
    talk.wait()
    talk.hang_up()


def raw(data: bytes) -> Behaviour:
    """Says this, whatever it is, and hangs up."""

    def act(talk: Talk) -> None:
        talk.send(data)
        talk.hang_up()

    return act


def drip(start: bytes, drop: bytes, pause: float = 0.02) -> Behaviour:
    """Begins, and then goes on drop by drop without an end."""

    def act(talk: Talk) -> None:
        talk.send(start)
        while not talk.wait(pause):
            talk.send(drop)

    return act


def endless(start: bytes) -> Behaviour:
    """Begins like an image, and never ends."""
    return drip(head(200, ("Content-Type", "image/jpeg")) + start, bytes(65_536), pause=0)


def broken_off(data: bytes, *, length: int, reset: bool = False) -> Behaviour:
    """Announces a length, sends this much, and hangs up."""

    def act(talk: Talk) -> None:
        talk.send(head(200, ("Content-Length", length)) + data)
        talk.hang_up(reset=reset)

    return act
