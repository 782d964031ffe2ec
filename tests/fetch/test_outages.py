"""What a cut of the network costs: nothing but time, wherever the cut is. And IPv6 beside IPv4."""

import _socket
import errno
import socket
import threading
import time
from collections import Counter
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from cahlib.core.config import Download, replace_settings
from cahlib.core.errors import Postponed, ShardError
from cahlib.core.records import DropReason, Evidence, Stage, Stats
from cahlib.crawl.source import RETRY_PAUSES, CrawlFile
from cahlib.fetch.connectivity import Outages
from cahlib.fetch.images import fetch_images
from cahlib.fetch.outage_monitor import OutageTimings
from cahlib.fetch.resolver import NetworkConfig
from tests.world import hosts, small
from tests.world import web as w
from tests.world.jobs import LIMIT, until
from tests.world.names import name_server
from tests.world.pictures import candidate, picture
from tests.world.wires import NAMES, NOBODY, NOBODY6, OTHER, WEB, WEB6, Wires, ip

JPEG = picture()
FOUR, SIX = socket.AF_INET, socket.AF_INET6
HURRIED = OutageTimings(quiet=0.25, probe=0.75, retry=0.25)
ALIVE = {f"host{n}.example": ((FOUR, WEB),) for n in range(40)}
#: Hosts that are dead whatever the network does, and what their links are lost for.
DEAD = {
    "gone.example": (None, DropReason.DNS),
    "broken.example": (((FOUR, ""), (SIX, "")), DropReason.DNS),
    "closed.example": (((FOUR, OTHER),), DropReason.REFUSED),
    "nobody.example": (((FOUR, NOBODY),), DropReason.REFUSED),
    "asleep.example": (((FOUR, WEB),), DropReason.TIMEOUT),
}
#: These need no timeout, so that nothing hangs on how long a busy machine takes.
DEAD_AT_ONCE = [name for name, (_, reason) in DEAD.items() if reason is not DropReason.TIMEOUT]


@pytest.fixture(autouse=True)
def _real_sockets(monkeypatch):
    if lacking := hosts.lacking():
        pytest.skip(lacking)
    monkeypatch.setattr(socket.socket, "connect", _socket.socket.connect)  # the wires end here


@contextmanager
def world(*, families="46", names=ALIVE, most=60.0, timings=HURRIED, forwarder=False):
    """A web of these names, and a scraper that may begin.

    With a ``forwarder``, the scraper's machine asks a name server of its own, which is `alone` when
    its event is set.
    """
    dead = {name: addresses for name, (addresses, _) in DEAD.items() if addresses}
    silent, alone = threading.Event(), threading.Event()
    paths = {"/a.jpg": w.body(JPEG), "/robots.txt": w.body(b"User-agent: *\nAllow: /\n")}
    paths |= {f"asleep.example{path}": w.silent for path in paths}
    with Wires(families) as wires, ExitStack() as stack:
        with wires.inside(wires.far):
            for place in ((NAMES, 53), (WEB6, 53)):
                stack.enter_context(name_server({**names, **dead}, place, silent=silent))
            webs = [stack.enter_context(w.Web(paths, place=(at, 80))) for at in (WEB, WEB6)]
        server = f"{NAMES}:53" if "4" in families else f"[{WEB6}]:53"
        if forwarder:
            with wires.inside(wires.near):
                place = ("127.0.0.1", 53)
                server = stack.enter_context(name_server({**names, **dead}, place, alone=alone))
        net = NetworkConfig(servers=(server,), tls=False, pause=0, timings=timings,
                  outages=Outages(most))  # fmt: skip
        run = SimpleNamespace(
            wires=wires, webs=webs, silent=silent, alone=alone, outages=net.outages, stats=Stats(),
            evidence=Evidence(),
        )  # fmt: skip

        def scrape(*links, **settings):
            """Start; gives the future of the URLs that arrived."""
            calm = dict.fromkeys(("connect_timeout", "read_timeout", "total_timeout"), LIMIT)
            calm |= {"per_second": 0}
            options = Download(**{**calm, "connections": 64, **settings})
            wanted = (candidate(url, n) for n, url in enumerate(_all(links)))
            found = fetch_images(wanted, options, run.stats, evidence=run.evidence, net=net)
            return wires.start(lambda: Counter(image.candidate.url for image in found))

        run.scrape = scrape
        try:
            yield run
        finally:
            wires.plug()
            wires.mend()


