"""Async generators as ordinary ones."""

import asyncio
import threading

import pytest

from cahlib.fetch.async_thread import iterate_in_thread


async def count(to, closed=None):
    try:
        for number in range(to):
            await asyncio.sleep(0)
            yield number
    finally:
        if closed:
            closed.set()


def alone():
    return not [each for each in threading.enumerate() if each.name == "cahlib-bridge"]


def test_all_items_cross_in_order():
    assert list(iterate_in_thread(lambda: count(1000), ahead=3)) == list(range(1000))
    assert alone()


def test_a_cancellation_from_within_is_no_end():
    async def cancelled():
        yield 1
        raise asyncio.CancelledError

    items = iterate_in_thread(cancelled, ahead=3)
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="cancelled from within"):
        next(items)
    assert alone()


def test_an_error_crosses_behind_the_items_before_it():
    async def failing():
        yield 1
        raise KeyError("lost")

    seen = []
    with pytest.raises(KeyError, match="lost"):
        for item in iterate_in_thread(failing, ahead=3):
            seen.append(item)
    assert seen == [1]
    assert alone()


def test_leaving_early_closes_the_async_side():
    closed = threading.Event()
    items = iterate_in_thread(lambda: count(10**9, closed), ahead=3)
    assert next(items) == 0
    items.close()
    assert closed.is_set()
    assert alone()


def test_leaving_closes_a_side_that_waits_for_ever():
    closed = threading.Event()

    async def waiting():
        try:
            yield 1
            await asyncio.sleep(1000)
        finally:
            closed.set()

    items = iterate_in_thread(waiting, ahead=1)
    assert next(items) == 1
    items.close()
    assert closed.is_set()


def test_it_works_inside_a_running_loop():
    async def main():
        return list(iterate_in_thread(lambda: count(10), ahead=2))

    assert asyncio.run(main()) == list(range(10))


def test_the_async_side_is_at_most_so_far_ahead():
    made = []

    async def counted():
        for number in range(100):
            made.append(number)
            yield number

    for item in iterate_in_thread(counted, ahead=5):
        # One more is in the generator's hands, and one in ours.
        assert len(made) <= item + 7


def test_it_ticks_while_nothing_comes_and_what_a_tick_raises_ends_it():
    closed = threading.Event()

    async def silent():
        try:
            await asyncio.sleep(1000)
            yield 1
        finally:
            closed.set()

    def tick():
        raise TimeoutError("long enough")

    with pytest.raises(TimeoutError, match="long enough"):
        next(iterate_in_thread(silent, ahead=1, tick=tick))  # waits a second: a tick's length
    assert closed.is_set()
    assert alone()


def test_nothing_starts_before_the_first_item_is_wanted():
    iterate_in_thread(lambda: 1 / 0, ahead=1)
    assert alone()
