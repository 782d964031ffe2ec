"""A scraper comes through a web that lies, stalls and attacks, and does no harm on its way."""

import pytest

from tests.benchmarks import bench_adversary
from tests.benchmarks.common import Absent
from tests.world.jobs import LIMIT


@pytest.fixture(scope="module")
def found():
    """What became of the attacks of `tests.world.adversary`, all in one shard."""
    try:
        return bench_adversary.run()
    except Absent as lacking:
        pytest.skip(str(lacking))


def test_every_attack_ends_for_its_reason(found):
    assert found["attacks"] > 100
    assert (found["wrong"], found["differences"]) == ([], {})
    assert found["unaccounted"] == [0, 0, 0]


def test_the_rest_of_the_shard_is_whole(found):
    assert found["good"] == bench_adversary.GOOD


def test_nothing_inside_is_reached_and_nothing_is_given_away(found):
    assert (found["inside"], found["passwords"], found["cookies"]) == (0, 0, 0)
    assert found["markup"] == 0, "what stood beside the pixels was stored"


def test_it_takes_bounded_time_and_memory(found):
    assert found["seconds"] < LIMIT
    assert found["memory"] < 400


def test_owners_who_refuse_by_a_file_of_their_host_send_nearly_nothing(found):
    assert found["wasted where asked first"] < 2000 * found["refusing"]


def test_the_benchmark_prints_its_figures(found, capsys):
    bench_adversary.show(found)
    assert f"attacks tried {found['attacks']}, survived {found['attacks']};" in (
        capsys.readouterr().out
    )
