"""Expressions over a dataset's metadata: the right rows, and nothing else that SQL can do."""

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pytest

from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.expression import Evaluator
from cahlib.dataset.manifest import host_name
from cahlib.dataset.query import HOST_OF_URL, PairQuery
from tests.world.judged import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    for number in range(3):
        write(folder, first=1000 * number, shard=f"s-{number}")
    return folder


@pytest.fixture(scope="module")
def pairs(folder):
    return PairQuery(folder)


@pytest.mark.parametrize(
    "where",
    [
        "similarity > 0.4",
        "Width >= 100 AND height < 200 -- a comment",
        "NSFW = 'UNLIKELY' or not (URL like '%1%')",
        "similarity between 0.35 and 0.45 and format in ('jpg', 'png')",
        "length(TEXT) % 2 = 0 and regexp_matches(uid, '^[0-7]')",
        "case when similarity > 0.4 then WIDTH > 100 end",  # null is false
        '"clip_ViT-tiny_none_age_minor" is not null',
        "cast(left(uid, 1) as varchar) || 'x' = 'ax' or reliable",
        "true",
    ],
)
def test_the_rows_are_those_of_an_independent_query(folder, pairs, where):
    files = f"{folder}/metadata/*.parquet"
    wanted = duckdb.sql(f"SELECT uid FROM read_parquet('{files}') WHERE (\n{where}\n)").fetchall()
    rows = np.flatnonzero(pairs.mask(where))
    assert [row["uid"] for row in pairs.read(rows, ["uid"])] == [uid for (uid,) in wanted]
    assert 0 < len(rows) <= pairs.rows == 45


def test_rows_know_their_shard_their_host_and_their_domain(pairs):
    shards = np.flatnonzero(pairs.mask("shard = 's-1' and position = 3"))
    assert shards.tolist() == [18]
    part, position = pairs.locate(18)
    assert (part.shard, position) == ("s-1", 3)
    urls = pairs.evaluate("URL").to_pylist()
    assert pairs.evaluate("host").to_pylist() == [host_name(url) for url in urls]
    assert pairs.texts("domain").to_pylist() == [host_name(url) for url in urls]


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example.co.uk:8080/b?c#d",
        "HTTP://User:Pass@WWW.Example.org",
        "https://[2001:DB8::1]:80/a",
        "https://a@b@c.example/?http://d.example/",
        "https://a.example?b@c.example",
        "data:image/png,x",
        "",
    ],
)
def test_the_host_of_a_url_is_what_it_is_elsewhere(url):
    sql = Evaluator({"URL": pa.string()})
    assert sql.values(HOST_OF_URL, pa.table({"URL": [url]}), "host").to_pylist() == [host_name(url)]


def test_rows_are_ordered_and_counted(pairs):
    rows = np.flatnonzero(pairs.mask("WIDTH > 100"))
    similarity = pairs.numbers("similarity")
    assert pairs.order("similarity", rows).tolist() == sorted(rows, key=lambda n: -similarity[n])
    rising = pairs.order("similarity", rows, descending=False)
    assert rising.tolist() == pairs.order("similarity", rows).tolist()[::-1]
    edges, counts = pairs.histogram("similarity", pairs.mask("WIDTH > 100"), bins=7)
    assert (len(edges), counts.sum()) == (8, len(rows))
    assert pairs.histogram("similarity", bins=7)[0].tolist() == edges.tolist()
    assert np.isnan(pairs.numbers("nullif(WIDTH, WIDTH)")).all()


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("similarty > 0.3", r"no column similarty; did you mean similarity"),
        ("zzz", r"no column zzz; there are .*similarity"),
        ("similarity", r"`similarity` is not a condition but a value of type DOUBLE"),
        ("similarity >", r"is not valid SQL: syntax error at its end"),
        ("hello there", r"is not valid SQL"),
        ("true; DROP TABLE pairs", r"is not valid SQL"),
        ("true) FROM pairs, (SELECT 1", r"not valid SQL|not one SQL expression"),
        ("1), (2", r"is not one SQL expression"),
        ("1) UNION SELECT (2", r"is not one SQL expression"),
        ("similarity > 0.3 /* ", r"is not valid SQL: unterminated"),
        ("true\0", r"contains the character .*x00"),
        ("exists (SELECT 1 FROM read_csv('/etc/passwd'))", r"has a subquery"),
        ("uid in (FROM glob('/*'))", r"has a subquery"),
        ("rank() OVER () = 1", r"has a window function"),
        ("COLUMNS(*) > 1", r"has `\*`"),
        ("$1", r"has a parameter"),
        ("len(list_filter([1], lambda x: x > 0)) > 0", r"has a lambda function"),
        ("read_text('/etc/passwd') = ''", r"read_text\(\) depends on more"),
        ("getenv('HOME') = ''", r"getenv\(\) "),
        ("current_setting('threads') = '1'", r"current_setting\(\) depends on more"),
        ("random() < 0.1", r"random\(\) depends on more"),
        ("sleep_ms(100000) is null", r"sleep_ms\(\) "),
        ("current_user = ''", r"no column current_user"),
        ("avg(similarity) > 1", r"avg\(\) is an aggregate"),
        ("lenght(TEXT) > 1", r"lenght\(\) is not a function; did you mean length\(\)\?"),
        ("similarity > 'abc'", r"cannot be evaluated: Could not convert string 'abc'"),
        ("TEXT ~ '('", r"cannot be evaluated"),
        ("repeat(TEXT, 1000000000) = ''", r"memory|cannot be evaluated"),
        ("not " * 50_000 + "true", r"at most 100,000"),
        ("not " * 4_000 + "true", r"depth"),
        ("(" * 9_000 + "true" + ")" * 9_000, r"where: "),
    ],
)
def test_what_is_no_condition_is_one_sentence(pairs, where, sentence):
    with pytest.raises(ConfigError, match=sentence) as raised:
        pairs.mask(where)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "ATTACH '/tmp/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '10GB'",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM pairs",  # a variable here
    ],
)
def test_even_unchecked_sql_reaches_nothing(sql):
    pairs = pa.table({"a": [1]})
    with pytest.raises(duckdb.Error):
        Evaluator({"a": pairs["a"].type})._duckdb.execute(sql).fetchall()


