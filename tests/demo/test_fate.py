"""A real scraper meets the demo's world: every link ends as the world says that it must."""

from collections import Counter

import pytest

from cahlib.core.records import DropReason, Stage, Stats
from cahlib.crawl.shards import list_shards
from cahlib.demo import job, world
from cahlib.parcel.parcel import read_images
from cahlib.run.scrape import scrape


@pytest.fixture(scope="module")
def demo():
    return world.build()


@pytest.fixture(scope="module")
def scraped(demo, tmp_path_factory):
    """The stats of both halves, and the pairs of their images, with how often each came."""
    folder = tmp_path_factory.mktemp("parcels")
    with demo.serve() as web:
        asked = job("demo-dataset", web)
        parcels = [
            scrape(shard, asked.crawl, asked.download, folder, limit=60, report=lambda _: None)
            for shard in list_shards(asked.crawl)
        ]
    pairs = Counter(
        (i.candidate.url, i.candidate.text) for each in parcels for i in read_images(each)
    )
    return sum((parcel.stats for parcel in parcels), Stats()), pairs


def test_every_trap_is_caught_for_its_reason(demo, scraped):
    expected = demo.unread + Counter(each.reason for each in demo.exhibits if each.reason)
    scraping = {
        reason: expected[reason] for reason in DropReason if reason.stage is not Stage.JUDGE
    }
    assert {reason: scraped[0].dropped[reason] for reason in scraping} == scraping


def test_every_good_picture_arrives(demo, scraped):
    """Those that only the model can refuse arrive as well; some are shown in both halves."""
    assert scraped[1] == Counter(
        (each.url, each.text or each.alt)
        for each in demo.exhibits
        if each.reason is None or each.reason.stage is Stage.JUDGE
    )


def test_nothing_disappears(demo, scraped):
    stats = scraped[0]
    assert [stats.unaccounted(stage) for stage in Stage] == [0, 0, 0, 0]
    assert stats.entered[Stage.CHOOSE] == len(demo.exhibits)
