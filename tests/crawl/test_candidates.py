"""A link becomes a candidate, or is refused for a reason."""

import json
from collections import Counter
from hashlib import md5
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cahlib.core.config import Crawl
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.crawl import texts
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.shards import list_shards
from cahlib.crawl.wat import Link, Meta, read_pages
from cahlib.fetch import links
from tests.world import crawl
from tests.world.captions import UNSEEN, is_forbidden
from tests.world.pages import GOOD, choose, image, page

REAL = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "real"


def test_a_candidate_tells_all_that_is_known_of_it():
    licence = Link("A@/href", "//creativecommons.org/licenses/by/4.0/")
    alt = "A red fox \u2014 it\u00e2\u0080\u0099s  old \n garden"
    (found,), _ = choose(page(licence, image(alt=alt)))
    assert found.url == "http://site.com/a/fox.jpg"
    assert found.text == "A red fox — it's old garden"
    assert found.raw_text == alt
    assert (found.page, found.source) == ("http://site.com/a/b.html", "alt")
    assert found.licence == "https://creativecommons.org/licenses/by/4.0/"
    assert (found.language, found.reliable, found.position) == ("en", True, 0)
    assert found.uid == md5((found.url + found.text).encode()).hexdigest()


@pytest.mark.parametrize(
    ("alt", "reason"),
    [
        ("", DropReason.NO_TEXT),
        (" \n\u00a0 ", DropReason.NO_TEXT),
        ("fox", DropReason.SHORT_TEXT),
        ("fox " * 300, DropReason.LONG_TEXT),
        ("fox " * 300_000, DropReason.LONG_TEXT),
        ("IMG_2041.JPG", DropReason.FILENAME_TEXT),
        ("the old garden.jpeg", DropReason.FILENAME_TEXT),
        ("DSC 00041", DropReason.FILENAME_TEXT),
        ("scan 12 (3)", DropReason.FILENAME_TEXT),
        ("0123456789abcdef0123", DropReason.FILENAME_TEXT),
        ("placeholder", DropReason.JUNK_TEXT),
        ("12,345.67 - 89", DropReason.JUNK_TEXT),
        ("https://site.com/fox", DropReason.JUNK_TEXT),
        ("Быстрая лиса прыгает через забор сада 2024", DropReason.LANGUAGE),
        ("Der schnelle Fuchs springt über den Zaun des Gartens", DropReason.LANGUAGE),
    ],
)
def test_a_text_that_is_no_caption_is_refused(alt, reason):
    assert choose(page(image(alt=alt))) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("logo.svg", DropReason.NOT_A_PICTURE_URL),
        ("spin.GIF?v=2", DropReason.NOT_A_PICTURE_URL),
        ("data:image/png;base64,AAAA", DropReason.NOT_A_PICTURE_URL),
        ("javascript:void(0)", DropReason.NOT_A_PICTURE_URL),
        ("file:///etc/passwd", DropReason.NOT_A_PICTURE_URL),
        ("http://[half", DropReason.BAD_URL),
        ("http://site.com:99999/a.jpg", DropReason.BAD_URL),
        ("http://site.com:8080/a.jpg", DropReason.BAD_URL),
        ("http://ada:secret@site.com/a.jpg", DropReason.BAD_URL),
        ("http://si te.com/a.jpg", DropReason.BAD_URL),
        ("http://-.com/a.jpg", DropReason.BAD_URL),
        ("/" + "x" * 3000, DropReason.LONG_URL),
        ("http://127.0.0.1/a.jpg", DropReason.PRIVATE_HOST),
        ("http://10.1.2.3/a.jpg", DropReason.PRIVATE_HOST),
        ("http://[::1]/a.jpg", DropReason.PRIVATE_HOST),
        ("http://[::ffff:10.0.0.1]/a.jpg", DropReason.PRIVATE_HOST),
        ("http://localhost/a.jpg", DropReason.PRIVATE_HOST),
        ("http://printer.local/a.jpg", DropReason.PRIVATE_HOST),
        ("http://intranet/a.jpg", DropReason.PRIVATE_HOST),
    ],
)
def test_an_address_that_leads_to_no_picture_is_refused(url, reason):
    assert choose(page(image(url))) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("url", "base", "absolute"),
    [
        ("fox.jpg", "", "http://site.com/a/fox.jpg"),
        ("/fox.jpg#top", "", "http://site.com/fox.jpg"),
        ("//cdn.net/fox.jpg", "", "http://cdn.net/fox.jpg"),
        ("fox.jpg", "https://other.org/x/", "https://other.org/x/fox.jpg"),
        ("fox.jpg", "../c/", "http://site.com/c/fox.jpg"),
        (" old fox.jpg\n", "", "http://site.com/a/old%20fox.jpg"),
        ("http://93.184.216.34/fox.jpg", "", "http://93.184.216.34/fox.jpg"),
        ("http://bücher.de/fox.jpg", "", "http://bücher.de/fox.jpg"),
    ],
)
def test_an_address_is_made_absolute(url, base, absolute):
    (found,), _ = choose(page(image(url), base=base))
    assert found.url == absolute


