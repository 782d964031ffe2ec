"""The readers of strangers' bytes, for a second each; `make fuzz` takes longer."""

import random
import time

import pytest

from tests.fuzz.__main__ import changed
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_garbage_that_begins_well_breaks_no_reader(name):
    seed = random.randrange(2**32)
    chance, end = random.Random(seed), time.monotonic() + 1
    for beginning in TARGETS[name].beginnings:
        TARGETS[name].read(beginning)
    while time.monotonic() < end:
        data = changed(chance, chance.choice(TARGETS[name].beginnings))
        try:
            TARGETS[name].read(data)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}, broke on {data[:2000]!r}") from error
