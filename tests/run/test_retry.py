"""Failed links are fetched again: the dataset becomes that of a web that never failed."""

import json
import re
import shutil
import threading
from hashlib import md5
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cahlib.core.config import Crawl, Job, replace_settings
from cahlib.core.errors import MissingSetting, RunError, ShardError
from cahlib.core.records import DropReason, Shard, Stage
from cahlib.core.retry_shards import Retry, parse_attempt
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.tables.listing import estimate_rows
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.outcomes import KEPT
from cahlib.dataset.show.summary import summarize
from cahlib.guide import read_page
from cahlib.run import pipeline
from cahlib.run.dataset_job import dataset_job
from cahlib.run.pipeline import run
from cahlib.run.retry_plan import failed_links, plan_retry
from cahlib.run.scrapers import open_scrapers
from tests.engine.test_cluster import within
from tests.world import small, tables
from tests.world.command import json_keys, said
from tests.world.crashes import before_each_renaming
from tests.world.pictures import picture
from tests.world.retries import (
    LATER,
    TEMPORARY,
    Flaky,
    content,
    job,
    named,
    outcome_rows,
    outcomes,
    retry,
    rows,
    without_outcomes,
)


@pytest.fixture(scope="module")
def web():
    with Flaky() as web:
        yield web


@pytest.fixture(scope="module")
def made(web, tmp_path_factory):
    """Folders of the datasets of a web that never failed, and of one that did."""
    folder = tmp_path_factory.mktemp("made")
    small.write(folder / "crawl", files=1, links=25)
    for name, web.failing in (("whole", 0), ("failed", 30)):
        run(job(folder, folder / name, web), scraping=small.scraping)
    return folder


@pytest.fixture
def folder(made, tmp_path, web):
    """A copy of the dataset with failed links; the web fails less now."""
    web.failing = 5
    return shutil.copytree(made / "failed", tmp_path / "set")


def test_a_retry_makes_the_dataset_of_a_web_that_never_failed(made, folder, web):
    before, first = content(folder), outcomes(folder)
    whole = rows(made / "whole")
    missing = whole.keys() - rows(folder).keys()
    assert 5 < len(missing) < 25
    result = retry(folder)
    still = {uid for uid in missing if web.is_failing(whole[uid]["URL"])}
    assert (result.links, result.run.faults, result.run.errors) == (len(missing), (), ())
    assert still and result.stats.left[Stage.JUDGE] == len(missing) - len(still)
    counts = dict(summarize(folder).stage_counts())
    assert counts["links"] == counts["candidates"] == len(whole)
    assert result.run.stats.entered[Stage.FETCH] == len(whole) + len(missing)
    now = rows(folder)
    assert now.items() == {uid: row for uid, row in whole.items() if uid not in still}.items()
    assert content(folder).items() >= before.items()
    assert list(verify(folder)) == []
    after = outcomes(folder)
    for uid, (reason,) in first.items():
        if uid not in missing:
            assert after[uid] == [reason]
        elif uid in still:
            assert after[uid] == [reason, reason]
        else:
            assert after[uid] == [reason, KEPT]


def test_each_retry_takes_what_failed_last_and_ends_when_nothing_does(made, folder, web):
    whole = rows(made / "whole")
    retry(folder)
    left = len(whole) - len(rows(folder))
    web.failing = 0
    shutil.rmtree(folder / "run")
    assert retry(folder, before=0).links == 0
    assert retry(folder, ["tls"]).links == 0
    assert retry(folder).links == left
    assert rows(folder) == whole
    assert {parse_attempt(each.shard.id)[1] for each in read_manifests(folder)} == {0, 1, 2}
    last = content(folder)
    assert retry(folder).links == 0
    assert content(folder) == last and list(verify(folder)) == []


def test_a_copy_without_its_run_and_its_crawl_is_retried_and_run_on(made, folder, web):
    shutil.rmtree(folder / "run")
    web.failing = 0
    crawl = dataset_job(str(folder), {}, {"CAH_CRAWL": "other"}).crawl.crawl
    assert crawl.endswith("/*.warc.wat.gz") and not Path(crawl).parent.exists()
    retry(folder)
    assert rows(folder) == rows(made / "whole")
    before = content(folder)
    again = run(job(made, folder, web), scraping=small.scraping)
    assert (again.shards.done, again.shards.total) == (2, 2)
    assert content(folder) == before


