"""Captions are kept or dropped by the words and patterns that a user names."""

import codecs
import gzip
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.caption_rules import _TOKEN, CaptionRules, _words_of
from cahlib.crawl.wat import BARE_LINK, TABLE_LINK, Link, Page


@pytest.fixture
def listed(tmp_path):
    """A list of these lines, or of these bytes."""

    def write(*lines, name="list"):
        data = lines[0] if isinstance(lines[0], bytes) else "\n".join(lines).encode()
        (tmp_path / name).write_bytes(data)
        return (str(tmp_path / name),)

    return write


def has(word, text, listed):
    rules = CaptionRules.load(Crawl(caption_not=listed(word, name=f"{abs(hash(word))}")))
    return rules.drop_reason(text) is DropReason.UNWANTED_WORD


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("cat", "A black cat"),
        ("cat", "Cat: a portrait"),
        ("CAT", "the (cat)"),
        ("cat", "the cat's whiskers"),
        ("garden  chair", "a Garden-chair, in the sun"),
        ("garden-chair", "a garden chair"),
        ("straße", "Eine alte STRASSE"),
        ("école", "L'E\u0301COLE du village"),  # a letter and its accent
        ("fine", "\ufb01ne art"),  # a ligature
        ("camera", "\uff23\uff41\uff4d\uff45\uff52\uff41"),  # full width
        ("\u30ab\u30e1\u30e9", "\u65b0\u3057\u3044\uff76\uff92\uff97"),  # half width
        ("\u732b", "\u9ed2\u3044\u732b\u306e\u5199\u771f"),
        ("\u9ed2\u3044\u732b", "\u9ed2\u3044\u732b\u306e\u5199\u771f"),
        ("photo\u732b", "\u9ed2\u3044photo\u732b"),
        ("\uace0\uc591\uc774", "\uac80\uc740 \uace0\uc591\uc774\uac00"),  # a particle behind it
        ("\u0e41\u0e21\u0e27", "\u0e23\u0e39\u0e1b\u0e41\u0e21\u0e27\u0e14\u0e33"),
        ("кошка", "Чёрная КОШКА на окне"),
        ("c++", "Learning C++ in a week"),
        ("c#", "A book on C#"),
        ("\U0001f431", "my\U0001f431!"),
        ("2024", "Calendar 2024"),
    ],
)
def test_words_are_found_in_any_spelling(entry, text, listed):
    assert has(entry, text, listed)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("cat", "a catalogue"),
        ("cat", "a bobcat"),
        ("cat", "cat\u0301"),  # another letter
        ("garden chair", "a garden with a chair"),
        ("garden chair", "gardenchair"),
        ("\u732b\u306e\u5199", "\u732b\u5199\u306e"),
        ("c++", "a C+ grade"),
        ("кошка", "кошками"),
    ],
)
def test_parts_of_words_are_not(entry, text, listed):
    assert not has(entry, text, listed)


@given(st.text(max_size=30))
def test_words_are_the_same_in_ascii_as_elsewhere(text):
    ascii = text.encode("ascii", "ignore").decode()
    assert _words_of(ascii).split() == _TOKEN.findall(ascii.lower())
    assert _words_of(_words_of(text)) == _words_of(text)


@given(
    st.lists(st.text("ab \u732b", min_size=1, max_size=6).filter(str.strip), max_size=5),
    st.text("ab \u732b", max_size=20),
)
def test_an_entry_is_found_where_its_words_follow_each_other(entries, text):
    from ahocorasick_rs import AhoCorasick

    words = [_words_of(each).split() for each in entries]
    own = _words_of(text).split()
    wanted = any(own[at : at + len(each)] == each for each in words for at in range(len(own)))
    automaton = AhoCorasick({_words_of(each) for each in entries}, store_patterns=False)
    assert bool(automaton.find_matches_as_indexes(_words_of(text))) == wanted


CAPTIONS = {
    "a": "A red fox jumps over the old garden fence",
    "b": "The lazy dog sleeps in front of a wooden house",
    "c": "A red dog with a blue ball in the garden",
    "d": "Die alte Katze sitzt vor dem Haus auf der Mauer",
}


def chosen(path="IMG@/src", **options):
    """Which captions are kept, and the counts of the others."""
    links = [Link(path, f"/{name}.jpg", text) for name, text in CAPTIONS.items()]
    page = Page(url="http://site.com/", base="", links=links, metas=[])
    stats = Stats()
    found = list(find_candidates([page], Crawl(**options), Blocklists(), stats))
    assert stats.unaccounted(Stage.CHOOSE) == 0
    lost = {reason: n for reason, n in stats.dropped.items() if n}
    return "".join(each.url[-5] for each in found), lost


