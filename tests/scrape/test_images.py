"""From candidates to images, over a hostile web."""

import asyncio
import gc
import hashlib
import io
import itertools
import json
import ssl
import threading
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from cahlib import __version__
from cahlib.config import Download
from cahlib.errors import ConfigError, ShardError
from cahlib.records import Evidence, Reason, Stage, Tally
from cahlib.scrape.addresses import Net, NoAddress
from cahlib.scrape.fetch import Memory, Share
from cahlib.scrape.images import images
from tests.world import web as w
from tests.world.jobs import until
from tests.world.pictures import candidate, picture

JPEG = picture()
REAL = Path(__file__).parent.parent.parent.parent / "shared/data/real"


def fetched(web, *urls, evidence=None, net=None, **settings):
    """The images behind some URLs on a web, the tally, and nothing left over.

    Hosts are asked for no robots.txt where a test says nothing else: what is counted is images.
    """
    tally = Tally()
    calm = {"consent": "headers", "per_second": 0, "patience": 0}
    options = Download(**{"replay": web.address, "read_timeout": 0.3, **calm, **settings})
    net = net or Net(only=("127.0.0.1", web.port), tls=False, pause=0)
    candidates = (candidate(url, position) for position, url in enumerate(urls))
    found = images(candidates, options, tally, evidence=evidence or Evidence(), net=net)
    arrived = list(found)
    assert tally.entered[Stage.FETCH] == len(urls)
    assert tally.left[Stage.FETCH] == len(arrived)
    assert tally.unaccounted(Stage.FETCH) == 0
    return arrived, tally


def lost(web, url, **settings):
    """The only reason why a URL gives no image."""
    arrived, tally = fetched(web, url, **settings)
    assert not arrived
    assert sum(tally.lost.values()) == 1
    return next(iter(tally.lost))


def test_an_image_comes_with_all_that_is_known_about_it():
    tag = ("X-Robots-Tag", "nofollow")
    with w.Web({"/a.jpg": w.body(JPEG, tag, ("X-Robots-Tag", "otherbot: noai"))}) as web:
        (image,), _ = fetched(web, "http://a.example/a.jpg", contact="me@a.example")
    assert image.candidate == candidate("http://a.example/a.jpg")
    assert (image.data, image.format) == (JPEG, "jpg")
    assert image.robots == "nofollow\notherbot: noai"
    ((path, headers),) = web.asked
    assert path == "/a.jpg"
    assert headers["host"] == "a.example"
    assert headers["user-agent"] == f"cahlib/{__version__} (+me@a.example)"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers


def test_images_are_made_small_on_request():
    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        (image,), _ = fetched(web, "http://a.example/a.jpg", resize=64)
    assert (image.width, image.height, image.original_width) == (85, 64, 160)


