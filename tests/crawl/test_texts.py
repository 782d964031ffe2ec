"""Captions: repaired, long enough, and in a wanted language."""

import re
from pathlib import Path

import ftfy
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason
from cahlib.crawl import texts
from cahlib.fetch import links
from tests.world.captions import TAGS, TURNING, UNSEEN, is_forbidden
from tests.world.pages import GOOD, choose, image, page


def test_languages_can_be_chosen():
    german = "Der schnelle Fuchs springt über den Zaun des Gartens"
    shown = page(image(alt=german), image())
    assert [each.language for each in choose(shown, languages=("de",))[0]] == ["de"]
    assert len(choose(shown, languages=("all",))[0]) == 2


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("EN", GOOD),
        ("zh-hant", "這是一隻在花園裡跳過柵欄的紅色狐狸因為牠非常開心"),
        ("he", "השועל האדום קופץ מעל הגדר הישנה של הגן היפה שלנו"),
        ("nb", "Den raske brune reven hopper over det gamle gjerdet i hagen vår hver eneste kveld"),
        (
            "jv",
            "Rubah abang iku mlumpat ngliwati pager lawas ing kebon saben dina karo kanca-kancane",
        ),
        ("fil", "Ang pulang soro ay tumatalon sa ibabaw ng lumang bakod ng hardin araw-araw"),
    ],
)
def test_a_language_has_several_names(code, text):
    found, _ = choose(
        page(image(alt=text), image("b.jpg", alt="Быстрая лиса прыгает через забор")),
        languages=(code,),
    )
    assert [each.text for each in found] == [text]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((), "name the languages to keep"),
        (("en", "english"), "'english' is not a language"),
        (("",), "is not a language"),
        (("x-foo",), "'x-foo' is not a language"),
        (("en-US",), "en-US names more than a language and a script.*; use en"),
        (("pt-BR",), "; use pt"),
        (("sr-Latn-RS",), "; use sr-Latn"),
        (("de-1996",), "; use de"),
        (("zh-JP",), "; use zh"),
        (("en-u-ca-buddhist",), "; use en"),
        (("ja-Jpan",), "not name a script with one alphabet"),
    ],
)
def test_languages_that_no_text_tells_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=f"languages: .*{sentence}"):
        choose(languages=given)


BOTH, HANT, HANS = "木桌和四把椅子", "一隻黑貓坐在沙發上", "一只黑猫坐在沙发上"
LATIN, CYRILLIC = (
    "Crvena lisica skače preko stare ograde u dvorištu naše kuće",
    "Црвена лисица скаче преко старе ограде у дворишту наше куће",
)


@pytest.mark.parametrize(
    ("tag", "kept"),
    [
        ("zh", {BOTH, HANT, HANS}),
        ("zho", {BOTH, HANT, HANS}),
        ("cmn", {BOTH, HANT, HANS}),
        ("zh-Hant", {BOTH, HANT}),
        ("zh-TW", {BOTH, HANT}),
        ("zh_HK", {BOTH, HANT}),
        ("zh-hant-mo", {BOTH, HANT}),
        ("zh-Hans", {BOTH, HANS}),
        ("zh-CN", {BOTH, HANS}),
        ("ZH-sg", {BOTH, HANS}),
        ("sr", {CYRILLIC}),
        ("srp-Cyrl", {CYRILLIC}),
        ("sr-Latn", set()),
        ("hr-Latn", {LATIN}),
        ("eng", {GOOD}),
    ],
)
def test_a_tag_names_language_and_script(tag, kept):
    every = BOTH, HANT, HANS, LATIN, CYRILLIC, GOOD
    shown = page(*(image(f"{n}.jpg", alt=text) for n, text in enumerate(every)))
    assert {each.text for each in choose(shown, languages=(tag,))[0]} == kept


@pytest.mark.parametrize(
    "text",
    ["ပိုက်ဗုံးပို့သူ မိထားပြီ", "সোফায় কালো বিড়াল", "दीदी की शादी", "ธงสี 5", "ភេ ៣ ទី", "நீ 7 பூ", "ແມວດຳ"],
)
def test_a_vowel_sign_is_part_of_a_word(text):
    (found,), _ = choose(page(image(alt=text)), languages=("all",))
    assert found.text == text


@pytest.mark.parametrize(
    ("text", "enough"),
    [
        ("写真用紙", True), ("红车", True), ("ねこ", True), ("猫", False), ("고양이", True),
        ("말", False), ("แมว", True), ("ម៉ែ", False), ("किताब", True), ("fox", False),
        ("кот", False), ("γάτα", False),
    ],
)  # fmt: skip
def test_a_text_is_long_enough_by_what_its_script_says_in_a_letter(text, enough):
    assert texts.text_drop_reason(text, Crawl()) is (None if enough else DropReason.SHORT_TEXT)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<b>Red</b> car on the road", "Red car on the road"),
        ("&lt;b&gt;Red&lt;/b&gt; car on the road", "Red car on the road"),
        ("&amp;lt;i&amp;gt;Red&amp;lt;/i&amp;gt; car on the road", "Red car on the road"),
        ("Red car<br/>on the road", "Red car on the road"),
        ('Red <SPAN class="x">car</SPAN> on the road<p>', "Red car on the road"),
        ("H<sub>2</sub>O in a glass", "H2O in a glass"),
        ("<a href='/x'>Tom &amp; Jerry</a> on a sofa", "Tom & Jerry on a sofa"),
        ("Red car <!-- old --> on the road", "Red car on the road"),
        ("I <3 this town, a < b > c", "I <3 this town, a < b > c"),
        ("The <Title> of a book", "The <Title> of a book"),
        ("Red\u200bcar on\u2060 the\ufeff road", "Redcar on the road"),
        ("So\u00adft fox on the road", "Soft fox on the road"),
        ("Red c\u200dar\u200c on the road", "Red car on the road"),
        ("Red \u3164car on the road", "Red car on the road"),
        ("Hid\U000e0041\U000e0042den road", "Hidden road"),
        ("می\u200cخواهم یک گربه", "می\u200cخواهم یک گربه"),
        ("ක්\u200dෂ පින්තූරය", "ක්\u200dෂ පින්තූරය"),
        ("A family \U0001f468\u200d\U0001f469\u200d\U0001f467 at home",) * 2,
        ("A flag \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f up",) * 2,
    ],
)
def test_a_text_is_what_people_see_and_its_raw_form_is_kept(raw, text):
    (found,), _ = choose(page(image(alt=raw)), languages=("all",))
    assert (found.text, found.raw_text) == (text, raw if raw != text else None)


