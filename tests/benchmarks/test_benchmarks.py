"""Every benchmark still works, at its smallest size; what it measures is not looked at."""

import importlib
import json
from collections import ChainMap
from pathlib import Path

import pytest

from tests.benchmarks import figures
from tests.benchmarks.common import FIGURES, Absent

#: Run whole, and its figures asserted, by `tests.acceptance.test_adversary`.
ELSEWHERE = {"bench_adversary"}

BENCHMARKS = {path.stem for path in Path(__file__).parent.glob("bench_*.py")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What several of them work on is made once."""
    return tmp_path_factory.mktemp("inputs")


@pytest.mark.parametrize("name", sorted(BENCHMARKS - ELSEWHERE))
def test_a_benchmark_works_at_its_smallest_size(name, inputs, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv(FIGURES, str(tmp_path / "figures"))
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    try:
        benchmark.main(["--small", f"--inputs={inputs}"])
    except Absent as lacking:
        pytest.skip(str(lacking))
    assert capsys.readouterr().out.strip(), "it printed no figures"
    if (tmp_path / "figures").exists():
        noted = ChainMap(*map(json.loads, (tmp_path / "figures").read_text().splitlines()))
        for row in (*figures.COMPARED, *figures.ALL):  # the tables find what they show
            assert row.name not in noted or row.ours.format(**noted[row.name])
