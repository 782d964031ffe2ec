"""Lists are read whole, or refused by the line that is wrong."""

import gzip
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError
from cahlib.core.lists import DigestSet
from cahlib.core.lists import load_hashes as hash_lists
from cahlib.core.records import DropReason
from cahlib.crawl.blocklists import Blocklists, save_bloom


def load(**lists) -> Blocklists:
    return Blocklists.load(Crawl(**{name: (str(path),) for name, path in lists.items()}))


def hashes(count: int) -> list[str]:
    return [f"{random.Random(n).getrandbits(128):032x}" for n in range(count)]


def test_domains_are_read_with_comments_and_capitals(tmp_path):
    (tmp_path / "domains").write_text("# spam\nBad.COM  # since May\n\n.worse.org.\nbücher.de\n")
    lists = load(blocked_domains=tmp_path / "domains")
    for url in ("http://img.bad.com/a.jpg", "https://worse.org/", "http://xn--bcher-kva.de/"):
        assert lists.url_drop_reason(url) is DropReason.BLOCKED_DOMAIN
    assert lists.url_drop_reason("http://BÜCHER.de/") is DropReason.BLOCKED_DOMAIN
    assert lists.url_drop_reason("http://good.com/bad.com") is None


def test_addresses_are_left_out_one_by_one(tmp_path):
    (tmp_path / "urls").write_text("https://a.com/1.jpg\n  http://b.org/x?y=#z # asked for\n")
    lists = load(blocked_urls=tmp_path / "urls")
    assert lists.url_drop_reason("https://a.com/1.jpg") is DropReason.BLOCKED_URL
    assert (
        lists.url_drop_reason("http://b.org/x?y=") is DropReason.BLOCKED_URL
    )  # links have no fragments
    assert lists.url_drop_reason("https://a.com/2.jpg") is None


def test_a_domain_is_blocked_by_the_name_that_is_asked():
    for listed in ("faß.de", "xn--fa-hia.de", "FAß.de."):
        lists = Blocklists(domains=[listed])
        for url in ("https://faß.de/x.jpg", "http://img.XN--fa-hia.de./x.jpg"):
            assert lists.url_drop_reason(url) is DropReason.BLOCKED_DOMAIN
        assert lists.url_drop_reason("https://fass.de/x.jpg") is None
    lists = Blocklists(domains=["2606:4700:0:0::1"])
    assert lists.url_drop_reason("http://[2606:4700:0::1]/a.jpg") is DropReason.BLOCKED_DOMAIN


SPELLINGS = [
    "https://a.com/y/x.jpg?b=c",
    "https://A.com/y/x.jpg?b=c#top",
    "https://a.com:443/y/x.jpg?b=c",
    "https://a.com./y/x.jpg?b=c",
    "https://me@a.com/y/%78.jpg?b=c",
    "https://a.com/y/z/../x.jpg?b=c",
    "https://a.com/y/./%2e/x.jpg?b=c",
    "https://a.com/y\\x.jpg?b=c",
]


@pytest.mark.parametrize("listed", SPELLINGS)
def test_an_address_is_left_out_however_it_is_spelled(listed):
    lists = Blocklists(urls=[listed])
    for url in SPELLINGS:
        assert lists.url_drop_reason(url.partition("#")[0]) is DropReason.BLOCKED_URL
    for url in ("http://a.com/y/x.jpg?b=c", "https://a.com/y/X.jpg?b=c", "https://a.com/y/x.jpg"):
        assert lists.url_drop_reason(url) is None


@pytest.mark.parametrize("listed", ["9.8.7.6", "9.8.1798", "011.8.7.6", "9.0x8.7.6"])
def test_an_ip_address_is_left_out_however_it_is_written(listed):
    for host in ("9.8.7.6", "9.8.1798", "151521030", "0x9.8.7.6"):
        assert Blocklists(domains=[listed]).url_drop_reason(f"http://{host}/a.jpg")


def test_files_are_known_by_any_of_their_hashes(tmp_path):
    (tmp_path / "a").write_text(f"{'AB' * 16}\n{'12' * 20}  # since May\n\n{'cd' * 32}\n")
    found = hash_lists((str(tmp_path / "a"),), "known_harm")
    assert found.has_any("ab" * 16, "00" * 20, "00" * 32) and found.has_any("00" * 16, "12" * 20)
    assert not found.has_any("ef" * 20, "ef" * 16)
    (tmp_path / "b").write_text("0" * 33)
    with pytest.raises(
        ConfigError, match="known_harm: line 1 of .* is not a valid md5, sha1 or sha256"
    ):
        hash_lists((str(tmp_path / "b"),), "known_harm")


