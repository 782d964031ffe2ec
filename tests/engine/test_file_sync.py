"""Files of the driver are found by jobs elsewhere, whole, and are gone there at the end."""

import logging
import os
from threading import Thread

import pytest
from distributed import Client, LocalCluster

from cahlib.core.errors import RunError
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import remote_engine
from cahlib.engine.transfer import RemoteFile, delete_files
from tests.world import jobs


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


@pytest.mark.parametrize("staging", [False, True])
def test_files_are_found_whole_and_are_gone_at_the_end(cluster, tmp_path, staging, monkeypatch):
    monkeypatch.setattr("cahlib.engine.remote._CLOSE_TIMEOUT", jobs.LIMIT)
    (tmp_path / "shared").mkdir()
    reach = ClusterAddress(
        address=cluster.scheduler_address,
        file_folder=str(tmp_path / "there"),
        staging=(tmp_path / "shared").as_uri() if staging else "",
    )
    contents = {"empty": b"", "one": b"1", "large.bloom": os.urandom(9_000_000)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with remote_engine(reach, tmp_path / "home") as scrapers:
        for name in contents:
            for n in range(3):
                path = str(tmp_path / name)
                key = f"{staging}-{name}-{n}"
                scrapers.submit(key, jobs.read_file, path, limit=jobs.LIMIT, files=[path])
        taken = dict(scrapers.take(timeout=jobs.LIMIT) for _ in range(9))
        for key, (place, content) in taken.items():
            name = key.split("-")[1]
            assert content == contents[name]
            assert place.startswith(str(tmp_path / "there")) and place.endswith(name)
        assert len(os.listdir(tmp_path / "there")) == 3
        (tmp_path / "one").write_bytes(b"2")  # it is another file now
        path = str(tmp_path / "one")
        scrapers.submit(f"{staging}-changed", jobs.read_file, path, limit=jobs.LIMIT, files=[path])
        assert scrapers.take(timeout=jobs.LIMIT)[1][1] == b"2"
    assert not os.listdir(tmp_path / "shared")
    left = os.listdir(tmp_path / "there")
    assert len(left) == (4 if staging else 0)


def test_a_file_that_is_damaged_there_is_brought_again(cluster, tmp_path):
    path, files = tmp_path / "list", tmp_path / "there"
    path.write_text("content")
    reach = ClusterAddress(address=cluster.scheduler_address, file_folder=str(files))
    with remote_engine(reach, tmp_path) as scrapers:
        for n in range(2):
            scrapers.submit(
                f"job{n}", jobs.read_file, str(path), limit=jobs.LIMIT, files=[str(path)]
            )
            assert scrapers.take(timeout=jobs.LIMIT)[1][1] == b"content"
            [there] = files.iterdir()
            there.write_text("consent")


def test_a_machine_that_is_gone_keeps_no_other_from_its_deletions(cluster, tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.touch()
    at = ("127.0.0.9", "127.0.0.1")  # nobody is at the first
    files = [
        RemoteFile(place=str(p), host=h, size=0, sha256="") for p, h in zip(paths, at, strict=True)
    ]
    with Client(cluster.scheduler_address) as client:
        deleting = Thread(target=delete_files, args=(client, files), kwargs={"timeout": jobs.LIMIT})
        deleting.start()
        jobs.until(lambda: not paths[1].exists())
    deleting.join()  # the client's end is that of its questions
    assert paths[0].exists()


def test_a_file_that_is_not_here_is_named(cluster, tmp_path):
    with remote_engine(ClusterAddress(address=cluster.scheduler_address), tmp_path) as scrapers:
        with pytest.raises(RunError, match="nowhere cannot be read: No such file"):
            scrapers.submit("job", jobs.read_file, "nowhere", limit=jobs.LIMIT, files=["nowhere"])
