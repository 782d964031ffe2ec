"""Links lead where browsers would go, in the spelling that they always had."""

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cahlib.core.records import DropReason
from cahlib.fetch import links
from cahlib.fetch.urls import parse_url

HOST = st.sampled_from(["a.com", "img.b-c.co.uk", "A.com", "a.com:80", "1.2.3.4", "x", "0x9.9.9.9"])
PATH = st.text(st.sampled_from("ab/.?=&%+~@:!$()[]\\é \"'<>{}|^`\t2e"), max_size=10)
START = st.sampled_from(
    ["", "/", "//", "http://", "https://", "?", "../", "http:/", "https:", "\\"]
)


@settings(max_examples=400)
@given(HOST, PATH, START, PATH)
def test_addresses_mean_what_they_mean_to_browsers(host, path, start, rest):
    """Whichever way they are read, by a quick look or by the parser."""
    page = f"http://{host}/{path.replace(' ', '')}"
    url = f"{start}{host}/{rest}" if start.endswith("//") else start + rest
    answer = links.absolute_url(url, links.BaseUrl.of(page, ""), 2000)
    if isinstance(answer, str):
        meant = links.join_url(page, url)
        assert links.join_url("", answer) == meant.replace("/?#", "/#") or answer == meant
        asked, parts = parse_url(answer), links.split_url(meant)
        assert str(asked.raw_path_qs) == parts.target.removesuffix("?") or "?" in parts.target[-1:]
        assert answer == links.absolute_url(answer, links.BaseUrl.of(page, ""), 2000)


NAME = st.from_regex(r"([a-c0-9-]{1,4}\.|xn--a\.){1,3}[a-c0x-]{1,3}", fullmatch=True)
PRINTED = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)


@settings(max_examples=400)
@given(NAME, PATH | PRINTED)
def test_the_parts_of_an_address_are_those_that_the_parser_finds(host, path):
    url = f"https://{host}/{path}"
    parts = links.split_url(url)
    try:
        meant = links.join_url("", url).partition("#")[0]
    except ValueError:
        assert parts is None
    else:
        assert f"https://{parts.host}{parts.target}" == meant


ORDINARY = st.text(st.sampled_from("ab/?=&%+~@:!$()[],_-"), max_size=10)


@given(
    ORDINARY, st.sampled_from(["", "/", "//a.com/", "http://a.com/", "https://b.org/x/"]), ORDINARY
)
def test_an_ordinary_address_is_spelled_as_it_was(path, start, rest):
    assume("//" not in f"/{path}")  # urljoin makes one slash of two
    page, url = f"http://a.com/{path}", start + rest
    answer = links.absolute_url(url, links.BaseUrl.of(page, ""), 2000)
    if isinstance(answer, str) and "//" not in rest and ":" not in rest:
        assert urlsplit(answer).geturl() == urlsplit(urljoin(page, url)).geturl()


CASES = [
    ("dir/../../images/a.jpg", "", "http://shop.example.org/images/a.jpg"),
    ("http://shop.example.org/dir/../../images/a.jpg", "", "http://shop.example.org/images/a.jpg"),
    ("http://cdn.org/a/%2E%2e/./b.jpg", "", "http://cdn.org/b.jpg"),
    ("..\\images\\a.jpg", "", "http://shop.example.org/images/a.jpg"),
    ("\\\\cdn.org\\a.jpg", "", "http://cdn.org/a.jpg"),
    ("http:\\\\cdn.org\\a.jpg", "", "http://cdn.org/a.jpg"),
    ("http:/cdn.org/a.jpg", "", "http://shop.example.org/cdn.org/a.jpg"),
    ("https:/cdn.org/a.jpg", "", "https://cdn.org/a.jpg"),
    ("http:a.jpg", "", "http://shop.example.org/dir/a.jpg"),
    ("http:////cdn.org/a.jpg", "", "http://cdn.org/a.jpg"),
    ("HTTP://CDN.org/a.jpg", "", "http://CDN.org/a.jpg"),
    ("http://cdn.org:80/a.jpg", "", "http://cdn.org:80/a.jpg"),
    ("http://ex%61mple.org/a.jpg", "", "http://ex%61mple.org/a.jpg"),
    ("http://cdn\u3002org/a.jpg", "", "http://cdn\u3002org/a.jpg"),
    ("http://cdn\u00ad.org/a.jpg", "", "http://cdn\u00ad.org/a.jpg"),
    ("http://\u202acdn.org/a.jpg", "", DropReason.BAD_URL),
    ("a.jpg", "javascript:void(0)", "http://shop.example.org/dir/a.jpg"),
    ("a.jpg", "data:text/plain,x", "http://shop.example.org/dir/a.jpg"),
    ("a.jpg", "http://[::1", "http://shop.example.org/dir/a.jpg"),
    ("a.jpg", "about:blank", "http://shop.example.org/dir/a.jpg"),
    ("a.jpg", "mailto:me@a.com", "http://shop.example.org/dir/a.jpg"),
    ("a.jpg", "//cdn.org/x/", "http://cdn.org/x/a.jpg"),
    ("a.jpg", "..\\x\\", "http://shop.example.org/x/a.jpg"),
    ("http://cdn.org/a.jpg?sig=a%2fb%2Bc+d'~|", "", "http://cdn.org/a.jpg?sig=a%2fb%2Bc+d'~|"),
    ("\xa0a.jpg\xa0", "", "http://shop.example.org/dir/\xa0a.jpg\xa0"),  # no blank of addresses
    ("\x01 a.jpg\n\x1f", "", "http://shop.example.org/dir/a.jpg"),
    ("http://-a-.cdn.org/a.jpg", "", "http://-a-.cdn.org/a.jpg"),
    ("http://me:pw@cdn.org/a.jpg", "", DropReason.BAD_URL),
    ("http://cdn.org:22/a.jpg", "", DropReason.BAD_URL),
    ("http://cdn.org:99999/a.jpg", "", DropReason.BAD_URL),
    *(
        (f"http://{host}/a.jpg", "", DropReason.PRIVATE_HOST)
        for host in (
            "127.1", "0177.0.0.1", "0x7f.1", "0x7f.0x1", "2130706433", "127.0.0.1.",
            "%31%32%37.0.0.1",
            "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "[::ffff:127.0.0.1]", "[::]",
            "[::ffff:7f00:1]", "localhost", "LOCALHOST.", "%6cocalhost", "\u24db\u24deca\u24dbhost",
            "169.254.169.254", "a.local", "0", "[64:ff9b::7f00:1]",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("url", "base", "expected"), CASES)
def test_an_address_is_read_as_browsers_read_it(url, base, expected):
    known = links.BaseUrl.of("http://shop.example.org/dir/page.html", base)
    assert links.absolute_url(url, known, 2000) == expected
    if isinstance(expected, DropReason) and url.startswith("http") and "@" not in url:
        assert isinstance(parse_url(url), DropReason) or expected is DropReason.PRIVATE_HOST