def _all(links):
    """URLs, and what is to be waited for between them."""
    for each in links:
        if isinstance(each, threading.Event):
            assert each.wait(LIMIT)
        else:
            yield each


def offline(run):
    until(lambda: run.outages.current_seconds() > 0)


def some(names, each=8):
    return [f"http://{name}/a.jpg?{n}" for n in range(each) for name in names]


def unplug(run):
    run.wires.unplug()
    return run.wires.plug


def cut(run):
    run.wires.cut()
    return run.wires.mend


def hush(run):
    run.silent.set()
    return run.silent.clear


@pytest.mark.parametrize("trouble", [unplug, cut, hush])
def test_a_cut_in_the_middle_costs_nothing_but_time(trouble):
    names = list(ALIVE)
    before, after = some(names[:20]), some(names[20:])
    dead = some(DEAD_AT_ONCE, each=1)
    cut_off = threading.Event()
    with world() as run:
        scraping = run.scrape(*before, *dead, cut_off, *after, *some(names[:20], each=9)[160:])
        until(lambda: run.stats.left[Stage.FETCH] >= 50)
        mend = trouble(run)
        cut_off.set()
        offline(run)
        mend()
        arrived = scraping.result(LIMIT)
        assert run.outages.total() > 0
        assert run.outages.current_seconds() == 0
    assert run.stats.dropped == Counter(DEAD[name][1] for name in DEAD_AT_ONCE)
    assert len(arrived) == len(before) + len(after) + 20
    assert set(arrived.values()) == {1}
    assert run.evidence.silent == []


def test_what_runs_out_of_time_during_an_outage_is_asked_again():
    links, answering = some(list(ALIVE)[:2], each=1), threading.Event()
    with world() as run:
        run.webs[0].paths["host1.example/a.jpg"] = w.slow(w.body(JPEG), answering)
        scraping = run.scrape(*links, consent="headers", read_timeout=3)
        until(lambda: run.stats.left[Stage.FETCH] and run.webs[0].busy["host1.example"])
        mend = cut(run)
        until(lambda: run.outages.current_seconds() > 4)
        mend()
        answering.set()
        assert set(scraping.result(LIMIT)) == set(links)
    assert len(run.webs[0].asked) > 2


def test_name_servers_that_know_the_hosts_of_before_hide_no_cut():
    names = list(ALIVE)
    # so many are read at once: when they are done, nothing is on its way
    before, after, cut_off = some(names[:16], each=4), some(names[20:]), threading.Event()
    with world(timings=OutageTimings(quiet=1, probe=0.75, retry=0.25), forwarder=True) as run:
        scraping = run.scrape(*before, cut_off, *after)
        until(lambda: run.stats.left[Stage.FETCH] == len(before))
        mend = cut(run)
        run.alone.set()
        cut_off.set()
        offline(run)
        mend()
        run.alone.clear()
        assert len(scraping.result(LIMIT)) == len(before) + len(after)
    assert not run.stats.dropped


def test_a_cut_that_is_over_before_it_is_noticed_costs_nothing(monkeypatch):
    names, failed = list(ALIVE), []

    def connect(own, place):
        try:
            return _socket.socket.connect(own, place)
        except OSError as error:
            if error.errno == errno.ENETUNREACH:
                failed.append(place)
            raise

    monkeypatch.setattr(socket.socket, "connect", connect)
    # an address needs a connection of its own, and other names a look-up
    before, within, after = some(names[:10]), some([WEB, *names[10:20]]), some(names[20:])
    cut_off, mended = threading.Event(), threading.Event()
    with world(timings=OutageTimings(quiet=60)) as run:
        scraping = run.scrape(*before, cut_off, *within, mended, *after, connections=512)
        until(lambda: run.stats.left[Stage.FETCH] >= 50)
        mend = unplug(run)
        cut_off.set()
        until(lambda: failed)
        mend()
        mended.set()
        assert set(scraping.result(LIMIT)) == {*before, *within, *after}
        assert run.outages.total() == 0
    assert not run.stats.dropped


