"""A finished dataset is never changed by accident, and what is damaged in it can be mended."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.dataset.description import forget_shards, read_description
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.storage.upload import upload_shards
from cahlib.ledger.local import LocalLedger
from cahlib.run import pipeline
from tests.world import command, small
from tests.world.damages import (
    DAMAGES,
    LOSSES,
    become_old,
    content,
    files_of,
    lose_ledger,
    lose_list,
    lose_list_and_run,
    lose_run,
)

pytestmark = pytest.mark.timeout(120)


def run(job):
    """Run a job without starting a process; datasets do not depend on who scraped."""
    return pipeline.run(job, scraping=small.scraping)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("crawl"), files=1, links=6)


@pytest.fixture(scope="module")
def made(web, crawl, tmp_path_factory):
    """The folder of a finished dataset of two shards."""
    folder = tmp_path_factory.mktemp("made") / "set"
    outcome = run(small.job(crawl, folder, web))
    assert (outcome.shards.done, outcome.faults) == (2, ())
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def job(crawl, folder, web):
    return small.job(crawl, folder, web)


@contextmanager
def rotted(monkeypatch):
    """The web has lost all of its pictures meanwhile."""
    with monkeypatch.context() as patch:
        patch.setattr(small.Pictures, "answer", lambda web, request: web._nothing)
        yield


@pytest.mark.parametrize("lose", LOSSES)
def test_nothing_that_is_committed_is_done_again(job, folder, monkeypatch, web, lose):
    before = content(folder)
    lose(folder)
    asked = len(web.requests)
    with rotted(monkeypatch):
        outcome = run(job)
    assert (outcome.shards.done, outcome.shards.total, outcome.faults) == (2, 2, ())
    after = content(folder)
    if lose is not become_old:
        assert after == before
    assert len(web.requests) == asked
    assert list(verify(folder)) == []
    assert len(pq.read_table(folder / "metadata")) == 12


def test_pages_of_a_dataset_that_lost_all_else_are_ours(job, folder):
    lose_list_and_run(folder)
    shutil.rmtree(folder / "shards")
    card = (folder / "README.md").read_bytes()
    (folder / "README.md").write_text("My own notes about Common Crawl and cahlib.")
    with pytest.raises(ConfigError, match="another README.md.*move it away"):
        run(job)
    (folder / "README.md").write_bytes(card)
    outcome = run(job)
    assert (outcome.shards.done, outcome.faults) == (2, ())
    assert list(verify(folder)) == []


OTHERS = [
    {"threshold": 0.99}, {"languages": "de"}, {"resize": 100}, {"consent": "research"},
    {"personal": "mask"}, {"forms": "images"}, {"crawl": "CC-MAIN-2024-10"},
]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
@pytest.mark.parametrize("lose", [lose_ledger, lose_run, lose_list, lose_list_and_run])
def test_other_settings_are_refused_by_name(job, folder, other, lose):
    lose(folder)
    before = content(folder)
    with pytest.raises(ConfigError, match="another|other settings") as refused:
        run(replace_settings(job, **other))
    if lose is not lose_list_and_run:
        ((name, asked),) = other.items()
        had = Job().values()[name] if name in ("languages", "forms") else None
        assert f"{name} " in str(refused.value) and f" instead of {asked}" in str(refused.value)
        assert had is None or f"{name} {','.join(had)} instead" in str(refused.value)
    assert content(folder) == before
    assert run(job).shards.done == 2  # what was refused has left nothing behind


@pytest.mark.parametrize("lose", [lose_run, lose_list_and_run])
def test_files_count_by_their_content_wherever_they_lie(job, folder, tmp_path, lose):
    """The same lists, model and safety rules on another machine."""
    shutil.rmtree(folder)
    lists = {
        "blocked_domains": "bad.example", "blocked_urls": "http://bad.example/1",
        "blocked_pairs": "0" * 32, "known_harm": "0" * 64, "harm_looks": "0" * 16,
    }  # fmt: skip

    def brought(machine):
        shutil.copytree(job.judge.model, tmp_path / machine / "model")
        for name, line in lists.items():
            (tmp_path / machine / f"{name}.txt").write_text(f"{line}\n")
        paths = {name: str(tmp_path / machine / f"{name}.txt") for name in lists}
        model = tmp_path / machine / "model"
        return replace_settings(job, **paths, model=str(model), safety=str(model / "safety.json"))

    assert run(brought("one")).shards.done == 2
    before = content(folder)
    lose(folder)
    shutil.rmtree(tmp_path / "one")
    there = brought("two")
    assert run(there).shards.done == 2
    assert content(folder) == before
    for name in lists:
        path = tmp_path / "two" / f"{name}.txt"
        with path.open("a") as grown:  # by what was found meanwhile
            grown.write(lists[name].replace("0", "1").replace("bad", "worse") + "\n")
        other = path.rename(path.with_name("other.txt"))
        with pytest.raises(ConfigError, match=rf"{name} {name}.txt instead of other.txt"):
            run(replace_settings(there, **{name: str(other)}))
        other.rename(path)
    assert run(there).shards.done == 2 and content(folder) == before
    safety = tmp_path / "two" / "model" / "safety.json"
    safety.write_text(safety.read_text() + " ")
    with pytest.raises(ConfigError, match=r"safety safety.json \(sha256 .* instead of safety.json"):
        run(there)
    assert str(tmp_path) not in (folder / "dataset.json").read_text()


def test_what_an_earlier_cahlib_made_is_taken_over_as_far_as_it_tells(job, folder, caplog):
    become_old(folder)
    with pytest.raises(ConfigError, match="another model, threshold or forms"):
        run(replace_settings(job, threshold=0.99))
    run(job)
    assert "of 2 shards, only model, threshold and forms could be compared" in caplog.text
    assert set(read_description(folder).committed) == {
        each.shard.id for each in read_manifests(folder)
    }
    caplog.clear()
    run(job)
    assert caplog.text == ""
    with pytest.raises(ConfigError, match="resize 0 instead of 100"):
        run(replace_settings(job, resize=100))


@pytest.fixture(scope="module")
def brought(crawl, web, tmp_path_factory):
    """What a machine has brought to a URL."""
    there = tmp_path_factory.mktemp("drive") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("lost"))
        assert run(small.job(crawl, there.as_uri(), web)).shards.done == 2
    return there


@pytest.fixture
def url(brought, tmp_path, monkeypatch):
    """The URL of a copy of it, for another machine."""
    shutil.copytree(brought, tmp_path / "drive" / "set")
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    return (tmp_path / "drive" / "set").as_uri()


def at(url):
    return Path(url.removeprefix("file://"))


def test_a_new_machine_goes_on_at_the_url_with_the_same_settings(crawl, url, web, monkeypatch):
    before = content(at(url))
    with rotted(monkeypatch):
        outcome = run(small.job(crawl, url, web))
    assert (outcome.shards.done, outcome.shards.total, outcome.faults) == (2, 2, ())
    assert content(at(url)) == before
    assert list(verify(url)) == []


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_other_settings_are_refused_at_the_url_too(crawl, url, web, other):
    before = content(at(url))
    with pytest.raises(ConfigError, match=f"made with other .*{next(iter(other))}"):
        run(replace_settings(small.job(crawl, url, web), **other))
    assert content(at(url)) == before
    assert run(small.job(crawl, url, web)).shards.done == 2
    assert content(at(url)) == before


def test_two_machines_at_one_url_bring_each_shard_once(crawl, url, web, tmp_path, monkeypatch):
    """The machine that was taken for lost was not: what came first stays."""
    before = content(at(url))
    third = small.job(crawl, tmp_path / "third" / "set", web)
    assert run(third).shards.done == 2
    folder = tmp_path / "third" / "set"
    upload_shards(list(read_manifests(folder)), folder, url)
    assert content(at(url)) == before and list(verify(url)) == []


def assert_mended(job, place, capsys, table):
    """A run leaves the damage and tells of it; after a repair it does the shard again."""
    before = content(table)
    outcome = run(job)
    (sentence,) = outcome.faults
    assert f"`cah repair {place}` removes" in sentence
    assert outcome.shards.damaged == 1 and content(table) == before
    found = command.said(capsys, "verify", place)
    assert found.returncode == 1 and f"cah repair {place}`" in found.stderr
    assert command.said(capsys, "repair", place).returncode == 0
    assert list(verify(place)) == []
    outcome = run(job)
    assert (outcome.shards.done, outcome.shards.total, outcome.faults) == (2, 2, ())
    assert list(verify(place)) == []
    assert len(pq.read_table(table / "metadata")) == 12


@pytest.mark.parametrize("keep", [lambda folder: None, lose_run], ids=["run kept", "run lost"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_left_told_of_and_mended(job, folder, capsys, damage, keep):
    damage(folder)
    keep(folder)
    assert_mended(job, folder, capsys, folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_at_a_url_is_left_told_of_and_mended(crawl, url, web, capsys, damage):
    assert run(small.job(crawl, url, web)).faults == ()
    damage(at(url))
    assert_mended(small.job(crawl, url, web), url, capsys, at(url))
    assert list(verify("set")) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_whole_here_is_brought_to_the_url_again(crawl, web, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    there = (tmp_path / "drive" / "set").as_uri()
    job = small.job(crawl, there, web)
    run(job)
    before = content(at(there))
    damage(at(there))
    with rotted(monkeypatch):
        assert run(job).faults == ()
    assert content(at(there)) == before


def test_the_run_folder_without_its_dataset_is_no_dataset(job, folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder / "run", other / "run")
    moved = replace_settings(job, output=str(other))
    outcome = run(moved)
    assert outcome.shards.damaged == 2 and "2 damaged shards" in outcome.faults[0]
    assert not (other / "shards").exists()
    assert command.said(capsys, "repair", other).returncode == 0
    assert run(moved).shards.done == 2 and list(verify(other)) == []


def test_a_dataset_that_was_moved_is_the_same(job, folder, tmp_path):
    before = content(folder)
    folder.rename(tmp_path / "p%20q?1#[a]*")
    moved = replace_settings(job, output=str(tmp_path / "p%20q?1#[a]*"))
    assert run(moved).shards.done == 2
    assert content(moved.output.folder) == before and list(verify(moved.output.folder)) == []


def test_shards_of_another_dataset_that_were_mixed_in_are_refused(
    job, folder, crawl, web, tmp_path
):
    more = small.write(tmp_path / "more", files=2, links=4)
    run(replace_settings(small.job(more, tmp_path / "other", web), resize=100))
    shutil.copytree(tmp_path / "other", folder, dirs_exist_ok=True, ignore=_tops)
    with pytest.raises(ConfigError, match="was made with other settings than this job's"):
        run(job)
    assert any("other settings than those in dataset.json" in each for each in verify(folder))


def _tops(folder, names):
    return [name for name in names if name in ("run", "dataset.json")]


def test_a_dataset_that_is_read_only_can_be_verified(folder, capsys):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert command.said(capsys, "verify", folder).returncode == 0
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)


@pytest.fixture(scope="module")
def other(web, tmp_path_factory):
    """Another crawl's dataset with one shard to do, and the parcel of another resize."""
    folder = tmp_path_factory.mktemp("other") / "set"
    crawl = small.write(tmp_path_factory.mktemp("crawl"), files=2, links=4)
    outcome = run(replace_settings(small.job(crawl, folder, web), resize=100))
    assert outcome.shards.done == 4
    ledger = LocalLedger(folder / "run/ledger.sqlite")
    shard = ledger.in_state("done")[-1]
    ledger.remove(shard.id)
    ledger.add([shard])
    ledger.close()
    (folder / "run/parcels").mkdir(exist_ok=True)
    (folder / "run/parcels/kept.txt").write_text("parcels")
    return folder