def test_addresses_that_are_kept_with_each_sample_are_not_endless():
    start = "https://creativecommons.org/licenses/by/4.0/"
    licences = Link("A@/href", start + "x" * 1_000_000), Link("A@/href", start)
    (found,), _ = choose(page(*licences, image()))
    assert found.licence == start
    (found,), _ = choose(page(licences[0], image()))
    assert found.licence == "?"
    endless = page(image("http://a.com/fox.jpg"), url="http://site.com/" + "x" * 1_000_000)
    assert choose(endless) == ([], {DropReason.LONG_URL: 1})


def test_the_same_pair_counts_once_but_another_text_is_another_pair():
    found, lost = choose(page(image(), image()), page(image(), image(alt=GOOD + " again")))
    assert [each.position for each in found] == [0, 1]
    assert lost == {DropReason.DUPLICATE: 2}


def test_open_graph_images_are_a_second_source_when_asked_for():
    metas = [
        Meta(property="og:image", content="/og.png"),
        Meta(name="og:description", content=GOOD),
    ]
    assert choose(page(metas=metas)) == ([], {})
    (found,), _ = choose(page(metas=metas), og_images=True)
    assert (found.url, found.source) == ("http://site.com/og.png", "og")
    for name in ("og:image:secure_url", "og:image:url"):
        other = Meta(property=name, content="/other.png")
        (found,), _ = choose(page(metas=[other, *metas]), og_images=True)
        assert found.url == "http://site.com/og.png"
        (found,), _ = choose(page(metas=[other, metas[1]]), og_images=True)
        assert (found.url, found.source) == ("http://site.com/other.png", "og")


def test_blocked_domains_and_pairs_are_left_out():
    uid = md5(("http://c.com/fox.jpg" + GOOD).encode()).hexdigest()
    blocked = Blocklists(domains=["bad.com", "x.good.com"], pairs=[uid])
    hosts = "bad.com", "sub.bad.com", "good.com", "x.good.com", "notbad.com", "c.com"
    shown = page(*(image(f"http://{host}/fox.jpg") for host in hosts))
    found, lost = choose(shown, blocked=blocked)
    assert [each.url.split("/")[2] for each in found] == ["good.com", "notbad.com"]
    assert lost == {DropReason.BLOCKED_DOMAIN: 3, DropReason.BLOCKED_PAIR: 1}


@given(st.text(), st.text(), st.text(max_size=100))
@example("http://a.com/b.jpg", "00AA\U00018cd6", "")
def test_any_link_is_chosen_or_refused(url, alt, base):
    found, lost = choose(page(image(url, alt), url=base, base=base), languages=("all",))
    assert len(found) + sum(lost.values()) == 1
    for each in found:
        assert not any(is_forbidden(letter) or letter in UNSEEN for letter in each.text)
        assert links.absolute_url(each.url, links.BaseUrl.of(url, base), 2000) == each.url


def test_each_oddity_becomes_what_the_list_says(tmp_path):
    path = tmp_path / "odd.warc.wat.gz"
    path.write_bytes(b"".join(record.member() for record in crawl.oddities()))
    options, stats = Crawl(crawl=str(path)), Stats()
    found = []
    for shard in list_shards(options):
        seen = Stats()
        found += find_candidates(read_pages(shard, seen), options, Blocklists(), seen)
        stats += seen
    answers = [answer for record in crawl.oddities() for answer in record.answers]
    assert [each.url for each in found] == [each for each in answers if ":" in each]
    lost = Counter({reason.value: n for reason, n in stats.dropped.items()})
    assert lost == Counter(each for each in answers if ":" not in each)
    assert stats.unaccounted(Stage.READ) == stats.unaccounted(Stage.CHOOSE) == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="the recorded pages are not here")
def test_every_link_that_an_html_parser_finds_is_accounted_for():
    """The links of 37 real pages, against an independent reading of their HTML."""
    options = Crawl(crawl=str(REAL / "pages.warc.wat.gz"), languages=("all",))
    stats, found = Stats(), []
    for shard in list_shards(options):
        found += find_candidates(read_pages(shard, stats), options, Blocklists(), stats)
    truth = json.loads((REAL / "truth.json").read_text())
    chosen = {(each.url, each.text) for each in found}
    unexplained = []
    for _, url, alt in truth:
        text = texts.repair_text(alt)
        why = links.link_drop_reason(url) or texts.text_drop_reason(text, options)
        clean = links.absolute_url(url, links.BaseUrl.of(url, ""), options.max_url)
        if why is None and (clean, text) not in chosen:
            unexplained.append((url, alt))
    assert unexplained == []
    assert stats.entered[Stage.CHOOSE] - stats.dropped[DropReason.NO_TEXT] == len(truth)
    assert len(chosen) >= 30


@pytest.mark.skipif(not REAL.is_dir(), reason="the recorded pages are not here")
def test_files_as_common_crawl_made_them_are_read():
    options, stats = Crawl(crawl=str(REAL / "commoncrawl" / "*.gz")), Stats()
    for shard in list_shards(options):
        list(find_candidates(read_pages(shard, stats), options, Blocklists(), stats))
    assert (stats.left[Stage.READ], stats.entered[Stage.CHOOSE]) == (4, 108)
    assert stats.dropped[DropReason.BROKEN_RECORD] == 0
