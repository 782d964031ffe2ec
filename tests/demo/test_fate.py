"""A real scraper meets the demo's world: every link ends as the world says that it must."""

from collections import Counter

import pytest

from cahlib.core.config import replace_settings
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.crawl.shards import list_shards
from cahlib.demo import job, world
from cahlib.parcel.parcel import read_images, unpack_outcomes
from cahlib.run.scrape import scrape
from tests.world import awake
from tests.world.jobs import LIMIT


@pytest.fixture(scope="module")
def demo():
    return world.build()


@pytest.fixture(scope="module")
def scraped(demo, tmp_path_factory):
    """The stats of both halves, the pairs of their images by how often each came, the outcomes."""
    folder = tmp_path_factory.mktemp("parcels")
    with awake.endless(demo).serve() as web:
        asked = replace_settings(job("demo-dataset", web), **awake.TIMEOUTS)
        parcels = [
            scrape(shard, asked.crawl, asked.download, folder, limit=LIMIT, report=lambda _: None)
            for shard in list_shards(asked.crawl)
        ]
    pairs = Counter(
        (i.candidate.url, i.candidate.text) for each in parcels for i in read_images(each)
    )
    outcomes = [each for parcel in parcels for each in unpack_outcomes(parcel)]
    return sum((parcel.stats for parcel in parcels), Stats()), pairs, outcomes


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


def test_every_candidate_has_its_own_outcome(demo, scraped):
    """The log gives the reason of each link, not only how many there were of each."""
    stats, _, outcomes = scraped
    assert len(outcomes) == stats.entered[Stage.FETCH]
    expected = Counter(
        (each.url, each.text or each.alt, None if judged else each.reason)
        for each in demo.exhibits
        if (judged := each.reason is None or each.reason.stage is Stage.JUDGE)
        or each.reason.stage is Stage.FETCH
    )
    found = Counter((o.candidate.url, o.candidate.text, o.reason) for o in outcomes if o.candidate)
    assert found == expected - Counter(
        {key: n for key, n in expected.items() if key[2] is DropReason.KNOWN_HARM}
    )


def test_an_outcome_tells_what_came_of_the_requests(scraped):
    for each in scraped[2]:
        if each.reason is None:
            assert each.status in (200, 203, 206) and each.bytes and each.ms is not None
        if each.reason in (DropReason.HTTP_4XX, DropReason.HTTP_5XX, DropReason.TOO_OFTEN):
            assert each.status >= 400 and each.bytes is None
        if each.reason in (DropReason.DNS, DropReason.REFUSED, DropReason.PRIVATE_ADDRESS):
            assert each.status is None and each.final_url is None
    assert {each.attempt for each in scraped[2]} >= {1, 2}
    assert any(each.final_url for each in scraped[2] if each.reason is None)
