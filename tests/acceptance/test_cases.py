"""Failing inputs as they were found: captions and links; the others stand with their kind's tests.

Those are files of pictures (test_proof), answers (test_answers), robots.txt and refusals
(test_owners, test_optout), lists (test_blocklists) and a WARC for a WAT (test_bad_input).
"""

import json
from pathlib import Path

import pytest

from cahlib.core.config import Crawl
from cahlib.core.records import Stats
from cahlib.crawl import texts
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.wat import Link, Page
from cahlib.fetch import links

CASES = Path(__file__).parent.parent.parent.parent / "shared/cases/cases.json"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
KNOWN = json.loads(CASES.read_text(encoding="utf-8")) if CASES.exists() else {}


@pytest.mark.parametrize("case", KNOWN.get("captions", ()), ids=lambda case: case["text"])
def test_captions_are_not_refused_as_no_words(case):
    """Whether CLD2 knows the language of so few words is another matter; a page tells it."""
    assert case["expected"].startswith("kept")
    text = texts.caption_filter(Crawl(languages=("all",)))(case["text"])
    assert isinstance(text, texts.Caption) and text.text == case["text"]
    link = Link("IMG@/src", "/a.jpg", case["text"])
    headers = {"content-language": case["languages"].replace("all", "")}
    page = Page(url="http://a.com/", base="", links=[link], metas=[], headers=headers)
    options = Crawl(languages=(case["languages"],), language_evidence="page")
    assert [each.text for each in find_candidates([page], options, Blocklists(), Stats())] == [
        text.text
    ]


@pytest.mark.parametrize("case", KNOWN.get("links", ()), ids=lambda case: case["src"])
def test_links_lead_where_browsers_go(case):
    base = links.BaseUrl.of(case["page"], case.get("base", ""))
    asked = case["expected"].removeprefix("asked: ").split()[0]
    assert links.absolute_url(case["src"], base, 2000) == f"http://shop.example.org{asked}"
