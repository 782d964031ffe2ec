"""Both halves of a WAT file give every record once, and what is rotten costs only itself."""

import gzip
import json
import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError, ShardError
from cahlib.core.records import DropReason, Evidence, Shard, Stage, Stats
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.shards import list_shards
from cahlib.crawl.wat import read_pages
from cahlib.demo.web import Answer, Web
from tests.world.captions import TURNING, is_forbidden
from tests.world.crawl import NAME, serve


def member(url: str, metadata: object, *, kind: str = "metadata") -> bytes:
    """A record as Common Crawl writes it, in a gzip member of its own."""
    body = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + body + b"\r\n\r\n", mtime=0)


def html(links: object = (), **head: object) -> dict[str, object]:
    """The metadata of a page."""
    response = {"HTML-Metadata": {"Head": head, "Links": links}}
    return {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": response}}}


def page(url: str, text: str = "") -> bytes:
    return member(url, html([{"path": "IMG@/src", "url": "/a.jpg", "alt": text}]))


def read(path: Path, *halves: int):
    """The pages of some halves of a file, and the stats."""
    stats, found = Stats(), []
    for half in halves or (0, 1):
        found += read_pages(Shard(id="x", url=str(path), half=half), stats)
    assert stats.unaccounted(Stage.READ) == 0
    return found, stats


@pytest.fixture
def wat(tmp_path):
    path = tmp_path / "some.warc.wat.gz"

    def write(*members: bytes) -> Path:
        path.write_bytes(b"".join(members))
        return path

    return write


@given(st.lists(st.text(max_size=3000), max_size=12), st.binary(max_size=40))
@example(["x"], b"")
@example(["a" * 40_000] * 3, b"\x1f\x8b\x08")
def test_both_halves_give_every_record_once(tmp_path_factory, texts, garbage):
    path = tmp_path_factory.mktemp("wat") / "a.wat.gz"
    path.write_bytes(b"".join(page(f"http://a.com/{n}", t) for n, t in enumerate(texts)) + garbage)
    if not texts:
        return
    found, _ = read(path)
    assert [each.url for each in found] == [f"http://a.com/{n}" for n in range(len(texts))]
    assert [each.links[0].alt for each in found] == texts


def test_each_half_holds_its_share(wat):
    path = wat(*(page(f"http://a.com/{n}") for n in range(100)))
    assert 45 <= len(read(path, 0)[0]) <= 55


def test_a_damaged_member_costs_only_itself(wat):
    members = [page(f"http://a.com/{n}", "some words " * 50) for n in range(9)]
    rotten = bytearray(members[4])
    rotten[40:60] = bytes(20)
    found, stats = read(wat(*members[:4], bytes(rotten), *members[5:]))
    assert len(found) == 8
    assert stats.dropped == {DropReason.BROKEN_MEMBER: 1}


@pytest.mark.parametrize(
    ("damaged", "by"),
    [(n, by) for n in (1, 4, 8) for by in (b"\0", b"\0" * 3, b"WARC", b"\x1f\x8b\7")],
)
def test_a_member_whose_first_bytes_are_damaged_is_counted(wat, damaged, by):
    members = [page(f"http://a.com/{n}", "some words " * 50) for n in range(9)]
    members[damaged] = by + members[damaged][len(by) :]
    found, stats = read(wat(*members))
    assert len(found) == 8
    assert stats.dropped == {DropReason.BROKEN_MEMBER: 1}
    assert stats.entered[Stage.READ] == 9


@pytest.mark.parametrize("padding", [b"\0", bytes(600), bytes(300_000)])
def test_padding_behind_a_member_is_no_member(wat, padding):
    found, stats = read(wat(page("http://a.com/0"), padding, page("http://a.com/1"), padding))
    assert len(found) == 2
    assert not stats.dropped


@pytest.mark.parametrize(
    "spell",
    [
        bytes.lower,
        bytes.upper,
        bytes.title,
        lambda name: name.replace(b":", b" :"),
        lambda name: name.replace(b":", b":\t "),
        lambda name: name.lower().replace(b":", b":  "),
    ],
)
@pytest.mark.parametrize("ends", [b"\r\n", b"\n"])
def test_the_fields_of_a_record_are_named_in_any_case(wat, spell, ends):
    head, _, body = gzip.decompress(page("http://a.com/Content-Length:7")).partition(b"\r\n\r\n")
    version, *fields = head.split(b"\r\n")
    fields = [re.sub(rb"^[\w-]+:", lambda name: spell(name[0]), each) for each in fields]
    record = ends.join([version, *fields, b"", body])
    good = page("http://a.com/1")
    found, stats = read(wat(good, gzip.compress(record), good))
    assert [each.url for each in found][1] == "http://a.com/Content-Length:7"
    assert not stats.dropped


def test_a_magic_number_within_a_member_is_no_border(wat):
    packed, extra = page("http://a.com/1", "some words"), b"\x1f\x8b\x08?" * 5
    chance = packed[:3] + b"\4" + packed[4:10] + bytes([len(extra), 0]) + extra + packed[10:]
    found, stats = read(wat(page("http://a.com/0"), chance, page("http://a.com/2")))
    assert [each.url for each in found] == [f"http://a.com/{n}" for n in range(3)]
    assert not stats.dropped


def test_a_member_full_of_magic_numbers_costs_little(wat):
    hostile = gzip.compress(b"\x1f\x8b\x08" * 150_000, 0)
    path = wat(page("http://a.com/0"), hostile, page("http://a.com/1"))
    start = time.process_time()
    found, stats = read(path)
    assert time.process_time() - start < 60  # it takes 0.5
    assert [each.url for each in found] == ["http://a.com/0", "http://a.com/1"]
    assert set(stats.dropped) == {DropReason.BROKEN_MEMBER}


def test_a_file_that_breaks_off_gives_what_is_whole_and_is_told_of(wat):
    members = [page(f"http://a.com/{n}", f"words {n} " * 40) for n in range(6)]
    rotten = bytearray(members[5])
    rotten[40:60] = bytes(20)
    for last, is_cut in ((members[5][:-20], True), (members[5][:5], True), (bytes(rotten), False)):
        path, evidence, stats = wat(*members[:5], last), Evidence(), Stats()
        found = [
            each.url
            for half in (0, 1)
            for each in read_pages(
                Shard(id="x", url=str(path), half=half), stats, evidence=evidence
            )
        ]
        assert found == [f"http://a.com/{n}" for n in range(5)]
        assert stats.dropped == {DropReason.BROKEN_MEMBER: 1}
        assert evidence.cut == (path.stat().st_size if is_cut else 0)


def test_a_file_of_one_member_is_all_in_its_first_half(wat):
    records = b"".join(gzip.decompress(page(f"http://a.com/{n}")) for n in range(5))
    path = wat(gzip.compress(records))
    assert len(read(path, 0)[0]) == 5
    assert read(path, 1)[0] == []


def test_a_crawl_is_read_over_a_bad_line_as_from_disk(wat):
    """Its server hangs up in the middle, is busy, and fails; what arrived is not fetched again."""
    texts = [f"{n} " + Random(n).randbytes(3000).hex() for n in range(200)]
    path = wat(*(page(f"http://a.com/{n}", text) for n, text in enumerate(texts)))
    file = Answer(body=path.read_bytes())
    cut = replace(file, cut=len(file.body) // 3)
    troubles = [Answer(status=503), file, file, cut, Answer(status=500), cut, file]
    waited: list[float] = []
    with serve({path.name: troubles}) as web:
        crawl = Crawl(crawl=NAME, base_url=f"http://{web.address}")
        found = [
            each.links[0].alt
            for shard in list_shards(crawl)
            for each in read_pages(shard, Stats(), contact="me@site.com", sleep=waited.append)
        ]
    assert found == texts
    assert min(waited) >= 1


@pytest.mark.parametrize(
    ("metadata", "images"),
    [
        (html([{"path": "IMG@/src", "url": "a.jpg", "alt": None}, {"path": 3}, "x", None]), 1),
        (html({"path": "IMG@/src"}), 0),
        (html([{"path": "IMG@/src", "url": ["a"], "alt": {"b": 1}}], Base=["http://b.com"]), 1),
        ({"Envelope": {"Payload-Metadata": ["HTML-Metadata", "IMG@/src"]}, "HTML-Metadata": 1}, 0),
        (b'{"HTML-Metadata": "IMG@/src \xff\xfe"}', 0),
    ],
)
def test_metadata_of_other_types_is_read_as_far_as_it_goes(wat, metadata, images):
    found, stats = read(wat(member("http://a.com", metadata)))
    assert [link.path for link in found[0].links].count("IMG@/src") == images
    assert stats.left[Stage.READ] == 1


@pytest.mark.parametrize("link", [{}, {"alt": None}])
@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Set-Cookie": ["a", "b"], "X-Robots-Tag": "noai"}, True),
        ({"x-robots-tag": ["all", "noai"]}, True),
        (["X-Robots-Tag"], False),
        (None, False),
    ],
)
def test_a_page_has_the_headers_of_its_answer(wat, headers, told, link):
    metadata = html([{"path": "IMG@/src", "url": "a.jpg", **link}])
    response = metadata["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
    response["Headers"] = headers
    (found,), _ = read(wat(member("http://a.com", metadata)))
    assert found.headers == (headers if told else {})
    assert [link.url for link in found.links] == ["a.jpg"]


def test_a_lone_surrogate_becomes_a_question_mark(wat):
    body = json.dumps(html([{"path": "IMG@/src", "url": "a.jpg", "alt": "a \ud800 b"}])).encode()
    found, _ = read(wat(member("http://a.com", body)))
    assert found[0].links[0].alt == "a ? b"


@pytest.mark.parametrize(
    "body",
    [b'{"HTML-Metadata": IMG@', b'{"Envelope":{"Pay', b"[" * 99_999, b'{"a":' + b"[" * 99_999],
)
def test_what_is_no_json_is_counted(wat, body):
    good, bad = page("http://a.com"), member("http://b.com", body + b'"HTML-Metadata" IMG@')
    found, stats = read(wat(good, bad, good))
    assert len(found) == 2
    assert stats.dropped == {DropReason.BROKEN_RECORD: 1}


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("CC-MAIN-20190527090045-20190527112045-00001.warc.wat.gz", True),
        ("CC-MAIN-20130516092621-00000-ip-10-60-113-184.ec2.internal.warc.wat.gz", True),
        ("CC-MAIN-20190615202724-20190615224724-00000.warc.wat.gz", False),
        ("mine.warc.wat.gz", False),
    ],
)
def test_entities_that_old_crawls_left_are_characters(tmp_path, name, escaped):
    url, alt = (
        "/a.jpg?a=1&amp;b=2&#x3D;&copy=3&amp;amp;",
        "&quot;Tom&quot; &#38; &lt;b&gt; &nosuch;",
    )
    meta = {"property": "og:image", "content": "/b.jpg?a&amp;b"}
    link = {"path": "IMG@/src", "url": url, "alt": alt}
    (tmp_path / name).write_bytes(
        member("http://a.com/?x&amp;y", html([link], Base="/?&amp;", Metas=[meta]))
    )
    (found,), _ = read(tmp_path / name)
    if escaped:
        url, alt = "/a.jpg?a=1&b=2=&copy=3&amp;", '"Tom" & <b> &nosuch;'
    assert (found.links[0].url, found.links[0].alt) == (url, alt)
    assert found.base == ("/?&" if escaped else "/?&amp;")
    assert found.metas[0].content == ("/b.jpg?a&b" if escaped else "/b.jpg?a&amp;b")
    assert found.url == "http://a.com/?x&amp;y"