@pytest.mark.parametrize("trouble", [unplug, cut])
def test_without_network_from_the_start_nothing_is_lost(trouble):
    links = some(list(ALIVE)[:3], each=2)
    with world() as run:
        mend = trouble(run)
        scraping = run.scrape(*links)
        offline(run)
        assert not scraping.done()
        mend()
        assert set(scraping.result(LIMIT)) == set(links)
    assert not run.stats.dropped


def test_a_shard_is_given_back_when_the_network_stays_away():
    with world(most=0.5) as run:
        unplug(run)
        scraping = run.scrape(*some(list(ALIVE)[:3], each=2))
        wait([scraping], LIMIT)
        with pytest.raises(Postponed, match="no network"):
            scraping.result()
    assert run.stats.left[Stage.FETCH] == 0


def test_the_only_host_that_lives_does_not_hold_its_shard_by_dropping_us():
    links, dropped = some(["one.example"], each=72), threading.Event()
    with world(names={"one.example": ((FOUR, WEB),)}, most=0.5) as run:
        brief = {"connect_timeout": 5, "read_timeout": 5, "consent": "headers"}
        scraping = run.scrape(*links[:64], dropped, *links[64:], **brief)
        until(lambda: run.stats.left[Stage.FETCH] == 64)
        ip("-n", run.wires.far, *f"rule add from {WEB} blackhole".split())
        dropped.set()
        assert set(scraping.result(LIMIT)) == set(links[:64])
        # else its web waits 20 s for the ends of these connections
        ip("-n", run.wires.far, *f"rule del from {WEB} blackhole".split())
    assert sum(run.stats.dropped.values()) == 8


def test_where_only_dead_hosts_are_left_there_is_no_outage():
    # of those who answered, one family is dead: that of the first address to be tried
    names = {name: ((FOUR, WEB), (SIX, NOBODY6)) for name in list(ALIVE)[:3]}
    alive = some(names, each=1)
    with world(names=names) as run:
        tail = some(DEAD, each=4)
        scraping = run.scrape(*alive, *tail, consent="headers", read_timeout=6)
        assert set(scraping.result(LIMIT)) == set(alive)
        assert run.outages.total() == 0
    assert sum(run.stats.dropped.values()) == len(tail)
    assert set(run.evidence.silent) == set(DEAD)


@pytest.mark.parametrize("families", ["4", "6", "46"])
def test_hosts_are_reached_by_whichever_family_works(families):
    names = {
        "both.example": ((FOUR, WEB), (SIX, WEB6)),
        "four.example": ((FOUR, WEB),),
        "six.example": ((SIX, WEB6),),
        "dead-four.example": ((FOUR, NOBODY), (SIX, WEB6)),
        "dead-six.example": ((FOUR, WEB), (SIX, NOBODY6)),
        "no-four.example": ((FOUR, ""), (SIX, WEB6)),
        "no-six.example": ((FOUR, WEB), (SIX, "")),
        "inside.example": ((FOUR, "10.0.0.1"), (SIX, "::ffff:93.184.216.34"), (SIX, "fd00::1")),
    }
    reached = {
        name for name, addresses in names.items()
        if ("4" in families and (FOUR, WEB) in addresses)
        or ("6" in families and (SIX, WEB6) in addresses)
    }  # fmt: skip
    with world(families=families, names=names) as run:
        scraping = run.scrape(*some(names, each=1), consent="headers")
        arrived = scraping.result(LIMIT)
    assert {url.split("/")[2] for url in arrived} == reached


