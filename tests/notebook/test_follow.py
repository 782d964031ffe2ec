"""The cell that keeps a session awake, without a kernel."""

import threading

from cahlib.notebook.follow import follow_run
from tests.world.jobs import LIMIT


def test_a_run_is_followed_to_its_end_and_none_is_not_waited_for():
    looks = iter([True, True, True, False])
    assert follow_run(lambda: next(looks))
    assert list(looks) == []
    assert not follow_run(lambda: False)


def test_a_run_that_is_started_later_is_waited_for():
    looks = iter([False, False, True, False])
    assert follow_run(lambda: next(looks), wait=LIMIT)
    assert list(looks) == []


def test_an_interrupt_ends_the_following_alone(capsys):
    going = threading.Event()

    def running():
        if going.is_set():
            raise KeyboardInterrupt
        going.set()
        return True

    assert follow_run(running)
    assert "the run continues" in capsys.readouterr().out
