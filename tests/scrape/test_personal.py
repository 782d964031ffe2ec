"""Personal data are found, and ordinary captions stay as they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.config import Crawl
from cahlib.records import Reason
from cahlib.scrape import texts
from cahlib.scrape.personal import masked


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to Jane.Doe+x@mail.example.co.uk today", "Write to <e-mail> today"),
        ("Kontakt: jürgen@bücher.example.", "Kontakt: <e-mail>."),
        ("Call +49 (0)30 1234-5678 now", "Call <phone> now"),
        ("Tel: 030 123456", "Tel: <phone>"),
        ("WhatsApp 0170/1234567!", "WhatsApp <phone>!"),
        ("Pizza (212) 555-0123", "Pizza <phone>"),
        ("Sold by 0049 170 1234567", "Sold by <phone>"),
        ("a Visa, 4111 1111 1111 1111", "a Visa, <card>"),
        ("an Amex 3782-822463-10005", "an Amex <card>"),
        ("number 5555555555554444", "number <card>"),
        ("Passport no. C01X00T47 found", "Passport no. <passport> found"),
        ("me@a.example or +1 212 555 0123", "<e-mail> or <phone>"),
    ],
)
def test_personal_data_are_masked(text, clean):
    assert masked(text) == clean
    assert texts.judge(Crawl(languages=("all",)))(text) is Reason.PERSONAL_TEXT
    found = texts.judge(Crawl(languages=("all",), personal="mask"))(text)
    assert (found.text, found.raw) == (clean, None)  # nowhere is it kept


@pytest.mark.parametrize(
    "text",
    [
        "a Visa, 4111 1111 1111 1112",  # no card has this number
        "IMG 20240518 123456 of the harbour",
        "1920x1080 wallpaper, 2024-05-18 10:20:30",
        "ISBN 978-3-16-148410-0",
        "Boeing 737-800 for 12,000,000 USD in 2019-2020",
        "call of duty 4 2007 screenshot 1024 768",
        "Vase, height 12.5 cm, inv. 1911.23.4567",
        "follow @nasa for 2024",
        "Canon EOS 5D 24-70 2.8, 100-400, serial 1234567",
        "Passport photo 35 x 45 mm, 600 dpi",
        "the phone with 128 GB, 6.1 inches and 48 megapixels",
        "Lot 1234567890",
    ],
)
def test_ordinary_captions_stay(text):
    assert masked(text) == text


@given(st.text())
def test_masking_again_changes_nothing(text):
    assert masked(masked(text)) == masked(text)
