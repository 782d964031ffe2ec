"""What in a caption belongs to a person."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.config import Crawl
from cahlib.records import Reason
from cahlib.scrape import texts
from cahlib.scrape.privacy import masked


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("Write to jane.doe+x@mail.example.co.uk today", "Write to [e-mail] today"),
        ("Call +49 (0)30 1234-5678 for a cake", "Call [phone] for a cake"),
        ("Call (415) 555-2671 or 415-555-2671.", "Call [phone] or [phone]."),
        ("Card 4111 1111 1111 1111 on a table", "Card [card] on a table"),
        ("Her passport no. C01X00 and Passport: L1234567", "Her passport no. C01X00 and "
         "passport [number]"),
    ],
)  # fmt: skip
def test_what_is_found(text, without):
    assert masked(text) == without


@pytest.mark.parametrize(
    "text",
    [
        "A cat of 2010-2015, 1,234,567 times seen",
        "ISBN 978-3-16-148410-0 on a shelf",
        "Card 4111 1111 1111 1112 on a table",  # its check digit is wrong
        "Nikon D850 24-120mm f/4 1/250s ISO 100 2021-03-04 12:00:00",
        "@jane at the beach, me@home",
        "Order 20210304120000123 was shipped",
        "Coordinates 52.516275, 13.377704",
        "EAN 4006381333931",
    ],
)
def test_what_is_left_alone(text):
    assert masked(text) == text


@pytest.mark.parametrize("choice", ["drop", "mask", "keep"])
def test_the_job_says_what_becomes_of_them(choice):
    text = "A red bicycle for sale, write to jane@mail.example.com if you like it"
    found = texts.judge(Crawl(personal=choice))(text)
    if choice == "drop":
        assert found is Reason.PERSONAL_TEXT
        return
    assert (found.text == text) is (choice == "keep")
    assert "jane@" not in (found.raw or "")


@given(st.text(alphabet="@.a1+- ()", max_size=1000))
def test_no_text_is_too_strange_or_takes_long(text):
    start = time.perf_counter()
    assert masked(masked(text)) == masked(text)
    assert time.perf_counter() - start < 0.5