DATA = bytes(range(256)) * 8


@contextmanager
def crawl_host():
    """A crawl's file of which the first 100 bytes come, and the rest when it is asked again."""
    rest = w.body(DATA[100:], status=206)
    file = w.in_turn(w.broken_off(DATA[:100], length=len(DATA)), rest)
    with Wires() as wires, ExitStack() as stack:
        with wires.inside(wires.far):
            stack.enter_context(w.Web({"/a.gz": file}, place=(WEB, 80)))
        yield wires


def read(wires, outages, sleep):
    source = CrawlFile(f"http://{WEB}/a.gz", sleep=sleep, outages=outages)
    with wires.inside(wires.near):
        return b"".join(source.chunks(0, len(DATA)))


def test_the_crawls_file_is_read_on_after_a_cut():
    outages, waited = Outages(60), []
    with crawl_host() as wires:

        def sleep(seconds):
            waited.append(seconds)
            if len(waited) == 1:
                wires.unplug()
            if len(waited) == len(RETRY_PAUSES) + 5:
                assert outages.current_seconds() > 0
                wires.plug()

        assert read(wires, outages, sleep) == DATA
    assert outages.total() > 0
    assert outages.current_seconds() == 0
    assert outages.crawl == (WEB, 80)


def test_the_crawls_host_is_not_waited_for_if_it_alone_is_away():
    outages = Outages(60)
    with crawl_host() as wires:

        def sleep(seconds):
            wires.unplug()
            outages.last_answer = time.monotonic()  # hosts answer, as those of the images do

        with pytest.raises(ShardError, match="unreachable") as gone:
            read(wires, outages, sleep)
    assert not isinstance(gone.value, Postponed)


def test_the_crawls_host_is_waited_for_as_long_as_the_settings_say():
    with crawl_host() as wires, pytest.raises(Postponed, match="no network"):
        read(wires, Outages(0), lambda seconds: wires.unplug())


class Near:
    """An engine that scrapes on the machine at the wire, when it is asked for a result."""

    slots = 1

    def __init__(self, wires, given_back):
        self._wires, self._given_back, self._waiting = wires, given_back, []
        self.reports = list

    def __len__(self):
        return len(self._waiting)

    def submit(self, key, function, *arguments, limit):
        self._waiting.append((key, function, arguments, limit))

    def take(self, *, timeout):
        if not self._waiting:
            time.sleep(0.05)
            return None
        key, function, arguments, limit = self._waiting.pop()
        try:
            with self._wires.inside(self._wires.near):
                return key, function(*arguments, limit=limit, report=lambda _: None)
        except Postponed as error:
            self._given_back.set()
            return key, error


def test_a_shard_that_is_given_back_costs_no_attempt_and_a_later_launch_finishes_it(tmp_path):
    pytest.importorskip("open_clip", reason="a run needs: pip install 'cahlib[gpu]'")
    from cahlib.run.pipeline import run

    crawl, stop = small.write(tmp_path / "crawl", files=1, links=3), threading.Event()

    @contextmanager
    def scraping(job, *, stop, swarm_status):
        yield Near(wires, stop), tmp_path / "set/run/parcels"

    with Wires() as wires, ExitStack() as stack:
        with wires.inside(wires.far):
            pictures = {f"/0-0-{n}.jpg": w.body(JPEG) for n in range(3)}
            web = stack.enter_context(w.Web(pictures, place=(WEB, 80)))
        job = replace_settings(
            small.job(crawl, tmp_path / "set", web, attempts=1), shards=1, offline_minutes=0.01
        )
        wires.unplug()
        outcome = run(job, scraping=scraping, stop=stop)
        assert (outcome.shards.todo, outcome.shards.failed, outcome.errors) == (1, 0, ())
        wires.plug()
        outcome = run(job, scraping=scraping)
        assert outcome.shards.done == 1
        assert outcome.stats.left[Stage.FETCH] == 3
