"""What servers answer, and where they send: every trouble has its reason, and no place but ours."""

import gzip
import ssl
import sys
import zlib

import brotli
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from cahlib.core.records import DropReason, Evidence
from cahlib.fetch.resolver import NetworkConfig, NoAddressError
from tests.world import bombs
from tests.world import web as w
from tests.world.fetched import fetched, lost
from tests.world.pictures import picture

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JPEG = picture()
HEAD = w.head(200, ("Content-Type", "image/jpeg"))
TROUBLE = {
    "absent": (w.body(b"", status=404), DropReason.HTTP_4XX),
    "forbidden": (w.body(JPEG, status=403), DropReason.HTTP_4XX),
    "busy": (w.body(JPEG, status=503), DropReason.HTTP_5XX),
    "empty": (w.body(b"", status=204), DropReason.HTTP_OTHER),
    "part": (w.body(JPEG, status=206), DropReason.HTTP_OTHER),
    "unchanged": (w.body(b"", status=304), DropReason.HTTP_OTHER),
    "html": (
        w.body(b"<!doctype html>" * 900, ("Content-Type", "image/jpeg")),
        DropReason.NOT_AN_IMAGE,
    ),
    "short html": (w.body(b"<html>"), DropReason.NOT_AN_IMAGE),
    "no bytes": (w.body(b""), DropReason.NOT_AN_IMAGE),
    "zipped": (w.body(b"\x1f\x8b" + JPEG, ("Content-Encoding", "gzip")), DropReason.NOT_AN_IMAGE),
    "small": (w.body(JPEG[:4000]), DropReason.TOO_FEW_BYTES),
    "broken": (w.body(JPEG[:6000]), DropReason.BROKEN_IMAGE),
    "announced huge": (w.broken_off(JPEG, length=10**12), DropReason.TOO_MANY_BYTES),
    "endless": (w.endless(JPEG), DropReason.TOO_MANY_BYTES),
    "silent": (w.silent, DropReason.TIMEOUT),
    "stalled": (w.drip(HEAD + JPEG, b"", pause=60), DropReason.TIMEOUT),
    "slow drip": (w.drip(HEAD + JPEG, b"x"), DropReason.TIMEOUT),
    "slow head": (w.drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), DropReason.TIMEOUT),
    "lying length": (w.broken_off(JPEG, length=len(JPEG) + 1), DropReason.DISCONNECTED),
    "broken off": (w.broken_off(JPEG[:3000], length=len(JPEG)), DropReason.DISCONNECTED),
    "reset": (w.broken_off(JPEG[:3000], length=len(JPEG), reset=True), DropReason.DISCONNECTED),
    "hangs up": (w.raw(b""), DropReason.DISCONNECTED),
    "not http": (w.raw(b"SSH-2.0-OpenSSH_9.9\r\n"), DropReason.BAD_HTTP),
    "binary": (w.raw(bytes(range(256)) * 100), DropReason.BAD_HTTP),
    "two lengths": (
        w.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        DropReason.BAD_HTTP,
    ),
    "head without an end": (
        w.raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99_000),
        DropReason.DISCONNECTED,
    ),
    "long head": (w.raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 600_000), DropReason.BAD_HTTP),
    "many headers": (
        w.raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 6000 + b"\r\n"),
        DropReason.BAD_HTTP,
    ),
    "bomb": (
        w.body(bombs.gzipped(50, JPEG), ("Content-Encoding", "gzip")),
        DropReason.TOO_MANY_BYTES,
    ),
    "bomb of brotli": (
        w.body(brotli.compress(JPEG + bytes(50_000_000), quality=1), ("Content-Encoding", "br")),
        DropReason.TOO_MANY_BYTES,
    ),
    "half a pack": (
        w.body(gzip.compress(JPEG)[:6000], ("Content-Encoding", "gzip")),
        DropReason.BROKEN_IMAGE,
    ),
    "bad chunks": (
        w.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + JPEG),
        None,
    ),
    "loop": (w.redirect("/loop"), DropReason.BAD_REDIRECT),
    "to nowhere": (w.body(b"", status=302), DropReason.BAD_REDIRECT),
    "to a file": (w.redirect("file:///etc/passwd"), DropReason.BAD_REDIRECT),
    "to gopher": (w.redirect("gopher://a.example/"), DropReason.BAD_REDIRECT),
    "to loopback": (w.redirect("http://127.0.0.1/ok.jpg"), DropReason.BAD_REDIRECT),
    "to metadata": (w.redirect("http://169.254.169.254/latest"), DropReason.BAD_REDIRECT),
    "to number": (w.redirect("http://2130706433/"), DropReason.BAD_REDIRECT),
    "to nonsense": (w.redirect("http://[::1"), DropReason.BAD_REDIRECT),
    "to another service": (w.redirect("http://a.example:22/"), DropReason.BAD_REDIRECT),
    "to no port": (w.redirect("http://a.example:99999/"), DropReason.BAD_REDIRECT),
    "to bytes": (w.raw(b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n"), None),
    "opted out": (w.body(JPEG, ("X-Robots-Tag", "noai")), DropReason.OPTED_OUT),
}


L = len(JPEG)
CHUNKED = b"%x\r\n" % L + JPEG + b"\r\n0\r\n\r\n"
ODD = {
    "a long header": b"HTTP/1.1 200 OK\r\nContent-Security-Policy: %b\r\nContent-Length: %d\r\n\r\n"
    % (b"x" * 9000, L),
    "a longer head": b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n"
    % (b"Set-Cookie: %b\r\n" % (b"y" * 9000) * 25, L),
    "many headers": b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (b"A: b\r\n" * 999, L),
    "a length twice": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-length: %d\r\n\r\n"
    % (L, L),
    "a length as a list": b"HTTP/1.1 200 OK\r\nContent-Length: %d, %d\r\n\r\n" % (L, L),
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\nConnection: close\r\n\r\n",
    "a line without a colon": b"HTTP/1.1 200 OK\r\nhello\r\nContent-Length: %d\r\n\r\n" % L,
    "a name with blanks": b"HTTP/1.1 200 OK\r\nA b: c\r\nContent-Length : %d\r\n\r\n" % L,
    "no name": b"HTTP/1.1 200 OK\r\n: c\r\n\xe9t\xe9: 1\r\nContent-Length: %d\r\n\r\n" % L,
    "a line that goes on": b"HTTP/1.1 200 OK\r\nA: b\r\n\tc\r\nContent-Length: %d\r\n\r\n" % L,
    "control characters": b"HTTP/1.1 200 OK\r\nA: b\0\x01\rc\r\nContent-Length: %d\r\n\r\n" % L,
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % L,
    "no reason": b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n" % L,
    "a status in small letters": b"http/1.1  200 ok\r\nContent-Length: %d\r\n\r\n" % L,
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: %d\r\n\r\n" % L,
    "an old server": b"ICY 200 OK\r\nContent-Length: %d\r\n\r\n" % L,
    "a line before": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % L,
    "an early hint": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Length: %d\r\n\r\n" % (L, L),
    "no coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: %d\r\n\r\n"
    % L,
    "203": b"HTTP/1.1 203 Changed\r\nContent-Length: %d\r\n\r\n" % L,
    "206": b"HTTP/1.1 206 All\r\nContent-Range: bytes 0-%d/%d\r\nContent-Length: %d\r\n\r\n"
    % (L - 1, L, L),
    "not packed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % L,
}
SOUND = {name: head + JPEG for name, head in ODD.items()} | {
    "chunks beside a length": b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    b"Transfer-Encoding: Chunked\r\n\r\n" + CHUNKED,
}
PACKED = {
    "gzip": gzip.compress(JPEG),
    "deflate": zlib.compress(JPEG),
    "br": brotli.compress(JPEG),
    "zstd": zstd.compress(JPEG),
    "gzip, br": brotli.compress(gzip.compress(JPEG)),
}


def test_answers_are_taken_as_browsers_take_them():
    paths = {f"/{n}.jpg": w.raw(answer) for n, answer in enumerate(SOUND.values())}
    for n, (coding, body) in enumerate(PACKED.items()):
        paths[f"/packed{n}.jpg"] = w.body(body, ("Content-Encoding", coding))
    with w.Web(paths) as web:
        arrived, stats = fetched(web, *(f"http://a.example{path}" for path in paths))
    names = dict(zip(paths, [*SOUND, *PACKED], strict=True))
    kept = {names[each.candidate.url.removeprefix("http://a.example")] for each in arrived}
    assert set(names.values()) - kept == set(), stats.dropped


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("name", ["a length twice", "an early hint", "chunks beside a length"])
def test_a_head_may_come_in_pieces(name, pieces):
    answer = SOUND[name]

    def act(talk):
        for at in range(0, 200, pieces):
            talk.send(answer[at : at + pieces])
        talk.send(answer[at + pieces :])

    with w.Web({"/a.jpg": act}) as web:
        arrived, _ = fetched(web, "http://a.example/a.jpg")
    assert len(arrived) == 1


@pytest.mark.parametrize("name", ["a length twice", "chunks beside a length", "no coding"])
def test_a_connection_with_an_odd_answer_is_not_used_again(name):
    def act(talk):
        talk.send(SOUND[name])

    with w.Web({"/a.jpg": act, "/b.jpg": w.body(JPEG)}) as web:
        urls = [f"http://a.example/{each}.jpg" for each in "abab"]
        arrived, _ = fetched(web, *urls, per_host=1, connections=1)
        assert len(arrived) == 4
        assert web.reached["127.0.0.1"] == 3


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: 1, 2",
        b"Content-Length: +5",
        b"Content-Length: 0x10",
        b"Content-Length: 5\r\n 6",
        b"Content-Length: " + b"9" * 30,
    ],
)
def test_where_a_body_ends_is_never_guessed(head):
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + JPEG
    with w.Web({"/a.jpg": w.raw(answer)}) as web:
        assert lost(web, "http://a.example/a.jpg") is DropReason.BAD_HTTP


