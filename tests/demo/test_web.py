"""The loopback web, asked by an ordinary HTTP client."""

import socket
import threading
import time
from http.client import HTTPConnection, HTTPException, IncompleteRead

import pytest

from cahlib.demo.web import Answer, Web
from tests.world.jobs import LIMIT, until

PAGE = "http://photos.example.com/a%20cat.jpg?size=big"


class Client:
    """A connection to a web; each request may name another host."""

    def __init__(self, web):
        self.connection = HTTPConnection(web.address, timeout=LIMIT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def ask(self, url, method="GET", **headers):
        host, _, path = url.partition("://")[2].partition("/")
        self.connection.request(method, "/" + path, headers={"Host": host, **headers})
        reply = self.connection.getresponse()
        return reply.status, reply.read(), {k.lower(): v for k, v in reply.getheaders()}


@pytest.fixture
def web():
    answers = {
        PAGE: Answer(body=b"meow", type="image/jpeg", headers=(("X-Robots-Tag", "noai"),)),
        "https://Other.example.org/": Answer(body=b"other"),
        "/robots.txt": Answer(body=b"for all hosts"),
        "http://photos.example.com/flaky": [Answer(status=503), Answer(body=b"well")],
        "http://photos.example.com/cut": Answer(body=b"x" * 100, cut=40),
        "http://photos.example.com/silent": Answer(raw=True),
        "http://photos.example.com/garbage": Answer(raw=True, body=b"220 mail ready\r\n"),
        "http://photos.example.com/slow": Answer(delay=3600),
        "http://photos.example.com/drip": Answer(body=b"y" * 2500, pace=0.01),
        "http://photos.example.com/plain": Answer(body=b"z" * 10, ranges=False),
    }
    with Web(answers) as web:
        yield web


def test_many_hosts_live_on_one_port(web):
    with Client(web) as client:
        status, body, headers = client.ask(PAGE)
        assert (status, body) == (200, b"meow")
        assert headers["content-type"] == "image/jpeg"
        assert headers["x-robots-tag"] == "noai"
        assert client.ask("http://other.example.org:443/")[:2] == (200, b"other")
        assert client.ask("http://any.example.net/robots.txt")[:2] == (200, b"for all hosts")
        assert client.ask("http://other.example.org/a%20cat.jpg?size=big")[0] == 404


@pytest.mark.parametrize("path", ["a%20cat.jpg?size=big", "a%20c%61t.jpg?size=big"])
def test_an_address_may_be_spelt_in_another_way(web, path):
    with Client(web) as client:
        assert client.ask(f"http://PHOTOS.example.com:80/{path}")[0] == 200


def test_requests_are_noted(web):
    with Client(web) as client:
        client.ask(PAGE, **{"User-Agent": "someone"})
    (request,) = web.requests
    assert (request.method, request.url) == ("GET", PAGE)
    assert request.headers["user-agent"] == "someone"


def test_answers_are_given_in_turn(web):
    with Client(web) as client:
        url = "http://photos.example.com/flaky"
        assert [client.ask(url)[0] for _ in range(3)] == [503, 200, 200]


@pytest.mark.parametrize(
    ("wanted", "status", "body", "extent"),
    [
        ("bytes=0-1", 206, b"me", "bytes 0-1/4"),
        ("bytes=2-", 206, b"ow", "bytes 2-3/4"),
        ("bytes=-3", 206, b"eow", "bytes 1-3/4"),
        ("bytes=1-99", 206, b"eow", "bytes 1-3/4"),
        ("bytes=4-", 416, b"", "bytes */4"),
        ("bytes=-", 200, b"meow", None),
        ("lines=1-2", 200, b"meow", None),
    ],
)
def test_a_part_can_be_asked_for(web, wanted, status, body, extent):
    with Client(web) as client:
        found = client.ask(PAGE, Range=wanted)
    assert found[:2] == (status, body)
    assert found[2].get("content-range") == extent


def test_a_server_may_not_know_ranges(web):
    with Client(web) as client:
        assert client.ask("http://photos.example.com/plain", Range="bytes=0-1")[1] == b"z" * 10


def test_head_has_no_body(web):
    with Client(web) as client:
        status, body, headers = client.ask(PAGE, "HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", "4")


def test_a_connection_may_break_off(web):
    with Client(web) as client, pytest.raises(IncompleteRead) as caught:
        client.ask("http://photos.example.com/cut")
    assert caught.value.partial == b"x" * 40


@pytest.mark.parametrize("path", ["silent", "garbage"])
def test_a_server_may_not_speak_http(web, path):
    with Client(web) as client, pytest.raises(HTTPException):
        client.ask(f"http://photos.example.com/{path}")


def test_a_body_may_drip(web):
    with Client(web) as client:
        assert client.ask("http://photos.example.com/drip")[1] == b"y" * 2500


def test_what_is_no_request_ends_the_connection(web):
    host, port = web.address.split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\r\n")
        assert connection.recv(100) == b""


def test_hundreds_of_connections_at_once():
    with Web({"/": Answer(body=b"here", delay=0.2)}) as web:
        found = []

        def visit():
            with Client(web) as client:
                found.append(client.ask("http://photos.example.com/")[1])

        visitors = [threading.Thread(target=visit) for _ in range(300)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
    assert found == [b"here"] * 300


def test_leaving_wakes_who_sleeps_and_frees_the_port():
    with Web({"/": Answer(delay=3600)}) as web:
        host, port = web.address.split(":")
        idle = socket.create_connection((host, int(port)))
        waiting = socket.create_connection((host, int(port)))
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: photos.example.com\r\n\r\n")
        until(lambda: web.requests)
        left = time.monotonic()
    assert time.monotonic() - left < LIMIT  # and not the hour
    idle.close()
    waiting.close()
    with Web({}, int(port)) as again:
        assert again.address == f"127.0.0.1:{port}"