@pytest.mark.parametrize("name", ["run", "run/ledger.sqlite"])
def test_the_run_of_another_dataset_brings_nothing_into_this_one(
    job, folder, other, caplog, tmp_path, name
):
    for manifest in list(read_manifests(folder))[:1]:  # there is something to do, too
        for path in files_of(folder):
            path.unlink()
        forget_shards(folder, [manifest.shard.id])
    if name == "run":
        shutil.rmtree(folder / "run")
        shutil.copytree(other / "run", folder / "run")
    else:
        shutil.copy(other / name, folder / name)
    outcome = run(job)
    assert (outcome.shards.done, outcome.shards.total, outcome.faults) == (2, 2, ())
    assert len(pq.read_table(folder / "metadata")) == 12 and list(verify(folder)) == []
    assert "is that of a job with other settings" in caplog.text
    (aside,) = (folder / "run").glob("another-*")
    assert (aside / "ledger.sqlite").read_bytes() == (other / "run/ledger.sqlite").read_bytes()
    assert (aside / "parcels/kept.txt").exists() == (name == "run")
    caplog.clear()
    assert run(job).shards.total == 2 and caplog.text == ""


def test_two_folders_with_strange_names_are_two_datasets(crawl, web, tmp_path):
    for name in ("ds?1", "ds?2"):
        assert run(small.job(crawl, tmp_path / name, web)).shards.done == 2
        assert list(verify(tmp_path / name)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"ds?1", "ds?2"}