def test_a_host_that_answers_badly_has_answered():
    paths = {f"/{n}.jpg": w.raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n") for n in range(30)}
    evidence = Evidence()
    with w.Web({**paths, "/ok.jpg": w.body(JPEG)}) as web:
        urls = [f"http://a.example{path}" for path in [*paths, "/ok.jpg"]]
        arrived, stats = fetched(web, *urls, per_host=1, max_failures=5, evidence=evidence)
    assert len(arrived) == 1
    assert stats.dropped == {DropReason.BAD_HTTP: 30}
    assert evidence.silent == []


@pytest.mark.parametrize("name", TROUBLE)
def test_every_trouble_has_its_reason(name):
    behaviour, reason = TROUBLE[name]
    with w.Web({"/loop" if name == "loop" else "/it": behaviour}) as web:
        path = "loop" if name == "loop" else "it"
        timeout = 0.5 if reason is DropReason.TIMEOUT else 20
        found = lost(
            web, f"http://a.example/{path}", total_timeout=timeout, read_timeout=timeout / 2,
            max_bytes=1_000_000,
        )  # fmt: skip
    assert found is reason or reason is None


def test_the_troubles_of_all_do_not_touch_each_other():
    paths = {f"/{name.replace(' ', '-')}": behaviour for name, (behaviour, _) in TROUBLE.items()}
    paths["/ok"] = w.body(JPEG)
    with w.Web(paths) as web:
        urls = [f"http://host{n}.example{path}" for n, path in enumerate([*paths, "/ok", "/ok"])]
        arrived, _ = fetched(web, *urls, total_timeout=3, read_timeout=1.5, connections=16)
    assert len(arrived) == 3


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/a.jpg", DropReason.PRIVATE_ADDRESS),
        ("http://127.1/a.jpg", DropReason.PRIVATE_ADDRESS),
        ("http://0x7f000001/a.jpg", DropReason.PRIVATE_ADDRESS),
        ("http://[::1]/a.jpg", DropReason.PRIVATE_ADDRESS),
        ("http://[::ffff:8.8.8.8]/a.jpg", DropReason.PRIVATE_ADDRESS),
        ("http://１２７.０.０.１/a.jpg", DropReason.PRIVATE_ADDRESS),
        ("http://169.254.169.254/latest/meta-data", DropReason.PRIVATE_ADDRESS),
        ("http://a.example:99999/a.jpg", DropReason.UNFETCHABLE),
        ("http://[::1/a.jpg", DropReason.UNFETCHABLE),
        ("http://", DropReason.UNFETCHABLE),
        ("ftp://a.example/a.jpg", DropReason.UNFETCHABLE),
        ("file:///a.jpg", DropReason.UNFETCHABLE),
        ("mailto:a@a.example", DropReason.UNFETCHABLE),
        ("", DropReason.UNFETCHABLE),
        ("http://" + "a" * 64 + ".example/a.jpg", None),
    ],
)
def test_some_addresses_are_never_asked(url, reason):
    with w.Web({"/a.jpg": w.body(b"")}) as web:
        found = lost(web, url)
    assert found is reason or reason is None
    assert reason is None or not web.asked


