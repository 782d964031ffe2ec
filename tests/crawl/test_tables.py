"""Tables of links in every format give the same shards and rows; what is wrong gets a sentence."""

import bz2
import gzip
import json
import lzma
import math
import os
import resource
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.core.table_rows import parse_rows_url
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.shards import list_shards
from cahlib.crawl.tables.listing import estimate_rows
from cahlib.crawl.tables.slices import Slices, read_slice
from cahlib.demo.web import Answer, Web
from tests.world import tables


def read(crawl, folder, *, order=lambda shards: shards):
    """The cells of each row of a crawl's shards, None for broken ones; and what failed."""
    slices, failed, found = Slices(folder / "slices"), [], {}
    for shard in order(list(list_shards(crawl))):
        if settings := slices.cut(shard, crawl, lambda _, error: failed.append(str(error))):
            stats, (path,) = Stats(), settings.links
            pages = list(read_slice(shard, path, stats))
            assert stats.unaccounted(Stage.READ) == 0
            assert stats.left[Stage.READ] == len(pages)
            for page in pages:
                (link,) = page.links
                number = int(page.url.rpartition("=")[2])
                found[number] = link.url, link.alt, page.extra
            slices.drop(shard)
    assert not list((folder / "slices").glob("*"))
    return found, failed


@pytest.mark.parametrize("ending", tables.FORMATS)
def test_each_format_gives_the_same_rows_in_any_order(tmp_path, ending):
    made = tables.rows(50, width=lambda number: number, name=lambda number: f"n{number}; \u00e9")
    path = tables.write(tmp_path / f"some.{ending}", made)
    crawl = Crawl(links=(str(path),), shard_links=9, extra_columns=("width", "name"))
    found, failed = read(crawl, tmp_path)
    assert not failed and [*found] == [*range(1, 51)]
    assert 45 <= sum(estimate_rows(crawl)) <= 60
    is_typed = not ending.startswith(("csv", "tsv"))
    for number, row in zip(found, made, strict=True):
        width = row["width"] if is_typed else str(row["width"])
        extra = {"width": width, "name": row["name"]}
        assert found[number] == (row["url"], row["text"], extra)
    assert read(crawl, tmp_path, order=lambda shards: shards[::-1]) == (
        dict(sorted(found.items())),
        [],
    )


