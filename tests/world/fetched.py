"""Links asked for on a web of this machine: what arrived, and what was lost why."""

from cahlib.config import Download
from cahlib.fetch.images import fetch_images
from cahlib.fetch.resolver import NetworkConfig
from cahlib.records import Evidence, Stage, Tally
from tests.world.pictures import candidate


def fetched(web, *urls, evidence=None, net=None, **settings):
    """The images behind some URLs on a web, the tally, and nothing left over.

    Hosts are asked for no robots.txt where a test says nothing else: what is counted is images.
    """
    tally = Tally()
    calm = {"consent": "headers", "per_second": 0, "patience": 0}
    options = Download(**{"replay": web.address, **calm, **settings})
    net = net or NetworkConfig(only=("127.0.0.1", web.port), tls=False, pause=0)
    candidates = (candidate(url, position) for position, url in enumerate(urls))
    found = fetch_images(candidates, options, tally, evidence=evidence or Evidence(), net=net)
    arrived = list(found)
    assert tally.entered[Stage.FETCH] == len(urls)
    assert tally.left[Stage.FETCH] == len(arrived)
    assert tally.unaccounted(Stage.FETCH) == 0
    return arrived, tally


def lost(web, url, **settings):
    """The only reason why a URL gives no image."""
    arrived, tally = fetched(web, url, **settings)
    assert not arrived
    assert sum(tally.lost.values()) == 1
    return next(iter(tally.lost))
