"""Every benchmark still works, at its smallest size; what it measures is not looked at."""

import importlib
from pathlib import Path

import pytest

from tests.benchmarks.common import Absent

#: Run whole, and its figures asserted, by `tests.acceptance.test_adversary`.
ELSEWHERE = {"bench_adversary"}

BENCHMARKS = {path.stem for path in Path(__file__).parent.glob("bench_*.py")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What several of them work on is made once."""
    return tmp_path_factory.mktemp("inputs")


@pytest.mark.parametrize("name", sorted(BENCHMARKS - ELSEWHERE))
def test_a_benchmark_works_at_its_smallest_size(name, inputs, capsys):
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    try:
        benchmark.main(["--small", f"--inputs={inputs}"])
    except Absent as lacking:
        pytest.skip(str(lacking))
    assert capsys.readouterr().out.strip(), "it printed no figures"
