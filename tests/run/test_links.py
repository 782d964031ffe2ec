"""A run reads tables of links as it reads a crawl: the same dataset from each table."""

import json
import subprocess
import sys
import tarfile

import pyarrow.parquet as pq
import pytest

from cahlib import demo
from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.core.records import Stage
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.show.summary import summary_lines
from cahlib.run.pipeline import run
from tests.world import small, tables
from tests.world.crashes import before_each_renaming

NO_JUDGE = {"no_judge": True, "model": "", "threshold": None, "safety": ""}


def job(web, folder, *paths, **settings):
    """A run of some tables that keeps every picture; no model judges."""
    own = {"shard_links": 10, "crawl": "", "links": tuple(map(str, paths)), **NO_JUDGE}
    return replace_settings(small.job("", folder, web), **own | settings)


def metadata(folder, *columns):
    """The rows of a dataset in order, by their links."""
    table = pq.read_table(folder / "metadata").to_pylist()
    return {row["URL"]: tuple(row[name] for name in ("uid", "TEXT", *columns)) for row in table}


@pytest.fixture
def web():
    with small.Pictures() as web:
        yield web


LAION = {"NSFW": lambda n: "UNLIKELY", "similarity": lambda n: n / 100}
DATACOMP = {"uid": lambda n: f"{n:032x}", "original_width": int}


def test_tables_of_the_field_give_the_same_dataset(web, tmp_path):
    tables.write(tmp_path / "laion.parquet", tables.rows(25, url="URL", text="TEXT", **LAION))
    tables.write(tmp_path / "datacomp.parquet", tables.rows(25, **DATACOMP))
    cc12m = "".join(f"{row['url']}\t{row['text']}\n" for row in tables.rows(25))
    (tmp_path / "cc12m.tsv").write_text(cc12m)
    found = []
    for name in ("laion.parquet", "datacomp.parquet", "cc12m.tsv"):
        folder = tmp_path / name.partition(".")[0]
        outcome = run(job(web, folder, tmp_path / name), scraping=small.scraping)
        assert (outcome.shards.done, outcome.shards.failed) == (3, 0)
        assert outcome.stats.entered[Stage.READ] == 25
        assert list(verify(folder)) == []
        found.append(metadata(folder, "source"))
        pages = {row["page"] for row in pq.read_table(folder / "metadata").to_pylist()}
        assert pages == {f"{name}#row={number}" for number in range(1, 26)}
    assert len(found[0]) == 25 and found[0] == found[1] == found[2]


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
    run(job(web, folder, path), scraping=small.scraping)
    assert metadata(folder) == metadata(whole)
    assert not list((folder / "run" / "links").iterdir())
    tables.write(path, tables.rows(31))
    with pytest.raises(ConfigError, match="t.csv.gz has changed since this dataset was begun"):
        run(job(web, folder, path), scraping=small.scraping)
    with pytest.raises(ConfigError, match="extra_columns: uid of t.parquet"):
        table = tables.write(tmp_path / "t.parquet", tables.rows(3, uid=str))
        run(job(web, tmp_path / "other", table, extra_columns=("all",)), scraping=small.scraping)


def test_links_alone_are_downloaded_without_a_model_and_without_torch(web, tmp_path):
    """In a process that cannot import torch; img2dataset's list of links, a line each."""
    listed = tmp_path / "urls.txt"
    listed.write_text("".join(f"{row['url']}\n" for row in tables.rows(12)))
    folder = tmp_path / "set"
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'open_clip', 'torchvision')));"
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
    assert "tables of links, found by cahlib. No model" in (folder / "README.md").read_text()
    assert "  judged by no model" in list(summary_lines(folder))
    with pytest.raises(ConfigError, match=r"no column of captions \(1\); name it with --text-col"):
        run(job(web, tmp_path / "other", listed), scraping=small.scraping)


def test_a_run_that_is_killed_anywhere_ends_with_the_same_dataset(web, tmp_path):
    path = tables.write(tmp_path / "t.csv.gz", tables.rows(6, tag=str))
    folders = [tmp_path / f"killed{number}" for number in range(3)]
    whole = tmp_path / "whole"
    for folder in (whole, *folders):
        folder.mkdir()
        wanted = job(web, folder, path, shard_links=3, extra_columns=("tag",))
        wanted.store(folder.with_suffix(".json"))
    run(Job.stored(whole.with_suffix(".json")), scraping=small.scraping)
    imports = (
        "from cahlib.core.config import Job\nfrom cahlib.run.pipeline import run\n"
        "from tests.world import small"
    )
    work = "run(Job.stored(folder.with_suffix('.json')), scraping=small.scraping)"
    assert before_each_renaming(imports, work, folders, stride=10) == ["9"] * len(folders)
    for folder in folders:
        outcome = run(Job.stored(folder.with_suffix(".json")), scraping=small.scraping)
        assert outcome.shards.done == 2 and list(verify(folder)) == []
        assert metadata(folder, "tag", "page") == metadata(whole, "tag", "page")
        told = [[each.funnel for each in read_manifests(place)] for place in (folder, whole)]
        assert told[0] == told[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"threshold": 0.3}, "threshold: no model judges with no_judge"),
        ({"no_judge": False, "text_column": "none"}, "links without captions cannot be judged"),
        ({"nsfw_open": True}, "nsfw_open: no model judges"),
        ({"tracker": "http://some:8000"}, "no_judge: a tracker's pairs are judged"),
    ],
)
def test_what_needs_a_model_is_refused_without_one(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Job.from_values({"no_judge": True, **settings})