@pytest.mark.parametrize("path", ["IMG@/src", TABLE_LINK])
@pytest.mark.parametrize("evidence", ["caption", "page"])
def test_each_rule_counts_what_it_drops(path, evidence, listed):
    options = {"path": path, "language_evidence": evidence}
    garden, dog = listed("garden", name="wanted"), listed("lazy dog", "unicorn", name="not")
    assert chosen(**options) == ("abc", {DropReason.LANGUAGE: 1})
    assert chosen(**options, caption_words=garden) == (
        "ac", {DropReason.LANGUAGE: 1, DropReason.NO_WANTED_WORD: 1}
    )  # fmt: skip
    assert chosen(**options, caption_not=dog)[1][DropReason.UNWANTED_WORD] == 1
    assert chosen(**options, caption_regex="(?i)^a RED .*ball") == (
        "c", {DropReason.LANGUAGE: 1, DropReason.OTHER_PATTERN: 2}
    )  # fmt: skip
    every = {"caption_words": garden, "caption_not": listed("fox", name="f"), "languages": ("all",)}
    assert chosen(**options, **every, caption_regex="ball$") == ("", {
        DropReason.UNWANTED_WORD: 1, DropReason.NO_WANTED_WORD: 2, DropReason.OTHER_PATTERN: 1,
    })  # fmt: skip


def test_a_link_without_a_caption_has_no_wanted_word(listed):
    options = {"path": BARE_LINK, "languages": ("all",)}
    assert chosen(**options, caption_not=listed("fox"))[0] == "abcd"
    assert chosen(**options, caption_words=listed("fox", name="w"))[0] == ""


def test_lists_are_read_as_people_write_them(listed):
    text = "# animals\r\n\r\n  Cat \r\n#dog\r\n\u3000 \r\nC# book\r\n"
    for data in (
        text.encode(), codecs.BOM_UTF8 + text.encode(), text.encode("utf-16"),
        gzip.compress(text.encode()),
    ):  # fmt: skip
        rules = CaptionRules.load(Crawl(caption_words=listed(data, name=str(len(data)))))
        kept = [t for t in ("a cat", "a dog", "my c# book", "book") if not rules.drop_reason(t)]
        assert kept == ["a cat", "my c# book"]


def test_mistakes_are_said_in_one_sentence(listed, tmp_path):
    for options, sentence in (
        ({"caption_words": listed(b"", name="e")}, "caption_words: .* lists no words"),
        ({"caption_words": listed("# none", " ", name="c")}, "caption_words: .* lists no words"),
        ({"caption_words": listed("cat", "--", name="p")}, "without a letter, digit or symbol: --"),
        ({"caption_not": listed(b"caf\xe9\n", name="l")}, "caption_not: .* cannot be read"),
        ({"caption_not": (str(tmp_path / "gone"),)}, "caption_not: .* cannot be read"),
        ({"caption_not": (str(tmp_path),)}, "caption_not: .* cannot be read"),
        ({"caption_regex": "(cat"}, r"caption_regex: \(cat is not a valid pattern \(missing \)"),
        ({"caption_regex": "(?=cat)"}, "not a valid pattern .* no look-around"),
        ({"caption_regex": "\ud800"}, "not a valid pattern"),
    ):
        with pytest.raises(ConfigError, match=sentence) as caught:
            CaptionRules.load(Crawl(**options))
        assert "\n" not in str(caught.value)
    assert CaptionRules.load(Crawl(caption_not=listed(b"", name="e"))).drop_reason("a") is None


def test_no_pattern_and_no_list_takes_long(listed):
    pattern = CaptionRules.load(Crawl(caption_regex="(a+)+$|(.*)*x(.*)*y"))
    words = [f"w{n} w{n // 7} garden" for n in range(30_000)]
    entries = CaptionRules.load(Crawl(caption_not=listed(*words, *("\u732b" * 500,))))
    began = time.process_time()
    for rules in pattern, entries:
        for text in "a" * 1000 + "b", "\u732b" * 1000, "w1 w0 " * 160:
            rules.drop_reason(text)
    assert time.process_time() - began < 60  # 10 ms; for backtracking, the age of the universe
