"""A short caption has the language of its page where it does not tell its own."""

import pytest

from cahlib.core.config import Crawl
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.wat import Link, Meta, Page
from tests.benchmarks import bench_captions

LANG = "HTML@/lang"
ENGLISH = (
    "The old town hall and its market square",
    "Visitors are looking at the paintings in the hall",
    "Two rabbits are eating carrots in the garden",
)
GERMAN = (
    "Ein alter Mann sitzt auf einer Bank im Park",
    "Die Kinder spielen im Garten hinter dem Haus",
    "Wir freuen uns auf Ihren Besuch in unserem Laden",
)


def chosen(*texts: str, languages=("all",), metas=(), headers=(), evidence="page"):
    """The candidates of a page with some captions, by their texts."""
    links = [Link("IMG@/src", f"/{n}.jpg", text) for n, text in enumerate(texts)]
    page = Page(
        url="http://site.com/", base="", links=links, metas=list(metas), headers=dict(headers)
    )
    stats = Stats()
    options = Crawl(languages=languages, language_evidence=evidence)
    found = list(find_candidates([page], options, Blocklists(), stats))
    assert stats.unaccounted(Stage.CHOOSE) == 0
    assert len(found) + stats.dropped[DropReason.LANGUAGE] == len(texts)
    return {each.text: each for each in found}


def declared(tag: str, name: str = LANG) -> list[Meta]:
    return [Meta(name=name, content=tag)]


@pytest.mark.parametrize(
    ("said", "language"),
    [
        ({"metas": declared("en")}, "en"),
        ({"metas": declared("EN_us")}, "en"),
        ({"metas": declared("de-AT")}, "de"),
        ({"metas": declared("pt-BR")}, "pt"),
        ({"metas": [Meta(property="og:locale", content="nl_NL")]}, "nl"),
        ({"metas": declared("de-AT", "HTML@/xml:lang")}, "de"),
        ({"metas": declared("de", "HTML@/xml:lang") + declared("en")}, "en"),
        ({"metas": declared("") + declared("de", "HTML@/xml:lang")}, "de"),
        ({"metas": declared("x_klingon!") + declared("de", "HTML@/xml:lang")}, "de"),
        ({"metas": [Meta(equiv="Content-Language", content=" de-ch ")]}, "de"),
        ({"metas": [Meta(equiv="content-language", content="UTF-8")]}, "un"),
        ({"metas": [Meta(equiv="content-language", content="de, en")]}, "un"),
        ({"metas": declared("sv", "DC.Language")}, "sv"),
        ({"metas": declared("nl", "language"), "headers": {"content-language": "fr"}}, "fr"),
        ({"headers": {"content-language": "fr"}}, "fr"),
        ({"headers": {"Content-Language": ["fr", "en"]}}, "un"),
        ({"metas": declared("klingonish!")}, "un"),
        ({"metas": declared("")}, "un"),
        ({"metas": declared("ru")}, "un"),  # not in these letters
        ({}, "un"),
    ],
)
def test_a_caption_that_does_not_tell_has_the_language_its_page_declares(said, language):
    found = chosen("Nike Air Max 90", **said)["Nike Air Max 90"]
    evidence = "page" if language != "un" else "caption"
    assert (found.language, found.reliable, found.language_evidence) == (language, False, evidence)


@pytest.mark.parametrize(
    ("others", "tag", "language"),
    [
        (ENGLISH, "", "en"),
        (ENGLISH, "en", "en"),
        (GERMAN, "en", "de"),  # the template's language
        (GERMAN[:1], "en", "de"),  # they contradict each other: all taken together tell
        (GERMAN[:1], "de", "de"),
        (GERMAN[:2], "", "de"),
        (GERMAN + ENGLISH, "de", "de"),
        (GERMAN + ENGLISH, "", "un"),
    ],
)
def test_many_other_captions_outweigh_what_is_declared(others, tag, language):
    found = chosen("Nike Air Max 90", *others, metas=declared(tag))
    assert found["Nike Air Max 90"].language == language
    assert {found[each].language_evidence for each in others} == {"caption"}


def test_what_is_sure_or_long_or_seems_another_language_stays_as_it_is():
    long = "Qwrt zxcv plmk " * 8
    found = chosen(GERMAN[0], "Roter Tisch", long, metas=declared("en"), languages=("all",))
    assert [each.language for each in found.values()] == ["de", "un", "un"]


def test_only_what_is_wanted_passes_and_by_default_the_caption_alone_decides():
    texts = "red car", "Roter Tisch", GERMAN[0], *ENGLISH
    assert set(chosen(*texts, languages=("en",), metas=declared("en"))) == {"red car", *ENGLISH}
    found = chosen(*texts, languages=("en",), metas=declared("en"), evidence="caption")
    assert set(found) == set(ENGLISH)


@pytest.mark.parametrize("name", bench_captions.SETS)
def test_the_page_tells_what_short_captions_do_not(name):
    """By the caption alone some 50 % of English and 64 of other languages are kept."""
    alone, by_page = (bench_captions.measured(each, name) for each in ("caption", "page"))
    assert by_page.false_english <= 0.01
    assert by_page.short_english >= 0.9
    assert by_page.recall["en"] >= 0.9
    assert sum(by_page.recall.values()) / len(by_page.recall) >= 0.93
    assert all(share >= alone.recall[each] for each, share in by_page.recall.items())
