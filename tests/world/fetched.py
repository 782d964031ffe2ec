"""Links asked for on a web of this machine: what arrived, and what was lost why."""

from cahlib.core.config import Download
from cahlib.core.records import Evidence, Stage, Stats
from cahlib.fetch.images import fetch_images
from cahlib.fetch.resolver import NetworkConfig
from tests.world.pictures import candidate


def fetched(web, *urls, evidence=None, net=None, **settings):
    """The images behind some URLs on a web, the stats, and nothing left over.

    Hosts are asked for no robots.txt where a test says nothing else: what is counted is images.
    """
    stats = Stats()
    calm = {"consent": "headers", "per_second": 0, "max_failures": 0}
    options = Download(**{"replay": web.address, **calm, **settings})
    net = net or NetworkConfig(only=("127.0.0.1", web.port), tls=False, pause=0)
    candidates = (candidate(url, position) for position, url in enumerate(urls))
    found = fetch_images(candidates, options, stats, evidence=evidence or Evidence(), net=net)
    arrived = list(found)
    assert stats.entered[Stage.FETCH] == len(urls)
    assert stats.left[Stage.FETCH] == len(arrived)
    assert stats.unaccounted(Stage.FETCH) == 0
    return arrived, stats


def lost(web, url, **settings):
    """The only reason why a URL gives no image."""
    arrived, stats = fetched(web, url, **settings)
    assert not arrived
    assert sum(stats.dropped.values()) == 1
    return next(iter(stats.dropped))
