"""A run reads tables of links as it reads a crawl: the same dataset from each table."""

import json
import subprocess
import sys
import tarfile
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest

from cahlib import demo
from cahlib.commands import cli
from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import EXTRAS, ConfigError
from cahlib.core.records import Stage
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.show.summary import summary_lines
from cahlib.demo.web import Answer, Web
from cahlib.run.pipeline import run
from cahlib.tracker.app import create_app
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world import small, tables
from tests.world.crashes import at_random
from tests.world.trackers import serving

NO_JUDGE = {"no_judge": True, "model": "", "threshold": None, "safety": ""}


def job(web, folder, *paths, **settings):
    """A run of some tables that keeps every picture; no model judges."""
    own = {"shard_links": 10, "crawl": "", "links": tuple(map(str, paths)), **NO_JUDGE}
    return replace_settings(small.job("", folder, web), **own | settings)


def metadata(folder, *columns):
    """The rows of a dataset in order, by their links."""
    table = pq.read_table(folder / "metadata").to_pylist()
    return {row["URL"]: tuple(row[name] for name in ("uid", "TEXT", *columns)) for row in table}


def content(folder):
    """All metadata of a dataset by links, and what became of each shard's rows, and of each row."""
    told = {each.shard.id: each.funnel for each in read_manifests(folder)}
    rows = pq.read_table(folder / "metadata").to_pylist()
    outcomes = {
        path.name: pq.read_table(path).drop_columns("ms").to_pylist()
        for path in (folder / "outcomes").iterdir()
    }
    return {row["URL"]: row for row in rows}, told, outcomes


@pytest.fixture
def web():
    with small.Pictures() as web:
        yield web


#: Columns that say how a pair was judged.
JUDGED = {"similarity", "NSFW", "nsfw_score", "model", "row"}


def test_tables_of_the_field_give_the_same_dataset_here_and_through_a_tracker(web, tmp_path):
    paths, found = tables.of_the_field(tmp_path, 25, apart=True), {}
    for path in paths:
        outcome = run(job(web, folder := tmp_path / path.stem, path), scraping=small.scraping)
        assert (outcome.shards.done, outcome.shards.failed) == (3, 0)
        assert outcome.stats.entered[Stage.READ] == 25
        assert list(verify(folder)) == []
        rows, *_ = content(folder)
        pages = {row["page"].partition("#")[2] for row in rows.values()}
        assert pages == {f"row={number}" for number in range(1, 26)}
        found |= rows
    captions = {url: row["TEXT"] for url, row in found.items()}
    assert captions == {row["url"]: row["text"] for row in tables.rows(75)}
    files = {f"/{path.name}": Answer(body=path.read_bytes()) for path in paths}
    with Web(files) as there, tracker(tmp_path, f"http://{there.address}", paths) as url:
        place = {"tracker": url, "nickname": "ann", "links": ()}
        judged = {"model": str(demo.MODEL), "threshold": -1, "safety": str(demo.SAFETY)}
        run(job(web, tmp_path / "ann", no_judge=False, **judged | place), scraping=small.scraping)
    assert list(verify(tmp_path / "ann")) == []
    assert plain(content(tmp_path / "ann")[0]) == plain(found)


@contextmanager
def tracker(folder, place, paths):
    """A tracker to which tables at a URL have been added, as `cah tracker add` does."""
    url = f"sqlite:///{folder / 'tracker.sqlite'}"
    for path in paths:
        line = ["tracker", "add", "--database", url, "--shard-links", "10", "--links"]
        assert cli.main([*line, f"{place}/{path.name}"]) == 0
    limits = RequestLimits(address=0, worker=0, newcomers=0)
    app = create_app(TrackerSettings(database=url, rules=TrackerRules(), limits=limits))
    with serving(app) as address:
        yield address


def plain(rows):
    """Rows without how they were judged, and without where the table was."""
    return {
        url: {name: row[name] for name in row if name not in JUDGED and name[:5] != "clip_"}
        | {"page": row["page"].rpartition("/")[2]}
        for url, row in rows.items()
    }


