"""X-Robots-Tag, by a table."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.records import Stats
from cahlib.crawl import page_opt_outs, wat
from cahlib.fetch import opt_outs


@pytest.mark.parametrize(
    "header",
    [
        *sorted(opt_outs.REFUSING_DIRECTIVES),
        "NoAI",
        " noai ",
        "all, noimageai",
        "noarchive,noindex",
        "unavailable_after: 25 Jun 2010 15:00:00 PST, noindex",
        "unavailable_after: Sun, 06 Nov 2030 08:49:37 GMT, noai",
        "max-snippet: 0, noai",
        "cahlib: noindex",
        "CAHLIB : noml",
        "*: none",
        "googlebot: nofollow, cahlib: noai",
        "noai noimageai",
        "all;noai",
        "index/follow/noimageai",
        "follow|noindex",
        "nofollow\uff0cnoindex",
        "nofollow\u3001noindex",
        "index\tnoai",
        "'noai'",
        "[noindex]",
        "noai.",
        "noindex=true",
        "noai: 1",
        "robots: noindex",
        "X-Robots-Tag: noai",
        "unavailable_after: 25 Jun 2030 15:00:00 PST noindex",
        "unavailable_after: 2030-06-25T15:00:00+00:00; noai",
        "max-snippet:-1 max-image-preview:large noai",
        "index--noai",
        "all->noindex",
        "content=noai",
        "no-index",
        "no ai",
        "no_image-ai",
        "no\u2011ai",
        "\uff4e\uff4f\uff41\uff49",
        "index\u200bno\u00adai",
    ],
)
def test_these_refuse_us(header):
    assert opt_outs.refusing_header([header]) == header
    assert opt_outs.refusing_header(["all", header]) == header


@pytest.mark.parametrize(
    "header",
    [
        "",
        "all",
        "nofollow, noarchive",
        "noindexing",
        "googlebot: noindex",
        "googlebot: nofollow, noai",  # a scope holds for the rest of its header
        "cahlib: all, otherbot: noindex",
        "unavailable_after: noindex",
        "googlebot: unavailable_after: Sun, 06 Nov 2030 08:49:37 GMT, noai",
        "max-image-preview: none",
        "noindex=false",
        "max-image-preview:none max-snippet:-1",
        "otherbot/2.1: noindex noai",
        "2ndbot: noai",
        "no more indexing, no aim",
        "no: index",
        "googlebot: nofollow; noai",
    ],
)
def test_these_do_not(header):
    assert opt_outs.refusing_header([header]) is None


def test_a_scope_ends_with_its_header():
    assert opt_outs.refusing_header(["otherbot: noindex", "noai"]) == "noai"


@given(st.lists(st.text()))
def test_no_header_is_too_strange(headers):
    assert opt_outs.refusing_header(headers) in (None, *headers)


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("search=yes ai-train=no", True),
        ("search=yes;ai-train=no", True),
        ("search=y|train-ai=n", True),
        ("all=n", True),
        ("bots=n, search=y", True),
        ("bots=n, train-ai=y", False),
        ("train-genai=n, train-ai=y", True),
        ("search=n", False),
        ('ai-train="no"', True),
        ("TRAIN-AI = NO", True),
        ("ai-train=none", False),
        ("no-ai-train=no", False),
        ("search=no, ai-train=yes", False),
    ],
)
def test_training_is_refused_whatever_separates_the_signals(value, refused):
    assert opt_outs.refuses_training(value) is refused


@pytest.mark.parametrize(
    ("value", "refused"),
    [("1", True), (" 1 ", True), ('"1"', True), ("1, 1", True), ("true", True), ("1;x", True),
     ("0", False), ("", False), ("10", False), ("0, 1", False)],
)  # fmt: skip
def test_a_reservation_is_heard_however_it_is_written(value, refused):
    said = opt_outs.parse_headers([("TDM-Reservation", value)], "strict")
    assert (said is not None) is refused


def page(*metas, **headers):
    """A page as a WAT file has it, or one in which something is of another type."""
    head = {"Metas": [*metas, *[{"name": "x", "content": 3}] * ("broken" in headers)]}
    response = {"HTML-Metadata": {"Head": head, "Links": [{"path": "IMG@/src", "url": "/a.jpg"}]}}
    record = {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": response}}}
    found = wat._page("http://site.com/", json.dumps(record).encode(), Stats())
    assert len(found.metas) == len(head["Metas"])
    return found


@pytest.mark.parametrize("broken", [{}, {"broken": True}], ids=["whole", "of another type"])
@pytest.mark.parametrize(
    ("meta", "signal"),
    [
        ({"name": "robots", "content": "noai"}, "meta robots"),
        ({"property": "ROBOTS", "content": "index, noimageindex"}, "meta robots"),
        ({"name": "googlebot, cahlib", "content": "noindex"}, "meta robots"),
        ({"http-equiv": "robots", "content": "noindex"}, "meta robots"),
        ({"http-equiv": "X-Robots-Tag", "content": "noai"}, "x-robots-tag"),
        ({"http-equiv": " x-robots-tag ", "content": "cahlib: noimageai"}, "x-robots-tag"),
        ({"name": "X-Robots-Tag", "content": "all, noml"}, "x-robots-tag"),
        ({"name": "page", "http-equiv": "X-Robots-Tag", "content": "noindex"}, "x-robots-tag"),
        ({"http-equiv": "Content-Usage", "content": "train-ai=n"}, "content-usage"),
        ({"name": "tdm-reservation", "content": "1"}, "meta tdm-reservation"),
        ({"http-equiv": "TDM-Reservation", "content": "1"}, "meta tdm-reservation"),
    ],
)
def test_a_pages_elements_refuse_as_headers_do(meta, signal, broken):
    said = page_opt_outs.page_opt_out(page({"name": "viewport", "content": "noai"}, meta, **broken))
    assert (said.signal, said.value) == (signal, meta["content"])


@pytest.mark.parametrize(
    "meta",
    [
        {"http-equiv": "X-Robots-Tag", "content": "otherbot: noai"},
        {"http-equiv": "X-Robots-Tag", "content": "all"},
        {"http-equiv": "X-UA-Compatible", "content": "noai"},
        {"http-equiv": "refresh", "content": "none"},
        {"http-equiv": "Content-Usage", "content": "noai"},
        {"name": "googlebot", "content": "noindex"},
        {"name": "keywords", "content": "noindex"},
    ],
)
def test_other_elements_of_a_page_do_not(meta):
    assert page_opt_outs.page_opt_out(page(meta)) is None