@pytest.mark.parametrize("length", [b"9" * 5000, b"9" * 19, b"", b"-1", b"1e3"])
def test_a_length_that_is_none_is_a_broken_record(wat, length):
    good, record = page("http://a.com"), gzip.decompress(page("http://b.com"))
    lying = re.sub(rb"(?<=Content-Length: )\d+", length, record)
    found, stats = read(wat(good, gzip.compress(lying), good))
    assert len(found) == 2
    assert stats.dropped == {DropReason.BROKEN_RECORD: 1}


def test_what_is_no_page_is_counted(wat):
    request = member("http://a.com", {"HTTP-Request-Metadata": {}}, kind="request")
    found, stats = read(wat(request, page("http://a.com")))
    assert len(found) == 1
    assert stats.dropped == {DropReason.NOT_A_PAGE: 1}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!doctype html><html>", "is a web page, not a WAT file"),
        (b"\x28\xb5\x2f\xfd rest of it", "is compressed with zstd"),
        (b"WARC/1.0\r\nWARC-Type: warcinfo\r\n", "is not compressed"),
        (b"\x89PNG\r\n\x1a\n", "is not a gzip file"),
    ],
)
def test_a_file_that_is_no_wat_file_is_named_as_what_it_is(wat, content, sentence):
    with pytest.raises(ShardError, match=sentence):
        read(wat(content))