def test_a_public_address_in_a_url_is_replayed_like_a_name():
    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        arrived, _ = fetched(web, "http://8.8.8.8/a.jpg", "https://[2606:4700::1]:80/a.jpg")
    assert len(arrived) == 2
    assert {headers["host"] for _, headers in web.asked} == {"8.8.8.8", "[2606:4700::1]:80"}


def test_user_names_and_passwords_are_not_sent():
    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        arrived, _ = fetched(web, "http://me:secret@a.example/a.jpg")
    assert len(arrived) == 1
    assert "authorization" not in web.asked[0][1]


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("http://a.example", "/"),
        ("http://a.example/a%28b%29%7E%2f.jpg?x=%20+#here", "/a%28b%29%7E%2f.jpg?x=%20+"),
        ('http://a.example/a b"<ü>.jpg?ü=ü&[1]', "/a%20b%22%3C%C3%BC%3E.jpg?%C3%BC=%C3%BC&[1]"),
        ("http://a.example//b/../c.jpg", "//c.jpg"),
        ("http://a.example/c\\d'^.jpg?'\\^", "/c/d'%5E.jpg?%27\\^"),
        ("HTTP://A.Example:80/%zz", "/%zz"),
        ("http://a.example/a\r\nX-Evil: 1", "/aX-Evil:%201"),
    ],
)
def test_addresses_are_asked_for_as_they_are(address, asked):
    with w.Web({asked: w.body(JPEG), "/from": w.redirect(address)}) as web:
        arrived, _ = fetched(web, address)
        assert len(arrived) == 1
        assert web.asked[0][0] == asked
        assert web.asked[0][1]["host"] == "a.example"