def test_hashes_are_found_plain_and_packed(tmp_path):
    known, unknown = hashes(2000)[:1000], hashes(2000)[1000:]
    (tmp_path / "plain").write_text("\n".join(known).upper())
    (tmp_path / "packed.gz").write_bytes(gzip.compress("\n".join(known).encode()))
    for name in ("plain", "packed.gz"):
        lists = load(blocked_pairs=tmp_path / name)
        assert all(map(lists.has_pair, known)) and not any(map(lists.has_pair, unknown))


def test_a_bloom_filter_is_the_same_on_every_machine(tmp_path):
    known, unknown = hashes(2000)[:1000], hashes(2000)[1000:]
    save_bloom(tmp_path / "seen.bloom", known, expected=1000, false_share=1e-6)
    lists = load(blocked_pairs=tmp_path / "seen.bloom")
    assert all(map(lists.has_pair, known)) and not any(map(lists.has_pair, unknown))


@given(st.lists(st.binary(min_size=16, max_size=16)), st.binary(min_size=16, max_size=16))
def test_digests_are_an_exact_set(held, asked):
    # beside one another in a bucket, so that a search may begin within one of them
    held += [asked[:2] + asked[6:10] * 2 + bytes(6), asked[:2] + bytes(14)]
    digests = DigestSet(held)
    assert digests and not DigestSet()
    assert all(each in digests for each in held)
    assert (asked in digests) == (asked in held)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "blocked_domains",
            b"http://bad.com/\n",
            "blocked_domains: line 1 of .* is not a valid domain",
        ),
        (
            "blocked_pairs",
            b"0" * 32 + b"\nhello\n",
            "blocked_pairs: line 2 of .* is not a valid md5: hello",
        ),
        ("blocked_pairs", b"\xff\xfe\xff", "as a list .it is neither UTF-8 nor UTF-16.\\."),
        ("blocked_pairs", b"\x1f\x8b\x08\x00broken", "cannot be read as a list"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path, name, content, sentence):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load(**{name: tmp_path / "list"})


def test_a_missing_or_broken_filter_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(blocked_domains=tmp_path / "none")
    (tmp_path / "x.bloom").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not a Bloom filter"):
        load(blocked_pairs=tmp_path / "x.bloom")


def test_a_long_list_is_read_and_half_a_list_of_garbage_is_refused_by_its_first_line(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("".join(f"bad{n}.com\n# {n}\n" for n in range(50_000)))
    bad.write_text("".join(f"bad{n}.com\n\x00<html> {n}\n" for n in range(50_000)))
    blocked = Blocklists.load(Crawl(blocked_domains=(str(good),)))
    assert blocked.url_drop_reason("http://www.bad49999.com/a.jpg") is DropReason.BLOCKED_DOMAIN
    assert blocked.url_drop_reason("http://bad50000.com/a.jpg") is None
    with pytest.raises(ConfigError, match="line 2 of .*bad is not a valid domain"):
        Blocklists.load(Crawl(blocked_domains=(str(bad),)))


@pytest.mark.parametrize("entry", ["0" * 128, "0" * 31, "g" * 32, "sha256:" + "0" * 64])
def test_hashes_of_another_kind_are_refused_by_their_line(tmp_path, entry):
    (tmp_path / "list").write_text(f"# known\n{'0' * 64}\n{entry}\n")
    with pytest.raises(
        ConfigError, match="known_harm: line 3 of .* is not a valid md5, sha1 or sha"
    ):
        hash_lists((str(tmp_path / "list"),), "known_harm")


def test_a_host_that_is_an_ipv6_address_may_be_listed(tmp_path):
    (tmp_path / "domains").write_text("2606:4700::1 # never answered\n")
    lists = load(blocked_domains=tmp_path / "domains")
    assert lists.url_drop_reason("http://[2606:4700::1]/a.jpg") is DropReason.BLOCKED_DOMAIN
    (tmp_path / "ports").write_text("bad.com:80\n")
    with pytest.raises(ConfigError, match="line 1 of .* is not a valid domain: bad.com:80"):
        load(blocked_domains=tmp_path / "ports")


UTF16 = "bad.com\n\nworse.org\n".encode("utf-16")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfbad.com\nworse.org\n",
        b"bad.com\nworse.org\n".replace(b"\n", b"\r\n"),
        b"bad.com\rworse.org",
        UTF16,
        b"\xfe\xff" + "bad.com\r\nworse.org\r\n".encode("utf-16-be"),
        gzip.compress(b"\xef\xbb\xbfbad.com\r\nworse.org", mtime=0),
        gzip.compress(UTF16, mtime=0),
        "\u200bbad\u2060.com\ufeff \n\u00a0worse.org\u200d\t".encode(),
        "bad.\u00adcom\n\u202dworse.org\u202c".encode(),
        b"bad.com#evil\n\t.worse.org. # evil",
        b"[Adblock Plus 2.0]\n! Title: bad\n||bad.com^\n||worse.org^$important,all\n",
        b"127.0.0.1 localhost\n::1 localhost ip6-localhost\n255.255.255.255 broadcasthost\n"
        b"ff02::1 ip6-allnodes\n0.0.0.0 0.0.0.0\n\n0.0.0.0 bad.com worse.org # evil\n",
        b"127.0.0.1\tbad.com\n:: worse.org\n",
    ],
)
def test_a_list_of_domains_is_read_however_it_was_saved(tmp_path, content):
    (tmp_path / "list").write_bytes(content)
    lists = load(blocked_domains=tmp_path / "list")
    assert lists.url_drop_reason("http://www.bad.com/a.jpg") is DropReason.BLOCKED_DOMAIN
    assert lists.url_drop_reason("http://worse.org/a.jpg") is DropReason.BLOCKED_DOMAIN
    assert lists.url_drop_reason("http://good.com/a.jpg") is None


