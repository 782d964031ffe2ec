"""The outcomes of a run: with its pairs, for every door, and left out where nobody wants them."""

from collections import Counter

import pyarrow.parquet as pq
import pytest

from cahlib.core.config import replace_settings
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.parcel import parcel as parcels
from cahlib.run.pipeline import run
from tests.world import small

LINKS = 9  # of each half of a file


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("crawl"), files=1, links=LINKS)


@pytest.fixture(scope="module")
def dataset(crawl, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "set"
    with small.Pictures() as web:
        run(small.job(crawl, folder, web), scraping=small.scraping)
    return folder


def test_a_run_tells_what_became_of_each_candidate(dataset):
    assert list(verify(dataset)) == []
    for manifest in read_manifests(dataset):
        path = dataset / f"outcomes/{manifest.shard.id}.parquet"
        rows = pq.read_table(path).to_pylist()
        assert len(rows) == LINKS == manifest.stats.entered[Stage.FETCH]
        assert Counter(row["reason"] for row in rows)["kept"] == manifest.rows
        for row in rows:
            if row["reason"] == "kept":
                assert row["status"] == 200 and row["similarity"] is not None


def test_they_are_left_out_on_request(crawl, tmp_path):
    with small.Pictures() as web:
        job = replace_settings(small.job(crawl, tmp_path / "set", web), outcomes="no")
        run(job, scraping=small.scraping)
    assert not (tmp_path / "set/outcomes").exists() and list(verify(tmp_path / "set")) == []


def test_a_dataset_without_them_is_continued_with_them(crawl, tmp_path):
    folder = tmp_path / "set"
    with small.Pictures() as web:
        job = replace_settings(small.job(crawl, folder, web), outcomes="no", shards=1)
        run(job, scraping=small.scraping)
        result = run(replace_settings(job, outcomes="yes", shards=0), scraping=small.scraping)
    assert result.shards.done == 2 and list(verify(folder)) == []
    assert [len(each.files) for each in read_manifests(folder)] == [4, 5]


def test_outcomes_of_other_images_cost_no_more_than_their_shard(crawl, tmp_path, monkeypatch):
    read = parcels.unpack_outcomes

    def swapped(parcel):
        found = list(read(parcel))
        first = next(each for each in found if each.reason is None)
        if parcel.shard.half:
            found[first.position] = first._replace(reason=DropReason.TIMEOUT)
        yield from found

    monkeypatch.setattr(parcels, "unpack_outcomes", swapped)
    with small.Pictures() as web:
        job = replace_settings(small.job(crawl, tmp_path / "set", web), attempts=2)
        result = run(job, scraping=small.scraping)
    assert (result.shards.done, result.shards.failed) == (1, 1)
    assert "outcomes" in result.errors[0][1] and list(verify(tmp_path / "set")) == []