def test_a_retry_that_is_killed_anywhere_ends_with_the_same_dataset(made, web, tmp_path):
    web.failing = 0
    folders = [tmp_path / f"killed{number}" for number in range(3)]
    whole = tmp_path / "whole"
    for folder in (whole, *folders):
        shutil.copytree(made / "failed", folder)
    retry(whole)
    imports = "from tests.world.retries import retry"
    ended = before_each_renaming(imports, "retry(folder)", folders, stride=10)
    assert ended == ["9"] * len(folders)
    for folder in folders:
        retry(folder)
        assert rows(folder) == rows(whole) and outcomes(folder) == outcomes(whole)
        assert list(verify(folder)) == []


def test_a_retry_that_was_interrupted_goes_on_with_what_is_left(made, folder, web, monkeypatch):
    left = [pipeline.write_shard]

    def write_one(*given, **how):
        if not left:
            raise RunError("No space is left.")
        return left.pop()(*given, **how)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="No space"):
        patch.setattr(pipeline, "write_shard", write_one)
        retry(folder)
    first = sum(len(reasons) > 1 for reasons in outcomes(folder).values())
    assert retry(folder, ["tls"]).links == 0  # another one takes nothing from it
    rest = retry(folder)
    assert rest.shards == 1
    tried = [reasons for reasons in outcomes(folder).values() if len(reasons) > 1]
    assert {len(reasons) for reasons in tried} == {2} and len(tried) == first + rest.links
    assert 0 < retry(folder).links < 10


def test_a_run_that_is_not_finished_is_left_as_it_is(made, web, tmp_path):
    web.failing, folder = 30, tmp_path / "set"
    run(job(made, folder, web, shards=1), scraping=small.scraping)
    stop = threading.Event()
    stop.set()
    run(job(made, folder, web), stop=stop, scraping=small.scraping)  # lists the other shard
    web.failing = 0
    stopped = retry(folder, stop=stop)
    assert stopped.run.stopped and stopped.shards == 0
    finished = run(job(made, folder, web), scraping=small.scraping)
    assert finished.shards.done == 2  # those of the crawl
    assert rows(folder).keys() < rows(made / "whole").keys()
    assert retry(folder).shards == 1
    assert rows(folder) == rows(made / "whole")


def test_what_was_purged_or_is_blocked_by_now_is_not_fetched_again(made, folder, web, tmp_path):
    web.failing = 0
    missing = [row["URL"] for uid, row in rows(made / "whole").items() if uid not in rows(folder)]
    (tmp_path / "gone").write_text(missing[0])
    list(purge(folder, PurgeLists(urls=(str(tmp_path / "gone"),))))
    own = dataset_job(str(folder), {}, {})
    for urls, count in (((), 1), (missing[1:3], 3)):
        plan = plan_retry(own, TEMPORARY, before=LATER, blocked=Blocklists(urls=urls))
        assert plan.links.total() == len(missing) - count


def test_why_tells_retries_from_candidates_and_that_links_were_purged(folder, tmp_path, capsys):
    retry(folder)
    every = outcomes(folder)
    once, again = len(every), sum(len(each) - 1 for each in every.values())
    out = said(capsys, "why", str(folder), "example.com").stdout
    assert out.startswith(f"{once} candidates of example.com, and {again} retries:\n")
    failed = next(row for row in outcome_rows(folder) if row["reason"] == DropReason.HTTP_5XX.value)
    (tmp_path / "gone").write_text(failed["url"])
    attempts = sum(row["url"] == failed["url"] for row in outcome_rows(folder))
    list(purge(folder, PurgeLists(urls=(str(tmp_path / "gone"),))))
    told = json.loads(said(capsys, "why", str(folder), failed["url"], "--json").stdout)
    assert (told["found"], told["erased"]) == (0, attempts)


