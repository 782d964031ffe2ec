"""Storage whose drivers fail in ways of their own costs a shard, and no run."""

import errno
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from cahlib.core.errors import RunError, ShardError
from cahlib.core.records import Shard, Stats
from cahlib.demo.web import Answer, Web
from cahlib.parcel import parcel as parcels
from cahlib.parcel import storage
from tests.world.pictures import image
from tests.world.ports import free_port

SHARD = Shard(id="a", url="https://example.org/a.warc.wat.gz", half=0)
BROUGHT = {"url": "moody://parcels/a.tar", "sha256": "0" * 64, "size": 5}


class NoCredentials(Exception):
    """What botocore's errors are: exceptions, and nothing more than that."""


class Moody(AbstractFileSystem):
    """Storage that tells no sizes, and (as that of https does) knows no removing."""

    protocol = "moody"

    def info(self, path, **options):
        raise NoCredentials("Unable to locate\ncredentials.")


class Breaking(AbstractFileSystem):
    """Storage of which a tar breaks off: the URL's host says with which error."""

    protocol = "breaking"

    def info(self, path, **options):
        return {"name": path, "size": 5, "type": "file"}

    def get_file(self, source, target, **options):
        Path(target).write_bytes(b"half")
        if source.endswith(".tar"):
            code = getattr(errno, source.split("/")[0])
            raise OSError(code, "It broke off")


@pytest.fixture(autouse=True)
def moody():
    fsspec.register_implementation("moody", Moody, clobber=True)
    fsspec.register_implementation("breaking", Breaking, clobber=True)


def fetched(url, folder):
    return storage.download_parcel(SHARD, BROUGHT | {"url": url}, folder, limit=9, report=print)


def test_any_error_of_a_driver_costs_the_shard_alone(tmp_path):
    says = r"moody://parcels/a.tar cannot be reached: Unable to locate credentials \(NoCred"
    with pytest.raises(ShardError, match=says):
        storage.download_parcel(SHARD, BROUGHT, tmp_path, limit=9, report=print)


def test_a_parcel_that_cannot_be_removed_stays():
    storage.delete_upload(BROUGHT)


def test_a_parcel_that_is_not_there_is_told_from_storage_that_does_not_answer(tmp_path):
    with Web({"/busy.json": Answer(status=503)}) as web:
        with pytest.raises(ShardError, match="does not exist") as gone:
            fetched(f"http://{web.address}/a.tar", tmp_path)
        with pytest.raises(storage.StorageUnavailable, match="503"):
            fetched(f"http://{web.address}/busy.tar", tmp_path)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(storage.StorageUnavailable, match="cannot be reached"):
        fetched(f"http://{address}/a.tar", tmp_path)
    assert not isinstance(gone.value, storage.StorageUnavailable)
    with pytest.raises(ShardError, match="does not exist"):
        fetched(f"file://{tmp_path}/a.tar", tmp_path)


@pytest.mark.parametrize(
    ("error", "becomes"), [("ECONNRESET", storage.StorageUnavailable), ("ENOSPC", RunError)]
)
def test_nothing_is_left_of_a_parcel_that_breaks_off(tmp_path, error, becomes):
    with pytest.raises(becomes):
        fetched(f"breaking://{error}/a.tar", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_comes_late_leaves_the_parcel_of_another_alone(tmp_path):
    def brought(images):
        folder = tmp_path / "scraped"
        parcel = parcels.write_parcel(map(image, range(images)), SHARD, folder, stats=Stats())
        uploaded = storage.upload_parcel(parcel, f"file://{tmp_path}/parcels/")
        parcels.delete_parcel(folder, SHARD)
        return uploaded

    first, late = brought(2), brought(1)
    for each, images in ((first, 2), (late, 1)):
        folder = tmp_path / str(images)
        folder.mkdir()
        parcel = storage.download_parcel(SHARD, each, folder, limit=9, report=print)
        assert len(list(parcels.read_images(parcel))) == images
    assert brought(0)["url"] != brought(0)["url"]  # alike as they are, one may be dropped
    storage.delete_upload(late)
    assert (
        storage.download_parcel(SHARD, first, tmp_path / "scraped", limit=9, report=print).images
        == 2
    )


def test_what_is_no_parcel_is_not_removed(tmp_path):
    files = [tmp_path / "thesis.tar", tmp_path / "thesis.json"]
    for text in ("", "{}", '{"sha256": "1"}'):
        for file in files:
            file.write_text(text)
        storage.delete_upload(BROUGHT | {"url": f"file://{files[0]}"})
        assert [file.read_text() for file in files] == [text, text]