SIGNS = "éÀ ß¼–’”…©°ÂÃâ€™Рёю桜、한\xa0\x85\n\t&;#39amp<?! xyZ"


@given(st.text(st.sampled_from(SIGNS), max_size=12) | st.text(max_size=50))
@example("AT&amp;T it\u2019s")
@example("&amp;lt;c&amp;gt;")
def test_texts_are_repaired_as_ftfy_does(text):
    """Also those that it is not asked about, because it would change nothing in them."""
    assume("\u200c" not in text and "\u200d" not in text)  # which stay where a script needs them
    whole = ftfy.fix_text(re.sub(r"[\t\n\v\f\r]+", " ", text))
    shown = (each for each in whole if each not in UNSEEN and each not in TAGS)
    kept = (" " if is_forbidden(each) else each for each in shown)
    assert texts.repair_text(text) == " ".join("".join(kept).split())


@pytest.mark.parametrize(
    "letter",
    ["\x81", "\ue000", "\uf8ff", "\ufdd0", "\ufdef", "\ufffe", "\uffff",
     "\U000f0000", "\U0010fffd", "\U0010ffff"],
)  # fmt: skip
def test_what_only_looks_like_a_character_is_taken_out_of_a_text(letter):
    (found,), _ = choose(page(image(alt=f"{GOOD}{letter}today é")))
    assert found.text == f"{GOOD} today é"


@pytest.mark.parametrize("letter", sorted(TURNING))
def test_what_turns_the_direction_of_a_text_is_taken_out_of_it(letter):
    (found,), _ = choose(page(image(alt=f"{GOOD}{letter}s {letter}today")))
    assert found.text == f"{GOOD}s today"


#: Characters by the version of Unicode that brought them, and whether they are letters: Python 3.10
#: knows those until 13, 3.11 until 14, 3.12 until 15, 3.13 until 15.1, 3.14 until 16.
YOUNG = [
    ("\U00018cd5", True), ("\u0870", True), ("\U0001fae0", False),  # 13, 14
    ("\U00031350", True), ("\U0001fae8", False), ("\U0002ebf0", True), ("\u31ef", False),  # 15
    ("\ua7cb", True), ("\U00010d4a", True), ("\U0001fae9", False),  # 16
]  # fmt: skip


@pytest.mark.parametrize(("letter", "is_letter"), YOUNG)
def test_a_caption_hangs_on_no_version_of_unicode(letter, is_letter):
    (found,), _ = choose(page(image(alt=f"{GOOD} {letter}")))
    assert found.text == f"{GOOD} {letter}"
    refused = None if is_letter else DropReason.JUNK_TEXT
    assert texts.text_drop_reason(f"12 {letter}{letter} 34", Crawl()) is refused
    refused = None if is_letter else DropReason.FILENAME_TEXT
    assert texts.text_drop_reason(f"DSC 0041{letter}", Crawl()) is refused


def test_the_common_letters_are_letters():
    common = [chr(code) for code in range(0x110000) if texts._COMMON_LETTER.match(chr(code))]
    assert len(common) > 30_000
    assert all(map(texts._LETTER.match, common))


GUARDED = re.compile(r"(?P<what>\w+(?:\[[^]]*\])?)\.isascii\(\) and (?P=what)\.is\w+\(\)")


@pytest.mark.parametrize("module", [texts, links])
def test_no_predicate_of_the_interpreter_decides_on_what_is_not_ascii(module):
    """Each version of Python has Unicode's tables of its time behind these."""
    source = GUARDED.sub("", Path(module.__file__).read_text())
    asks = r"\.is(?:printable|alpha|alnum|digit|decimal|numeric|identifier|title|upper|lower)\("
    assert re.findall(rf".*{asks}.*|.*unicodedata.*", source) == []
    for name, pattern in vars(module).items():
        if isinstance(pattern, re.Pattern):
            assert not re.search(r"\\[wWdDbB]", pattern.pattern), name


@pytest.mark.parametrize("text", ["\ufdd0", "\U0002fffe fox", "\ud800"])
def test_a_text_that_cannot_be_looked_at_is_of_no_language(text):
    assert texts.detect_language(text) == ("un", False)


@given(st.text(st.sampled_from("ёЖяñéßø桜の花園公가나 12,，、（！–’ش"), max_size=40))
def test_a_text_without_a_latin_letter_is_never_english(text):
    """So it need not be repaired, nor its language detected, where only English is wanted."""
    assert texts.detect_language(texts.repair_text(text))[0] != "en"
    assert choose(page(image(alt=text)))[0] == []


@pytest.mark.parametrize("code", [lambda c: chr(ord(c) + 0xFEE0), lambda c: f"&#{ord(c)};"])
def test_english_that_is_written_without_latin_letters_is_read(code):
    text = "".join(code(letter) if letter.isalpha() else letter for letter in GOOD)
    (found,), _ = choose(page(image(alt=text)))
    assert found.text == GOOD