def test_a_redirect_goes_where_the_server_says():
    start = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
    paths = {"/1": w.raw(start + "/ü%28\xff".encode("latin-1") + b"\r\n\r\n")}
    paths["/%FC%28%FF"] = w.body(JPEG)
    with w.Web(paths) as web:
        arrived, _ = fetched(web, "http://a.example/1")
    assert len(arrived) == 1


def test_redirects_are_followed_so_far():
    paths = {f"/{n}": w.redirect(f"/{n + 1}") for n in range(5)}
    paths |= {"/5": w.body(JPEG), "/away": w.redirect("//b.example/5")}
    with w.Web(paths) as web:
        arrived, stats = fetched(web, *(f"http://a.example/{n}" for n in ("0", "2", "away")))
        assert len(arrived) == 3
        assert lost(web, "http://a.example/0", max_redirects=4) is DropReason.BAD_REDIRECT
        assert lost(web, "http://a.example/4", max_redirects=0) is DropReason.BAD_REDIRECT


def test_a_name_without_a_public_address_is_refused():
    async def lookup(host):
        return {"inside.example": ["10.0.0.1", "fd00::1", "127.0.0.1"]}[host]

    async def nowhere(host):
        raise NoAddressError(host)

    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        url = "http://inside.example/a.jpg"
        assert lost(web, url, net=NetworkConfig(lookup=lookup)) is DropReason.PRIVATE_ADDRESS
        assert lost(web, url, net=NetworkConfig(lookup=nowhere)) is DropReason.DNS
        assert not web.asked


def test_a_place_that_takes_no_connection():
    with w.Web({}) as web:
        pass
    assert lost(web, "http://a.example/a.jpg") is DropReason.REFUSED


def test_tls_is_checked():
    authority, stranger = trustme.CA(), trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("good.example").configure_cert(server)
    trusting, other = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(trusting)
    stranger.configure_trust(other)
    with w.Web({"/a.jpg": w.body(JPEG)}, tls=server) as web:

        def net(context):
            return NetworkConfig(only=("127.0.0.1", web.port), tls=context, pause=0)

        arrived, _ = fetched(web, "https://good.example/a.jpg", net=net(trusting))
        assert len(arrived) == 1
        assert lost(web, "https://good.example/a.jpg", net=net(other)) is DropReason.TLS
        assert lost(web, "https://bad.example/a.jpg", net=net(trusting)) is DropReason.TLS
        assert lost(web, "https://good.example/a.jpg", net=net(True)) is DropReason.TLS


def test_what_may_pass_is_tried_once_more():
    paths = {
        "/busy": w.in_turn(w.body(b"", status=503), w.body(JPEG)),
        "/reset": w.in_turn(w.broken_off(JPEG[:9], length=9999, reset=True), w.body(JPEG)),
        "/dead": w.body(b"", status=500),
        "/absent": w.body(b"", status=404),
        "/silent": w.silent,
    }
    with w.Web(paths) as web:
        opted_out = (f"http://{path[1:]}.example{path}" for path in paths if path != "/silent")
        arrived, _ = fetched(web, *opted_out)
        assert lost(web, "http://silent.example/silent", read_timeout=0.3) is DropReason.TIMEOUT
    assert len(arrived) == 2
    asked = [path for path, _ in web.asked]
    assert {path: asked.count(path) for path in paths} == {
        "/busy": 2,
        "/reset": 2,
        "/dead": 2,
        "/absent": 1,
        "/silent": 1,
    }


def test_a_header_in_no_encoding_is_recorded_readably():
    answer = b"HTTP/1.1 200 OK\r\nX-Robots-Tag: \xff\xfe\r\nContent-Length: %d\r\n\r\n" % len(JPEG)
    with w.Web({"/a.jpg": w.raw(answer + JPEG)}) as web:
        (image,), _ = fetched(web, "http://a.example/a.jpg")
    assert image.robots.encode() == "\ufffd\ufffd".encode()


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300) | st.builds(lambda body: HEAD + body, st.binary()))
def test_no_answer_is_too_strange(web_of_garbage, answer):
    web_of_garbage.paths["/it"] = w.raw(answer)
    arrived, _ = fetched(web_of_garbage, "http://a.example/it", connections=1)
    assert not arrived


@pytest.fixture(scope="module")
def web_of_garbage():
    with w.Web({}) as web:
        yield web