def test_of_columns_that_differ_by_capitals_alone_the_spelling_decides():
    table = pa.table({"WIDTH": [500, 10], "width": ["a", "b"], "n": [1, 2]})
    sql = Evaluator({field.name: field.type for field in table.schema})
    for name, kind, values in (
        ("WIDTH", "BIGINT", [500, 10]),
        ("Width", "BIGINT", [500, 10]),
        ("width", "VARCHAR", ["a", "b"]),
    ):
        (column,) = sql.columns_of(f"{name} is null or n > 0", "where")[:1]
        assert (column.lower(), sql.type_of(name, "where")) == ("width", kind)
        own = table.select([column])
        assert sql.values(name, own, "where").to_pylist() == values
    with pytest.raises(
        ConfigError, match=r"names both WIDTH and width, which SQL does not distinguish"
    ):
        sql.type_of("WIDTH > 3 and width = 'a'", "where")
    assert sql.type_of("1 < 2", "where") == "BOOLEAN"


def test_an_evaluation_ends_in_time():
    table = pa.table({"a": np.arange(1_000_000)})
    sql = Evaluator({"a": pa.int64()}, seconds=0.1)
    with pytest.raises(ConfigError, match=r"takes more than 0.1 s"):
        sql.values("length(repeat(a::VARCHAR, 20000)) > 1", table, "where")
    sql.seconds = None  # no later evaluation is interrupted in its place
    assert sql.values("a > 999998", table.slice(999_990), "where").to_pylist()[-1]


def test_a_dataset_is_read_at_a_url(folder, pairs):
    there = fsspec.filesystem("memory")
    for path in (*folder.glob("shards/*"), *folder.glob("metadata/*")):
        there.pipe_file(f"/query/{path.relative_to(folder)}", path.read_bytes())
    where = "similarity > 0.4 and domain = 'host1.example'"
    assert PairQuery("memory://query").mask(where).tolist() == pairs.mask(where).tolist()


def test_a_damaged_shard_is_named_or_null(tmp_path):
    for number in range(2):
        write(tmp_path, first=1000 * number, shard=f"s-{number}")
    sound = PairQuery(tmp_path).mask("similarity > 0.4")
    path = tmp_path / "metadata/metadata_s-0.parquet"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RunError, match=r"shard s-0 cannot be read .* see `cah verify`"):
        PairQuery(tmp_path)
    rest = PairQuery(tmp_path, damaged="skip")
    assert rest.mask("similarity > 0.4").tolist() == [False] * 15 + sound[15:].tolist()
    assert rest.unreadable == {"s-0"} and rest.read([0]) == [{"shard": "s-0", "position": 0}]


def test_a_dataset_without_a_pair_has_no_rows(tmp_path):
    with pytest.raises(ConfigError, match="holds no dataset"):
        PairQuery(tmp_path)
    write(tmp_path, 0)
    assert PairQuery(tmp_path).mask("position > 0").tolist() == []
    assert PairQuery(tmp_path).texts("shard").to_pylist() == []
    assert PairQuery(tmp_path).numbers("position").tolist() == []