HEAD = w.head(200, ("Content-Type", "image/jpeg"))
TROUBLE = {
    "absent": (w.body(b"", status=404), Reason.HTTP_4XX),
    "forbidden": (w.body(JPEG, status=403), Reason.HTTP_4XX),
    "busy": (w.body(JPEG, status=503), Reason.HTTP_5XX),
    "empty": (w.body(b"", status=204), Reason.HTTP_OTHER),
    "part": (w.body(JPEG, status=206), Reason.HTTP_OTHER),
    "unchanged": (w.body(b"", status=304), Reason.HTTP_OTHER),
    "html": (w.body(b"<!doctype html>" * 900, ("Content-Type", "image/jpeg")), Reason.NOT_AN_IMAGE),
    "short html": (w.body(b"<html>"), Reason.NOT_AN_IMAGE),
    "no bytes": (w.body(b""), Reason.NOT_AN_IMAGE),
    "zipped": (w.body(b"\x1f\x8b" + JPEG, ("Content-Encoding", "gzip")), Reason.NOT_AN_IMAGE),
    "small": (w.body(JPEG[:4000]), Reason.TOO_FEW_BYTES),
    "broken": (w.body(JPEG[:6000]), Reason.BROKEN_IMAGE),
    "announced huge": (w.broken_off(JPEG, length=10**12), Reason.TOO_MANY_BYTES),
    "endless": (w.endless(JPEG), Reason.TOO_MANY_BYTES),
    "silent": (w.silent, Reason.TIMEOUT),
    "stalled": (w.drip(HEAD + JPEG, b"", pause=60), Reason.TIMEOUT),
    "slow drip": (w.drip(HEAD + JPEG, b"x"), Reason.TIMEOUT),
    "slow head": (w.drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), Reason.TIMEOUT),
    "lying length": (w.broken_off(JPEG, length=len(JPEG) + 1), Reason.DISCONNECTED),
    "broken off": (w.broken_off(JPEG[:3000], length=len(JPEG)), Reason.DISCONNECTED),
    "reset": (w.broken_off(JPEG[:3000], length=len(JPEG), reset=True), Reason.DISCONNECTED),
    "hangs up": (w.raw(b""), Reason.DISCONNECTED),
    "not http": (w.raw(b"SSH-2.0-OpenSSH_9.9\r\n"), Reason.BAD_HTTP),
    "binary": (w.raw(bytes(range(256)) * 100), Reason.BAD_HTTP),
    "two lengths": (
        w.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        Reason.BAD_HTTP,
    ),
    "long header": (w.raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), Reason.BAD_HTTP),
    "bad chunks": (
        w.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + JPEG),
        None,
    ),
    "loop": (w.redirect("/loop"), Reason.BAD_REDIRECT),
    "to nowhere": (w.body(b"", status=302), Reason.BAD_REDIRECT),
    "to a file": (w.redirect("file:///etc/passwd"), Reason.BAD_REDIRECT),
    "to gopher": (w.redirect("gopher://a.example/"), Reason.BAD_REDIRECT),
    "to loopback": (w.redirect("http://127.0.0.1/ok.jpg"), Reason.BAD_REDIRECT),
    "to metadata": (w.redirect("http://169.254.169.254/latest"), Reason.BAD_REDIRECT),
    "to number": (w.redirect("http://2130706433/"), Reason.BAD_REDIRECT),
    "to nonsense": (w.redirect("http://[::1"), Reason.BAD_REDIRECT),
    "to no port": (w.redirect("http://a.example:99999/"), Reason.BAD_REDIRECT),
    "to bytes": (w.raw(b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n"), None),
    "opted out": (w.body(JPEG, ("X-Robots-Tag", "noai")), Reason.OPTED_OUT),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_every_trouble_has_its_reason(name):
    behaviour, reason = TROUBLE[name]
    with w.Web({"/loop" if name == "loop" else "/it": behaviour}) as web:
        path = "loop" if name == "loop" else "it"
        found = lost(web, f"http://a.example/{path}", total_timeout=0.5)
    assert found is reason or reason is None


def test_the_troubles_of_all_do_not_touch_each_other():
    paths = {f"/{name.replace(' ', '-')}": behaviour for name, (behaviour, _) in TROUBLE.items()}
    paths["/ok"] = w.body(JPEG)
    with w.Web(paths) as web:
        urls = [f"http://host{n}.example{path}" for n, path in enumerate([*paths, "/ok", "/ok"])]
        arrived, _ = fetched(web, *urls, total_timeout=0.5, connections=16)
    assert len(arrived) == 3


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/a.jpg", Reason.PRIVATE_ADDRESS),
        ("http://127.1/a.jpg", Reason.PRIVATE_ADDRESS),
        ("http://0x7f000001/a.jpg", Reason.PRIVATE_ADDRESS),
        ("http://[::1]/a.jpg", Reason.PRIVATE_ADDRESS),
        ("http://[::ffff:8.8.8.8]/a.jpg", Reason.PRIVATE_ADDRESS),
        ("http://１２７.０.０.１/a.jpg", Reason.PRIVATE_ADDRESS),
        ("http://169.254.169.254/latest/meta-data", Reason.PRIVATE_ADDRESS),
        ("http://a.example:99999/a.jpg", Reason.UNFETCHABLE),
        ("http://[::1/a.jpg", Reason.UNFETCHABLE),
        ("http:///a.jpg", Reason.UNFETCHABLE),
        ("ftp://a.example/a.jpg", Reason.UNFETCHABLE),
        ("file:///a.jpg", Reason.UNFETCHABLE),
        ("mailto:a@a.example", Reason.UNFETCHABLE),
        ("", Reason.UNFETCHABLE),
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
        arrived, _ = fetched(web, "http://8.8.8.8/a.jpg", "https://[2606:4700::1]:8443/a.jpg")
    assert len(arrived) == 2
    assert {headers["host"] for _, headers in web.asked} == {"8.8.8.8", "[2606:4700::1]:8443"}


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
        ("http://a.example//b/../c.jpg", "//b/../c.jpg"),
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
        arrived, tally = fetched(web, *(f"http://a.example/{n}" for n in ("0", "2", "away")))
        assert len(arrived) == 3
        assert lost(web, "http://a.example/0", max_redirects=4) is Reason.BAD_REDIRECT
        assert lost(web, "http://a.example/4", max_redirects=0) is Reason.BAD_REDIRECT


def test_a_name_without_a_public_address_is_refused():
    async def lookup(host):
        return {"inside.example": ["10.0.0.1", "fd00::1", "127.0.0.1"]}[host]

    async def nowhere(host):
        raise NoAddress(host)

    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        url = f"http://inside.example:{web.port}/a.jpg"
        assert lost(web, url, net=Net(lookup=lookup)) is Reason.PRIVATE_ADDRESS
        assert lost(web, url, net=Net(lookup=nowhere)) is Reason.DNS
        assert not web.asked


def test_a_place_that_takes_no_connection():
    with w.Web({}) as web:
        pass
    assert lost(web, "http://a.example/a.jpg") is Reason.REFUSED


def test_tls_is_checked():
    authority, stranger = trustme.CA(), trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("good.example").configure_cert(server)
    trusting, other = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(trusting)
    stranger.configure_trust(other)
    with w.Web({"/a.jpg": w.body(JPEG)}, tls=server) as web:

        def net(context):
            return Net(only=("127.0.0.1", web.port), tls=context, pause=0)

        arrived, _ = fetched(web, "https://good.example/a.jpg", net=net(trusting))
        assert len(arrived) == 1
        assert lost(web, "https://good.example/a.jpg", net=net(other)) is Reason.TLS
        assert lost(web, "https://bad.example/a.jpg", net=net(trusting)) is Reason.TLS
        assert lost(web, "https://good.example/a.jpg", net=net(True)) is Reason.TLS


def test_what_may_pass_is_tried_once_more():
    paths = {
        "/busy": w.in_turn(w.body(b"", status=503), w.body(JPEG)),
        "/reset": w.in_turn(w.broken_off(JPEG[:9], length=9999, reset=True), w.body(JPEG)),
        "/dead": w.body(b"", status=500),
        "/absent": w.body(b"", status=404),
        "/silent": w.silent,
    }
    with w.Web(paths) as web:
        arrived, _ = fetched(web, *(f"http://{path[1:]}.example{path}" for path in paths))
    assert len(arrived) == 2
    asked = [path for path, _ in web.asked]
    assert {path: asked.count(path) for path in paths} == {
        "/busy": 2,
        "/reset": 2,
        "/dead": 2,
        "/absent": 1,
        "/silent": 1,
    }


def test_an_owner_who_opts_out_is_heard():
    tags = [("X-Robots-Tag", "otherbot: noindex"), ("X-Robots-Tag", "noai, noimageai")]
    paths = {"/a.jpg": w.body(JPEG, *tags), "/b.jpg": w.redirect("http://b.example/a.jpg")}
    with w.Web(paths) as web:
        heard = Evidence()
        assert lost(web, "http://a.example/b.jpg", evidence=heard) is Reason.OPTED_OUT
        (evidence,) = heard.optouts
        assert (evidence.url, evidence.where) == (
            "http://a.example/b.jpg",
            "http://b.example/a.jpg",
        )
        assert (evidence.signal, evidence.value) == ("x-robots-tag", "noai, noimageai")
        assert evidence.time > 1.7e9
        (image,), _ = fetched(web, "http://a.example/b.jpg", evidence=heard, consent="research")
    assert image.robots == "otherbot: noindex\nnoai, noimageai"
    assert len(heard.optouts) == 1


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_known_harm_is_only_counted(tmp_path, kind):
    (tmp_path / "list").write_text(hashlib.new(kind, JPEG).hexdigest().upper())
    other = picture(size=(161, 120))
    with w.Web({"/a.jpg": w.body(JPEG), "/b.jpg": w.body(other)}) as web:
        urls = ["http://a.example/a.jpg", "http://a.example/b.jpg"]
        for resize in (0, 64):  # it is the bytes as served that count
            harm = (str(tmp_path / "list"),)
            (image,), tally = fetched(web, *urls, known_harm=harm, resize=resize)
            assert image.candidate.url == urls[1]
            assert tally.lost == {Reason.KNOWN_HARM: 1}


def test_a_header_in_no_encoding_is_recorded_readably():
    answer = b"HTTP/1.1 200 OK\r\nX-Robots-Tag: \xff\xfe\r\nContent-Length: %d\r\n\r\n" % len(JPEG)
    with w.Web({"/a.jpg": w.raw(answer + JPEG)}) as web:
        (image,), _ = fetched(web, "http://a.example/a.jpg")
    assert image.robots.encode() == "\ufffd\ufffd".encode()


def test_one_slow_host_holds_up_nobody_else_and_no_host_gets_a_burst():
    gate = threading.Event()
    paths = {"/slow.jpg": w.slow(w.body(JPEG), gate), "/ok.jpg": w.body(JPEG)}
    slow = [f"http://slow.example/slow.jpg?{n}" for n in range(40)]
    paths |= {url.removeprefix("http://slow.example"): paths["/slow.jpg"] for url in slow}
    quick = [f"http://host{n % 5}.example/ok.jpg" for n in range(40)]
    with w.Web(paths) as web:
        tally = Tally()
        options = Download(connections=8, per_host=2, replay=web.address)
        urls = enumerate([*slow, *quick])
        found = images((candidate(url, n) for n, url in urls), options, tally, evidence=Evidence())
        first = list(itertools.islice(found, 40))
        assert {image.candidate.url for image in first} == set(quick)
        gate.set()
        assert len(list(found)) == 40
        assert max(web.busiest.values()) <= 2


def test_redirects_do_not_make_a_burst_either():
    hosts = [f"http://host{n}.example/a" for n in range(30)]
    paths = {"/a": w.redirect("http://one.example/b.jpg"), "/b.jpg": w.body(JPEG)}
    with w.Web(paths) as web:
        arrived, _ = fetched(web, *hosts, per_host=3, connections=30)
    assert len(arrived) == 30
    assert web.busiest["one.example"] <= 3


def threads():
    return {each.name for each in threading.enumerate() if each.name.startswith("cahlib")}


def test_leaving_early_leaves_nothing_behind():
    closed = threading.Event()

    def candidates():
        try:
            for n in itertools.count():
                yield candidate(f"http://host{n % 7}.example/{'ok' if n % 2 else 'silent'}", n)
        finally:
            closed.set()

    with w.Web({"/ok": w.body(JPEG), "/silent": w.silent}) as web:
        options = Download(connections=20, replay=web.address)
        found = images(candidates(), options, Tally(), evidence=Evidence())
        for _ in range(3):
            next(found)
        assert threads()
        found.close()
        assert not threads()
        assert closed.is_set()
        gc.collect()  # a socket that was left open would warn here
        web.paths.clear()
        web._closing.set()  # frees the behaviours that wait
        until(lambda: web.open == 0)


def test_an_error_of_the_candidates_comes_out_and_ends_all():
    def candidates():
        yield candidate("http://a.example/ok")
        raise ShardError("The WAT cannot be read.")

    with w.Web({"/ok": w.body(JPEG)}) as web:
        found = images(candidates(), Download(replay=web.address), Tally(), evidence=Evidence())
        with pytest.raises(ShardError, match="cannot be read"):
            list(found)
    assert not threads()


def test_a_tick_can_end_the_work():
    def tick():
        raise ShardError("It took too long.")

    with w.Web({"/silent": w.silent}) as web:
        options = Download(replay=web.address)
        found = images(
            [candidate("http://a.example/silent")], options, Tally(), evidence=Evidence(), tick=tick
        )
        with pytest.raises(ShardError, match="too long"):
            next(found)
    assert not threads()


def test_candidates_are_read_no_faster_than_they_are_needed():
    read = []

    def candidates():
        for n in range(100_000):
            read.append(n)
            yield candidate(f"http://host{n}.example/ok", n)

    with w.Web({"/ok": w.body(JPEG)}) as web:
        options = Download(connections=4, replay=web.address)
        found = images(candidates(), options, Tally(), evidence=Evidence())
        taken = list(itertools.islice(found, 10))
        assert len(taken) == 10
        assert len(read) < 300
        found.close()


def test_it_works_inside_a_running_loop():
    async def main():
        with w.Web({"/ok": w.body(JPEG)}) as web:
            return len(fetched(web, "http://a.example/ok", "http://b.example/ok")[0])

    assert asyncio.run(main()) == 2


def test_no_candidates_give_no_images():
    with w.Web({}) as web:
        assert fetched(web) == ([], Tally())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay": "nowhere"}, "replay: "),
        ({"contact": "me\r\nX-Evil: 1"}, "contact: "),
        ({"contact": "mé"}, "contact: "),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        images([], Download(**settings), Tally(), evidence=Evidence())


def test_memory_is_bounded_and_never_deadlocks():
    """Ten answers of 40 pieces each want four times what there is."""
    held = []

    async def answer(memory):
        share = Share()
        for _ in range(40):
            await memory.hold(share, 10)
            held.append(1000 - memory._free)
            await asyncio.sleep(0)
        memory.release(share)

    async def main():
        memory = Memory(1000)
        await asyncio.wait_for(asyncio.gather(*(answer(memory) for _ in range(10))), 5)
        return memory._free

    assert asyncio.run(main()) == 1000
    assert max(held) <= 1000 + 400  # one answer may go beyond


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


@pytest.mark.skipif(not REAL.exists(), reason="the recorded web is not beside the project")
def test_every_image_of_the_recorded_web_arrives_or_has_its_reason():
    index = json.loads((REAL / "index.json").read_text())
    types = {url: kind for url, (_, kind) in index.items()}
    files = {url: (REAL / "images" / name).read_bytes() for url, (name, _) in index.items()}

    def answer(talk):
        url = f"http://{talk.headers['host']}{talk.path}"
        w.body(files[url], ("Content-Type", types[url]))(talk)

    class Recorded(dict):
        def get(self, path, default=None):
            return answer

    with w.Web({}) as web:
        web.paths = Recorded()
        settings = {"min_bytes": 0, "min_side": 1, "max_aspect": 1000}
        arrived, tally = fetched(web, *files, **settings)
    pictures = {url for url, kind in types.items() if kind in ("image/png", "image/jpeg")}
    assert {image.candidate.url for image in arrived} == pictures
    for image in arrived:
        served = files[image.candidate.url]
        assert image.sha256 == hashlib.sha256(served).hexdigest()
        assert len(image.data) <= len(served)
        with Picture.open(io.BytesIO(image.data)) as kept, Picture.open(io.BytesIO(served)) as all_:
            assert kept.convert("RGBA").tobytes() == all_.convert("RGBA").tobytes()
            assert not {*kept.getexif()} - {0x0112}
    assert tally.lost == {Reason.NOT_AN_IMAGE: len(files) - len(pictures)}


def test_leaving_ends_also_when_more_images_wait_than_are_taken():
    """As when the consumer's disk is full: it must not wait for room that nobody makes."""
    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        urls = (f"http://h{n}.example/a.jpg" for n in range(200))
        options = Download(replay=web.address)
        net = Net(only=("127.0.0.1", web.port), tls=False, pause=0)
        wanted = (candidate(url, n) for n, url in enumerate(urls))
        tally = Tally()
        found = images(wanted, options, tally, evidence=Evidence(), net=net)
        next(found)
        until(lambda: tally.left[Stage.FETCH] >= 16)
        found.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("cahlib")]
