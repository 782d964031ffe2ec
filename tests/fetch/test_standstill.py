"""What happens while this machine stands still, or before it knows that it is cut off."""

import asyncio
import threading
import time

import pytest

from cahlib.core.config import Download
from cahlib.core.records import DropReason, Evidence, Stage, Stats
from cahlib.fetch.connectivity import NoAnswerCause
from cahlib.fetch.images import stream_images
from cahlib.fetch.network import watch_network
from cahlib.fetch.outage_monitor import OutageTimings
from cahlib.fetch.resolver import NetworkConfig, NoAddressError, NoAnswerError
from tests.world import web as w
from tests.world.fetched import lost
from tests.world.jobs import LIMIT
from tests.world.pictures import candidate, picture

HURRIED = OutageTimings(quiet=0.25, probe=0.75, retry=0.25)


@pytest.mark.parametrize("probed", [False, True])
def test_what_ran_out_of_time_while_this_machine_stood_still_is_asked_again(monkeypatch, probed):
    """As after Ctrl-Z and `fg`, or on a machine that others keep busy."""
    answering, stats, clock, gone = threading.Event(), Stats(), time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + gone[0])  # the loop's time, too
    # hosts that answered before are probed
    pictures = {"/0.jpg": w.body(picture())}
    pictures |= {f"/{n}.jpg": w.slow(pictures["/0.jpg"], answering) for n in range(1, 4)}
    timeouts = {"connect_timeout": LIMIT, "read_timeout": LIMIT, "total_timeout": 3 * LIMIT}

    async def scrape(web):
        options = Download(per_second=0, consent="headers", **timeouts)
        net = NetworkConfig(only=("127.0.0.1", web.port), tls=False, pause=0, timings=HURRIED)
        links = (candidate(f"http://host{n}.example/{n}.jpg", n) for n in range(4))
        found = stream_images(links, options, stats, evidence=Evidence(), net=net)
        scraping = asyncio.ensure_future(anext(found))
        while len(web.asked) < 4 or web.reached["127.0.0.1"] < 4 + probed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)  # the client's deadlines begin just after its questions arrive
        gone[0] = 2 * LIMIT
        while len(web.asked) < 5 and not stats.dropped:
            await asyncio.sleep(0.01)
        answering.set()
        await scraping
        return 1 + len([image async for image in found])

    with w.Web(pictures) as web:
        assert asyncio.run(scrape(web)) == 4
    assert (stats.left[Stage.FETCH], stats.dropped) == (4, {})


def test_a_request_that_runs_out_of_time_before_the_outage_of_names_is_noticed_waits_for_it():
    answering = asyncio.Event()

    async def lookup(host):
        if host != "known.example" and not answering.is_set():
            await asyncio.sleep(0.1)
            raise NoAnswerError(host)
        return ["93.184.216.34"]

    async def lost():
        async with watch_network(NetworkConfig(lookup=lookup, timings=HURRIED)) as network:
            network.hosts.record_answer(time.monotonic())
            begun = time.monotonic()
            asking = asyncio.ensure_future(network.resolver.resolve("slow.example", 80))
            await asyncio.sleep(0)
            why = asyncio.ensure_future(
                network.no_answer_cause(begun, "slow.example", 80, at_once=False)
            )
            while not network.resolver.watch._state.offline:
                network.hosts.record_answer(time.monotonic())  # other hosts answer all the time
                await asyncio.sleep(0.01)
            answering.set()
            await asking
            return await why

    assert asyncio.run(lost()) is NoAnswerCause.OUTAGE


def test_a_name_whose_own_servers_are_down_prolongs_no_outage():
    asked, waiting = [], asyncio.Event()

    async def lookup(host):
        asked.append(host)
        if host == "waits.example":
            await waiting.wait()
        elif host == ".":
            raise NoAddressError(host)  # as the root's servers say
        elif len(asked) > 1:
            raise NoAnswerError(host)
        return ["93.184.216.34"]

    async def outage():
        net = NetworkConfig(lookup=lookup, timings=HURRIED)
        async with watch_network(net) as network:
            await network.resolver.resolve("gone.example", 80)
            last = asyncio.ensure_future(network.resolver.resolve("waits.example", 80))
            while not net.outages.total() or net.outages.current_seconds():
                await asyncio.sleep(0.01)
            waiting.set()
            await last

    asyncio.run(outage())
    assert asked[:4] == ["gone.example", "waits.example", "gone.example", "."]


def test_a_name_that_is_looked_up_for_longer_than_a_request_may_take_is_lost_for_its_name():
    async def lookup(host):
        if host == ".":
            raise NoAddressError(host)
        await asyncio.sleep(0.3)
        raise NoAnswerError(host)

    timings = OutageTimings(quiet=0.1, probe=0.75, retry=0.1)
    net = NetworkConfig(lookup=lookup, tls=False, pause=0, timings=timings)
    with w.Web({}) as web:
        reason = lost(web, "http://a.example/", net=net, consent="strict", total_timeout=0.2)
    assert reason is DropReason.DNS