def test_a_table_s_columns_are_kept(web, tmp_path):
    table = tables.write(tmp_path / "t.csv", tables.rows(40, tag=lambda n: f"t{n}"))
    wanted = {"crawl": "", "links": (str(table),), "extra_columns": ("tag",), "shard_links": 20}
    for name, web.failing in (("whole", 0), ("set", 40)):
        run(job(tmp_path, tmp_path / name, web, **wanted), scraping=small.scraping)
    table.unlink()
    web.failing = 0
    shutil.rmtree(tmp_path / "set" / "run")
    assert retry(tmp_path / "set").shards == 2
    assert rows(tmp_path / "set") == rows(tmp_path / "whole")
    assert list(verify(tmp_path / "set")) == []
    summary = summarize(tmp_path / "set")
    assert (summary.source, summary.extras) == ("tables of links", (("text", "tag"),))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere holds no dataset"),
        (["set", "--only", "opted_out,dns"], "only: opted_out is final, so such links are not fe"),
        (["set", "--only", "known_harm"], "only: known_harm is final"),
        (["set", "--only", "not_an_image"], "only: not_an_image is final"),
        (["set", "--only", "purged"], "only: purged is final"),
        (["set", "--only", "http_503"], "only: 'http_503' is not known; choose from dns, "),
        (["set", "--only", ","], "only: name reasons, separated by commas: dns, "),
        (["set", "--older-than", "7 days"], "older-than: '7 days' is not an age; give a number w"),
        (["set", "--tracker", "http://some:80"], "retry has no option --tracker"),
        (["set", "--crawl", "other"], "retry has no option --crawl"),
        (["set", "--contact", "nobody"], "contact: 'nobody' is neither a web page"),
    ],
)
def test_what_cannot_be_retried_is_refused_in_a_sentence(
    made, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").symlink_to(made / "failed")
    ran = said(capsys, "retry", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert sentence in ran.stderr and ran.stderr.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()


def test_a_url_that_cannot_be_reached_is_named(capsys):
    ran = said(capsys, "retry", "http://127.0.0.1:1/d")
    assert ran.returncode == 1 and "http://127.0.0.1:1/d cannot be reached" in ran.stderr


def test_the_command_tells_what_it_fetches_and_what_came_of_it(folder, made, monkeypatch, capsys):
    def here(job, *, stop, swarm_status, **_):
        return small.scraping(job, stop=stop, swarm_status=swarm_status)

    monkeypatch.setattr("cahlib.run.scrapers.open_scrapers", here)
    before = len(rows(folder))
    ran = said(capsys, "retry", folder, "--only", "http_5xx", "--json")
    (links,) = re.findall(r"^(\d+) links of 1 shard will be fetched again: \1 http_5xx", ran.stderr)
    added = len(rows(folder)) - before
    assert sorted(json.loads(ran.stdout)) == json_keys("retry")
    assert ran.returncode == 0 and json.loads(ran.stdout) == {
        "dataset": str(folder), "shards": 1, "links": int(links), "images": added, "pairs": added,
        "failed": {"http_5xx": int(links) - added}, "stopped": False,
    }  # fmt: skip
    ran = said(capsys, "retry", folder, "--older-than", "1h")
    assert "No link failed for these reasons; there is nothing to fetch again." in ran.stderr
    assert ran.stdout == f"0 links fetched again: 0 images arrived, 0 pairs added: {folder}\n"


def test_another_machine_gets_the_failed_links_and_nothing_else(made, folder, web):
    """A Dask cluster, on loopback: its worker has neither the crawl nor the dataset."""
    web.failing = 0
    shutil.rmtree(folder / "run")
    with within() as cluster:
        retry(folder, scraping=open_scrapers, engine=cluster.scheduler_address)
    assert rows(folder) == rows(made / "whole")
    assert list(verify(folder)) == []


def test_shards_without_outcomes_and_damaged_ones_are_left_out(folder, capsys, monkeypatch):
    monkeypatch.setenv("CAH_CONTACT", "tests@example.org")
    first, second = without_outcomes(shutil.copytree(folder, folder.with_name("old")))
    ran = said(capsys, "retry", folder.with_name("old"))
    assert ran.returncode == 2 and "old has no outcomes, so it is not known" in ran.stderr
    own = dataset_job(str(folder), {}, {})
    whole = plan_retry(own, TEMPORARY, before=LATER, blocked=Blocklists())
    assert len(whole.shards) == 2 and not whole.notes
    damaged = folder / part_path("outcomes", first)
    data = damaged.read_bytes()
    for spoiled in (data[:-1], data[:40] + bytes(len(data) - 40)):
        damaged.write_bytes(spoiled)
        plan = plan_retry(own, TEMPORARY, before=LATER, blocked=Blocklists())
        assert [each.id for each in plan.shards] == [f"{second}-retry1"]
        assert plan.notes[0].startswith(f"Links of 1 damaged shard are left out (first: {first}); ")
    next(without_outcomes(folder))
    plan = plan_retry(own, TEMPORARY, before=LATER, blocked=Blocklists())
    assert [each.id for each in plan.shards] == [f"{second}-retry1"]
    assert plan.notes == ("Links of 1 shard without outcomes are left out.",)


@pytest.mark.parametrize(
    "change", [{"url": "http://elsewhere.example.com/a.jpg"}, {"extra": "{"}, {"text": None}]
)
def test_outcomes_that_somebody_wrote_are_not_fetched(folder, change):
    (first, *_) = [each.shard.id for each in read_manifests(folder)]
    path = folder / part_path("outcomes", first)
    table = pq.read_table(path)
    forged = [row | change for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(forged, schema=table.schema), path)
    retry = Retry(
        first=Shard(id=first, url="some.wat.gz", half=0), number=1, reasons=TEMPORARY, attempts=(0,)
    )
    with pytest.raises(ShardError, match=f"The outcomes of {first} are damaged"):
        failed_links(folder, retry, Blocklists())


def test_links_of_images_that_must_go_leave_no_trace_in_outcomes(web, tmp_path, monkeypatch):
    """One of them is harmful by a list that has grown, one is purged by its hash later."""
    small.write(tmp_path / "crawl", files=1, links=12)
    folder, lists = tmp_path / "set", [tmp_path / name for name in ("today/harm", "purged")]
    (tmp_path / "harm").write_text(md5(b"another").hexdigest())
    (tmp_path / "today").mkdir()
    web.failing, harm = 60, {"known_harm": (str(tmp_path / "harm"),)}
    run(job(tmp_path, folder, web, **harm), scraping=small.scraping)
    failed = {row["url"] for row in outcome_rows(folder) if row["reason"] != KEPT}
    pictures = {url: picture(size=(170 + n, 120)) for n, url in enumerate(sorted(failed)[:2])}
    for path, data in zip(lists, pictures.values(), strict=True):
        path.write_text(md5(data).hexdigest())
    web.failing = 0
    monkeypatch.setattr(web, "pictures", pictures)
    (tmp_path / "set" / "run" / "job.json").unlink()
    with pytest.raises(MissingSetting, match="known_harm: the dataset was made with harm, whose"):
        retry(folder)
    result = retry(folder, known_harm=str(lists[0]))
    harmful, purged = pictures
    assert result.failed() == {DropReason.KNOWN_HARM: 1} and list(verify(folder)) == []
    assert harmful not in named(folder) and purged in named(folder)
    list(purge(folder, PurgeLists(hashes=(str(lists[1]),))))
    assert named(folder).isdisjoint(pictures) and list(verify(folder)) == []
    assert retry(folder, known_harm=str(lists[0])).links == 0


def test_shards_of_a_tracker_are_not_retried(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CAH_CONTACT", "tests@example.org")
    for name in ("theirs", "ours"):
        monkeypatch.setenv("CAH_TRACKER", "http://some:80")  # of another dataset
        tracker = "http://some:80" if name == "theirs" else ""
        told = replace_settings(Job(), output=str(tmp_path / name), tracker=tracker)
        told.store(tmp_path / name / "run" / "job.json")
    ran = said(capsys, "retry", tmp_path / "theirs")
    assert ran.returncode == 2 and "assigned by a tracker" in ran.stderr
    ran = said(capsys, "retry", tmp_path / "ours")
    assert ran.returncode == 2 and "ours holds no dataset" in ran.stderr


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_dataset_at_a_url_is_retried_there(made, web, tmp_path, monkeypatch, is_elsewhere):
    """On the machine that made it, which kept no copy, or on another one."""
    url = (tmp_path / "there" / "set").as_uri()
    monkeypatch.chdir(tmp_path)
    web.failing = 30
    run(job(made, url, web, keep_local=False), scraping=small.scraping)
    if is_elsewhere:
        shutil.rmtree(tmp_path / "set")
    web.failing = 0
    assert retry(url, keep_local="no").shards == 2
    assert rows(tmp_path / "there" / "set") == rows(made / "whole")
    assert list(verify(url)) == []
    assert not list(tmp_path.glob("set/outcomes/*")) and retry(url).links == 0


def test_failed_links_of_a_tracker_s_dataset_become_a_table(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-dataset").symlink_to(made / "failed")
    told = pq.read_table("my-dataset/outcomes").to_pylist()
    failed = [(each["url"], each["text"]) for each in told if each["reason"] == "http_5xx"]
    (snippet,) = re.findall(
        r"```python\n(import duckdb\n.*?)```", read_page("maintenance"), re.DOTALL
    )
    exec(snippet)
    assert failed and estimate_rows(Crawl(links=("failed.parquet",))) == [len(failed)]
    found = pq.read_table("failed.parquet").to_pylist()
    assert sorted((each["url"], each["text"]) for each in found) == sorted(failed)