def test_columns_are_carried_along_into_every_form_and_stay(web, tmp_path):
    more = {"width": int, "score": lambda n: n / 8 if n % 3 else None, "tag": lambda n: f"t{n}"}
    path = tables.write(tmp_path / "some.jsonl.zst", tables.rows(12, **more))
    folder = tmp_path / "set"
    judged = dict(model=str(demo.MODEL), threshold=-1, safety=str(demo.SAFETY), no_judge=False)
    wanted = job(web, folder, path, extra_columns=("all",), **judged)
    run(wanted, scraping=small.scraping)
    schema = pq.read_table(folder / "metadata").schema
    assert [str(schema.field(name).type) for name in more] == ["int64", "double", "string"]
    made = {row["url"]: (row["width"], row["score"], row["tag"]) for row in tables.rows(12, **more)}
    assert {url: cells[2:] for url, cells in metadata(folder, *more).items()} == made
    gone = next(iter(made))
    lists = tmp_path / "urls.txt"
    lists.write_text(gone)
    assert [change.left for change in purge(folder, PurgeLists(urls=(str(lists),)))] == [9]
    del made[gone]
    assert {url: cells[2:] for url, cells in metadata(folder, *more).items()} == made
    assert list(verify(folder)) == []
    (tar, *_) = sorted(folder.glob("images/*.tar"))
    with tarfile.open(tar) as file:
        samples = [json.load(file.extractfile(each)) for each in file if each.name[-4:] == "json"]
    assert {each["URL"]: each["tag"] for each in samples}.items() <= {
        url: cells[2] for url, cells in made.items()
    }.items()


def test_a_run_of_tables_goes_on_and_refuses_what_changed(web, tmp_path):
    path = tables.write(tmp_path / "t.csv.gz", tables.rows(30))
    whole, folder = tmp_path / "whole", tmp_path / "set"
    run(job(web, whole, path), scraping=small.scraping)
    first = run(job(web, folder, path, shards=1), scraping=small.scraping)
    assert first.shards.done == 1
    (folder / "run" / "links" / "t-0-0.jsonl").write_text("of a launch that was killed")
    (folder / "dataset.json").unlink()  # one that was killed before it wrote it
    run(job(web, folder, path), scraping=small.scraping)
    assert content(folder) == content(whole)
    assert not list((folder / "run" / "links").iterdir())
    tables.write(path, tables.rows(31))
    with pytest.raises(ConfigError, match="t.csv.gz has changed since this dataset was begun"):
        run(job(web, folder, path), scraping=small.scraping)
    with pytest.raises(ConfigError, match="extra_columns: uid of t.parquet"):
        table = tables.write(tmp_path / "t.parquet", tables.rows(3, uid=str))
        run(job(web, tmp_path / "other", table, extra_columns=("all",)), scraping=small.scraping)


def test_links_alone_are_downloaded_without_a_model_and_without_torch(web, tmp_path):
    """In a process that cannot import what `[gpu]` adds; img2dataset's list of links."""
    listed = tmp_path / "urls.txt"
    listed.write_text("".join(f"{row['url']}\n" for row in tables.rows(12)))
    folder = tmp_path / "set"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS['gpu'] - EXTRAS['data']}));"
        "from pathlib import Path; from cahlib.core.config import Job;"
        "from cahlib.run.pipeline import run;"
        "from tests.world import small;"
        "run(Job.stored(Path(sys.argv[1])), scraping=small.scraping)"
    )
    wanted = job(web, folder, listed, text_column="none")
    wanted.store(tmp_path / "job.json")
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "job.json")], check=True)
    assert list(verify(folder)) == []
    rows = pq.read_table(folder / "metadata").to_pylist()
    assert {row["URL"] for row in rows} == {row["url"] for row in tables.rows(12)}
    assert {(row["TEXT"], row["NSFW"], row["similarity"], row["model"]) for row in rows} == {
        ("", "", None, "none")
    }
    assert not (folder / "img_emb").exists() or not list((folder / "img_emb").iterdir())
    assert "judged by no model" in (folder / "report.html").read_text()
    card = (folder / "README.md").read_text()
    assert "tables of links, found by cahlib. No model" in card and "commoncrawl" not in card
    assert "  judged by no model" in list(summary_lines(folder))
    with pytest.raises(ConfigError, match=r"no column of captions \(1\); name it with --text-col"):
        run(job(web, tmp_path / "other", listed), scraping=small.scraping)


