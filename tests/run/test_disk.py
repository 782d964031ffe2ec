"""A full disk is one sentence at any moment, and costs nothing that is done."""

import os
import re
import resource
import subprocess
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest

from cahlib.core.config import replace_settings
from cahlib.core.errors import RunError
from cahlib.dataset.maintain.verify import verify
from cahlib.run.disk_space import describe_disk_space
from cahlib.run.pipeline import run
from tests.world import judged, small

#: Bytes with which all goes well.
ROOM = 8 << 20

#: KiB with which something fails, at each size something else: the ledger with what SQLite
#: keeps beside it, the parcels, the tars, the manifests, the ledger's log as it grows.
SIZES = (0, 4, 24, 80, 112, 160, 320, 640, 704, 768)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("crawl"), files=1, links=12)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, web, crawl):
    folder = tmp_path_factory.mktemp("roomy") / "dataset"
    run(job_of(crawl, folder, web), scraping=small.scraping)
    return pairs(folder)


def job_of(crawl, folder, web):
    """A run that loses no image to a machine that is busy."""
    patient = dict.fromkeys(("connect_timeout", "read_timeout", "total_timeout"), 60)
    return replace_settings(small.job(crawl, folder, web), **patient)


def pairs(folder):
    return sorted(pq.read_table(folder / "metadata", columns=["uid"])["uid"].to_pylist())


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, and what sets its size in bytes."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")

    def resize(size, *options):
        line = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "tmpfs"]
        return subprocess.run([*line, tmp_path], capture_output=True).returncode == 0

    if not resize(ROOM):
        pytest.skip("this machine does not let root mount")
    yield tmp_path, lambda size: resize(size, "remount")
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@contextmanager
def limited(size):
    """No file may become larger than this, as under `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def ends_with_a_sentence(job):
    """Whether the run ended for lack of room; else it was done."""
    try:
        outcome = run(job, scraping=small.scraping)
    except RunError as error:
        said = str(error)
        assert said.startswith("No space is left for ") and said.count("No space") == 1
        return True
    assert not outcome.errors and outcome.shards.done == 2
    return False


def goes_on(job, expected):
    """With room again, the same run comes to the same end."""
    outcome = run(job, scraping=small.scraping)
    assert (outcome.shards.done, outcome.errors) == (2, ())
    assert pairs(job.output.folder) == expected
    assert list(verify(job.output.folder)) == []
    assert not list(job.output.folder.rglob("*.part"))


@pytest.mark.parametrize("size", SIZES)
def test_a_disk_of_any_size_is_full_in_one_sentence(disk, web, crawl, expected, size):
    folder, resize = disk
    (folder / "other").write_bytes(bytes(4096))  # tmpfs takes a size of 0 for no limit
    assert resize((4 + size) << 10)
    job = job_of(crawl, folder / "dataset", web)
    assert ends_with_a_sentence(job)
    assert resize(ROOM)
    goes_on(job, expected)


def test_a_full_disk_at_a_url_is_no_mistake_of_the_command(disk, web, crawl, tmp_path):
    folder, resize = disk
    (folder / "other").write_bytes(bytes(4096))
    assert resize(4 << 10)
    assert ends_with_a_sentence(job_of(crawl, (folder / "drive").as_uri(), web))
    assert not any(path.is_file() for path in (folder / "drive").rglob("*"))


@pytest.mark.parametrize("size", [0, 1, 16, 64, 160])
def test_a_limit_on_files_is_a_full_disk(tmp_path, web, crawl, expected, size):
    job = job_of(crawl, tmp_path / "dataset", web)
    with limited(size << 10):
        assert ends_with_a_sentence(job)
    goes_on(job, expected)


def test_what_is_needed_is_told_before_a_run(disk, web):
    folder, _ = disk
    judged.write(folder / "dataset")
    job = small.job(folder / "crawl", folder / "dataset", web)
    free = "The dataset's disk has [78].[0-9] MB free."
    assert re.fullmatch(free, describe_disk_space(job))
    more = describe_disk_space(replace_settings(job, shards=10_000))
    assert re.fullmatch(f"{free} 1 shard took .* That is not enough: make room.*", more)
    new = replace_settings(job, output=str(folder / "new"))
    assert describe_disk_space(replace_settings(new, shards=2)).endswith(
        "2 shards will take at least 5.0 MB."
    )
    assert "at least 10.0 MB. That is not enough: make room" in describe_disk_space(
        replace_settings(new, shards=4)
    )