def test_shards_are_ranges_of_rows_and_the_same_wherever_the_table_lies(tmp_path):
    made = tables.rows(25)
    paths = [tmp_path / name / "t.parquet" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        tables.write(path, made)
    one, other = (list(list_shards(Crawl(links=(str(path),), shard_links=10))) for path in paths)
    ranges = [(rows.first, rows.last) for each in one if (rows := parse_rows_url(each.url))]
    assert ranges == [(1, 10), (11, 20), (21, 25)]
    assert [each.id for each in one] == [each.id for each in other]
    assert len({each.id for each in one}) == 3


def test_a_seed_draws_the_same_rows_and_more_of_them_later(tmp_path):
    path = tables.write(tmp_path / "t.jsonl", tables.rows(100))
    crawl = Crawl(links=(str(path),), shard_links=5, seed=3)
    few, more = (list(list_shards(replace(crawl, shards=n))) for n in (4, 20))
    assert few == more[:4] and len(set(more)) == 20
    assert more != list(list_shards(replace(crawl, seed=0)))


def test_a_table_is_read_over_http_and_by_globs(tmp_path):
    made = tables.rows(30)
    for number in range(3):
        tables.write(tmp_path / f"{number}.parquet", made[10 * number : 10 * number + 10])
    local, _ = read(Crawl(links=(str(tmp_path / "*.parquet"),)), tmp_path)
    files = {
        f"/{path.name}": Answer(body=path.read_bytes(), type="application/octet-stream")
        for path in tmp_path.glob("*.parquet")
    }
    with Web(files) as web:
        urls = tuple(f"http://{web.address}/{number}.parquet" for number in range(3))
        assert read(Crawl(links=urls), tmp_path) == (local, [])
        shards = [
            list(list_shards(Crawl(links=each))) for each in (urls, (f"{tmp_path}/*.parquet",))
        ]
        with pytest.raises(ConfigError, match="links: .*none.parquet does not exist"):
            list(list_shards(Crawl(links=(f"http://{web.address}/none.parquet",))))
    assert [each.id for each in shards[0]] == [each.id for each in shards[1]]


def test_the_tables_of_the_field_are_read_without_options(tmp_path):
    paths = tables.of_the_field(tmp_path, 20)
    captions_first = "".join(f"{row['text']}\t{row['url']}\n" for row in tables.rows(20))
    (tmp_path / "cc3m.tsv").write_text(captions_first)
    paths.append(tmp_path / "cc3m.tsv")
    found = [read(Crawl(links=(str(path),)), tmp_path)[0] for path in paths]
    assert len(found[0]) == 20 and all(each == found[0] for each in found)
    boxes, _ = read(
        Crawl(links=(str(tmp_path / "datacomp.parquet"),), extra_columns=("face_bboxes",)), tmp_path
    )
    assert boxes[2][2] == {"face_bboxes": "[[0.1, 0.2, 0.3, 0.4]]"}


GOOD = "url,text\nhttp://a.com/1.jpg,one\n"


@pytest.mark.parametrize(
    ("name", "data", "settings", "sentence"),
    [
        ("a.csv", "", {}, r"a\.csv cannot be read as a table: it is empty"),
        ("a.csv", "\n \n", {}, "it is empty"),
        ("a.csv", "url,text\n", {}, "there are no rows"),
        ("a.csv", "id,name\n1,x\n", {}, r"no column of links \(id, name\); name it with --url-col"),
        ("a.csv", GOOD, {"url_column": "link"}, "url_column: .*a.csv has no column link; it has"),
        ("a.csv", GOOD, {"text_column": "alt"}, "text_column: .* has no column alt; it has url, t"),
        ("a.csv", GOOD, {"extra_columns": ("w",)}, "extra_columns: .* has no column w; it has"),
        ("a.csv", GOOD, {"crawl": "CC-MAIN-2024-10"}, "give a crawl or tables of links, not both"),
        ("a.jsonl", '{"url": 1}\n', {}, "url_column: the column url of .* does not hold text"),
        ("a.csv", "url,w\nx,1\n", {}, r"no column of captions \(url, w\); name it with --text-col"),
        ("a.jsonl", "[1]\n", {}, "it is a single JSON array; store one object per line"),
        ("a.jsonl", "{]\n", {}, "its first lines are not JSON objects"),
        ("a.parquet", "PAR1 and so on", {}, "is damaged, or not a table"),
        ("a.parquet", "<html>", {}, "it is damaged, or not Parquet"),
        ("a.csv", GOOD.encode("utf-16"), {}, "it is UTF-16; store it as UTF-8"),
        ("a.csv.gz", gzip.compress(b"PAR1 and so on", mtime=0), {}, "is damaged, or not a table"),
        ("a.parquet.gz", gzip.compress(b"PAR1" * 999, mtime=0)[:-9], {}, "it is cut off"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", {}, "it is empty"),
        ("a.csv", bytes(100), {}, "it is damaged, or not Parquet"),
        ("a.csv.bz2", bz2.compress(b"url"), {}, "it is packed with bzip2; pack it with gzip or z"),
        ("a.csv.xz", lzma.compress(b"url"), {}, "it is packed with xz; pack it with gzip or zstd"),
        ("a.xlsx", b"PK\x03\x04", {}, "it is a zip file or a spreadsheet; unpack it"),
        ("a.csv", "url,url,text\n", {}, "has several columns url; give each a name"),
        ("a.csv", GOOD, {"extra_columns": ("text", "text")}, "extra_columns: text is named twice"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_links_gets_a_sentence(tmp_path, name, data, settings, sentence):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(ConfigError, match=sentence):
        list(list_shards(Crawl(links=(str(path),), **settings), taken=("uid",)))


def test_patterns_that_match_nothing_get_a_sentence(tmp_path):
    for pattern, sentence in (
        (f"{tmp_path}/*.csv", "matches no file"),
        (str(tmp_path), "is a folder; name the files in it"),
        ("https://me:secret@site.com/a.csv", "^links: a URL with a password"),
        ("nothing://a/b.csv", "nothing://a/b.csv cannot be read: Protocol not known"),
    ):
        with pytest.raises(ConfigError, match=sentence) as refused:
            list(list_shards(Crawl(links=(pattern,))))
        assert "secret" not in str(refused.value)


def test_columns_of_our_own_names_are_not_carried_along(tmp_path):
    path = tables.write(tmp_path / "t.parquet", tables.rows(5, uid=str, width=int))
    crawl = Crawl(links=(str(path),), extra_columns=("all",))
    with pytest.raises(ConfigError, match="uid of t.parquet would .* choose others, such as width"):
        list(list_shards(crawl, taken=("uid",)))


def test_tables_with_different_columns_are_refused(tmp_path):
    tables.write(tmp_path / "a.csv", tables.rows(5))
    tables.write(tmp_path / "b.csv", tables.rows(5, text="caption"))
    with pytest.raises(
        ConfigError, match=r"b.csv has different columns from .*a.csv \(url, caption"
    ):
        list(list_shards(Crawl(links=(f"{tmp_path}/*.csv",))))


def test_a_table_that_changed_is_told_of(tmp_path):
    path = tables.write(tmp_path / "t.csv", tables.rows(20))
    crawl = Crawl(links=(str(path),), shard_links=10)
    before = list(list_shards(crawl))
    tables.write(path, tables.rows(21))
    with pytest.raises(ConfigError, match=r"t.csv has changed since this dataset was begun"):
        list(list_shards(crawl, known=lambda: before))
    failed = []
    slices = Slices(tmp_path / "slices")
    assert slices.cut(before[0], crawl, lambda shard, error: failed.append(str(error))) is None
    assert "has changed since its shards were listed" in failed[0]


def test_a_full_disk_is_not_the_fault_of_the_table(tmp_path):
    """It ends the run with its own sentence; no shard fails."""
    crawl = Crawl(links=(str(tables.write(tmp_path / "t.csv", tables.rows(200))),))
    (shard,), slices = list_shards(crawl), Slices(tmp_path / "slices")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(RunError, match="disk is full, or a size limit is reached"):
            slices.cut(shard, crawl, pytest.fail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


ODD = [
    b"url;text\n",
    b'http://a.com/1.jpg;"a ""quoted"" word\nand a line"\n',
    b'http://a.com/2.jpg;5" of snow\n',
    b'http://a.com/3.jpg;"never closed\n',
    b"http://a.com/4.jpg;caf\xe9 in Windows-1252\n",
    "http://a.com/5.jpg;café in UTF-8\n".encode(),
    b"http://a.com/6.jpg;one;cell too many\n",
    b"http://a.com/7.jpg\n",
    b"\n",
    b"http://a.com/8.jpg;" + b"x" * (17 << 20) + b"\n",
    b"http://a.com/9.jpg;the last one, without a line break",
]


def test_odd_rows_of_csv_cost_only_themselves(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(ODD))
    found, failed = read(Crawl(links=(str(path),), shard_links=2), tmp_path)
    assert not failed
    assert {number: text for number, (_, text, _) in found.items()} == {
        1: 'a "quoted" word\nand a line',
        2: '5" of snow',
        4: "café in Windows-1252",
        5: "café in UTF-8",
        9: "the last one, without a line break",
    }


def test_json_as_python_writes_it_is_read(tmp_path):
    """NaN, and half of a character, which costs the caption alone."""
    path = tmp_path / "t.jsonl"
    rows = [{"url": f"http://a.com/{n}.jpg", "text": "A boat", "x": math.nan} for n in range(3)]
    rows[1]["text"] = "A boat \ud83d"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"url": NaN\n')
    found, failed = read(Crawl(links=(str(path),), extra_columns=("x",)), tmp_path)
    assert not failed and [*found] == [1, 2, 3]
    assert found[2] == ("http://a.com/1.jpg", "A boat \ufffd", {"x": None})


def test_a_name_of_two_columns_is_refused_in_parquet_too(tmp_path):
    cells = pa.array(["http://a.com/1.jpg"])
    table = pa.Table.from_arrays([cells, cells, cells], names=["url", "text", "url"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"t.parquet has several columns url; give each a name"):
        list(list_shards(Crawl(links=(str(tmp_path / "t.parquet"),))))


def test_odd_cells_are_dropped_by_reason(tmp_path):
    lines = [
        b'{"url": "http://a.com/1.jpg", "text": "A good caption of a boat"}',
        b'{"url": null, "text": "A good caption of a boat"}',
        b'{"url": 12, "text": "A good caption of a boat"}',
        b'{"url": ["http://a.com/2.jpg"], "text": "A good caption of a boat"}',
        b'{"url": "/relative.jpg", "text": "A good caption of a boat"}',
        b'{"url": "http://a.com/%s.jpg", "text": "A good caption"}' % (b"x" * 5_000_000),
        b'{"url": "http://a.com/3.jpg", "text": "%s"}' % (b"word " * 1_000_000),
        b'{"url": "http://a.com/4.jpg", "text": null}',
        b'{"url": "http://a.com/5.jpg"',
        b'"http://a.com/6.jpg"',
        b'{"url": "http://a.com/1.jpg", "text": "A good caption of a boat"}',
        b'{"url": "http://a.com/7.jpg", "text": "An old harbour with many boats.jpg"}',
    ]
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\n".join(lines))
    crawl = Crawl(links=(str(path),))

    def candidates(crawl):
        (shard,) = list_shards(crawl)
        settings, stats = Slices(tmp_path / "slices").cut(shard, crawl, print), Stats()
        pages = read_slice(shard, settings.links[0], stats)
        return list(find_candidates(pages, crawl, Blocklists.load(crawl), stats)), stats

    (kept,), stats = candidates(crawl)
    assert (kept.url, kept.source, kept.page) == ("http://a.com/1.jpg", "table", "odd.jsonl#row=1")
    assert +stats.dropped == {
        DropReason.BAD_URL: 4, DropReason.LONG_URL: 1, DropReason.LONG_TEXT: 1,
        DropReason.NO_TEXT: 1, DropReason.BROKEN_RECORD: 2,
        DropReason.DUPLICATE: 1, DropReason.FILENAME_TEXT: 1,
    }  # fmt: skip
    trusted, _ = candidates(replace(crawl, trust_text=True))
    assert [each.url[-5:] for each in trusted] == ["1.jpg", "7.jpg"]
    bare, stats = candidates(replace(crawl, text_column="none"))
    assert [each.url[-5:] for each in bare] == ["1.jpg", "3.jpg", "4.jpg", "7.jpg"]
    assert {(each.text, each.language) for each in bare} == {("", "un")}


def test_a_packed_table_that_is_cut_off_gives_the_rows_before(tmp_path, caplog):
    path = tables.write(tmp_path / "t.csv.gz", tables.rows(3000))
    path.write_bytes(path.read_bytes()[:-2000])
    found, failed = read(Crawl(links=(str(path),), shard_links=1000), tmp_path)
    assert not failed and 100 < len(found) < 3000
    assert [*found] == [*range(1, len(found) + 1)]
    assert f"its first {len(found)} rows are read" in caplog.text


def test_a_row_group_that_is_damaged_fails_its_shards_alone(tmp_path):
    path = tables.write(tmp_path / "t.parquet", tables.rows(21))
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    crawl = Crawl(links=(str(path),), shard_links=7)
    with path.open("r+b") as file:
        file.seek(group.dictionary_page_offset or group.data_page_offset)
        file.write(os.urandom(40))
    found, failed = read(crawl, tmp_path)
    assert {1, 7, 15, 21} <= found.keys() and 8 not in found
    assert len(failed) == 1 and "t.parquet" in failed[0]


def test_bytes_that_are_no_utf8_in_parquet_cost_nothing(tmp_path):
    texts = pa.array([b"caf\xe9", "café".encode()], pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"url": ["http://a.com/1.jpg", "http://a.com/2.jpg"], "text": texts})
    pq.write_table(table, tmp_path / "t.parquet")
    found, _ = read(Crawl(links=(str(tmp_path / "t.parquet"),)), tmp_path)
    assert [text for _, text, _ in found.values()] == ["café", "café"]
