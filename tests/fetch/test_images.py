"""What comes of candidates: images with all that is known of them, and an end in any case."""

import asyncio
import gc
import hashlib
import io
import itertools
import json
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image as Picture

from cahlib import __version__
from cahlib.core.config import Download
from cahlib.core.errors import ConfigError, ShardError
from cahlib.core.records import DropReason, Evidence, Stage, Stats
from cahlib.fetch.images import _AHEAD, fetch_images
from cahlib.fetch.limits import MemoryBudget, MemoryShare
from cahlib.fetch.resolver import NetworkConfig, NoAddressError
from cahlib.image.validate import validate_image
from tests.world import web as w
from tests.world.fetched import fetched, lost
from tests.world.jobs import LIMIT, until
from tests.world.pictures import candidate, picture

JPEG = picture()
REAL = Path(__file__).parent.parent.parent.parent / "shared/data/real"


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


def test_an_owner_who_opts_out_is_heard():
    tags = [("X-Robots-Tag", "otherbot: noindex"), ("X-Robots-Tag", "noai, noimageai")]
    paths = {"/a.jpg": w.body(JPEG, *tags), "/b.jpg": w.redirect("http://b.example/a.jpg")}
    with w.Web(paths) as web:
        heard = Evidence()
        assert lost(web, "http://a.example/b.jpg", evidence=heard) is DropReason.OPTED_OUT
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
            (image,), stats = fetched(web, *urls, known_harm=harm, resize=resize)
            assert image.candidate.url == urls[1]
            assert stats.dropped == {DropReason.KNOWN_HARM: 1}


def test_one_slow_host_holds_up_nobody_else_and_no_host_gets_a_burst():
    released = threading.Event()
    paths = {"/slow.jpg": w.slow(w.body(JPEG), released), "/ok.jpg": w.body(JPEG)}
    slow = [f"http://slow.example/slow.jpg?{n}" for n in range(40)]
    paths |= {url.removeprefix("http://slow.example"): paths["/slow.jpg"] for url in slow}
    quick = [f"http://host{n % 5}.example/ok.jpg" for n in range(40)]
    with w.Web(paths) as web:
        stats = Stats()
        options = Download(connections=8, per_host=2, replay=web.address)
        urls = enumerate([*slow, *quick])
        found = fetch_images(
            (candidate(url, n) for n, url in urls), options, stats, evidence=Evidence()
        )
        first = list(itertools.islice(found, 40))
        assert {image.candidate.url for image in first} == set(quick)
        released.set()
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
        found = fetch_images(candidates(), options, Stats(), evidence=Evidence())
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
        found = fetch_images(
            candidates(), Download(replay=web.address), Stats(), evidence=Evidence()
        )
        with pytest.raises(ShardError, match="cannot be read"):
            list(found)
    assert not threads()


