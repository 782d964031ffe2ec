from itertools import islice, repeat

import pytest

from cahlib.core.retry import backoff, retry, wait_until


class Away(Exception):
    pass


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, failures):
        self.left, self.slept = failures, []

    def ask(self):
        if self.left:
            self.left -= 1
            raise Away(self.left)
        return "there"

    def retry(self, **options):
        return retry(self.ask, errors=Away, sleep=self.slept.append, **options)


def test_a_call_is_repeated_after_each_pause_until_it_answers():
    flaky = Flaky(2)
    assert flaky.retry(pauses=backoff(1, most=30)) == "there" and flaky.slept == [1, 2]


@pytest.mark.parametrize(
    ("options", "slept"),
    [
        ({"pauses": (0, 0)}, [0, 0]),
        ({"pauses": repeat(5), "timeout": 1}, []),
        ({"pauses": repeat(0), "passing": lambda error: error.args[0] > 7}, [0, 0]),
    ],
)
def test_what_does_not_pass_is_raised_as_it_is(options, slept):
    flaky = Flaky(10)
    with pytest.raises(Away):
        flaky.retry(**options)
    assert flaky.slept == slept


def test_another_error_is_not_repeated():
    flaky = Flaky(0)
    flaky.ask = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        flaky.retry(pauses=repeat(0))
    assert not flaky.slept


def test_pauses_double_up_to_the_longest():
    assert [*islice(backoff(0.25, most=1), 5)] == [0.25, 0.5, 1, 1, 1]


def test_a_state_is_awaited_until_it_is_there_or_it_is_late():
    states, slept = iter([0, 0, 1]), []
    assert wait_until(lambda: next(states), timeout=60, pause=3, sleep=slept.append)
    assert slept == [3, 3]
    assert not wait_until(lambda: False, timeout=0, pause=0.001)
