"""Whatever spelling an address has, it is counted to the domain that is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.records import DropReason
from cahlib.fetch.urls import domain_of, normalize_url
from tests.world import web as w
from tests.world.fetched import fetched


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("http://img.example.com/a.jpg", "example.com"),
        ("https://me:secret@EXAMPLE.com:443/a.jpg", "example.com"),
        ("http://example.com?x=1", "example.com"),
        ("http://example.com./a.jpg", "example.com"),
        ("http://img.bücher.de/a.jpg", "xn--bcher-kva.de"),
        ("http://xn--bcher-kva.de/a.jpg", "xn--bcher-kva.de"),
        ("http://[2606:4700:0::1]/a.jpg", "2606:4700::1"),
        ("http://[2606:4700::1", ""),
        ("http://10.0.0.1/a.jpg", ""),
        ("http://example.com:22/a.jpg", ""),
        ("mailto:me@example.com", ""),
        ("", ""),
    ],
)
def test_whose_domain_an_address_asks(address, domain):
    assert domain_of(address) == domain


@given(st.text(st.sampled_from("aZ/.?=&%2e+~@:!$()[]{}\\|^_-é ")))
def test_an_address_has_one_spelling(rest):
    """Also those that look like most do, for which the long way is left out."""
    common = normalize_url(f"https://a.com/{rest}")
    assert normalize_url(f"https://A.com:443/{rest}") == common
    assert normalize_url(f"https://me@a.com./{rest}") == common
    assert normalize_url(common) == common or "%" in rest


def test_a_domain_of_two_spellings_is_left_alone_as_one():
    hosts = "bücher.de", "xn--bcher-kva.de"
    urls = [f"http://{hosts[n % 2]}/{n}.jpg" for n in range(20)]
    with w.Web({f"/{n}.jpg": w.body(b"", status=403) for n in range(20)}) as web:
        _, stats = fetched(web, *urls, max_failures=5, per_host=1)
    assert stats.dropped == {DropReason.HTTP_4XX: 5, DropReason.LEFT_ALONE: 15}
    assert len(web.asked) == 5
