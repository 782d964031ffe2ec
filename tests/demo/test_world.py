"""The demo's world holds together: its crawl, its web and its truth say the same."""

import gzip
import io
import json
import zlib
from collections import Counter
from contextlib import suppress
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from cahlib.core.records import DropReason, Stage
from cahlib.demo import MOST_BYTES, job, world

START = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"


@pytest.fixture(scope="module")
def demo():
    return world.build()


@pytest.fixture(scope="module")
def pages(demo):
    """The pages of the crawl by URL, read as plainly as can be."""
    found = {}
    for record in records(demo.wat):
        head, _, body = record.partition(b"\r\n\r\n")
        if b'"HTML-Metadata"' in body:
            url = head.split(b"WARC-Target-URI: ")[1].split(b"\r\n")[0].decode()
            response = json.loads(body)["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
            found[url] = response["HTML-Metadata"]
    return found


def records(data):
    """The gzip members of a file, without the broken ones; each begins as Python writes them."""
    for member in data.split(START)[1:]:
        with suppress(OSError, EOFError, zlib.error):
            yield gzip.decompress(START + member)


def test_it_is_the_same_every_time(demo):
    again = world.build()
    assert again.wat == demo.wat
    assert again.exhibits == demo.exhibits
    assert again.answers == demo.answers


def test_the_crawl_shows_every_exhibit(demo, pages):
    shown = Counter()
    for url, page in pages.items():
        base = urljoin(url, page["Head"].get("Base", ""))
        for link in page["Links"]:
            if link["path"] == "IMG@/src":
                try:
                    shown[urljoin(base, link["url"]), link.get("alt")] += 1
                except ValueError:
                    shown[link["url"], link.get("alt")] += 1
    assert shown == Counter((each.url, each.alt) for each in demo.exhibits)


def test_there_is_work_for_both_halves(demo, pages):
    middle = len(demo.wat) // 2
    for half in (demo.wat[:middle], demo.wat[middle:]):
        assert sum(b'"HTML-Metadata"' in record for record in records(half)) > 10


def test_every_reason_that_a_replayed_web_can_give_has_its_trap(demo):
    beyond = {
        # no name is resolved and nothing is encrypted when a web is replayed
        DropReason.DNS, DropReason.PRIVATE_ADDRESS, DropReason.REFUSED, DropReason.TLS,
        # these wait for lists that the user brings, or for a model of photos
        DropReason.NO_WANTED_WORD, DropReason.UNWANTED_WORD, DropReason.OTHER_PATTERN,
        DropReason.BLOCKED_DOMAIN, DropReason.BLOCKED_URL, DropReason.BLOCKED_PAIR,
        DropReason.KNOWN_HARM, DropReason.HARM_LOOKS, DropReason.MINOR,
        DropReason.ANIMAL, DropReason.HEAD_SCORE,
        # these are for datasets that are finished, or for runs that are told to
        DropReason.PURGED, DropReason.DESELECTED, DropReason.SAME_MEANING, DropReason.EVALUATION,
        DropReason.SAME_IMAGE, DropReason.NEAR_DUPLICATE,
        # the demo's web is ours: it is asked as fast as it answers
        DropReason.LEFT_ALONE, DropReason.TOO_MANY_LINKS, DropReason.TOO_OFTEN,
        # what an earlier stage let through by mistake
            DropReason.UNFETCHABLE, DropReason.UNREADABLE,
    }  # fmt: skip
    trapped = {each.reason for each in demo.exhibits if each.reason} | demo.unread.keys()
    assert trapped | beyond >= set(DropReason)
    assert not trapped & beyond
    assert all(reason.stage is Stage.READ for reason in demo.unread)


def test_what_is_kept_is_a_good_picture(demo):
    for each in demo.exhibits:
        if each.reason is None and len(each.answers) == 1:
            (answer,) = each.answers.values()
            body = (answer if isinstance(answer, world.Answer) else answer[-1]).body
            with Image.open(io.BytesIO(body)) as picture:
                picture.load()
                assert min(picture.size) >= 256
            assert len(body) >= 5000


def test_nothing_is_fetched_that_is_not_there(demo):
    """Each exhibit that a fetch must fail has an answer, so that it fails for its own reason."""
    for each in demo.exhibits:
        if each.reason is None or each.reason.stage is Stage.FETCH:
            assert each.url in demo.answers


def test_it_is_served(demo):
    with demo.serve() as web:
        crawl = job("demo-dataset", web).crawl.crawl
        with urlopen(crawl) as reply:
            assert reply.read() == demo.wat
        request = Request(crawl, headers={"Range": "bytes=100-199"})
        with urlopen(request) as reply:
            assert reply.status == 206
            assert reply.read() == demo.wat[100:200]
        picture = demo.exhibits[0]
        path = "/" + picture.url.split("/", 3)[3]
        host = picture.url.split("/")[2]
        request = Request(f"http://{web.address}{path}", headers={"Host": host})
        with urlopen(request) as reply:
            assert reply.read() == demo.answers[picture.url].body


def test_a_large_file_is_larger_than_the_demo_allows(demo):
    sizes = [len(a.body) for a in demo.answers.values() if isinstance(a, world.Answer)]
    assert sum(size > MOST_BYTES for size in sizes) == 1