def test_a_tick_can_end_the_work():
    def tick():
        raise ShardError("It took too long.")

    with w.Web({"/silent": w.silent}) as web:
        options = Download(replay=web.address)
        found = fetch_images(
            [candidate("http://a.example/silent")], options, Stats(), evidence=Evidence(), tick=tick
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
        found = fetch_images(candidates(), options, Stats(), evidence=Evidence())
        taken = list(itertools.islice(found, 10))
        assert len(taken) == 10
        assert len(read) < 300
        found.close()


def test_a_machine_without_network_does_not_count_all_hosts_as_dead():
    async def lookup(host):
        if host != "inside.example":
            raise NoAddressError("Temporary failure in name resolution")
        return ["127.0.0.1"]

    net = NetworkConfig(lookup=lookup, pause=0)
    urls = [f"http://host{n}.example/a.jpg" for n in range(20)]
    with w.Web({}) as web:
        with pytest.raises(ShardError, match="this machine's network"):
            fetched(web, *urls, net=net)
        assert fetched(web, *urls[1:], net=net)[1].dropped == {DropReason.DNS: 19}
        _, stats = fetched(web, *urls, "http://inside.example/a.jpg", net=net)
        assert stats.dropped == {DropReason.DNS: 20, DropReason.PRIVATE_ADDRESS: 1}


def test_it_works_inside_a_running_loop():
    async def main():
        with w.Web({"/ok": w.body(JPEG)}) as web:
            return len(fetched(web, "http://a.example/ok", "http://b.example/ok")[0])

    assert asyncio.run(main()) == 2


def test_no_candidates_give_no_images():
    with w.Web({}) as web:
        assert fetched(web) == ([], Stats())


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
        fetch_images([], Download(**settings), Stats(), evidence=Evidence())


def test_memory_is_bounded_and_never_deadlocks():
    """Ten answers of 40 pieces each want four times what there is."""
    held = []

    async def answer(memory):
        share = MemoryShare()
        for _ in range(40):
            await memory.reserve(share, 10)
            held.append(1000 - memory._free)
            await asyncio.sleep(0)
        memory.release(share)

    async def main():
        memory = MemoryBudget(1000)
        await asyncio.wait_for(asyncio.gather(*(answer(memory) for _ in range(10))), LIMIT)
        return memory._free

    assert asyncio.run(main()) == 1000
    assert max(held) <= 1000 + 400  # one answer may go beyond


def test_what_waits_for_the_consumer_is_held(monkeypatch):
    """As when the disk stalls: each connection has an image in hand then."""
    memories, proven = [], []

    class Noted(MemoryBudget):
        def __init__(self, most):
            super().__init__(most)
            self.most = most
            memories.append(self)

    def noted(*given):
        found = validate_image(*given)
        proven.append(found)
        return found

    monkeypatch.setattr("cahlib.fetch.client.MemoryBudget", Noted)
    monkeypatch.setattr(sys.modules["cahlib.fetch.images"], "validate_image", noted)
    waiting, stats = 12, Stats()
    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        count = 2 * _AHEAD + 2 + waiting  # in two queues, one between them, one taken
        wanted = [candidate(f"http://h{n}.example/a.jpg", n) for n in range(count)]
        options = Download(connections=count, consent="headers", replay=web.address)
        found = fetch_images(wanted, options, stats, evidence=Evidence())
        next(found)
        until(lambda: len(proven) == count and stats.left[Stage.FETCH] == count - waiting)
        assert memories[0].most - memories[0]._free == waiting * len(JPEG)
        assert len(list(found)) == count - 1
    assert memories[0]._free == memories[0].most


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
        arrived, stats = fetched(web, *files, **settings)
    pictures = {url for url, kind in types.items() if kind in ("image/png", "image/jpeg")}
    assert {image.candidate.url for image in arrived} == pictures
    for image in arrived:
        served = files[image.candidate.url]
        assert image.sha256 == hashlib.sha256(served).hexdigest()
        assert len(image.data) <= len(served)
        with Picture.open(io.BytesIO(image.data)) as kept, Picture.open(io.BytesIO(served)) as all_:
            assert kept.convert("RGBA").tobytes() == all_.convert("RGBA").tobytes()
            assert not {*kept.getexif()} - {0x0112}
    assert stats.dropped == {DropReason.NOT_AN_IMAGE: len(files) - len(pictures)}


def test_leaving_ends_also_when_more_images_wait_than_are_taken():
    """As when the consumer's disk is full: it must not wait for room that nobody makes."""
    with w.Web({"/a.jpg": w.body(JPEG)}) as web:
        urls = (f"http://h{n}.example/a.jpg" for n in range(200))
        options = Download(replay=web.address)
        net = NetworkConfig(only=("127.0.0.1", web.port), tls=False, pause=0)
        wanted = (candidate(url, n) for n, url in enumerate(urls))
        stats = Stats()
        found = fetch_images(wanted, options, stats, evidence=Evidence(), net=net)
        next(found)
        until(lambda: stats.left[Stage.FETCH] >= 16)
        found.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("cahlib")]
