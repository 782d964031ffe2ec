"""The queue in which hosts take turns."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cahlib.fetch.host_queue import HostQueue


def test_a_full_host_waits_and_another_does_not():
    queue = HostQueue(1)
    assert queue.add("a", 1)
    assert not queue.add("a", 2)
    assert queue.add("b", 3)
    assert len(queue) == 1
    assert queue.finish("a") == 2
    assert queue.finish("a") is None


@given(st.lists(st.sampled_from("abc")), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_item_starts_once_and_no_host_has_more_than_its_share(hosts, per_host, chance):
    queue, running, started = HostQueue(per_host), [], []

    def start(item):
        running.append(item)
        started.append(item)
        assert max(Counter(host for host, _ in running).values()) <= per_host

    for item in ((host, number) for number, host in enumerate(hosts)):
        if queue.add(item[0], item):
            start(item)
    while running:
        host, _ = running.pop(chance.randrange(len(running)))
        if following := queue.finish(host):
            start(following)
    assert sorted(started) == sorted((host, number) for number, host in enumerate(hosts))
    assert queue.is_idle and not len(queue)
