"""A shard comes to a URL whole and checked, or the run hears of it."""

import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.maintain.repair import plan_repair
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.storage.upload import check_destination, upload_pages, upload_shards
from cahlib.dataset.write.shard_writer import read_uids, recover_interrupted
from tests.world import judged as world
from tests.world import s3


@pytest.fixture
def store(monkeypatch):
    """An S3 with one bucket, and an environment that points at it."""
    with s3.client(monkeypatch, "bucket") as store:
        yield store


@pytest.fixture
def memory():
    MemoryFileSystem.store.clear()
    yield "memory://data/set"
    MemoryFileSystem.store.clear()


def no_sleep(seconds):
    pass


def test_a_shard_comes_to_s3_and_can_be_checked_there(tmp_path, store):
    manifest = world.write(tmp_path)
    check_destination("s3://bucket/data", tmp_path)
    upload_shards([manifest], tmp_path, "s3://bucket/data", sleep=no_sleep)
    assert {path.removeprefix("/bucket/data/") for path in store.objects} == {
        *manifest.files,
        "shards/s-0.json",
    }
    for path in manifest.files:
        assert store.objects[f"/bucket/data/{path}"] == (tmp_path / path).read_bytes()
    assert list(verify("s3://bucket/data")) == []
    assert list(read_manifests("s3://bucket/data")) == [manifest]
    assert list(verify(tmp_path)) == []


def test_the_manifest_comes_last(tmp_path, store):
    upload_shards([world.write(tmp_path)], tmp_path, "s3://bucket/data", sleep=no_sleep)
    puts = [path for method, path in store.log if method == "PUT"]
    assert len(puts) == 8
    assert puts[-1] == "/bucket/data/shards/s-0.json"


def test_a_store_that_may_not_be_listed_is_not_an_empty_one(tmp_path, store):
    upload_shards([world.write(tmp_path)], tmp_path, "s3://bucket/data", sleep=no_sleep)
    store.unlisted = True
    for act in (lambda: list(verify("s3://bucket/data")), lambda: plan_repair("s3://bucket/data")):
        with pytest.raises(RunError, match="s3://bucket/data cannot be reached"):
            act()
    store.unlisted = False
    assert list(verify("s3://bucket/data")) == []


def test_what_arrives_whole_is_not_fetched_back_from_s3(tmp_path, store):
    upload_shards([world.write(tmp_path)], tmp_path, "s3://bucket/data", sleep=no_sleep)
    assert [path for method, path in store.log if method == "GET" and path in store.objects] == []


def test_what_arrives_damaged_is_sent_again(tmp_path, store):
    store.spoil = 2
    pauses = []
    manifest = world.write(tmp_path)
    upload_shards([manifest], tmp_path, "s3://bucket/data", sleep=pauses.append)
    assert pauses == [1, 4]
    assert list(verify("s3://bucket/data")) == []


def test_after_the_last_try_the_run_hears_of_it_and_goes_on_later(tmp_path, store):
    manifest = world.write(tmp_path)
    store.refuse = 5
    with pytest.raises(RunError, match="s3://bucket/data"):
        upload_shards([manifest], tmp_path, "s3://bucket/data", keep_local=False, sleep=no_sleep)
    assert list(verify(tmp_path)) == []
    upload_shards([manifest], tmp_path, "s3://bucket/data", keep_local=False, sleep=no_sleep)
    assert list(verify("s3://bucket/data")) == []


def test_a_store_that_is_too_busy_is_waited_for_as_long_as_it_asks(tmp_path, store, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the driver's own tries, which take their time
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    store.slow, pauses = 6, []
    upload_shards([world.write(tmp_path)], tmp_path, "s3://bucket/data", sleep=pauses.append)
    assert pauses == [8] * 6
    assert list(verify("s3://bucket/data")) == []


def test_a_shard_that_is_there_is_not_sent_again(tmp_path, store):
    manifest = world.write(tmp_path)
    upload_shards([manifest], tmp_path, "s3://bucket/data", sleep=no_sleep)
    store.log.clear()
    upload_shards([manifest], tmp_path, "s3://bucket/data", sleep=no_sleep)
    assert "PUT" not in {method for method, _ in store.log}


def test_a_bucket_that_is_not_there_is_the_users_mistake(tmp_path, store):
    with pytest.raises(ConfigError, match="s3://bukket/data cannot be reached"):
        check_destination("s3://bukket/data", tmp_path)
    assert store.objects == {}


def test_without_the_local_copy_the_manifests_stay_and_lead_to_the_files(tmp_path, memory):
    manifest = world.write(tmp_path)
    keys = read_uids(tmp_path, manifest)
    upload_shards([manifest], tmp_path, memory, keep_local=False)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / "shards/s-0.json"]
    (moved,) = read_manifests(tmp_path)
    assert (moved.place, moved.files) == (memory, manifest.files)
    assert read_uids(tmp_path, moved) == keys
    recover_interrupted(tmp_path)
    assert list(verify(tmp_path)) == list(verify(memory)) == []
    MemoryFileSystem.store.pop("/data/set/images/s-0.tar")
    assert list(verify(tmp_path)) == list(verify(memory)) == ["images/s-0.tar is missing."]


def test_moving_again_changes_nothing(tmp_path, memory):
    upload_shards([world.write(tmp_path)], tmp_path, memory, keep_local=False)
    (moved,) = read_manifests(tmp_path)
    upload_shards([moved], tmp_path, memory, keep_local=False)
    assert list(verify(memory)) == []


def test_a_folder_may_be_a_url_too(tmp_path):
    url = (tmp_path / "there/deep").as_uri()
    check_destination(url, tmp_path / "here")
    upload_shards([world.write(tmp_path / "here")], tmp_path / "here", url)
    assert list(verify(url)) == list(verify(tmp_path / "there/deep")) == []


def test_the_datasets_own_folder_is_no_place_to_bring_it_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for url in (tmp_path.as_uri(), (tmp_path / "link").as_uri()):
        with pytest.raises(ConfigError, match="is the folder that would be uploaded"):
            check_destination(url, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_report_and_card_follow(tmp_path, memory):
    (tmp_path / "report.html").write_text("a")
    (tmp_path / "README.md").write_text("b")
    upload_pages(tmp_path, memory)
    assert MemoryFileSystem().cat_file("/data/set/README.md") == b"b"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("gopher://a/b", "gopher://a/b cannot be used: Protocol not known: gopher."),
        (
            "ftp://u:secret@127.0.0.1:1/d",
            "^output: ftp://127.0.0.1:1/d cannot be reached: .*refused",
        ),
        ("oci://a/b", "needs ocifs, which is not installed; type: pip install ocifs"),
    ],
)
def test_a_url_that_cannot_be_served_says_why(url, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        check_destination(url, tmp_path)
