"""X-Robots-Tag, by a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.scrape import optout


@pytest.mark.parametrize(
    "header",
    [
        *sorted(optout.REFUSALS),
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
    ],
)
def test_these_refuse_us(header):
    assert optout.refusal([header]) == header
    assert optout.refusal(["all", header]) == header


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
        "no-index no ai",
        "googlebot: nofollow; noai",
    ],
)
def test_these_do_not(header):
    assert optout.refusal([header]) is None


def test_a_scope_ends_with_its_header():
    assert optout.refusal(["otherbot: noindex", "noai"]) == "noai"


@given(st.lists(st.text()))
def test_no_header_is_too_strange(headers):
    assert optout.refusal(headers) in (None, *headers)


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("search=yes ai-train=no", True),
        ("search=yes;ai-train=no", True),
        ("search=y|train-ai=n", True),
        ('ai-train="no"', True),
        ("TRAIN-AI = NO", True),
        ("ai-train=none", False),
        ("no-ai-train=no", False),
        ("search=no, ai-train=yes", False),
    ],
)
def test_training_is_refused_whatever_separates_the_signals(value, refused):
    assert optout.no_training(value) is refused


@pytest.mark.parametrize(
    ("value", "refused"),
    [("1", True), (" 1 ", True), ('"1"', True), ("1, 1", True), ("true", True), ("1;x", True),
     ("0", False), ("", False), ("10", False), ("0, 1", False)],
)  # fmt: skip
def test_a_reservation_is_heard_however_it_is_written(value, refused):
    said = optout.spoken([("TDM-Reservation", value)], "strict")
    assert (said is not None) is refused