@pytest.mark.parametrize(
    "line",
    [
        "bad.com,worse.org",
        "bad.com worse.org",
        "bad.com, # evil",
        "bad .com",
        '"bad.com"',
        '["bad.com"]',
        '{"domain": "bad.com"}',
        "\u201cbad.com\u201d",
        "bad.com\uff0cworse.org",
        "bad.com|worse.org",
        "bad..com",
        "domain",
        "ab" * 16,
        "bad.com/path",
        "||bad.com/path^",
        "||bad.com^$third-party",
        "||bad.com^$domain=good.com",
        "||bad.*^",
        "|bad.com|",
        "@@||bad.com^",
        "bad.com##.banner",
        "bad.com#@#.banner",
        "/banner[0-9]+/",
        "192.168.1.7 nas.bad.com",
        "address=/bad.com/0.0.0.0",
    ],
)
def test_a_line_that_is_no_domain_is_refused_by_its_number(tmp_path, line):
    (tmp_path / "list").write_text(f"good.com\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="blocked_domains: line 2 of .* is not a valid domain: "):
        load(blocked_domains=tmp_path / "list")


@pytest.mark.parametrize(
    "line",
    [
        "a.com/1.jpg",
        "http://a.com/1.jpg,http://a.com/2.jpg",
        '"http://a.com/1.jpg"',
        "http://a.com/1.jpg http://a.com/2.jpg",
        "http://a.com,b.com",
        "http:///1.jpg",
        "ftp://a.com/1.jpg",
        "||a.com/1.jpg",
    ],
)
def test_a_line_that_is_no_address_is_refused_by_its_number(tmp_path, line):
    (tmp_path / "list").write_text(f"HTTPS://a.com/a,b;c.jpg\n{line}\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match="blocked_urls: line 2 of .* is not a valid http or https"
    ):
        load(blocked_urls=tmp_path / "list")


@pytest.mark.parametrize(
    "name",
    [
        "i\u2764.ws",
        "\u0928\u092e\u0938\u094d\u0924\u0947.com",
        "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.com",
        "\u4f8b\u3048\u3002jp",
        "_dmarc.a_b.com",
        "1.2.3.4",
        "*.ru",
    ],
)
def test_unusual_domains_may_be_listed(tmp_path, name):
    (tmp_path / "list").write_text(f"{name}\n", encoding="utf-8")
    lists = load(blocked_domains=tmp_path / "list")
    host = "a.ru" if name == "*.ru" else name
    assert lists.url_drop_reason(f"http://{host}/a.jpg") is DropReason.BLOCKED_DOMAIN