def warc(*types: str, ends: str = "\r\n") -> list[bytes]:
    """The records of another kind of file of a crawl, each packed."""
    body = b"HTTP/1.1 200 OK\r\n\r\n<html><img src=a.jpg alt='a red fox'>"
    head = ends.join(["WARC/1.0", "WARC-Type: %s", "Content-Length: %d", "", ""])
    return [
        gzip.compress((head % (each, len(body))).encode() + body + b"\r\n\r\n") for each in types
    ]


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        (warc("warcinfo", "request", "response", "metadata"), "WARC"),
        (warc("warcinfo", "response"), "WARC"),
        (warc("response"), "WARC"),
        (warc("warcinfo", "RESPONSE", ends="\n"), "WARC"),
        (warc("warcinfo", "revisit"), "WARC"),
        (warc("warcinfo", "resource"), "WARC"),
        (warc("warcinfo", "conversion", "conversion"), "WET"),
        (warc("conversion"), "WET"),
        ([gzip.decompress(b"".join(warc("warcinfo", "response")))], "WARC"),
        ([gzip.compress(gzip.decompress(b"".join(warc("warcinfo", "conversion"))))], "WET"),
    ],
)
def test_another_file_of_a_crawl_is_named_as_what_it_is(wat, members, kind):
    path, sentence = wat(*members), f"is a {kind} file, not a WAT file; use the file"
    for half in (0, 1):
        with pytest.raises(ShardError, match=sentence):
            read(path, half)
    with pytest.raises(ConfigError, match=sentence):
        list(list_shards(Crawl(crawl=str(path))))
    (path.parent / "a.wat.gz").write_bytes(page("http://a.com"))
    with pytest.raises(ConfigError, match=sentence):
        list(list_shards(Crawl(crawl=str(path.parent / "*.gz"))))
    with Web({f"/{path.name}": Answer(body=path.read_bytes())}) as web:
        with pytest.raises(ConfigError, match=sentence):
            list(list_shards(Crawl(crawl=f"http://{web.address}/{path.name}")))


