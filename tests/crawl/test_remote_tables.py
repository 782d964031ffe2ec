"""Tables at URLs: object stores, a hub and web servers, and what happens when a table changes."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import Stats
from cahlib.crawl.shards import list_shards
from cahlib.crawl.tables.slices import Slices, read_slice
from cahlib.demo.web import Answer, Web
from tests.world import hub, s3, tables
from tests.world.ports import free_port


def cut(slices, shard, crawl, failed):
    """The links of a shard, None if its table cannot be read."""
    if not (settings := slices.cut(shard, crawl, lambda _, error: failed.append(str(error)))):
        return None
    found = [page.links[0].url for page in read_slice(shard, settings.links[0], Stats())]
    slices.drop(shard)
    return found


def links(folder, crawl):
    """The links of all shards, with what failed."""
    slices, failed = Slices(folder / "slices", sleep=lambda _: None), []
    return [cut(slices, shard, crawl, failed) for shard in list_shards(crawl)], failed


@pytest.mark.parametrize("ending", ["parquet", "csv.gz", "jsonl", "feather.zst"])
@pytest.mark.parametrize("scheme", ["s3", "hf", "http", "plain"])
def test_a_table_at_a_url_gives_the_same_shards(tmp_path, monkeypatch, scheme, ending):
    path = tables.write(tmp_path / f"t.{ending}", tables.rows(20))
    here = Crawl(links=(str(path),), shard_links=8)
    expected, listed = links(tmp_path, here), [each.id for each in list_shards(here)]
    with PLACES[scheme](monkeypatch, path.name, path.read_bytes()) as url:
        there = replace(here, links=(url,))
        assert [each.id for each in list_shards(there)] == listed
        assert links(tmp_path, there) == expected


@contextmanager
def s3_table(monkeypatch, name, body):
    with s3.client(monkeypatch, "bucket") as store:
        store.objects[f"/bucket/tables/{name}"] = body
        yield f"s3://bucket/tables/{name}"


@contextmanager
def hf_table(monkeypatch, name, body):
    with hub.client(monkeypatch, "ada/set") as there:
        there.repositories["ada/set"][f"data/{name}"] = body
        yield f"hf://datasets/ada/set/data/{name}"


@contextmanager
def http_table(monkeypatch, name, body, *, ranges=True):
    with Web({f"/{name}": Answer(body=body, ranges=ranges)}) as web:
        yield f"http://{web.address}/{name}"


@contextmanager
def plain_table(monkeypatch, name, body):
    """As ``python -m http.server`` serves it: it knows of no ranges."""
    with http_table(monkeypatch, name, body, ranges=False) as url:
        yield url


PLACES = {"s3": s3_table, "hf": hf_table, "http": http_table, "plain": plain_table}


def test_tables_at_urls_are_found_by_globs(tmp_path, monkeypatch):
    body = tables.write(tmp_path / "t.jsonl", tables.rows(3)).read_bytes()
    with s3_table(monkeypatch, "a.jsonl", body) as url:
        crawl = Crawl(links=(url.replace("a.jsonl", "*.jsonl"),))
        assert len(links(tmp_path, crawl)[0]) == 1
        with pytest.raises(ConfigError, match="s3://bucket/none/.* matches no file"):
            list(list_shards(replace(crawl, links=("s3://bucket/none/*.jsonl",))))
        with pytest.raises(ConfigError, match="s3://bucket/none.csv does not exist"):
            list(list_shards(replace(crawl, links=("s3://bucket/none.csv",))))
        with pytest.raises(ConfigError, match="s3://other/a.csv"):
            list(list_shards(replace(crawl, links=("s3://other/a.csv",))))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_table_that_changes_or_vanishes_midway_fails_its_shards(tmp_path, ending):
    """It is cut shard by shard; what was cut before is right, what follows is told."""
    old, new = (
        tables.write(tmp_path / f"{n}.{ending}", tables.rows(n)).read_bytes() for n in (30, 31)
    )
    with Web({"/t": Answer(body=old)}, port := free_port()) as web:
        crawl = Crawl(links=(f"http://{web.address}/t",), shard_links=10)
        shards, failed = list(list_shards(crawl)), []
        assert len(cut(Slices(tmp_path / "one", sleep=lambda _: None), shards[0], crawl, failed))
    for answer, sentence in (
        (Answer(body=new), "has changed since its shards were listed"),
        (Answer(status=404), "does not exist"),
        (Answer(status=403), "cannot be read: the server answers with status 403"),
        (Answer(status=503), "cannot be read: the server answers with status 503"),
        (Answer(body=old, cut=100), "cannot be read|damaged|changed"),
    ):
        with Web({"/t": answer}, port):
            slices = Slices(tmp_path / "two", sleep=lambda _: None)
            assert cut(slices, shards[1], crawl, failed) is None
        assert re.search(sentence, failed[-1])
    with pytest.raises(RunError, match="cannot be read: .* or try again later"):
        list(list_shards(crawl))
    slices = Slices(tmp_path / "three", sleep=lambda _: None)
    assert cut(slices, shards[1], crawl, failed) is None
    assert re.search("cannot be read: .*connect", failed[-1], re.IGNORECASE)
