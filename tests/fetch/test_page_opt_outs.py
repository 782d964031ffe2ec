"""The refusals of pages and headers are obeyed, and kept as evidence."""

import pytest

from cahlib.core.config import Crawl, Download
from cahlib.core.records import DropReason, Evidence, Stage, Stats
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.wat import Link, Meta, Page
from cahlib.demo.web import Answer, Web
from cahlib.fetch.images import fetch_images
from tests.world.one_host import HOST, JPEG, fetch
from tests.world.pictures import candidate

LONG = "x" * 5000


@pytest.mark.parametrize(
    ("place", "answer", "begins"),
    [
        ("/robots.txt", Answer(body=b"User-agent: *\nDisallow: /" + b"*" * 5000), "disallow: /***"),
        (
            "/.well-known/tdmrep.json",
            Answer(body=b'[{"location": "/a.jpg?\\ud800", "tdm-reservation": 1}]'),
            "/a.jpg??",
        ),
        ("/a.jpg??", Answer(body=JPEG, headers=[("X-Robots-Tag", f"noai, {LONG}")]), "noai, xxx"),
    ],
)
def test_evidence_can_be_written_and_has_an_end(place, answer, begins):
    _, lost, evidence, _ = fetch({place: answer}, "/a.jpg??")
    assert lost == {DropReason.OPTED_OUT: 1}
    (value,) = (each.value for each in evidence.optouts)
    assert value.encode().startswith(begins.encode())
    assert len(value) <= 1000


def test_what_pages_and_headers_say_has_an_end_too():
    link = Link("IMG@/src", "/a.jpg", "A red bicycle leans on an old garden wall")
    meta = Meta("robots", "", f"noai, {LONG}")
    page, optouts = Page(url=f"{HOST}.com/", base="", links=[link], metas=[meta]), []
    assert not list(find_candidates([page], Crawl(), Blocklists(), Stats(), optouts=optouts))
    assert optouts[0].value == meta.content[:1000]
    with Web({f"{HOST}/a.jpg": Answer(body=JPEG, headers=[("X-Robots-Tag", LONG)])}) as web:
        options = Download(replay=web.address, consent="headers")
        (image,) = fetch_images([candidate(f"{HOST}/a.jpg")], options, Stats(), evidence=Evidence())
    assert image.robots == LONG[:1000]


@pytest.mark.parametrize(
    ("meta", "refused"),
    [
        (Meta("robots", "", "noindex, follow"), True),
        (Meta("Robots", "", "NOAI"), True),
        (Meta("cahlib", "", "noimageai"), True),
        (Meta("tdm-reservation", "", "1"), True),
        (Meta("googlebot", "", "noindex"), False),
        (Meta("robots", "", "max-image-preview:large"), False),
        (Meta("description", "", "noai"), False),
        (Meta("", "robots", "noai noimageai"), True),
        (Meta("", "TDM-Reservation", "1"), True),
        (Meta("robots,googlebot", "", "noindex"), True),
        (Meta("robots cahlib", "", "nofollow;noai"), True),
        (Meta("", "og:description", "noai"), False),
    ],
)
def test_a_page_speaks_for_its_images(meta, refused):
    link = Link("IMG@/src", "/a.jpg", "A red bicycle leans on an old garden wall")
    page = Page(url="http://a.example.com/", base="", links=[link, link], metas=[meta])
    stats, optouts = Stats(), []
    found = list(find_candidates([page], Crawl(), Blocklists(), stats, optouts=optouts))
    assert stats.unaccounted(Stage.CHOOSE) == 0
    assert bool(found) is not refused
    assert stats.dropped[DropReason.PAGE_OPTED_OUT] == len(optouts) == refused
    overruled = []
    open_to_all = find_candidates(
        [page], Crawl(), Blocklists(), Stats(), consent="research", optouts=overruled
    )
    assert len(list(open_to_all)) == 1
    assert [each.obeyed for each in optouts + overruled] == [True, False][: 2 * refused]
    for each in optouts + overruled:
        assert (each.url, each.value) == ("http://a.example.com/a.jpg", meta.content)


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"X-Robots-Tag": "noai"}, ("x-robots-tag", "noai")),
        ({"x-robots-tag": ["googlebot: all", "NoImageAI"]}, ("x-robots-tag", "NoImageAI")),
        ({"X-ROBOTS-TAG": "cahlib: noindex"}, ("x-robots-tag", "cahlib: noindex")),
        ({"tdm-reservation": "1"}, ("tdm-reservation", "1")),
        ({"Content-Usage": "search=y, train-ai=n"}, ("content-usage", "search=y, train-ai=n")),
        ({"X-Robots-Tag": "googlebot: noindex"}, None),
        ({"X-Robots-Tag": ["otherbot: noai, noindex", "nofollow"]}, None),
        ({"X-Robots-Tag": None, "TDM-Reservation": [0, {}, "0"], "Content-Usage": ""}, None),
        ({"Set-Cookie": ["noai", "noindex"], "Robots": "noai"}, None),
    ],
)
def test_the_headers_of_a_page_speak_for_its_images(headers, refused):
    link = Link("IMG@/src", "/a.jpg", "A red bicycle leans on an old garden wall")
    page = Page(url="http://a.example.com/", base="", links=[link], metas=[], headers=headers)
    for consent in ("strict", "headers", "research"):
        stats, optouts, obeyed = Stats(), [], consent != "research"
        found = find_candidates(
            [page], Crawl(), Blocklists(), stats, consent=consent, optouts=optouts
        )
        assert len(list(found)) == (refused is None or not obeyed)
        assert stats.dropped[DropReason.PAGE_OPTED_OUT] == (refused is not None and obeyed)
        assert [(each.signal, each.value) for each in optouts] == [refused] * bool(refused)
        for each in optouts:
            assert (each.where, each.url) == (page.url, f"{page.url}a.jpg")
            assert each.obeyed is obeyed
