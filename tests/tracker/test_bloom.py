"""Filters on disk: in the format of rbloom, and whole after many processes added at once."""

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.errors import ConfigError
from cahlib.tracker.legacy.bloom import BloomFilter, create_filter, key_of

rbloom = pytest.importorskip("rbloom", reason="rbloom is not installed: pip install rbloom")


def add(path, start):
    shared = BloomFilter(path)
    for n in range(start, start + 1000, 100):
        shared.add(str(m) for m in range(n, n + 100))


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    path = tmp_path / "a.bloom"
    create_filter(path, items=10_000, error=1e-6)
    context = multiprocessing.get_context("spawn")
    every = [context.Process(target=add, args=(path, n)) for n in (0, 500, 1000, 1500)]
    for process in every:
        process.start()
    for process in every:
        process.join()
    shared = BloomFilter(path)
    assert shared.missing(str(n) for n in range(2600)) == [str(n) for n in range(2500, 2600)]
    assert shared.count == 2500
    shared.close()


def test_rbloom_reads_what_is_written_here_and_the_reverse(tmp_path):
    path, other = tmp_path / "a.bloom", tmp_path / "b.bloom"
    create_filter(path, items=1000, error=0.001)
    ours = BloomFilter(path)
    ours.add(f"{n:032x}" for n in range(800))
    ours.close()
    theirs = rbloom.Bloom.load(str(path), key_of)
    assert all(f"{n:032x}" in theirs for n in range(800))
    assert sum(f"{n:032x}" in theirs for n in range(1000, 11_000)) < 30
    theirs.add("something else")
    theirs.save(str(other))
    back = BloomFilter(other)
    assert back.missing(["something else", "nothing"]) == ["nothing"]
    back.close()


@given(st.lists(st.text(), max_size=20))
def test_what_was_added_is_held(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("filter") / "a.bloom"
    create_filter(path, items=1000, error=1e-9)
    shared = BloomFilter(path)
    shared.add(lines)
    assert shared.missing(lines) == []
    shared.close()


def test_a_file_that_is_no_filter_is_refused(tmp_path):
    path = tmp_path / "a.bloom"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not a Bloom filter"):
        BloomFilter(path)
    with pytest.raises(ConfigError, match="exists already"):
        create_filter(path, items=10, error=0.1)
