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
    ],
)
def test_these_do_not(header):
    assert optout.refusal([header]) is None


def test_a_scope_ends_with_its_header():
    assert optout.refusal(["otherbot: noindex", "noai"]) == "noai"


@given(st.lists(st.text()))
def test_no_header_is_too_strange(headers):
    assert optout.refusal(headers) in (None, *headers)
