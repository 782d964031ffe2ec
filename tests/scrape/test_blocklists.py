"""Lists are read whole, or refused by the line that is wrong."""

import gzip
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.config import Crawl
from cahlib.errors import ConfigError
from cahlib.scrape.blocklists import Blocklists, Digests, save_bloom


def load(**lists) -> Blocklists:
    return Blocklists.load(Crawl(**{name: (str(path),) for name, path in lists.items()}))


def hashes(count: int) -> list[str]:
    return [f"{random.Random(n).getrandbits(128):032x}" for n in range(count)]


def test_domains_are_read_with_comments_and_capitals(tmp_path):
    (tmp_path / "domains").write_text("# spam\nBad.COM  # since May\n\n.worse.org.\nbücher.de\n")
    lists = load(blocked_domains=tmp_path / "domains")
    assert lists.domain("http://img.bad.com/a.jpg") and lists.domain("https://worse.org/")
    assert lists.domain("http://xn--bcher-kva.de/") and lists.domain("http://BÜCHER.de/")
    assert not lists.domain("http://good.com/bad.com")


def test_hashes_are_found_plain_and_packed(tmp_path):
    known, unknown = hashes(2000)[:1000], hashes(2000)[1000:]
    (tmp_path / "plain").write_text("\n".join(known).upper())
    (tmp_path / "packed.gz").write_bytes(gzip.compress("\n".join(known).encode()))
    for name in ("plain", "packed.gz"):
        lists = load(blocked_pairs=tmp_path / name)
        assert all(map(lists.pair, known)) and not any(map(lists.pair, unknown))


def test_a_bloom_filter_is_the_same_on_every_machine(tmp_path):
    known, unknown = hashes(2000)[:1000], hashes(2000)[1000:]
    save_bloom(tmp_path / "seen.bloom", known, expected=1000, false_share=1e-6)
    lists = load(blocked_pairs=tmp_path / "seen.bloom")
    assert all(map(lists.pair, known)) and not any(map(lists.pair, unknown))


@given(st.lists(st.binary(min_size=16, max_size=16)), st.binary(min_size=16, max_size=16))
def test_digests_are_an_exact_set(held, asked):
    # beside one another in a bucket, so that a search may begin within one of them
    held += [asked[:2] + asked[6:10] * 2 + bytes(6), asked[:2] + bytes(14)]
    digests = Digests(held)
    assert digests and not Digests()
    assert all(each in digests for each in held)
    assert (asked in digests) == (asked in held)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "blocked_domains",
            b"http://bad.com/\n",
            "blocked_domains: line 1 of .* is not one domain",
        ),
        (
            "blocked_pairs",
            b"0" * 32 + b"\nhello\n",
            "blocked_pairs: line 2 of .* is not one md5: hello",
        ),
        ("blocked_pairs", b"\xff\xfe\xff", "cannot be read as a list"),
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
