"""Pages with links, and the candidates of them."""

from cahlib.core.config import Crawl
from cahlib.core.records import Stage, Stats
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.wat import Link, Page

GOOD = "A red fox jumps over the old garden fence"


def page(*links: Link, url: str = "http://site.com/a/b.html", base: str = "", metas=()) -> Page:
    return Page(url=url, base=base, links=list(links), metas=list(metas))


def image(url: str = "fox.jpg", alt: str = GOOD) -> Link:
    return Link("IMG@/src", url, alt)


def choose(*shown: Page, blocked: Blocklists | None = None, **options):
    """The candidates of some pages, and why the other links are none."""
    stats = Stats()
    found = list(find_candidates(shown, Crawl(**options), blocked or Blocklists(), stats))
    assert stats.unaccounted(Stage.CHOOSE) == 0
    assert stats.left[Stage.CHOOSE] == len(found)
    return found, {reason: n for reason, n in stats.dropped.items() if n}
