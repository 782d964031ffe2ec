import gc
import threading
import weakref

import pytest

from cahlib.core.background import BackgroundLoop, capture
from tests.world.jobs import LIMIT


class Looks:
    """Counts calls, and says when a number of them has been made."""

    def __init__(self, last=3):
        self.made, self.last, self.reached = 0, last, threading.Event()

    def __call__(self):
        self.made += 1
        if self.made == self.last:
            self.reached.set()
        return self.made == self.last


def test_a_loop_calls_until_its_block_ends():
    looks = Looks(last=2)
    with BackgroundLoop(0.001, lambda: looks() and None) as loop:
        assert looks.reached.wait(LIMIT) and loop.is_running()
    made = looks.made
    assert not loop.is_running() and looks.made == made


def test_a_call_that_returns_true_is_the_last():
    looks = Looks()
    loop = BackgroundLoop(0.001, looks)
    loop.start()
    assert looks.reached.wait(LIMIT)
    loop.stop()
    assert looks.made == 3 and not loop.is_running()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_loop_waits_unless_it_is_woken(at_once):
    looks = Looks(last=1)
    with BackgroundLoop(3600, looks, at_once=at_once) as loop:
        if not at_once:
            loop.wake()
        assert looks.reached.wait(LIMIT)
    assert looks.made == 1


def test_a_loop_that_was_never_started_or_stops_itself_does_not_wait_for_itself():
    BackgroundLoop(3600, print).stop()
    stopped = threading.Event()

    def look():
        loop.stop()
        stopped.set()

    loop = BackgroundLoop(0.001, look)
    loop.start()
    assert stopped.wait(LIMIT)


class Kept(Exception):
    pass


def test_an_outcome_is_kept_until_it_is_asked_for():
    assert capture(lambda: 5).result() == 5

    def fail():
        raise Kept

    with pytest.raises(Kept):
        capture(fail).result()


def test_an_outcome_that_nobody_keeps_is_freed_at_once():
    error = Kept()
    seen = weakref.ref(error)

    def fail(errors):
        raise errors.pop()

    errors = [error]
    del error
    gc.disable()
    try:
        capture(lambda: fail(errors))
        assert seen() is None
    finally:
        gc.enable()
