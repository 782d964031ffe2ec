"""Trackers that really serve, in a thread of this process or as the installed command."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from cahlib.tracker.connections import TimedConnection
from tests.world.command import started
from tests.world.jobs import LIMIT, until
from tests.world.ports import free_port


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(
    url: str,
    path: str,
    body: Any = None,
    *,
    secret: str = "",
    headers: Mapping[str, str] | None = None,
    method: str = "",
) -> Answer:
    """One request: a GET, or with a body a POST of JSON (or of the bytes given)."""
    sent = dict(headers or {})
    if secret:
        sent["Authorization"] = f"Bearer {secret}"
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    method = method or ("GET" if body is None else "POST")
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=LIMIT)
    try:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        text = response.read().decode()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, text)
    finally:
        connection.close()


@contextmanager
def serving(app: Any, *, port: int = 0, **options: Any) -> Iterator[str]:
    """An application on a port of its own; its URL."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    # as asyncio sets it where it makes the listener itself: 40 ms an answer without it
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options = {"log_level": "warning", "proxy_headers": False, "http": TimedConnection} | options
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert server.started
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def commanded(database: str, *options: str) -> Iterator[int]:
    """The command ``cah tracker serve`` on a port of its own."""
    port = free_port()
    line = ["tracker", "serve", "--database", database, "--port", str(port), "--rate", "0"]
    server = started(*line, *options)
    try:
        until(lambda: _answers(port) or server.poll() is not None)
        assert server.poll() is None
        yield port
    finally:
        server.terminate()
        server.communicate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
