"""Stages overlap, hold each other back, and end together."""

import threading
from collections.abc import Iterator

import pytest

from cahlib.core.prefetch import Abandoned, Pipeline
from tests.world.jobs import LIMIT


def test_items_pass_in_their_order():
    with Pipeline() as pipeline:
        doubled = (2 * n for n in pipeline.prefetch(range(100), 3))
        assert list(pipeline.prefetch(doubled, 3)) == list(range(0, 200, 2))


def test_a_stage_is_never_further_ahead_than_its_limit():
    made: list[int] = []

    def make() -> Iterator[int]:
        for n in range(1, 1001):
            made.append(n)
            yield n

    with Pipeline() as pipeline:
        for taken in pipeline.prefetch(make(), 5):
            # five wait in the line, and one is in the maker's hand
            assert made[-1] <= taken + 6


def test_an_error_comes_out_where_the_items_are_taken():
    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    taken = []
    with pytest.raises(ValueError, match="broken"), Pipeline() as pipeline:
        for item in pipeline.prefetch((n for n in pipeline.prefetch(fail(), 2)), 2):
            taken.append(item)
    assert taken == [1]


def test_leaving_early_ends_every_stage_and_none_takes_it_for_the_end():
    endings = []
    blocked = threading.Event()

    def first() -> Iterator[int]:
        try:
            n = 0
            while True:
                yield (n := n + 1)
        finally:
            endings.append("first")

    def second(source: Iterator[int]) -> Iterator[int]:
        try:
            for item in source:
                if item == 4:
                    blocked.set()
                yield item
            endings.append("took it for the end")
        except Abandoned:
            endings.append("second abandoned")
            raise
        except GeneratorExit:
            endings.append("second closed")
            raise

    with Pipeline() as pipeline:
        line = pipeline.prefetch(second(pipeline.prefetch(first(), 2)), 2)
        assert next(line) == 1
        assert blocked.wait(LIMIT)
    assert pipeline.closed
    assert sorted(endings)[0] == "first"
    assert "took it for the end" not in endings
    with pytest.raises(Abandoned):
        next(line)
