"""An estimate of a run's pairs, time and cost."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

from cahlib.core.config import Job
from cahlib.core.errors import CahError
from cahlib.core.rates import Rates, rates_for
from cahlib.core.retry_shards import parse_attempt
from cahlib.core.wording import plural
from cahlib.dataset.layout import MANIFESTS
from cahlib.dataset.manifest import committed_ids
from cahlib.dataset.storage.files import files_at


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPrice:
    """The cores of servers, and their price."""

    cores: int
    hourly: float
    currency: str
    left: float = math.inf  #: the budget that is left


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The estimate for a whole run, or for an hour of it."""

    share: float  #: of the requested shards that are not done
    hours: float  #: until the end
    endless: bool  #: without a limit but the end of the crawl: then the estimate is for one hour
    links: float
    pairs: tuple[float, float]  #: at least and at most
    rate: float  #: links per second
    cost: float  #: of its servers, each started hour as a whole one; 0 without servers
    currency: str
    judging: float  #: images per second that the model judges, if that is the slowest step; else 0
    fed: int  #: cores that scrape as fast as the model judges
    source: str  #: of the figures

    @property
    def per_thousand(self) -> str:
        """Return the price of 1,000 pairs; "" without servers."""
        if not (self.cost and self.pairs[0]):
            return ""
        low, high = (_money(1000 * self.cost / pairs) for pairs in reversed(self.pairs))
        return f"{self.currency} {low}{'' if low == high else f' to {high}'} per 1,000 pairs"

    def __str__(self) -> str:
        if not self.links:
            return "All shards are in the dataset already."
        when = "an hour" if self.endless else f"in about {format_duration(3600 * self.hours)}"
        pairs = " to ".join(dict.fromkeys(f"{_rounded(each):,}" for each in self.pairs))
        money = f" for {self.currency} {self.cost:.2f} ({self.per_thousand})" if self.cost else ""
        part = f" That is {self.share:.0%} of the requested shards." if self.share < 0.995 else ""
        slow = ""
        if self.judging:
            slow = (
                f" The model is the slowest step: it judges {_rounded(self.judging)} images/s, as "
                f"many as {plural(self.fed, 'core')} can fetch."
            )
        return (
            f"Expect about {plural(_rounded(self.links), 'link')} and {pairs} pairs {when}{money}, "
            f"at {self.rate:,.0f} links/s: {self.source}.{part}{slow}"
        )


def estimate_run(job: Job, servers: ServerPrice | None = None) -> Estimate:
    """Return the estimate of a job's pairs, time and cost."""
    rates = rates_for(job)
    rate, judging = _rate(job, rates, servers)
    left = max(job.crawl.shards - _done(job), 0)
    whole = left * rates.links / rate / 3600 if job.crawl.shards else math.inf
    hours = min(whole, job.place.hours or math.inf, _paid_hours(servers))
    endless = math.isinf(hours)
    hours = 1.0 if endless else hours
    links = round(rate * 3600 * hours, 6)  # as exact as the shards themselves
    shards = links / rates.links
    return Estimate(
        share=1.0 if math.isinf(whole) or not whole else hours / whole,
        hours=hours,
        endless=endless,
        links=links,
        pairs=(shards * rates.pairs[0], shards * rates.pairs[1]),
        rate=rate,
        cost=servers.hourly * max(math.ceil(hours - 1e-9), 1) if servers else 0,
        currency=servers.currency if servers else "",
        judging=judging,
        fed=math.ceil(rate / rates.core),
        source=rates.source,
    )


def cores_to_feed_model(job: Job) -> int:
    """Return how many cores scrape as fast as this machine's model judges."""
    rates = rates_for(job)
    return math.ceil(min(rates.model / rates.images / rates.core, 10_000))


def _rate(job: Job, rates: Rates, servers: ServerPrice | None) -> tuple[float, float]:
    """Return links per second, and images judged per second if the model is the slowest step."""
    scraped = rates.core * (servers.cores if servers else job.place.scrapers)
    judged = rates.model / rates.images
    return min(scraped, judged), rates.model if judged < scraped else 0


def _paid_hours(servers: ServerPrice | None) -> float:
    """Return how many whole hours of the servers the budget pays for."""
    if servers is None or not servers.hourly or math.isinf(servers.left):
        return math.inf
    return math.floor(servers.left / servers.hourly + 1e-9)


def _done(job: Job) -> int:
    """Return how many shards earlier launches have committed, but for retries."""
    with suppress(CahError):  # the run says what is wrong
        names = files_at(job.output.folder).names(MANIFESTS)
        return sum(not parse_attempt(each)[1] for each in committed_ids(names))
    return 0


def _rounded(number: float) -> int:
    """Return a number rounded to two significant digits."""
    unit: int = 10 ** (len(f"{number:.0f}") - 2) if number >= 100 else 1
    return round(number / unit) * unit


def _money(sum: float) -> str:
    return f"{sum:.2f}" if sum >= 0.095 else f"{sum:.2g}"


def format_duration(seconds: float) -> str:
    """Return a duration in a readable unit."""
    minutes = math.ceil(seconds / 60)
    if minutes < 100:
        return plural(minutes, "minute")
    hours = minutes / 60
    return f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
