"""Thousands of connections that say little, or nothing, keep no honest worker from its shard."""

import logging
import resource
import selectors
import socket
import time
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from cahlib.tracker import connections
from cahlib.tracker.app import create_app
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.jobs import LIMIT, until
from tests.world.trackers import ask, serving

SOCKETS, ADDRESSES = 5000, 20
ANY = RequestLimits(address=0, worker=0, newcomers=0)


@pytest.fixture
def tracker(tmp_path, fill, database):
    fill(20)
    settings = TrackerSettings(database=str(database.engine.url), limits=ANY)
    with serving(
        create_app(settings), **(connections.uvicorn_options() | {"log_config": None})
    ) as url:
        yield url


@pytest.fixture
def url(sqlite_url):
    return sqlite_url


@contextmanager
def connected(url, count, said):
    """So many connections, each of which has said this, from 127.0.1.1 to .20 in turn."""
    parts = urlsplit(url)
    with ExitStack() as closing:
        every = []
        for number in range(count):
            each = closing.enter_context(socket.socket())
            each.bind((f"127.0.1.{1 + number % ADDRESSES}", 0))
            each.settimeout(30)
            each.connect((parts.hostname, parts.port))
            each.sendall(said)
            each.setblocking(False)
            every.append(each)
        yield every


def ended(connection):
    """Whether the other side has closed a connection."""
    try:
        return connection.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_silent_connections_keep_nobody_from_a_lease(tracker):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 3 * SOCKETS:
        pytest.skip("this process may not open enough files; type: ulimit -Hn 20000")
    secret = ask(tracker, "/v1/workers", {"nickname": "ann", "kind": "hybrid"}).json["secret"]
    kept = connections._MAX_IDLE * ADDRESSES
    with connected(tracker, SOCKETS, b"POST /v1/lease HTTP/1.1\r\nX-A: ") as every:
        waits = []
        for _ in range(10):
            started = time.monotonic()
            assert ask(tracker, "/v1/lease", {}, secret=secret).json["shard"]
            waits.append(time.monotonic() - started)
        until(lambda: sum(map(ended, every)) >= SOCKETS - kept)
    assert sorted(waits)[len(waits) // 2] < 1


def test_the_oldest_silent_connection_of_an_address_makes_way(tracker, monkeypatch):
    monkeypatch.setattr(connections, "_MAX_IDLE", 3)
    monkeypatch.setattr(connections, "_HEAD_SECONDS", LIMIT)
    with connected(tracker, 4 * ADDRESSES, b"GET / HTTP/1.1\r\n") as every:
        until(lambda: all(map(ended, every[:ADDRESSES])))
        assert not any(map(ended, every[ADDRESSES:]))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("_HEAD_SECONDS", b""),
        ("_HEAD_SECONDS", b"GET / HTTP/1.1\r\nHost: x\r\n"),
        ("_BODY_SECONDS", b"POST /v1/workers HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
         b"Content-Type: application/json\r\n\r\n{"),
    ],
)  # fmt: skip
def test_who_does_not_say_all_in_time_is_cut_off(tracker, monkeypatch, what, said):
    monkeypatch.setattr(connections, what, 0.2)
    with connected(tracker, 1, said) as (connection,):
        until(lambda: ended(connection))


def test_who_was_answered_and_does_not_ask_whole_again_is_cut_off(tracker, monkeypatch):
    with connected(tracker, 1, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as (connection,):
        connection.setblocking(True)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.2)
        connection.sendall(b"GET /healthz HT")
        connection.setblocking(False)
        until(lambda: ended(connection))


def test_a_head_without_an_end_is_cut_off(tracker):
    with connected(tracker, 1, b"GET / HTTP/1.1\r\nX: ") as (connection,):
        connection.setblocking(True)
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"x" * 10_000)


def test_a_slow_body_is_taken_while_it_comes(tracker, monkeypatch):
    monkeypatch.setattr(connections, "_BODY_SECONDS", 0.1)
    monkeypatch.setattr(connections, "_BODY_RATE", 1)
    body = b'{"nickname": "ann", "kind": "cpu"}'
    head = b"POST /v1/workers HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connected(tracker, 1, head + body[:30]) as (connection,):
        with selectors.DefaultSelector() as waiting:
            waiting.register(connection, selectors.EVENT_READ)
            assert not waiting.select(0.3)  # longer than it may take to begin
        connection.setblocking(True)
        connection.sendall(body[30:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 201")


def test_a_log_says_the_same_few_times_a_minute():
    now = 0.0
    throttle = connections.LogThrottle(clock=lambda: now)

    def said(count, line=1):
        records = [
            logging.LogRecord("asyncio", logging.ERROR, "x.py", line, "no %s", ("file",), None)
            for _ in range(count)
        ]
        return [each.getMessage() for each in records if throttle.filter(each)]

    assert said(1000) == ["no file"] * 20
    assert said(1, line=2) == ["no file"]
    now = 61.0
    assert said(2) == ["no file (980 more like it before)", "no file"]