def test_a_run_that_is_killed_anywhere_ends_with_the_same_dataset(web, tmp_path):
    """By SIGKILL, at ten random steps; each run goes on from what the killed one left."""
    path = tables.write(tmp_path / "t.csv.gz", tables.rows(6, tag=str))
    whole, *folders = (tmp_path / f"set{number}" for number in range(11))
    for folder in (whole, *folders):
        folder.mkdir()
        wanted = job(web, folder, path, shard_links=3, extra_columns=("tag",))
        wanted.store(folder.with_suffix(".json"))
    imports = (
        "import pandas, pyarrow.compute\n"  # each fork would import them for itself
        "from cahlib.core.config import Job\nfrom cahlib.run.pipeline import run\n"
        "from tests.world import small"
    )
    work = "run(Job.stored(folder.with_suffix('.json')), scraping=small.scraping)"
    assert at_random(imports, work, (whole, *folders)) == ["0"] + ["-9"] * len(folders)
    for folder in folders:
        outcome = run(Job.stored(folder.with_suffix(".json")), scraping=small.scraping)
        assert outcome.shards.done == 2 and list(verify(folder)) == []
        assert content(folder) == content(whole)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"threshold": 0.3}, "threshold: no_judge uses no model"),
        ({"no_judge": False, "text_column": "none"}, "links without captions cannot be judged"),
        ({"nsfw_open": True}, "nsfw_open: no_judge uses no model"),
        ({"tracker": "http://some:8000"}, "no_judge: a tracker's pairs are scored"),
    ],
)
def test_what_needs_a_model_is_refused_without_one(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Job.from_values({"no_judge": True, **settings})


def test_what_caption_rules_drop_is_not_fetched_and_rules_hold_for_a_dataset(web, tmp_path):
    table = tmp_path / "links.csv"
    texts = ["A red fox", "A blue fox", "A red cow", "A red fox and a dog"]
    lines = [f"http://example.com/{n}.jpg,{text}" for n, text in enumerate(texts)]
    table.write_text("\n".join(["url,caption", *lines]))
    wanted, unwanted = tmp_path / "wanted", tmp_path / "unwanted"
    wanted.write_text("fox\ncat\n")
    unwanted.write_text("dog\n")
    rules = {
        "caption_words": (str(wanted),), "caption_not": (str(unwanted),), "caption_regex": "^A red",
        "languages": ("all",),
    }  # fmt: skip
    folder = tmp_path / "dataset"
    ours = job(web, folder, table, **rules)
    outcome = run(ours, scraping=small.scraping)
    lost = {reason.value: n for reason, n in outcome.stats.dropped.items() if n}
    assert lost == {"no_wanted_word": 1, "unwanted_word": 1, "other_pattern": 1}
    assert {request.url.rpartition("/")[2] for request in web.requests} & {
        "1.jpg",
        "2.jpg",
    } == set()
    assert list(verify(folder)) == []
    unwanted.write_text("dog\nwolf\n")
    run(ours, scraping=small.scraping)  # it may grow
    wanted.write_text("fox\n")
    with pytest.raises(ConfigError, match="caption_words"):
        run(ours, scraping=small.scraping)
    with pytest.raises(ConfigError, match="not a valid pattern"):
        run(replace_settings(ours, caption_regex="("), scraping=small.scraping)
