"""What a run will probably bring, take and cost, by the figures of Crawling@Home."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cahlib.config import Job

#: Of one shard: new English links, and pairs kept by ViT-B/32 at 0.30 (Crawling@Home's figures of
#: 17,000 links and 1,000 to 1,500 pairs a WAT file).
_LINKS, _PAIRS = 8_500, (500, 750)

#: Links a second that a core does: one-core nodes of Crawling@Home did 11 to 17. The processor is
#: not what limits it: `bench_images` had two cores do 331.
_CORE = 14

#: Links a second that this machine may do alone.
_HERE = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What servers do and cost."""

    cores: int
    hourly: float
    currency: str


def expected(job: Job, servers: Price | None = None) -> str:
    """Return how much a job will bring, how long it takes and what it costs, as far as known."""
    rate = _CORE * servers.cores if servers else _HERE
    hours = job.place.hours
    ends = f"It ends after {hours:g} hours at the latest." if hours else ""
    if not job.crawl.shards:
        hourly = rate * 3600 * _PAIRS[0] / _LINKS
        return (
            f"It reads all there is; expect {rate:,.0f} links a second, {rate * 3600:,.0f} links "
            f"and {hourly:,.0f} pairs an hour. "
            f"{ends or 'It ends when all is read, or when you stop it.'}"
        )
    links = job.crawl.shards * _LINKS
    pairs = " to ".join(f"{job.crawl.shards * each:,}" for each in _PAIRS)
    seconds, money = links / rate, ""
    if servers:
        paid = math.ceil(min(seconds / 3600, hours or math.inf))
        money = f" and {servers.currency} {servers.hourly * paid:.2f} in all"
    return (
        f"{job.crawl.shards:,} shards bring some {links:,} links and {pairs} pairs in about "
        f"{duration(seconds)}{money} ({rate:,.0f} links a second), if they are like those of 2021. "
        f"{ends}"
    ).strip()


def duration(seconds: float) -> str:
    """Return seconds in the units that people use."""
    minutes = math.ceil(seconds / 60)
    if minutes < 100:
        return f"{minutes} minute{'s' * (minutes != 1)}"
    hours = minutes / 60
    return f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
