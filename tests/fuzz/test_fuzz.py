"""The readers of strangers' bytes, by the same few inputs each time; `make fuzz` tries others."""

import random

import hypothesis
import pytest

from tests.fuzz.__main__ import changed
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_garbage_that_begins_well_breaks_no_reader(name):
    chance = random.Random(name)
    for beginning in TARGETS[name].beginnings:
        TARGETS[name].read(beginning)
    for _ in range(200):
        data = changed(chance, chance.choice(TARGETS[name].beginnings))
        try:
            TARGETS[name].read(data)
        except Exception as error:
            raise AssertionError(f"{name} broke on {data[:2000]!r}") from error


def test_the_suite_draws_the_same_examples_each_time():
    fuzzing, tests = map(hypothesis.settings.get_profile, ("fuzz", "tests"))
    assert tests.derandomize and tests.database is None
    assert not fuzzing.derandomize and fuzzing.max_examples > tests.max_examples
