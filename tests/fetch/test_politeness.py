"""How often a domain is asked, and when it is left alone."""

import time
from email.utils import formatdate

import pytest

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.core.retry import retry_after
from cahlib.fetch.politeness import Politeness, registered_domain


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.b.example.co.uk", "example.co.uk"),
        ("EXAMPLE.com.", "example.com"),
        ("one.blogspot.com", "one.blogspot.com"),
        ("com", "com"),
        ("93.184.216.34", "93.184.216.34"),
        ("2606:2800::1", "2606:2800::1"),
        ("", ""),
    ],
)
def test_whose_domain_a_host_is(host, domain):
    assert registered_domain(host) == domain


def test_a_domain_is_asked_so_often_a_second():
    politeness = Politeness(Download(per_second=4), clock=lambda: 100.0)
    assert [politeness.reserve("a") for _ in range(3)] == [0, 0.25, 0.5]
    assert politeness.reserve("b") == 0


def test_who_cannot_wait_so_long_takes_no_place_from_others():
    politeness = Politeness(Download(per_second=4), clock=lambda: 100.0)
    assert [politeness.reserve("a", 0.3) for _ in range(9)] == [0, 0.25, *[0.5] * 7]
    assert politeness.reserve("a") == 0.5


def test_a_pause_is_obeyed_and_a_long_one_is_the_end():
    politeness = Politeness(Download(per_second=0), clock=lambda: 100.0)
    politeness.honour_retry_after("a", "20")
    assert politeness.reserve("a") == 20
    assert not politeness.is_skipped("a")
    politeness.honour_retry_after("a", "86400")
    assert politeness.is_skipped("a")


def test_who_fails_again_and_again_is_left_alone():
    politeness = Politeness(Download(max_failures=3))
    for result in (
        DropReason.DNS,
        DropReason.TIMEOUT,
        "/moved",
        DropReason.DNS,
        DropReason.HTTP_4XX,
        DropReason.DNS,
    ):
        politeness.record_result("a", result)
    assert not politeness.is_skipped("a")
    politeness.record_result("a", DropReason.HTTP_4XX, 403)
    politeness.record_result("a", DropReason.HTTP_4XX, 429)
    assert politeness.is_skipped("a")
    assert politeness.dead_domains() == ()
    for _ in range(3):
        politeness.record_result("b", DropReason.DNS)
    assert politeness.dead_domains() == ("b",)


def test_a_later_shard_asks_again_until_it_is_told_not_to():
    options = Download(max_failures=2)
    first = Politeness(options)
    for _ in range(2):
        first.record_result("dead", DropReason.DNS)
    assert first.is_skipped("dead")
    assert not Politeness(options).is_skipped("dead")


def test_a_domain_that_failed_but_was_heard_is_not_silent():
    politeness = Politeness(Download())
    politeness.record_contact("a", DropReason.TIMEOUT)
    politeness.record_contact("b", object())
    for _ in range(3):
        politeness.record_result("a", DropReason.NO_ROBOTS)
        politeness.record_result("b", DropReason.NO_ROBOTS)
    assert politeness.dead_domains() == ("a",)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 0), ("7", 7), (" 7 ", 7), ("-1", 0), ("soon", 0), ("9" * 4000, 999_999_999_999)],
)
def test_retry_after(header, seconds):
    assert retry_after(header) == seconds


def test_retry_after_as_a_date():
    assert retry_after(formatdate(time.time() + 90, usegmt=True)) == pytest.approx(90, abs=3)
    assert retry_after(formatdate(0, usegmt=True)) == 0
