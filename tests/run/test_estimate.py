"""What a plan promises: by measured figures, as soon as there are any."""

import math

import pytest

from cahlib.core import rates
from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.core.rates import RateRecorder, rates_for
from cahlib.core.records import Stage, Stats
from cahlib.run import estimate
from cahlib.run.estimate import ServerPrice, estimate_run
from cahlib.run.quote import make_quote
from tests.world import small, tables


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of two cores with a GPU, on which nothing was measured yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(rates, "has_gpu", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def job(tmp_path, **values):
    return replace_settings(Job(), output=str(tmp_path / "dataset"), **values)


def servers(count, **more):
    return ServerPrice(cores=2 * count, hourly=0.01 * count, currency="EUR", **more)


def shard(links=4000, images=3000, pairs=100):
    stats = Stats()
    stats.left[Stage.FETCH], stats.entered[Stage.JUDGE] = links, images
    stats.left[Stage.JUDGE] = pairs
    return stats


def test_what_nobody_measured_is_as_in_2021_and_says_so(tmp_path):
    said = str(estimate_run(job(tmp_path, shards=20, swarm=4), servers(4)))
    assert said.startswith(
        "Expect about 170,000 links and 10,000 to 15,000 pairs in about 26 minutes for EUR 0.04 "
        "(EUR 0.0027 to 0.004 per 1,000 pairs), at 112 links/s: from Crawling@Home's figures of "
    )


def test_further_models_take_their_time(tmp_path):
    """Of 5,950 images a shard at most 750 are kept, which the further models see too."""
    alone = rates_for(job(tmp_path)).model
    also = rates_for(job(tmp_path, also=("quality",))).model
    both = job(tmp_path, also=("quality",), cascade=("ViT-L-14/openai:0.2",))
    assert alone == 500
    assert also == pytest.approx(1 / (1 / 500 + 750 / 5950 / 500))
    assert rates_for(both).model == pytest.approx(1 / (1 / 500 + 2 * 750 / 5950 / 500))

    of_quality = RateRecorder(job(tmp_path, preset="quality"))
    of_quality.add(shard(images=3000), scraped=100.0, worked=60.0)  # 50 images per second
    assert rates_for(job(tmp_path)).model == 500
    assert rates_for(job(tmp_path, also=("quality",))).model == pytest.approx(
        1 / (1 / 500 + 750 / 5950 / 50)
    )
    RateRecorder(both).add(shard(images=3000), scraped=100.0, worked=30.0)
    assert rates_for(both).model == 100 and rates_for(job(tmp_path)).model == 500


def test_a_single_file_is_two_shards_for_the_plan_too(tmp_path):
    (tmp_path / "a.wat.gz").write_bytes(small.file(0, links=1))
    mine = job(tmp_path, crawl=str(tmp_path / "a.wat.gz"), contact="a@example.org")
    assert str(make_quote(mine, "").estimate).startswith("Expect about 17,000 links")


def test_a_table_is_counted_and_what_its_rows_yield_is_measured(tmp_path):
    """First between a crawl's captions and all images; then as another table's rows did."""
    path = tables.write(tmp_path / "t.parquet", tables.rows(3000))
    mine = job(tmp_path, links=(str(path),), shard_links=2000, crawl="")
    assert make_quote(mine, "").estimate.links == pytest.approx(3000)
    assert make_quote(mine, "").estimate.pairs == pytest.approx((3000 * 500 / 8500, 2100))
    bare = replace_settings(mine, shard_links=10_000, no_judge=True, model="", preset="laion400m")
    assert make_quote(bare, "").estimate.pairs == pytest.approx((2100, 2100))
    RateRecorder(mine).add(table_shard(8000), scraped=80, worked=10.0)
    fewer = replace_settings(mine, shard_links=100)
    assert make_quote(fewer, "").estimate.links == pytest.approx(1500)
    assert make_quote(fewer, "").estimate.pairs == pytest.approx((37.5, 37.5))
    assert rates_for(job(tmp_path)).links == 8500  # of a crawl that tells nothing
    with pytest.raises(ConfigError, match="give a crawl or tables of links, not both"):
        make_quote(replace_settings(mine, crawl="CC-MAIN-2024-10"), "")


def table_shard(rows):
    stats = shard()
    stats.entered[Stage.READ] = rows
    return stats


def test_a_run_measures_for_the_next_plan(tmp_path):
    mine = job(tmp_path, shards=20, swarm=4)
    meter = RateRecorder(mine)
    for number in range(3):
        meter.add(shard(), scraped=80, worked=10.0 * (number + 1))
    seen = rates_for(mine)
    assert (seen.core, seen.links, seen.pairs, seen.model) == (50, 4000, (100, 100), 300)
    said = str(estimate_run(mine, servers(4)))
    assert "80,000 links and 2,000 pairs" in said and "from this machine's last runs" in said
    other = rates_for(job(tmp_path, shards=20, preset="laion5b-multi", languages="all"))
    assert (other.core, other.links) == (14, 8500)  # here, with another model, nobody did anything


def test_the_latest_shards_count_most(tmp_path):
    meter = RateRecorder(job(tmp_path))
    for _ in range(200):
        meter.add(shard(links=100), scraped=100, worked=0)
    for _ in range(400):
        meter.add(shard(links=1000), scraped=100, worked=0)
    assert 9 < rates_for(job(tmp_path)).core < 10


@pytest.mark.parametrize("by", [{"replay": "127.0.0.1:1"}, {"tracker": "http://tracker.example"}])
def test_what_is_replayed_or_was_scraped_by_others_is_not_measured(tmp_path, by):
    RateRecorder(job(tmp_path, **by)).add(shard(), scraped=1, worked=1)
    assert rates_for(job(tmp_path, **by)).core == 14


def test_shards_without_one_image_are_no_measure(tmp_path):
    mine = job(tmp_path, shards=20)
    RateRecorder(mine).add(shard(images=0, pairs=0), scraped=10, worked=0)
    assert rates_for(mine).images == 0.7 and estimate_run(mine).pairs[0]


@pytest.mark.parametrize("damage", ["", "[]", '{"scraped here": 3}', '{"scraped here": {"x": []}}'])
def test_damaged_figures_are_those_of_nobody(tmp_path, damage):
    path = tmp_path / ".cache/cahlib/rates.json"
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    assert rates_for(job(tmp_path)).core == 14


def test_without_a_gpu_the_model_is_what_more_servers_cannot_help(tmp_path, monkeypatch):
    mine = job(tmp_path, shards=20, swarm=4)
    fast = estimate_run(mine, servers(4))
    monkeypatch.setattr(rates, "has_gpu", lambda: False)
    slow = estimate_run(mine, servers(4))
    assert slow.hours > 5 * fast.hours and slow.cost > fast.cost
    assert slow.rate == 20 and "it judges 14 images/s, as many as 2 cores can" in str(slow)
    assert estimate_run(mine, servers(8)).hours == slow.hours


@pytest.mark.parametrize("limits", [{}, {"hours": 2}, {"shards": 500}, {"shards": 50, "hours": 1}])
def test_more_servers_never_promise_fewer_pairs(tmp_path, limits):
    every = [estimate_run(job(tmp_path, swarm=n, **limits), servers(n)) for n in range(1, 60)]
    pairs = [each.pairs[0] for each in every]
    assert pairs == sorted(pairs)


def test_what_the_money_or_the_hours_do_not_pay_for_is_not_promised(tmp_path):
    mine = job(tmp_path, shards=1000, swarm=4)
    poor = estimate_run(mine, servers(4, left=0.085))
    assert poor.hours == 2 and poor.cost == pytest.approx(0.08)
    assert "That is 9% of the requested shards." in str(poor)
    assert estimate_run(replace_settings(mine, hours=0.5), servers(4)).hours == 0.5


def test_a_run_without_an_end_is_told_by_the_hour(tmp_path):
    said = str(estimate_run(job(tmp_path, shards=0, swarm=4), servers(4)))
    assert "400,000 links and 24,000 to 36,000 pairs an hour for EUR 0.04" in said


def test_shards_that_are_done_are_not_promised_again(tmp_path):
    (tmp_path / "dataset/shards").mkdir(parents=True)
    for number in range(20):
        (tmp_path / f"dataset/shards/s-{number}.json").touch()
    (tmp_path / "dataset/shards/s-0-retry1.json").touch()
    assert str(estimate_run(job(tmp_path, shards=20))) == "All shards are in the dataset already."
    assert math.isclose(estimate_run(job(tmp_path, shards=21)).links, 8500)


@pytest.mark.parametrize(
    ("number", "rounded"), [(0.4, 0), (99.6, 100), (101, 100), (8499, 8500), (126_000, 130_000)]
)
def test_an_estimate_has_two_digits(number, rounded):
    assert estimate._rounded(number) == rounded
