"""What a user wants to read becomes shards, the same on every machine; a crawl is read politely."""

import gzip

import pytest

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError, RunError, ShardError
from cahlib.crawl.shards import count_shards, list_shards, make_shard
from cahlib.crawl.source import CrawlFile
from cahlib.demo.web import Answer, Web
from tests.world.crawl import NAME, serve

FILES = [f"CC-MAIN-2024-{n:05}.warc.wat.gz" for n in range(50)]


@pytest.fixture
def listed():
    with serve(dict.fromkeys(FILES, b"")) as web:

        def options(**more):
            return Crawl(crawl=NAME, base_url=f"http://{web.address}", **more)

        yield options


def test_a_crawl_has_two_shards_a_file(listed):
    found = list(list_shards(listed()))
    assert len(found) == len({each.id for each in found}) == 100
    assert [each.half for each in found[:4]] == [0, 1, 0, 1]
    assert found[3].url.endswith(FILES[1]) and found[3].id.startswith("CC-MAIN-2024-00001-")


def test_a_seed_draws_the_same_files_and_more_of_them_later(listed):
    few, more = (list(list_shards(listed(seed=7, shards=n))) for n in (6, 20))
    assert few == more[:6]
    assert few != list(list_shards(listed(seed=8, shards=6)))


def test_files_are_found_by_path_and_glob(tmp_path):
    for name in ("b.warc.wat.gz", "a.warc.wat.gz", "odd name!.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b\x08")
    assert len(list(list_shards(Crawl(crawl=str(tmp_path / "a.warc.wat.gz"))))) == 2
    found = list(list_shards(Crawl(crawl=str(tmp_path / "*.gz"))))
    assert [each.id.rpartition("-")[0].rpartition("-")[0] for each in found[::2]] == [
        "a",
        "b",
        "odd_name_",
    ]


@pytest.mark.parametrize(("shards", "count"), [(0, 4), (3, 3), (9, 4)])
def test_shards_of_local_files_are_counted(tmp_path, shards, count):
    for name in ("a.wat.gz", "b.wat.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b\x08")
    assert count_shards(Crawl(crawl=str(tmp_path / "*.gz"), shards=shards)) == count


@pytest.mark.parametrize(
    ("what", "shards", "count"),
    [(NAME, 0, 0), (NAME, 7, 7), ("https://example.com/a.wat.gz", 0, 2)],
)
def test_shards_elsewhere_are_counted_without_asking(what, shards, count):
    assert count_shards(Crawl(crawl=what, shards=shards)) == count


def test_files_of_one_name_have_shards_of_different_names():
    one, other = (make_shard(f"http://{host}.com/a.wat.gz", 0) for host in "ab")
    assert one.id != other.id


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("", "say what to read"),
        ("no/such/file.gz", "no/such/file.gz is neither a file"),
        ("s3://bucket/a.wat.gz", r"is not an http\(s\) URL"),
        ("http://[half/a.wat.gz", r"is not an http\(s\) URL"),
        (".", "is a folder"),
    ],
)
def test_what_cannot_be_read_is_named(what, sentence):
    with pytest.raises(ConfigError, match=sentence):
        list(list_shards(Crawl(crawl=what)))


def test_a_crawl_that_does_not_exist_is_named(listed):
    options = Crawl(crawl="CC-MAIN-1999-01", base_url=listed().base_url)
    with pytest.raises(ConfigError, match="there is no crawl CC-MAIN-1999-01"):
        list(list_shards(options))


def test_without_a_network_there_is_a_sentence():
    waited = []
    with pytest.raises(RunError, match="wat.paths.gz cannot be fetched: Connection refused"):
        list(list_shards(Crawl(crawl=NAME, base_url="http://127.0.0.1:9"), sleep=waited.append))
    assert waited == [1, 2, 4, 8]


PACKED = [gzip.compress(body, mtime=0) for body in (b"", b"<html>")]


@pytest.mark.parametrize("body", [b"", b"<html>", *PACKED])
def test_a_list_that_is_none_is_refused(body):
    with Web({f"/crawl-data/{NAME}/wat.paths.gz": Answer(body=body)}) as web:
        options = Crawl(crawl=NAME, base_url=f"http://{web.address}")
        with pytest.raises((ConfigError, RunError), match="is not a list of WAT files|is empty"):
            list(list_shards(options))


def test_the_only_file_of_a_run_is_looked_at_first(tmp_path):
    page = Answer(body=b"<!doctype html>", type="text/html")
    with Web({"/page.html": page, "/down.gz": Answer(status=503)}) as web:
        for url, sentence in (("/page.html", "is a web page"), ("/none.gz", "does not exist")):
            with pytest.raises(ConfigError, match=sentence):
                list(list_shards(Crawl(crawl=f"http://{web.address}{url}")))
        down = Crawl(crawl=f"http://{web.address}/down.gz")
        with pytest.raises(RunError, match="the server answers 503. Check this machine's network"):
            list(list_shards(down, sleep=lambda seconds: None))
    (tmp_path / "empty.gz").touch()
    with pytest.raises(ConfigError, match="is empty"):
        list(list_shards(Crawl(crawl=str(tmp_path / "empty.gz"))))


DATA = bytes(range(256)) * 4000


def fetch(*answers: Answer):
    """What is read of a file that gives these answers, and how long was waited."""
    waited = []
    with Web({"/a.gz": list(answers)}) as web:
        source = CrawlFile(f"http://{web.address}/a.gz", contact="me@site.com", sleep=waited.append)
        data = b"".join(source.chunks(1000, 900_000))
        return data, waited, web.requests


def test_a_fetch_that_breaks_off_goes_on_where_it_was():
    data, waited, requests = fetch(
        Answer(body=DATA, cut=300_000), Answer(status=503), Answer(status=500), Answer(body=DATA)
    )
    assert data == DATA[1000:900_000]
    assert waited == [1, 2, 4]
    assert requests[0].headers["user-agent"].endswith("(+me@site.com)")
    assert requests[-1].headers["range"] == "bytes=301000-899999"


def test_a_ban_ends_the_run():
    with pytest.raises(RunError, match="banned"):
        fetch(Answer(status=403))


def test_what_stays_away_is_given_up():
    with pytest.raises(ShardError, match="cannot be fetched"):
        fetch(Answer(status=503))


def test_a_server_without_parts_is_refused():
    with pytest.raises(ShardError, match="does not support range requests"):
        fetch(Answer(body=DATA, ranges=False))