def test_a_packed_file_without_a_record_is_no_wat_file(wat):
    for content in (gzip.compress(b"<html>" * 99), gzip.compress(bytes(99))[:-9]):
        with pytest.raises(ShardError, match="has no complete record"):
            read(wat(content))


def test_a_file_that_is_gone_is_a_lost_shard(tmp_path):
    with pytest.raises(ShardError, match="No such file"):
        read(tmp_path / "none.wat.gz")


NAMES = (
    "Envelope Payload-Metadata HTTP-Response-Metadata HTML-Metadata Head Links Metas Base path url"
)
KEYS = st.sampled_from([*NAMES.split(), "alt", "name", "property", "content"])
TEXTS = st.text(max_size=9) | st.sampled_from(
    ["IMG@/src", "\ud800", "og:image", "http://a.com/b.jpg"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
)


@given(JSON, JSON, JSON)
@example([], "http://a.com/b.jpg", "00AA\U00018cd6")
def test_no_metadata_is_so_odd_that_it_is_lost_without_a_reason(tmp_path_factory, head, link, any):
    path = tmp_path_factory.mktemp("wat") / "a.wat.gz"
    metadata = html([link, {"path": "IMG@/src", "url": link, "alt": any}], Base=any, Metas=head)
    odd = [member("http://a.com", each) for each in (metadata, html(any), {**html(), "Head": any})]
    path.write_bytes(b"".join(odd))
    found, stats = read(path)
    options = Crawl(languages=("all",), og_images=True)
    assert all(
        each.url.startswith("http")
        and not TURNING.intersection(each.text)
        and not [*filter(is_forbidden, each.text)]
        for each in find_candidates(found, options, Blocklists(), stats)
    )
    assert stats.left[Stage.READ] == stats.entered[Stage.READ]
    assert stats.unaccounted(Stage.CHOOSE) == 0


@given(st.binary(max_size=600))
def test_garbage_never_crashes(tmp_path_factory, garbage):
    path = tmp_path_factory.mktemp("wat") / "a.wat.gz"
    path.write_bytes(b"\x1f\x8b\x08" + garbage)
    with suppress(ShardError):  # has no complete record
        read(path)
